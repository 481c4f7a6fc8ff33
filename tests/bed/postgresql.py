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

"""PostgreSQL as a server of our own."""

import pathlib
import signal
from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg
import sqlalchemy as sa

from tests.bed import server

ADMINISTRATOR = 'postgres'


class PostgreSQL(server.Server):
    """A PostgreSQL server; see ``server.Server``."""

    drivername: ClassVar[str] = 'postgresql+psycopg'
    shutdown_signal: ClassVar[signal.Signals] = signal.SIGINT

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=str(self.directory), port=self.port, user=ADMINISTRATOR, dbname='postgres',
            connect_timeout=2, autocommit=True,
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def answers(self) -> bool:
        try:
            return self.execute('SELECT 1') == [(1,)]
        except psycopg.Error:
            return False

    def drop_database(self, url: str) -> None:
        self.execute(f'DROP DATABASE "{sa.make_url(url).database}" WITH (FORCE)')

    def _prepare(self) -> None:
        self._run(
            _program('initdb'), f'--pgdata={self.data}', f'--username={ADMINISTRATOR}',
            '--auth-local=trust', '--auth-host=scram-sha-256', '--no-locale', '--encoding=UTF8',
            '--no-sync')

    def _command(self) -> Sequence[str]:
        settings = {
            'listen_addresses': '127.0.0.1',
            'port': str(self.port),
            'unix_socket_directories': str(self.directory),
            'max_connections': '500',
            'fsync': 'off',
        }
        return [
            _program('postgres'), '-D', str(self.data),
            *(word for name, value in settings.items() for word in ('-c', f'{name}={value}'))]

    def _create_account(self) -> None:
        self.execute(f"CREATE ROLE {server.USER} LOGIN PASSWORD '{server.PASSWORD}'")

    def _create_database(self, database: str) -> None:
        self.execute(f'CREATE DATABASE "{database}" OWNER {server.USER}')


def _program(name: str) -> str:
    # Debian keeps the servers of all versions side by side, none of them in the PATH.
    versions = pathlib.Path('/usr/lib/postgresql').glob('*/bin')
    newest_first = sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    return server.find_program(name, *map(str, newest_first))
