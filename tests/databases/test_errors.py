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

"""What each database says when something goes wrong, and what is made of it."""

import pathlib
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import database, migration, models
from heat_liveness.db.database import Database
from tests.bed import server
from tests.bed.server import Server
from tests.bed.waiting import wait_until
from tests.databases.conftest import Bed, at_once


@pytest.fixture
def server_bed(database_server: Server) -> Iterator[Bed]:
    """The tables on each server, for what SQLite does not know."""
    found = Bed(database_server.create_database())
    migration.sync(found.database)
    yield found
    found.members.hang_up()
    found.database.close()


def refused(bed: Database) -> errors.LivenessError:
    with pytest.raises(errors.LivenessError) as caught, bed.autocommit() as connection:
        connection.execute(sa.select(models.service.c.host))
    assert server.PASSWORD not in str(caught.value)
    assert 'pa:ss' not in str(caught.value)
    return caught.value


def test_a_refused_connection_is_certain_and_names_no_password(database_server: Server) -> None:
    url = sa.make_url(database_server.create_database()).set(port=server.free_port())
    error = refused(Database(url.render_as_string(hide_password=False)))
    assert type(error) is errors.DatabaseError
    assert 'cannot be reached' in str(error)
    assert '***' in str(error)


def test_a_wrong_password_is_certain_and_not_named(database_server: Server) -> None:
    url = sa.make_url(database_server.create_database()).set(password='pa:ss-wrong')
    error = refused(Database(url.render_as_string(hide_password=False)))
    assert type(error) is errors.DatabaseError
    assert 'cannot be reached' in str(error)


def test_missing_tables_are_a_sentence_with_the_command(database_url: str) -> None:
    bed = Bed(database_url)
    bed.database.close()
    with pytest.raises(errors.SchemaError, match='run "heat-liveness-manage db sync"'):
        bed.members.beat('e1')
    with pytest.raises(errors.SchemaError):
        bed.engine('e1')
    with pytest.raises(errors.SchemaError):
        bed.locks.search()
    bed.database.close()


def test_a_wait_for_a_row_lock_ends_in_a_certain_error(server_bed: Bed) -> None:
    """I16, I17."""
    second = Bed(server_bed.url, read_timeout=2)
    server_bed.engine('e1')
    with server_bed.database.transaction() as connection:
        connection.execute(sa.update(models.service).values(host='x'))
        with pytest.raises(errors.DatabaseError) as caught:
            second.members.drain('e1')
        assert type(caught.value) is errors.DatabaseError, 'the server gave up before we did'
    assert server_bed.row('e1').state == 'up'
    assert second.members.drain('e1')
    second.database.close()


def test_who_falls_silent_amid_a_transaction_holds_its_rows_for_a_moment(
        server_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: a machine that loses its power says no farewell; TCP tells the server hours later."""
    monkeypatch.setattr(database, '_IDLE_SECONDS', 1)
    silent = Bed(server_bed.url)
    server_bed.engine('e1')

    def fall_silent() -> None:
        with silent.database.transaction() as connection:
            connection.execute(sa.update(models.service).values(host='x'))
            wait_until(lambda: beats(server_bed), 60, 'A beat')
            connection.execute(sa.update(models.service).values(host='y'))

    with pytest.raises(errors.DatabaseError):
        fall_silent()
    assert server_bed.row('e1').host == 'host'
    assert silent.members.read('e1') is not None, 'the next connection is a good one'
    silent.database.close()


def beats(bed: Bed) -> bool:
    try:
        return bed.members.beat('e1')
    except errors.DatabaseError:
        return False


def test_a_deadlock_is_certain_and_one_goes_on(server_bed: Bed) -> None:
    """I16."""
    for name in ('e1', 'e2'):
        server_bed.engine(name)
    both = threading.Barrier(2)

    def lock(first: str, second: str) -> str:
        with server_bed.database.transaction() as connection:
            for name in (first, second):
                connection.execute(sa.update(models.service).filter_by(engine_id=name)
                                   .values(host=f'{first}-first'))
                if name == first:
                    both.wait(60)
        return first

    results = at_once(lambda: lock('e1', 'e2'), lambda: lock('e2', 'e1'))
    (won,) = [each for each in results if isinstance(each, str)]
    (lost,) = [each for each in results if not isinstance(each, str)]
    assert type(lost) is errors.Contended
    assert {server_bed.row(name).host for name in ('e1', 'e2')} == {f'{won}-first'}


def test_a_connection_killed_amid_a_transaction_leaves_its_fate_open_and_heals(
        server_bed: Bed, database_server: Server) -> None:
    """I16."""
    server_bed.engine('e1')

    def killed_amid() -> None:
        with server_bed.database.transaction() as connection:
            connection.execute(sa.update(models.service).values(host='x'))
            kill_clients(database_server, sa.make_url(server_bed.url).database)
            connection.execute(sa.update(models.service).values(host='y'))

    with pytest.raises(errors.UnclearOutcome):
        killed_amid()
    assert server_bed.row('e1').host == 'host'


def test_a_beat_whose_connection_was_killed_is_unclear_and_the_next_goes_through(
        server_bed: Bed, database_server: Server) -> None:
    """I16."""
    server_bed.engine('e1')
    assert server_bed.members.beat('e1')
    kill_clients(database_server, sa.make_url(server_bed.url).database)
    with pytest.raises(errors.UnclearOutcome):
        server_bed.members.beat('e1')
    assert server_bed.members.beat('e1')


def test_a_connection_that_is_lost_after_the_answer_changes_nothing_about_it(
        server_bed: Bed, database_server: Server) -> None:
    """What is said at the end, a ROLLBACK of nothing, may be in vain: I16."""
    server_bed.engine('e1')
    with server_bed.database.autocommit() as connection:
        connection.execute(sa.update(models.service).values(host='x'))
        kill_clients(database_server, sa.make_url(server_bed.url).database)
    assert server_bed.row('e1').host == 'x'
    for pool in (server_bed.database.engine.pool, server_bed.database._autocommit.pool):
        assert pool.checkedout() == 0  # type: ignore[attr-defined]


def kill_clients(found: Server, database: str | None) -> None:
    if found.drivername.startswith('mysql'):
        for (client,) in found.execute(
                f"SELECT id FROM information_schema.processlist WHERE db = '{database}'"):
            found.execute(f'KILL {client}')
    else:
        found.execute(f'SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
                      f"WHERE datname = '{database}'")


def test_a_server_that_only_reads_refuses_for_certain(
        server_bed: Bed, database_server: Server) -> None:
    """I16: a failover leaves the old primary like that, and a proxy knows the new one."""
    server_bed.engine('e1')
    database = sa.make_url(server_bed.url).database
    if database_server.drivername.startswith('mysql'):
        database_server.execute('SET GLOBAL read_only = 1')
        mine = 'SELECT CONNECTION_ID()'
        undo = 'SET GLOBAL read_only = 0'
    else:
        database_server.execute(
            f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
        mine = 'SELECT pg_backend_pid()'
        undo = f'ALTER DATABASE "{database}" RESET default_transaction_read_only'
    second = Bed(server_bed.url)

    def connection_id() -> int:
        with second.database.autocommit() as connection:
            return int(connection.scalar(sa.text(mine)))

    try:
        before = connection_id()
        assert connection_id() == before
        with pytest.raises(errors.DatabaseError) as caught:
            second.members.drain('e1')
        assert connection_id() != before, 'it connects again'
        assert type(caught.value) is errors.DatabaseError
        assert 'refused' in str(caught.value)
        assert second.row('e1').state == 'up'
    finally:
        database_server.execute(undo)
        second.database.close()


def test_text_that_does_not_fit_is_refused_and_not_cut(server_bed: Bed) -> None:
    server_bed.engine('e1')
    with server_bed.database.autocommit() as connection:
        if server_bed.database.backend == 'mysql':
            assert 'STRICT_ALL_TABLES' in connection.scalar(sa.text('SELECT @@sql_mode'))
    with pytest.raises(errors.DatabaseError) as caught:
        server_bed.locks.acquire('x' * 256, 'task', None, 'e1')
    assert type(caught.value) is errors.DataRefused
    assert server_bed.locks.search() == []


def test_every_connection_reads_what_others_have_committed(server_bed: Bed) -> None:
    server_bed.engine('e1')
    query = sa.select(models.service.c.host)
    with server_bed.database.transaction() as connection:
        assert connection.scalar(query) == 'host'
        with server_bed.database.transaction() as other:
            other.execute(sa.update(models.service).values(host='new'))
        assert connection.scalar(query) == 'new'


def test_no_more_connections_are_opened_than_allowed(server_bed: Bed) -> None:
    small = Database(server_bed.url, connections=1, connect_timeout=.2, read_timeout=.3)
    with small.autocommit(), pytest.raises(errors.DatabaseError, match='cannot be reached'), \
            small.autocommit():
        pass
    small.close()


@pytest.mark.sqlite
def test_sqlite_waits_for_its_turn_and_refuses_for_certain(sqlite_bed: Bed) -> None:
    """I16."""
    sqlite_bed.engine('e1')
    second = Bed(sqlite_bed.url)
    with sqlite_bed.database.transaction() as connection:
        connection.execute(sa.update(models.service).values(host='x'))
        with pytest.raises(errors.DatabaseError, match='database is locked') as caught:
            second.members.drain('e1')
    assert type(caught.value) is errors.DatabaseError
    assert second.members.drain('e1')
    second.members.hang_up()
    second.database.close()


@pytest.mark.sqlite
def test_an_sqlite_file_that_cannot_be_opened_is_a_sentence(tmp_path: pathlib.Path) -> None:
    error = refused(Database(f'sqlite:///{tmp_path}/nowhere/liveness.sqlite'))
    assert type(error) is errors.DatabaseError
    assert 'unable to open database file' in str(error)
