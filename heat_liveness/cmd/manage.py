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

"""``heat-liveness-manage``: what an operator sees and commands.

It reads the configuration that ``heat-manage`` reads, or what ``--config-file`` and
``--config-dir`` name.  A command answers on stdout, all at once and after all is done; what
went wrong is one sentence on stderr.

======  ==========================================================================
status  meaning
======  ==========================================================================
0       done
1       refused or failed, and nothing was changed (unless the sentence says that
        the outcome is unclear)
2       the command was not understood
======  ==========================================================================
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

import heat_liveness
from heat_liveness import conf, errors
from heat_liveness.cmd import output

if TYPE_CHECKING:
    from heat_liveness.db.database import Database

PROGRAM = 'heat-liveness-manage'
EXIT_FAILED = 1
SYNC_SECONDS = 90.0
"""How long one statement of ``db sync`` may take: it waits for another sync, and alters tables."""
_KINDS = ('death', 'takeover', 'quarantine', 'operator', 'resource', 'message', 'stack')
_STATUSES = ('in_progress', 'complete', 'failed', 'released', 'quarantined')

Command = Callable[['Database', conf.Settings, Any], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    :raises SystemExit: 2, the command was not understood; 0, its help was shown
    """
    # The sentence is enough: what oslo.db and alembic log of an error is not for a terminal.
    logging.getLogger().addHandler(logging.NullHandler())
    config = cfg.ConfigOpts()
    config.register_cli_opt(cfg.SubCommandOpt(
        'command', title='Commands', help='Each tells more with --help.', handler=_add_parsers))
    try:
        conf.load(config, sys.argv[1:] if arguments is None else arguments, PROGRAM,
                  heat_liveness.__version__)
        _say(_run(config))
    except (errors.LivenessError, cfg.Error, OSError) as error:
        print(f'{PROGRAM}: {error}', file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED
    return 0


def _run(config: cfg.ConfigOpts) -> str:
    from heat_liveness.db import schema
    from heat_liveness.db.database import Database

    settings = conf.Settings.from_conf(config)
    group, action = config.command.name, getattr(config.command, 'action', '')
    tables = group == 'db'
    database = Database(
        config.database.connection, parameters=config.database.connection_parameters,
        connect_timeout=settings.connect_timeout,
        read_timeout=SYNC_SECONDS if tables else settings.read_timeout, connections=2)
    try:
        if not tables:
            schema.require(database)
        if group == 'recover':
            from heat_liveness.cmd import recover
            return recover.once(config, settings, config.command)
        return _command(group, action)(database, settings, config.command)
    finally:
        database.close()


def _command(group: str, action: str) -> Command:
    if group == 'db':
        # Alone, as it takes alembic.
        from heat_liveness.cmd import schema
        return {'sync': schema.sync, 'drop': schema.drop, 'version': schema.version,
                'check': schema.check}[action]
    from heat_liveness.cmd import lock, service, takeover
    return {
        ('service', 'list'): service.shown, ('service', 'show'): service.show,
        ('service', 'clean'): service.clean,
        ('lock', 'list'): lock.shown, ('lock', 'show'): lock.show,
        ('lock', 'release'): lock.release, ('lock', 'retry'): lock.retry,
        ('lock', 'fail'): lock.fail,
        ('takeover', 'list'): takeover.shown, ('takeover', 'show'): takeover.show,
    }[group, action]


def _say(text: str) -> None:
    # What a terminal, or UTF-8, has no character for stands in a row all the same.
    encoding = sys.stdout.encoding or 'utf-8'
    try:
        if text:
            print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)
    except BrokenPipeError:
        # Whoever reads has read enough; Python must not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _add_parsers(groups: Any) -> None:
    _add_db(_group(groups, 'db', 'create, upgrade and check the tables'))
    _add_service(_group(groups, 'service', 'the engines'))
    _add_lock(_group(groups, 'lock', 'the work of heat-liveness-agent and its like'))
    _add_takeover(_group(groups, 'takeover', 'the journal of deaths, takeovers and commands'))
    _add_recover(groups)


def _group(groups: Any, name: str, text: str) -> Any:
    group = groups.add_parser(name, help=text, description=text)
    return group.add_subparsers(dest='action', required=True, metavar='COMMAND')


def _action(actions: Any, name: str, text: str, *, formats: bool = False) -> Any:
    parser = actions.add_parser(name, help=text, description=text)
    if formats:
        parser.add_argument('-f', '--format', dest='form', choices=output.FORMATS,
                            help='how to write it')
    return parser


def _add_db(actions: Any) -> None:
    _action(actions, 'sync', 'create the tables, or upgrade them')
    _action(actions, 'drop', 'remove the tables, where no engine beats any more')
    _action(actions, 'version', 'show the version of the tables')
    _action(actions, 'check', 'fail if the tables are not of the version that is needed')


def _add_service(actions: Any) -> None:
    parser = _action(actions, 'list', 'list the engines, as heat-manage service list does',
                     formats=True)
    parser.add_argument('--all', action='store_true', help='those that are dead or left, too')
    parser.add_argument('--long', action='store_true', help='all that matters of each (a table)')
    parser = _action(actions, 'show', 'show all that is known of one engine', formats=True)
    parser.add_argument('engine_id', metavar='ENGINE_ID')
    parser = _action(actions, 'clean', 'remove the rows of ended engines that own nothing')
    parser.add_argument('--dry-run', action='store_true', help='only say what would be removed')


def _add_lock(actions: Any) -> None:
    parser = _action(actions, 'list', 'list locks, the oldest first', formats=True)
    parser.add_argument('--status', choices=_STATUSES, help='only those')
    parser.add_argument('--engine', metavar='ENGINE_ID', help='only those of this owner')
    _add_limit(parser)
    parser = _action(actions, 'show', 'show one lock with its history', formats=True)
    parser.add_argument('lock', metavar='NAME')
    for name, text in (
            ('release', 'let a quarantined or failed lock be acquired again'),
            ('retry', 'let the work of a quarantined or failed lock be run again'),
            ('fail', 'give work up that is quarantined, or left by an engine that has ended')):
        parser = _action(actions, name, text)
        parser.add_argument('lock', metavar='NAME')
    parser.add_argument('--reason', required=True, metavar='TEXT', help='kept with the lock')


def _add_takeover(actions: Any) -> None:
    parser = _action(actions, 'list', 'tell what happened, the newest last', formats=True)
    parser.add_argument('--engine', metavar='ENGINE_ID', help='only what it suffered or did')
    parser.add_argument('--kind', choices=_KINDS, help='only those')
    _add_limit(parser)
    parser = _action(actions, 'show', 'show one entry with its details', formats=True)
    parser.add_argument('id', metavar='ID', type=_positive)


def _add_recover(groups: Any) -> None:
    text = 'recover, in one go, what dead engines have left behind'
    parser = groups.add_parser('recover', help=text, description=text)
    parser.add_argument('--once', action='store_true', required=True,
                        help='recover and end; heat-liveness-agent goes on for ever')
    parser.add_argument('--dry-run', action='store_true',
                        help='only say what would be done, and why; write nothing')
    parser.add_argument('--stack', metavar='ID', help='only this stack')
    parser.add_argument('--driver', default='heat', help='what is recovered (default: %(default)s)')


def _add_limit(parser: Any) -> None:
    parser.add_argument('--limit', type=_positive, default=1000, metavar='N',
                        help='at most so many (default: %(default)s)')


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f'{text} is no whole number above 0')
    return int(text)


if __name__ == '__main__':
    sys.exit(main())
