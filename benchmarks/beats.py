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

"""Beats: how near ours come to the least that a driver can do.

The plain way is the driver alone: one cursor, kept; one UPDATE of the same row by primary
key; autocommit, no timeouts.  *Round trips* are counted on the wire, by a relay between
client and server.
"""

import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import psycopg
import pymysql
import sqlalchemy as sa
from sqlalchemy import orm

from benchmarks import beds, figures
from heat_liveness import engine as engines
from heat_liveness.db import models, times
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members

RAW, OURS, CORE, ORM = 'driver alone', 'Members.beat', 'Core, pooled', 'ORM, get and save'

_t = models.service
_RAW = ('UPDATE liveness_service SET report_count = report_count + 1, updated_at = {} '
        "WHERE engine_id = {} AND state IN ('up', 'draining')")

Beat = Callable[[], object]


class _Service:
    """Heat's way: an object that is read, changed and saved."""


orm.registry().map_imperatively(_Service, _t)


def measure(bed: beds.Bed, beats: int, turns: int) -> list[figures.Figure]:
    """Let each way beat in turns.

    Parameters
    ----------
    beats : int
        So many of each way in each turn.
    """
    me = engines.Identity.new(host='bench', hostname='bench', binary='bench', topic='bench')
    rates: dict[str, list[float]] = {}
    with each_way(bed.url, me) as ways:
        for beat in ways.values():
            beat()
        for _ in range(turns):
            for way, beat in ways.items():
                started = time.perf_counter()
                for _ in range(beats):
                    beat()
                rates.setdefault(way, []).append(beats / (time.perf_counter() - started))
    notes = {way: {'round trips': trips} for way, trips in _round_trips(bed).items()}
    return figures.compare('beat', bed.name, rates, notes)


@contextlib.contextmanager
def each_way(url: str, me: engines.Identity) -> Iterator[Mapping[str, Beat]]:
    """Lend what beats once, for an engine that this joins; nothing is connected twice."""
    with beds.connected(url) as database, contextlib.closing(_raw(database)) as raw:
        members = Members(database)
        members.insert(me, report_interval=4, fence_time=20)
        cursor = raw.cursor()
        statement = _RAW.format(times.now().compile(database.engine),
                                '?' if database.backend == 'sqlite' else '%s')
        yield {
            RAW: lambda: cursor.execute(statement, (me.engine_id,)),
            OURS: lambda: members.beat(me.engine_id),
            CORE: lambda: _core(database, me.engine_id),
            ORM: lambda: _orm(database, me.engine_id),
        }
        members.hang_up()


def _raw(database: Database) -> Any:
    url = database.url
    address: dict[str, Any] = {'host': url.host, 'port': url.port, 'user': url.username,
                               'password': url.password}
    if database.backend == 'mysql':
        return pymysql.connect(**address, database=url.database, autocommit=True)
    if database.backend == 'postgresql':
        return psycopg.connect(**address, dbname=url.database, autocommit=True)
    connection = sqlite3.connect(str(url.database), isolation_level=None)
    connection.execute('PRAGMA synchronous = FULL')
    return connection


def _core(database: Database, engine_id: str) -> None:
    with database.autocommit() as connection:
        connection.execute(
            _t.update().where(_t.c.engine_id == engine_id, _t.c.state.in_(models.LIVE))
            .values(report_count=_t.c.report_count + 1, updated_at=times.now()))


def _orm(database: Database, engine_id: str) -> None:
    with orm.Session(database.engine) as session, session.begin():
        service: Any = session.get(_Service, engine_id)
        service.report_count += 1
        service.updated_at = times.now()


def _round_trips(bed: beds.Bed, beats: int = 20) -> dict[str, float]:
    """Return how often a beat of each way waits for the server; nothing for SQLite."""
    if bed.name == 'sqlite':
        return {}
    me = engines.Identity.new(host='bench', hostname='bench', binary='bench', topic='bench')
    url = sa.make_url(bed.url)
    trips = {}
    with _Relay(str(url.host), int(url.port or 0)) as relay:
        through = url.set(port=relay.port).render_as_string(hide_password=False)
        with each_way(through, me) as ways:
            for way, beat in ways.items():
                # The first beats connect, and PostgreSQL prepares what is said often.
                for _ in range(10):
                    beat()
                before = relay.round_trips
                for _ in range(beats):
                    beat()
                trips[way] = (relay.round_trips - before) / beats
    return trips


class _Relay:
    """Passes connections on to a server, and counts how often a client waited for it."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port = self._listener.getsockname()[1]
        self.round_trips = 0
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        # A close alone would not wake the thread that waits in it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._server)
                asked = threading.Event()
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(client, server, asked.set),
                                 daemon=True).start()
                threading.Thread(target=self._pass, daemon=True,
                                 args=(server, client, lambda asked=asked: self._answer(asked)),
                                 ).start()

    def _answer(self, asked: threading.Event) -> None:
        """Count an answer once, in however many pieces it comes."""
        with self._guard:
            self.round_trips += asked.is_set()
            asked.clear()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, note: Callable[[], object]) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                note()
                sink.sendall(data)
