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

"""MariaDB as a server of our own."""

import signal
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pymysql
import sqlalchemy as sa

from tests.bed import server


class MariaDB(server.Server):
    """A MariaDB server; see ``server.Server``."""

    drivername: ClassVar[str] = 'mysql+pymysql'
    # PyMySQL reads the system's certificates for each connection: 60 ms of CPU.
    parameters: ClassVar[Mapping[str, str]] = {'ssl_disabled': 'true'}
    shutdown_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        connection = pymysql.connect(
            unix_socket=self._socket, user='root', autocommit=True, ssl_disabled=True,
            connect_timeout=2, read_timeout=30, write_timeout=30)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def answers(self) -> bool:
        try:
            return self.execute('SELECT 1') == [(1,)]
        except pymysql.MySQLError:
            return False

    def drop_database(self, url: str) -> None:
        self.cut_off(url)
        self.execute(f'DROP DATABASE `{sa.make_url(url).database}`')

    def cut_off(self, url: str) -> None:
        """Cut the connections to a database."""
        database = sa.make_url(url).database
        clients = self.execute(
            f"SELECT id FROM information_schema.processlist WHERE db = '{database}'")
        for (client,) in clients:
            try:
                self.execute(f'KILL {client}')
            except pymysql.OperationalError:
                continue  # it has gone by itself

    def _prepare(self) -> None:
        server.find_program('mariadbd', '/usr/sbin')
        self._run(
            server.find_program('mariadb-install-db'), '--no-defaults', f'--datadir={self.data}',
            '--auth-root-authentication-method=normal', '--skip-test-db')

    def _command(self) -> Sequence[str]:
        return [
            server.find_program('mariadbd', '/usr/sbin'), '--no-defaults',
            f'--datadir={self.data}', f'--socket={self._socket}',
            f'--pid-file={self.directory / "pid"}', f'--tmpdir={self.data}',
            '--bind-address=127.0.0.1', f'--port={self.port}', '--skip-name-resolve',
            '--character-set-server=utf8mb4', '--max-connections=500',
            '--performance-schema=OFF', '--innodb-buffer-pool-size=64M',
            # Written at each commit, but not flushed to the disk.
            '--innodb-flush-log-at-trx-commit=2',
        ]

    def _create_account(self) -> None:
        self.execute(f"CREATE USER '{server.USER}'@'127.0.0.1' IDENTIFIED BY '{server.PASSWORD}'")

    def _create_database(self, database: str) -> None:
        self.execute(f'CREATE DATABASE `{database}`')
        self.execute(f"GRANT ALL ON `{database}`.* TO '{server.USER}'@'127.0.0.1'")

    @property
    def _socket(self) -> str:
        return str(self.directory / 'socket')
