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

"""Makes the mutants of one module, and runs its tests on each.  ``tools/mutate.py`` starts it.

mutmut makes the mutants and keeps what became of them.  It would start pytest anew for each,
and to import all that the tests need takes longer than most of them.  So here one pytest
imports and collects, and for each mutant a child of it runs the tests that come by the changed
function until one fails: first those that have failed for its other mutants, then the quickest.
"""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import pytest
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state
from mutmut.utils.format_utils import mangled_name_from_mutant_name

KILLED = 1
SURVIVED = 0
NO_TESTS = 33
TIMED_OUT = 36
"""As mutmut has them."""

CHILDREN = 2
LONGEST_SECONDS = 180.0
MAKE = """
import os
from mutmut import __main__ as mutmut
mutmut.set_mutant_under_test('mutant_generation')
os.makedirs('mutants', exist_ok=True)
mutmut.copy_src_dir()
mutmut.copy_also_copy_files()
mutmut.create_mutants(1)
"""


def main(module: str, tests: str, minutes: str, *names: str) -> int:
    """Make the mutants; run those that are named, or all that have not run."""
    subprocess.run([sys.executable, '-c', MAKE], check=True, stdout=subprocess.DEVNULL)
    os.chdir('mutants')
    sys.path.insert(0, str(pathlib.Path.cwd()))
    runs = Runs(pathlib.Path(f'heat_liveness/{module}.py.meta'), names,
                time.monotonic() + float(minutes) * 60)
    # Neither the output nor the directories of two tests may meet.
    return int(pytest.main(
        ['-q', '-s', '--tb=no', '--timeout=20', '-p', 'no:cacheprovider', '-p', 'no:faulthandler',
         '-m', 'not mariadb and not postgresql', f'tests/{tests}'], plugins=[runs]))


class Runs:
    """What runs instead of the tests that were collected."""

    def __init__(self, known: pathlib.Path, names: Sequence[str], ends: float) -> None:
        self._known = known
        self._names = names
        self._ends = ends
        self._running: dict[int, tuple[str, float, pathlib.Path]] = {}
        self._failed: collections.Counter[tuple[str, str]] = collections.Counter()
        """How many mutants of a function each test has noticed."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Let a child run the tests on each mutant."""
        if session.testsfailed:
            raise session.Interrupted('The tests cannot be collected.')
        coming_by = self._coming_by(session)
        codes = json.loads(self._known.read_text())['exit_code_by_key']
        waiting = list(self._names) or [name for name, code in codes.items() if code is None]
        try:
            while self._running or (waiting and time.monotonic() < self._ends):
                if (waiting and len(self._running) < CHILDREN
                        and time.monotonic() < self._ends):
                    name = waiting.pop(0)
                    function = mangled_name_from_mutant_name(name)
                    if function in coming_by:
                        self._begin(session, name, sorted(
                            coming_by[function],
                            key=lambda item: -self._failed[function, item.nodeid]))
                    else:
                        self._note(name, NO_TESTS)
                else:
                    self._end()
        finally:
            for pid in self._running:
                os.killpg(pid, signal.SIGKILL)
        if waiting:
            print(f'The time is over, and {len(waiting)} are left; another run goes on from here.')
        return True

    def _coming_by(self, session: pytest.Session) -> dict[str, list[pytest.Item]]:
        """Return the tests that come by each function, the quickest first."""
        path = pathlib.Path('coming-by.json')
        path.unlink(missing_ok=True)
        pid = self._fork()
        if not pid:
            found: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
            set_mutant_under_test('stats')
            passed = state()._stats  # noqa: SLF001 - mutmut has no other place for it
            for item in session.items:
                passed.clear()
                began = time.monotonic()
                if _failing(session, [item]):
                    print(f'{item.nodeid} fails although nothing is broken.', file=sys.stderr)
                    os._exit(1)
                for function in passed:
                    found[function].append((time.monotonic() - began, item.nodeid))
            path.write_text(json.dumps(found))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise session.Interrupted('The tests have to pass where nothing is broken.')
        items = {item.nodeid: item for item in session.items}
        return {function: [items[nodeid] for _, nodeid in sorted(those)]
                for function, those in json.loads(path.read_text()).items()}

    @staticmethod
    def _fork() -> int:
        pid = os.fork()
        if not pid:
            # What the tests start, and a mutant keeps from ending, can so be ended with it.
            os.setpgid(0, 0)
        return pid

    def _begin(self, session: pytest.Session, name: str, items: list[pytest.Item]) -> None:
        place = pathlib.Path(tempfile.mkdtemp(prefix='heat-liveness-mutant-'))
        pid = self._fork()
        if pid:
            self._running[pid] = (name, time.monotonic(), place)
            return
        try:
            os.environ['PYTEST_DEBUG_TEMPROOT'] = str(place)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (1, 2):
                os.dup2(nowhere, number)
            set_mutant_under_test(name)
            if failing := _failing(session, items):
                (place / 'failing').write_text(failing.nodeid)
        finally:
            os._exit(KILLED if session.testsfailed else SURVIVED)

    def _end(self) -> None:
        """Wait a little for a child that has ended, or end one that does not."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        late = [each for each, (_, began, _) in self._running.items()
                if time.monotonic() - began > LONGEST_SECONDS]
        if pid:
            code = os.waitstatus_to_exitcode(status)
            # A mutant whose process was ended by a signal has been noticed.
            self._ended(pid, KILLED if code < 0 else code)
        elif late:
            os.killpg(late[0], signal.SIGKILL)
            os.waitpid(late[0], 0)
            self._ended(late[0], TIMED_OUT)
        else:
            time.sleep(.005)

    def _ended(self, pid: int, code: int) -> None:
        name, began, place = self._running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if (place / 'failing').exists():
            nodeid = (place / 'failing').read_text()
            self._failed[mangled_name_from_mutant_name(name), nodeid] += 1
        shutil.rmtree(place, ignore_errors=True)
        self._note(name, code, time.monotonic() - began)

    def _note(self, name: str, code: int, seconds: float = 0.0) -> None:
        known = json.loads(self._known.read_text())
        known['exit_code_by_key'][name] = code
        known['durations_by_key'][name] = seconds
        # Whoever reads it meanwhile, or ends this process, finds the one or the other whole.
        whole = self._known.with_suffix('.new')
        whole.write_text(json.dumps(known, indent=4))
        whole.replace(self._known)
        print({KILLED: 'killed', SURVIVED: 'SURVIVED', TIMED_OUT: 'timed out',
               NO_TESTS: 'NO TESTS'}.get(code, code), f'{seconds:.1f} s', name, flush=True)


def _failing(session: pytest.Session, items: Sequence[pytest.Item]) -> pytest.Item | None:
    """Run tests until one fails, and return it."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return item
    return None


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
