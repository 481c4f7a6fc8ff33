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

"""Breaks the modules that decide, one small change at a time, and runs their tests on each.

mutmut does the work, as ``[tool.mutmut]`` in pyproject.toml says.  It leaves decorated functions
alone, and with them every property, where many of the decisions stand.  So it is given a copy
in which ``@property`` above a method is ``name = property(name)`` below it.

The copy stays in ``.mutation``, with what is known of each mutant; a run that its time ends goes
on where it ended.
"""

import argparse
import ast
import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLACE = ROOT / '.mutation'
MUTMUT = str(pathlib.Path(sys.executable).with_name('mutmut'))
STATS = PLACE / 'mutants' / 'mutmut-stats.json'
COPIED = ('heat_liveness', 'migrations', 'tests', 'pyproject.toml')
OUTCOMES = {None: 'left', 0: 'survived', 1: 'killed', 3: 'killed', 33: 'no tests'}
"""What mutmut's numbers mean; any other is the end of a process that had to be ended."""


def main() -> int:
    """Run what has not run yet, or what is asked for; show what became of all."""
    parser = argparse.ArgumentParser(description='Break the code, and see whether a test fails.')
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help='run these, with * for any text, whatever became of them before')
    parser.add_argument('--again', action='store_true', help='run what survived before')
    parser.add_argument('--show', action='store_true', help='only show what survived')
    parser.add_argument('--minutes', type=float, default=60.0, help='end after so long')
    options = parser.parse_args()
    status = 0
    if not options.show:
        _copy()
        names = [*options.names, *(_survivors() if options.again else [])]
        if names or not options.again:
            status = _run(names, options.minutes)
    for name in _survivors():
        subprocess.run([MUTMUT, 'show', name], cwd=PLACE, check=True)
    print(_table())
    return status


def _copy() -> None:
    """Bring the copy up to date; what has not changed is left, and mutmut knows it by that."""
    moved = False
    for path in _files():
        text = path.read_text()
        if path.suffix == '.py' and ROOT / 'heat_liveness' in path.parents:
            text = undecorated(text)
        copy = PLACE / path.relative_to(ROOT)
        if not copy.exists() or copy.read_text() != text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)
            moved = moved or 'tests' in path.parts
    if moved:
        # Which test runs which function has to be found out anew.
        STATS.unlink(missing_ok=True)


def _files() -> Iterator[pathlib.Path]:
    for name in COPIED:
        path = ROOT / name
        if path.is_file():
            yield path
        else:
            yield from (each for each in path.rglob('*')
                        if each.is_file() and '__pycache__' not in each.parts)


def undecorated(source: str) -> str:
    """Say ``name = property(name)`` below each method instead of ``@property`` above it."""
    lines = source.splitlines(keepends=True)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
             and [ast.unparse(each) for each in node.decorator_list] == ['property']]
    for node in sorted(found, key=lambda node: -node.lineno):
        indent = ' ' * node.col_offset
        lines.insert(node.end_lineno or 0, f'{indent}{node.name} = property({node.name})\n')
        del lines[node.decorator_list[0].lineno - 1]
    return ''.join(lines)


def _run(names: Sequence[str], minutes: float) -> int:
    process = subprocess.Popen([MUTMUT, 'run', '--max-children', '1', *names], cwd=PLACE,
                               stdout=sys.stderr, start_new_session=True)
    try:
        return process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        print('The time is over; another run goes on from here.', file=sys.stderr)
        return 1
    finally:
        # What a test has started and a mutant has kept from ending goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcomes() -> Iterator[tuple[str, str, str]]:
    """Return module, name and outcome of each mutant."""
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['mutmut']
    for module in settings['only_mutate']:
        known = PLACE / 'mutants' / f'{module}.meta'
        codes = json.loads(known.read_text())['exit_code_by_key'] if known.exists() else {}
        for name, code in codes.items():
            yield module, name, OUTCOMES.get(code, 'timed out')


def _survivors() -> list[str]:
    return [name for _, name, outcome in _outcomes() if outcome not in {'killed', 'left'}]


def _table() -> str:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for module, _, outcome in _outcomes():
        counts[module].update(('mutants', outcome))
        counts['all'].update(('mutants', outcome))
    columns = ('mutants', 'killed', 'timed out', 'survived', 'no tests', 'left')
    rows = ['| module | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    rows += [f'| {name} | ' + ' | '.join(str(count[column]) for column in columns) + ' |'
             for name, count in sorted(counts.items(), key=lambda item: item[0] == 'all')]
    return '\n'.join(rows)


if __name__ == '__main__':
    sys.exit(main())
