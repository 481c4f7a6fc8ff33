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

"""The databases under the nemesis, each with the harm that can be done to it."""

import abc
import contextlib
import pathlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable

from tests.bed.galera import Cluster
from tests.bed.server import Server

Undo = Callable[[], None]


class Bed(abc.ABC):
    """One database, and what can happen to it."""

    name: str
    url: str

    def port(self, place: int) -> int | None:
        """Return the port of the server that the engine in a place works with."""
        return None

    def url_of(self, place: int) -> str:
        """Return the URL for the engine in a place."""
        return self.url

    @abc.abstractmethod
    def harm(self, how: str, place: int) -> Undo:
        """Do something to the database; return what undoes it."""

    def cuts_off(self, how: str, place: int, other: int) -> bool:
        """Return whether a harm keeps the engine in another place, and not all, from beating."""
        return False

    def step(self, place: int, seconds: int) -> None:
        """Let the clock of the database be so many seconds ahead."""
        raise NotImplementedError

    def settle(self) -> None:  # noqa: B027 - there is nothing to wait for, but on a cluster
        """Wait until what was written is everywhere."""

    def heal(self) -> None:  # noqa: B027 - a file needs no healing
        """Undo all."""

    @abc.abstractmethod
    def close(self) -> None:
        """Remove the database."""


class SQLite(Bed):
    """A file; its time is that of whoever writes."""

    name = 'sqlite'

    def __init__(self) -> None:
        # Processes are killed here, machines are not: like the servers, it never waits for a disk.
        memory = pathlib.Path('/dev/shm')
        self._folder = tempfile.mkdtemp(
            prefix='heat-liveness-', dir=memory if memory.is_dir() else None)
        self._file = pathlib.Path(self._folder) / 'liveness.sqlite'
        self.url = f'sqlite:///{self._file}'

    def harm(self, how: str, place: int) -> Undo:
        """Hold the file's only write lock."""
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=30)
        connection.execute('BEGIN IMMEDIATE')
        return connection.close

    def close(self) -> None:
        shutil.rmtree(self._folder)


class OneServer(Bed):
    """MariaDB or PostgreSQL."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self._server = server
        self.url = server.create_database()

    def port(self, place: int) -> int:
        return self._server.port

    def harm(self, how: str, place: int) -> Undo:
        return _harm(self._server, how)

    def step(self, place: int, seconds: int) -> None:
        assert self._server.clock is not None
        self._server.clock.step(seconds)

    def heal(self) -> None:
        self.step(0, 0)
        self._server.heal()

    def close(self) -> None:
        self.heal()
        self._server.drop_database(self.url)


class Galera(Bed):
    """Three nodes; the engines are spread over them."""

    name = 'galera'

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.url = cluster.create_database()
        self._urls = cluster.urls(self.url)
        for node in cluster.nodes:
            # A node that replicates refuses triggers to all but the administrator.
            node.execute('SET GLOBAL log_bin_trust_function_creators = ON')

    def port(self, place: int) -> int:
        return self._cluster.nodes[place % len(self._urls)].port

    def url_of(self, place: int) -> str:
        return self._urls[place % len(self._urls)]

    def harm(self, how: str, place: int) -> Undo:
        nodes = self._cluster.nodes
        if how != 'quorum lost':
            return _harm(nodes[place % len(nodes)], how)
        with contextlib.ExitStack() as undo:
            for node in nodes[1:]:
                undo.callback(_harm(node, 'frozen'))
            return undo.pop_all().close

    def cuts_off(self, how: str, place: int, other: int) -> bool:
        """Engines go to one node each; when that is gone the others' nodes work on soon."""
        nodes = len(self._cluster.nodes)
        return how != 'quorum lost' and place % nodes == other % nodes

    def step(self, place: int, seconds: int) -> None:
        clock = self._cluster.nodes[place % len(self._urls)].clock
        assert clock is not None
        clock.step(seconds)

    def settle(self) -> None:
        self._cluster.settle()

    def heal(self) -> None:
        for place in range(len(self._urls)):
            self.step(place, 0)
        self._cluster.heal()
        self.settle()

    def close(self) -> None:
        self.heal()
        self._cluster.drop_database(self.url)


def _harm(server: Server, how: str) -> Undo:
    if how == 'frozen':
        server.freeze()
        return server.thaw
    if how == 'killed':
        server.kill()
    else:
        server.stop()
    return server.start
