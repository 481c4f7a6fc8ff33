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

"""Databases to measure on: each commit waits for the disk, as an operator's would.

The test bed's servers never wait for it, so here they are told to; and they get room for
the largest table in memory, so that what is measured is the statements and not the disk's
reads.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence

from heat_liveness.db import migration
from heat_liveness.db.database import Database
from tests.bed import mariadb, postgresql, processes, waiting
from tests.bed.server import Server

TIMEOUT_SECONDS = 600.0
NAMES = ('mariadb', 'postgresql', 'sqlite')
SETTINGS = {
    'mariadb': 'innodb_flush_log_at_trx_commit=1, no binary log, innodb_buffer_pool_size=1G, '
               'innodb_log_file_size=1G',
    'postgresql': 'fsync=on, synchronous_commit=on, full_page_writes=on, shared_buffers=512MB, '
                  'max_wal_size=4GB',
    'sqlite': 'journal_mode=WAL, synchronous=FULL',
}


# Forks of a process that has everything imported and no threads: many start at once.
PROCESSES = multiprocessing.get_context('forkserver')
PROCESSES.set_forkserver_preload(['benchmarks.load', 'benchmarks.takeovers'])


class DurableMariaDB(mariadb.MariaDB):
    """A MariaDB server whose commits wait for the disk."""

    def _command(self) -> Sequence[str]:
        return [*super()._command(), '--innodb-flush-log-at-trx-commit=1',
                '--innodb-buffer-pool-size=1G', '--innodb-log-file-size=1G']


class DurablePostgreSQL(postgresql.PostgreSQL):
    """A PostgreSQL server whose commits wait for the disk."""

    def _command(self) -> Sequence[str]:
        return [*super()._command(), '-c', 'fsync=on', '-c', 'shared_buffers=512MB',
                '-c', 'max_wal_size=4GB']


@dataclasses.dataclass(frozen=True)
class Bed:
    """One database with our tables."""

    name: str
    url: str
    version: str
    rest: Callable[[], None]
    """Clear away what earlier statements have left behind."""
    busy_seconds: Callable[[], float]
    """How long the server's processes have computed so far."""
    statements: Callable[[], int]
    """How many statements the server has executed so far: transactions on PostgreSQL."""


@contextlib.contextmanager
def bed(name: str) -> Iterator[Bed]:
    """Make a database and remove it.

    Raises
    ------
    MissingProgram
        The server is not installed.
    """
    with {'mariadb': _mariadb, 'postgresql': _postgresql, 'sqlite': _sqlite}[name]() as made:
        with connected(made.url) as database:
            migration.sync(database)
        yield made


@contextlib.contextmanager
def connected(url: str) -> Iterator[Database]:
    """Lend connections to a database, on which a statement may last as long as it likes."""
    database = Database(url, connect_timeout=30, read_timeout=TIMEOUT_SECONDS)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def _mariadb() -> Iterator[Bed]:
    server = DurableMariaDB.create()
    try:
        def purged() -> bool:
            ((length,),) = server.execute(
                'SELECT count FROM information_schema.innodb_metrics '
                "WHERE name = 'trx_rseg_history_len'")
            return int(length) < 100

        def rest() -> None:
            waiting.wait_until(purged, TIMEOUT_SECONDS, 'The purge of old rows')

        def executed() -> int:
            ((_, number),) = server.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
            return int(number)

        yield Bed('mariadb', server.create_database(), server.execute('SELECT VERSION()')[0][0],
                  rest, lambda: _busy_seconds(server), executed)
    finally:
        server.destroy()


@contextlib.contextmanager
def _postgresql() -> Iterator[Bed]:
    server = DurablePostgreSQL.create()
    try:
        url = server.create_database()

        def rest() -> None:
            with connected(url) as database, database.autocommit() as connection:
                connection.exec_driver_sql('VACUUM ANALYZE liveness_service')
                connection.exec_driver_sql('VACUUM ANALYZE liveness_lock')
            server.execute('CHECKPOINT')

        def executed() -> int:
            ((number,),) = server.execute(
                'SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database')
            return int(number)

        yield Bed('postgresql', url, server.execute('SHOW server_version')[0][0], rest,
                  lambda: _busy_seconds(server), executed)
    finally:
        server.destroy()


@contextlib.contextmanager
def _sqlite() -> Iterator[Bed]:
    with tempfile.TemporaryDirectory(prefix='heat-liveness-') as directory:
        url = f'sqlite:///{pathlib.Path(directory)}/liveness.sqlite'

        def rest() -> None:
            with connected(url) as database, database.autocommit() as connection:
                connection.exec_driver_sql('PRAGMA wal_checkpoint(TRUNCATE)')

        yield Bed('sqlite', url, sqlite3.sqlite_version, rest, lambda: 0.0, lambda: 0)


def _busy_seconds(server: Server) -> float:
    ticks = 0
    for pid in (server.pid, *processes.descendants(server.pid)):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
            # Its own, and those of its children that have ended.
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf('SC_CLK_TCK')
