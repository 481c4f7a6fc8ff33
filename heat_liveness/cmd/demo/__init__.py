# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""``heat-liveness-demo``: engines work on a template, some die, the others finish it.

``template`` reads the resources, ``run`` plays fate and supervisor over processes of
``engine``, ``view`` shows it, ``verdict`` judges it and ``report`` prints that.
"""

import argparse
import contextlib
import pathlib
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence

from oslo_config import cfg

import heat_liveness
from heat_liveness import conf, errors
from heat_liveness.cmd.demo import report, run, template, view
from heat_liveness.db import database

PROGRAM = 'heat-liveness-demo'
TEMPLATES = pathlib.Path(__file__).parent / 'templates'
EXIT_NOT_OK = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demo; return 0 only if nothing was lost and nothing was done twice."""
    options = _parse(arguments)
    plan = run.Plan(options.engines, options.kill, options.stop, options.seed,
                    options.time_limit)
    # To be told to end is no reason to leave engines behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = pathlib.Path(tempfile.mkdtemp(prefix='heat-liveness-demo-'))
    keep = True
    try:
        keep = not _play(options, plan, directory)
    except (errors.ConfigError, errors.TemplateError) as error:
        return _fail(error, EXIT_USAGE)
    except errors.LivenessError as error:
        return _fail(error, EXIT_NOT_OK)
    except KeyboardInterrupt:
        print('Interrupted; all engines are ended.')
        keep = False
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
        if keep and any(directory.glob('*.log')):
            print(f'What the engines said is kept in {directory}.')
        else:
            shutil.rmtree(directory)
    return EXIT_NOT_OK if keep else 0


def _play(options: argparse.Namespace, plan: run.Plan, directory: pathlib.Path) -> bool:
    work = template.load(options.template)
    url = _database(options) or f'sqlite:///{directory}/demo.sqlite'
    title = (f'{PROGRAM}: {len(work.requires)} resources of {work.name}, {plan.engines} engines, '
             f'{database.parse_url(url).get_backend_name()}, --seed {plan.seed}')
    with view.create(title, live=options.live) as shown:
        played = run.Run(url, plan, work, shown, directory)
        played.prepare()
        try:
            outcome = played.play()
        except KeyboardInterrupt:
            _forget(played)
            raise
    print(report.render(outcome, len(work.requires), plan.settings().declaration_bound))
    if outcome.ok:
        _forget(played)
    return outcome.ok


def _database(options: argparse.Namespace) -> str | None:
    """Return the URL of the database that was named, if any.

    :raises ConfigError: it cannot be used, or stands with its password in the command line
    """
    if options.config_file is not None:
        config = cfg.ConfigOpts()
        conf.load(config, ['--config-file', options.config_file], PROGRAM,
                  heat_liveness.__version__)
        found = database.parse_url(config.database.connection,
                                   config.database.connection_parameters)
        return found.render_as_string(hide_password=False)
    if options.database is not None:
        found = database.parse_url(options.database)
        if found.password or found.query.keys() & {'password', 'passwd'}:
            raise errors.ConfigError(
                'A command line is no place for a password, as everybody on this machine can read '
                'it: write the URL into a file, as [database] connection, and name that with '
                '--config-file.')
    named: str | None = options.database
    return named


def _forget(played: run.Run) -> None:
    # What is left harms nobody: its engines' topic is this run's alone.
    with contextlib.suppress(errors.LivenessError):
        played.forget()


def _fail(error: errors.LivenessError, status: int) -> int:
    print(f'{PROGRAM}: {error}', file=sys.stderr)
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        PROGRAM, description=
        'Engines make the resources of a Heat template. Some are killed (kill -9), some are '
        'stopped (SIGSTOP) and continued; the others find out and finish their work. The exit '
        'status is 0 only if nothing was lost and nothing was done twice.')
    shipped = sorted(path.stem for path in TEMPLATES.glob('*.yaml'))
    parser.add_argument('--engines', type=_number(2, 32), default=4, metavar='N',
                        help='how many engines work (default: %(default)s)')
    parser.add_argument('--kill', type=_number(0, 31), default=1, metavar='K',
                        help='how many of them are killed (default: %(default)s)')
    parser.add_argument('--stop', type=_number(0, 31), default=1, metavar='S',
                        help='how many of them are stopped, and continued when their work is '
                             'taken, if the kernel has not ended them by then '
                             '(default: %(default)s)')
    parser.add_argument('--template', type=_template, default='platform', metavar='FILE',
                        help=f'a HOT template, or one of those shipped: {", ".join(shipped)} '
                             f'(default: %(default)s)')
    named = parser.add_mutually_exclusive_group()
    named.add_argument('--database', metavar='URL',
                       help='a database of its own for the demo, without a password, as in '
                            'postgresql+psycopg:///DATABASE (default: an SQLite file that is '
                            'removed afterwards)')
    named.add_argument('--config-file', metavar='FILE',
                       help='a file that names this database, as [database] connection')
    parser.add_argument('--seed', type=int, metavar='N',
                        help='decides who is hit, and when (default: another one each time)')
    parser.add_argument('--time-limit', type=_number(10, 3600), default=180, metavar='SECONDS',
                        help='when to give up (default: %(default)s)')
    parser.add_argument('--no-live', dest='live', action='store_false',
                        help='print a line for each event instead of the live view')
    options = parser.parse_args(arguments)
    if options.kill + options.stop >= options.engines:
        parser.error(f'--kill {options.kill} and --stop {options.stop} leave none of '
                     f'{options.engines} engines unharmed; give more with --engines.')
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


class _number:  # noqa: N801 - it reads as a type in an option's definition
    """A whole number between two others."""

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most

    def __call__(self, text: str) -> int:
        with contextlib.suppress(ValueError):
            if self._least <= int(text) <= self._most:
                return int(text)
        raise argparse.ArgumentTypeError(
            f'{text} is no whole number from {self._least} to {self._most}')


def _template(text: str) -> pathlib.Path:
    shipped = TEMPLATES / f'{text}.yaml'
    return shipped if '/' not in text and shipped.is_file() else pathlib.Path(text)
