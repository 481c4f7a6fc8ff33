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

"""The folder in which a lab lives, and the programs that run in it."""

import os
import pathlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from tests.bed import processes, waiting

RUN_SECONDS = 180.0


class LabError(Exception):
    """A program of the lab did not do its part; the message says where to look."""


class Place:
    """A folder, and the unprivileged programs that live in it; leave it and they are gone.

    Parameters
    ----------
    root : pathlib.Path
        The folder, on a path that every user may pass.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        self._programs: list[Program] = []
        self.logs = self.directory('logs')
        self.home = self.directory('home')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Nothing that they hold is wanted again, so nobody is asked to tidy up.
        for program in reversed(self._programs):
            program.kill()

    def directory(self, name: str) -> pathlib.Path:
        """Make a folder that the programs may write to."""
        path = self.root / name
        path.mkdir(exist_ok=True)
        processes.give_to_unprivileged(path)
        return path

    def write(self, name: str, text: str) -> pathlib.Path:
        """Write a file that only the programs may read, as it may hold their passwords."""
        path = self.root / name
        path.write_text(text)
        path.chmod(0o600)
        processes.give_to_unprivileged(path)
        return path

    def bring(self, file: pathlib.Path) -> pathlib.Path:
        """Copy a file of the checkout, into whose folders the programs may not see."""
        return self.write(file.name, file.read_text())

    def run(self, name: str, command: Sequence[object],
            environment: Mapping[str, object] | None = None, answer: str = '') -> str:
        """Run a program to its end, answer what it asks, and return what it printed.

        Raises
        ------
        LabError
            It failed.
        """
        done = subprocess.run(
            [str(word) for word in command], env=self._environment(environment), cwd=self.home,
            input=answer, capture_output=True, text=True, timeout=RUN_SECONDS,
            check=False, **processes.unprivileged())
        with (self.logs / f'{name}.log').open('a') as log:
            log.write(done.stdout + done.stderr)
        if done.returncode:
            raise LabError(f'{name} failed: {done.stderr[-2000:]}')
        return str(done.stdout)

    def start(self, name: str, command: Sequence[object],
              environment: Mapping[str, object] | None = None) -> 'Program':
        """Start a program that goes on until it is stopped, or until the tests end."""
        log = self.logs / f'{name}.log'
        with log.open('ab') as output:
            process = processes.spawn(
                [str(word) for word in command], env=self._environment(environment),
                cwd=self.home, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                **processes.unprivileged())
        program = Program(name, process, log)
        self._programs.append(program)
        return program

    def _environment(self, more: Mapping[str, object] | None) -> dict[str, str]:
        # A clean one: what is set on a laptop (OS_*, proxies) must not decide a test.
        values = {'PATH': f'{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin', 'HOME': self.home,
                  'LANG': 'C.UTF-8', 'PYTHONDONTWRITEBYTECODE': 1, **(more or {})}
        return {name: str(value) for name, value in values.items()}


class Program:
    """A program and all that it has started."""

    def __init__(self, name: str, process: 'subprocess.Popen[bytes]', log: pathlib.Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """The id of its first process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its first process is there, be it frozen."""
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], object], timeout_seconds: float,
                   what: str) -> None:
        """Wait for a condition, but not for a program that has ended.

        Raises
        ------
        LabError
            It has ended.
        AssertionError
            The time is over.
        """
        waiting.wait_until(lambda: not self.running or condition(), timeout_seconds, what)
        if not self.running:
            raise LabError(f'{self.name} has ended: {self.log.read_text()[-2000:]}')

    def freeze(self) -> None:
        """Stop all its processes, as a machine stops that hangs."""
        processes.freeze(self.pid)

    def thaw(self) -> None:
        """Let a frozen program go on."""
        processes.thaw(self.pid)

    def kill(self) -> None:
        """Kill all its processes at one moment, as a machine dies."""
        processes.kill(self._process)
