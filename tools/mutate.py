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

mutmut makes the mutants.  It leaves decorated functions alone: every property, where many of the
decisions stand, and every transaction that is tried again when it is contended.  So it is given
a copy in which ``@property`` above a method is ``name = property(name)`` below it.  Each module
has a copy of its own, and is run (``tools/mutants.py``) against the tests that are there for it:
what a module promises should be noticed beside it, and soon.

The copies stay in ``.mutation``, with what is known of each mutant; a run that its time ends goes
on where it ended.
"""

import argparse
import ast
import collections
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

TESTS = {
    'takeover': 'unit/test_takeover.py',
    'membership': 'unit/test_membership.py',
    'conf': 'unit/test_conf.py',
    'fence': 'unit/test_fence.py',
    'detection': 'unit/test_detection.py',
    'db/members': 'databases/test_members.py',
    'db/locks': 'databases/test_locks.py',
    'work/native': 'unit/test_native.py',
}
"""The modules that decide, the quickest first, and the tests of each."""

SETTINGS = r"""
[tool.mutmut]
source_paths = ["heat_liveness"]
only_mutate = ["heat_liveness/{module}.py"]
do_not_mutate_patterns = [
    '\bLOG\.',                # what a log says is read by people
    '^ *raise errors\.\w+\(',  # and so is an error: its class is raised, whatever it says
]
also_copy = ["migrations"]
"""

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLACE = ROOT / '.mutation'
MUTMUT = str(pathlib.Path(sys.executable).with_name('mutmut'))
DECORATORS = ('property', 'again_if_contended', 'contextlib.contextmanager')
OUTCOMES = {None: 'left', 0: 'survived', 1: 'killed', 33: 'no tests', 36: 'timed out'}
"""What mutmut's numbers mean."""


def main() -> int:
    """Run what has not run yet, or what survived; show what became of all."""
    parser = argparse.ArgumentParser(description='Break the code, and see whether a test fails.')
    parser.add_argument('modules', nargs='*', metavar='MODULE',
                        help=f'some of {", ".join(TESTS)}; all if none is named')
    parser.add_argument('--again', action='store_true', help='run what survived, and no others')
    parser.add_argument('--show', action='store_true', help='run nothing, show what survived')
    parser.add_argument('--minutes', type=float, default=60.0, help='end after so long')
    options = parser.parse_args()
    modules = options.modules or list(TESTS)
    ends = time.monotonic() + options.minutes * 60
    status = 0
    for module in modules:
        if options.show:
            for name in _survivors(module):
                subprocess.run([MUTMUT, 'show', name], cwd=PLACE / module, check=True)
        elif not options.again or _survivors(module):
            _copy(module)
            names = _survivors(module) if options.again else []
            status = max(status, _run(module, names, (ends - time.monotonic()) / 60))
    print(_table())
    return status


def _copy(module: str) -> None:
    """Bring a module's copy up to date; mutmut sees what has changed, but in the tests."""
    place = PLACE / module
    for path in _files():
        text = path.read_text()
        if path == ROOT / 'heat_liveness' / f'{module}.py':
            text = undecorated(text)
        if path.name == 'pyproject.toml':
            text += SETTINGS.format(module=module)
        copy = place / path.relative_to(ROOT)
        if not copy.exists() or copy.read_text() != text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)


def _files() -> Iterator[pathlib.Path]:
    yield ROOT / 'pyproject.toml'
    for name in ('heat_liveness', 'migrations', 'tests'):
        yield from (path for path in (ROOT / name).rglob('*')
                    if path.is_file() and '__pycache__' not in path.parts)


def undecorated(source: str) -> str:
    """Say ``name = property(name)`` below each function instead of ``@property`` above it."""
    lines = source.splitlines(keepends=True)
    found = [(node, ast.unparse(node.decorator_list[0])) for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.FunctionDef) and len(node.decorator_list) == 1]
    for node, decorator in sorted(found, key=lambda each: -each[0].lineno):
        if decorator in DECORATORS:
            indent = ' ' * node.col_offset
            lines.insert(node.end_lineno or 0, f'{indent}{node.name} = {decorator}({node.name})\n')
            del lines[node.decorator_list[0].lineno - 1]
    return ''.join(lines)


def _run(module: str, names: Sequence[str], minutes: float) -> int:
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'mutants.py'), module, TESTS[module], str(minutes),
         *names], cwd=PLACE / module, check=False).returncode


def _outcomes(module: str) -> dict[str, str]:
    """Return what became of each mutant of a module."""
    known = PLACE / module / 'mutants' / 'heat_liveness' / f'{module}.py.meta'
    codes = json.loads(known.read_text())['exit_code_by_key'] if known.exists() else {}
    return {name: OUTCOMES[code] for name, code in codes.items()}


def _survivors(module: str) -> list[str]:
    return [name for name, outcome in _outcomes(module).items()
            if outcome not in {'killed', 'left'}]


def _table() -> str:
    columns = ('mutants', 'killed', 'timed out', 'survived', 'no tests', 'left')
    rows = ['| module | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    counts = {module: collections.Counter(_outcomes(module).values()) for module in TESTS}
    counts['all'] = sum(counts.values(), collections.Counter())
    for module, count in counts.items():
        count['mutants'] = count.total()
        rows.append(f'| {module} | ' + ' | '.join(str(count[each]) for each in columns) + ' |')
    return '\n'.join(rows)


if __name__ == '__main__':
    sys.exit(main())
