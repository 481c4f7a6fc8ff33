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

"""Databases with the tables in them, and engines that are nothing but rows."""

import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from heat_liveness import engine as engines
from heat_liveness.db import migration, models
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Journal
from heat_liveness.db.locks import Locks
from heat_liveness.db.members import Members, ServiceRow
from tests.databases import heat_rooms

T = TypeVar('T')


class Bed:
    """A database, all rooms of it, and short words for what tests do there."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.database = Database(url, **options)
        self.members = Members(self.database)
        self.locks = Locks(self.database)
        self.journal = Journal(self.database)

    def engine(self, name: str, *, topic: str = 'topic', boot_id: str = 'boot') -> str:
        self.members.insert(self.identity(name, topic=topic, boot_id=boot_id), 4, 20)
        return name

    @staticmethod
    def identity(name: str, *, topic: str = 'topic', boot_id: str = 'boot') -> engines.Identity:
        return engines.Identity(
            name, 'host', 'host.domain', 'binary', topic,
            engines.Process(pid=4321, start_time=987654321, pid_namespace=4026531836,
                            time_namespace=4026531834, boot_id=boot_id))

    def row(self, name: str) -> ServiceRow:
        found = self.members.read(name)
        assert found is not None
        return found

    def kill(self, name: str, by: str | None = None, *, mass: bool = False) -> ServiceRow:
        """Let an engine be declared dead, by a judge that is there for that alone."""
        if by is None:
            by = 'judge'
            if self.members.read(by) is None:
                self.engine(by, topic='judges')
        assert self.members.declare(self.row(name), by, 'watched', mass, {'why': 'a test'})
        return self.row(name)

    def shift(self, table: sa.Table, column: str, seconds: float, **where: Any) -> None:
        """Move the times in a column into the past."""
        with self.database.transaction() as connection:
            connection.execute(sa.update(table).filter_by(**where).values(
                {column: sa.func.liveness.ago(sa.literal(seconds, sa.Float()))}))

    def statements(self) -> 'Statements':
        return Statements(self.database)


class Statements(list[str]):
    """Collects what is sent to the server while it is entered."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._engines = (database.engine, database._autocommit, database._dedicated)

    def __enter__(self) -> Self:
        for one in self._engines:
            event.listen(one, 'before_cursor_execute', self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for one in self._engines:
            event.remove(one, 'before_cursor_execute', self._note)

    def _note(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        self.append(statement)


def skip_on_galera(database: Database) -> None:
    """Skip what rests on locks of the server: on Galera they stay on one node."""
    with database.autocommit():
        if database.galera:
            pytest.skip('No lock of a row, or by a name, reaches another node.')


def at_once(*calls: Callable[[], T]) -> list[T | BaseException]:
    """Make calls on threads that start together; return what each returned or raised."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(number: int, call: Callable[[], T]) -> None:
        barrier.wait(60)
        try:
            results[number] = call()
        except Exception as error:  # noqa: BLE001 - the test judges it
            results[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return results


@pytest.fixture
def bed(database_url: str) -> Iterator[Bed]:
    """The tables, on each kind of database in turn."""
    found = Bed(database_url)
    migration.sync(found.database)
    yield found
    found.members.hang_up()
    found.database.close()


@pytest.fixture
def sqlite_bed(tmp_path: pathlib.Path) -> Iterator[Bed]:
    """The tables on SQLite, for what is the same everywhere."""
    found = Bed(f'sqlite:///{tmp_path}/liveness.sqlite')
    models.metadata.create_all(found.database.engine)
    yield found
    found.database.close()


@pytest.fixture
def heat(tmp_path: pathlib.Path) -> Iterator[Any]:
    """Heat's tables on SQLite; what the statements do elsewhere, test_heat_rows proves."""
    # It is a bed, too.
    from tests.databases.heat_tables import Heat

    found = Heat(f'sqlite:///{tmp_path}/liveness.sqlite')
    yield found
    found.close()


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[heat_rooms.Rooms]:
    """The rooms of the bridge that ask something of Heat's code, without Heat."""
    found = heat_rooms.Rooms(monkeypatch)
    yield found
    found.close()


@pytest.fixture
def crew(heat: Any, rooms: heat_rooms.Rooms) -> Iterator[Any]:
    """Engines that are rows, and some that live on a clock of their own."""
    from tests.databases.heat_crew import Crew

    found = Crew(heat, rooms)
    yield found
    found.close()


@pytest.fixture
def recover(heat: Any, rooms: heat_rooms.Rooms, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command ``recover``."""
    from tests.databases.heat_crew import command

    return command(heat, rooms, monkeypatch)
