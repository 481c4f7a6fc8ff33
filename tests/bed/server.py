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

"""A database server of our own: on a port of loopback, in a directory that goes with it.

It runs as an unprivileged user, and starts in a second because it never waits for a disk.
What it has committed still survives its own death (that of the machine it would not): a test
may kill it and count on what it had said.
"""

import abc
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import sqlalchemy as sa

from tests.bed import clocks, processes, waiting

USER = 'liveness'
# It needs quoting in a URL, in SQL and in alembic's configuration: whoever forgets it, fails.
PASSWORD = 'pa:ss/wo%rd@{}'

START_SECONDS = 60.0
ATTEMPTS = 5
# Below the ports that the kernel gives to clients: one of those could take ours while the
# server is down.
PORTS = range(20000, 32000)


class MissingProgram(Exception):
    """A server's program is not installed; the message says what installs it."""


class DoesNotStart(Exception):
    """A server, or what prepares it, ends with an error; the message holds its log."""


class Server(abc.ABC):
    """A database server, and what can happen to one; made by ``create``, running from then on."""

    #: What SQLAlchemy calls the driver.
    drivername: ClassVar[str]
    #: What a client adds to the URL.
    parameters: ClassVar[Mapping[str, str]] = {}
    #: What asks the server to end in an orderly way, without waiting for its clients.
    shutdown_signal: ClassVar[signal.Signals]

    def __init__(self) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='heat-liveness-'))
        processes.give_to_unprivileged(self.directory)
        self.data = self.directory / 'data'
        self.log = self.directory / 'log'
        self.port = 0
        self.clock: clocks.Clock | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls, *, steppable: bool = False) -> Self:
        """Make a server and start it.

        Parameters
        ----------
        steppable : bool
            Whether it goes by a wall clock of its own, ``clock``.

        Raises
        ------
        MissingProgram
            It is not installed.
        DoesNotStart
            It ends at once, or cannot be prepared.
        """
        server = cls()
        try:
            if steppable:
                server.get_clock()
            server._prepare()
            server._start_on_a_free_port()
            server._create_account()
        except BaseException:
            server.destroy()
            raise
        return server

    def get_clock(self) -> None:
        """Let the server go by a wall clock of its own, once it is started again."""
        self.clock = clocks.Clock(self.directory / 'clock')

    def destroy(self) -> None:
        """Kill the server and remove what it stored."""
        self.kill()
        shutil.rmtree(self.directory)

    @property
    def pid(self) -> int:
        """The id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is there, be it frozen."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server on the port it had, and wait until it answers.

        Raises
        ------
        DoesNotStart
            It ends at once.
        """
        assert not self.running
        before = self.clock.command if self.clock else []
        with self.log.open('ab') as log:
            self._process = processes.spawn(
                [*before, *self._command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, **processes.unprivileged())
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the server in an orderly way, and wait until it has ended."""
        assert self._process is not None
        self.thaw()
        self._process.send_signal(self.shutdown_signal)
        self._process.wait(START_SECONDS)

    def restart(self) -> None:
        """Stop the server in an orderly way and start it again, on the same port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill all processes of the server (SIGKILL), and wait until they are gone."""
        if self._process is not None:
            processes.kill(self._process)

    def freeze(self) -> None:
        """Stop all processes of the server (SIGSTOP): connections are accepted, nobody answers."""
        assert self.running
        processes.freeze(self.pid)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self.running
        processes.thaw(self.pid)

    def snapshot(self) -> pathlib.Path:
        """Copy the data of the running server as of one moment; return where the copy is."""
        copy = self.directory / 'snapshot'
        self.freeze()
        try:
            shutil.copytree(self.data, copy, copy_function=_copy, dirs_exist_ok=True)
        finally:
            self.thaw()
        return copy

    def forget_all_since(self, copy: pathlib.Path) -> None:
        """Kill the server and start it with a snapshot: what it has committed since is lost."""
        self.kill()
        shutil.rmtree(self.data)
        copy.rename(self.data)
        self.start()

    def heal(self) -> None:
        """Undo what a test has done: thaw a frozen server, start one that has ended."""
        if self.running:
            self.thaw()
            self._wait_until_it_answers()
        else:
            self.start()

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database, with the password of the account."""
        url = sa.URL.create(self.drivername, USER, PASSWORD, '127.0.0.1', self.port, database,
                            self.parameters)
        return url.render_as_string(hide_password=False)

    def create_database(self) -> str:
        """Create an empty database, on which the account may do all, and return its URL."""
        database = f'liveness_{secrets.token_hex(6)}'
        self._create_database(database)
        return self.url(database)

    @abc.abstractmethod
    def drop_database(self, url: str) -> None:
        """Drop a database that ``create_database`` made, and cut the connections to it."""

    @abc.abstractmethod
    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement as the server's administrator, committed, and return its rows."""

    @abc.abstractmethod
    def answers(self) -> bool:
        """Whether the server answers to its administrator."""

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Write the data directory of an empty server."""

    @abc.abstractmethod
    def _command(self) -> Sequence[str]:
        """Return what starts the server in the foreground."""

    @abc.abstractmethod
    def _create_account(self) -> None:
        """Create the account that the URLs name."""

    @abc.abstractmethod
    def _create_database(self, database: str) -> None:
        """Create a database that belongs to the account."""

    def _run(self, *command: str) -> str:
        """Run a program that prepares the server, and return what it says."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.directory, **processes.unprivileged())
        if done.returncode != 0:
            raise DoesNotStart(f'{command[0]} failed:\n{done.stdout}')
        return done.stdout

    def _start_on_a_free_port(self) -> None:
        # Another may take the port between our look and the server's.
        for _ in range(ATTEMPTS - 1):
            self.port = free_port()
            try:
                return self.start()
            except DoesNotStart:
                continue
        self.port = free_port()
        return self.start()

    def _wait_until_it_answers(self) -> None:
        waiting.wait_until(
            lambda: not self.running or self.answers(), START_SECONDS,
            f'An answer of {type(self).__name__}')
        if not self.running:
            raise DoesNotStart(f'{type(self).__name__} ended:\n{self.log.read_text()}')


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target)
    processes.give_to_unprivileged(pathlib.Path(target))


def free_port() -> int:
    """Return a port of loopback on which nobody listens."""
    # Not the shared generator: a test that seeds it would get the same ports each time.
    source = random.SystemRandom()
    while True:
        port = source.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)) != 0:
                return port


def find_program(name: str, *directories: str) -> str:
    """Return the path of a program.

    Parameters
    ----------
    name : str
        The program.
    *directories : str
        Where to look after the PATH, the best first.

    Raises
    ------
    MissingProgram
        It is nowhere.
    """
    path = os.pathsep.join([os.environ.get('PATH', os.defpath), *directories])
    found = shutil.which(name, path=path)
    if found is None:
        raise MissingProgram(f'{name} is not installed; `make test` installs it.')
    return found
