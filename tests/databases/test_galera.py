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

"""What is different on Galera: three nodes that write, and no row lock between them."""

import functools
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import migration, models
from heat_liveness.db.database import Database
from tests.bed.galera import Cluster
from tests.databases.conftest import Bed, at_once
from tests.databases.heat_tables import Heat

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def urls(galera: Cluster) -> Iterator[list[str]]:
    """An empty database, on each node."""
    url = galera.create_database()
    yield galera.urls(url)
    galera.drop_database(url)


@pytest.fixture
def beds(urls: list[str], galera: Cluster) -> Iterator[list[Bed]]:
    """One database with our tables, as seen from each node."""
    # A cluster on one machine that is busy may be slower than one that is well.
    found = [Bed(url, read_timeout=60) for url in urls]
    migration.sync(found[0].database)
    galera.settle()
    yield found
    for bed in found:
        bed.members.hang_up()
        bed.database.close()


def test_every_node_sees_what_another_has_just_committed(beds: list[Bed]) -> None:
    """I7: whether an engine is dead is asked of a node that has caught up."""
    beds[0].engine('e1')
    for number in range(1, 31):
        assert beds[number % 3].members.beat('e1')
        assert beds[(number + 1) % 3].row('e1').report_count == number


@pytest.mark.parametrize('amid', ['', 'SELECT 1', 'UPDATE liveness_service SET pid = 3'])
def test_the_second_of_two_who_change_a_row_is_contended(beds: list[Bed], amid: str) -> None:
    """I16: at its COMMIT, or at any statement before."""
    beds[0].engine('e1')
    change = sa.update(models.service)

    def second() -> None:
        with beds[1].database.transaction() as connection:
            assert connection.execute(change.values(host='second')).rowcount == 1
            with beds[0].database.transaction() as first:
                assert first.execute(change.values(host='first')).rowcount == 1
            if amid:
                assert beds[2].row('e1').host == 'first'
                connection.exec_driver_sql(amid)

    with pytest.raises(errors.Contended, match='was first'):
        second()
    assert [(bed.row('e1').host, bed.row('e1').process.pid) for bed in beds] == [
        ('first', 4321)] * 3
    assert beds[1].members.drain('e1'), 'the connection is fit for use'


def test_an_exception_amid_a_contended_transaction_stays_what_it_is(beds: list[Bed]) -> None:
    beds[0].engine('e1')
    change = sa.update(models.service)

    def second() -> None:
        with beds[1].database.transaction() as connection:
            connection.execute(change.values(host='second'))
            with beds[0].database.transaction() as first:
                first.execute(change.values(host='first'))
            raise KeyError

    with pytest.raises((KeyError, errors.Contended)):
        second()
    assert beds[1].row('e1').host == 'first'


def test_takers_on_all_nodes_share_the_locks_of_a_dead_engine(beds: list[Bed]) -> None:
    """I1, I2."""
    beds[0].engine('dead')
    names = [f'lock-{number}' for number in range(90)]
    for name in names:
        beds[0].locks.acquire(name, 'task', None, 'dead')
    dead = beds[0].kill('dead')
    takers = [beds[0].engine(f'taker-{number}') for number in range(3)]

    def take(bed: Bed, taker: str) -> list[str]:
        won: list[str] = []
        while bed.locks.owners(['dead']):
            try:
                won += [row.name for row in bed.locks.take_over(dead, taker, 5, tainted=False)]
            except errors.Contended:
                continue
        return won

    results = at_once(*map(functools.partial(functools.partial, take), beds, takers))
    assert all(isinstance(each, list) for each in results), results
    won = {name: taker for taker, each in zip(takers, results, strict=True)
           for name in each}  # type: ignore[union-attr]
    assert sorted(won) == sorted(names)
    assert sum(map(len, results)) == len(names)  # type: ignore[arg-type]
    for name in names:
        lock = beds[1].locks.find(name)
        assert lock is not None
        assert (lock.engine_id, lock.generation) == (won[name], 2)
    journal = beds[2].journal.search('dead', 'takeover')
    assert sum(entry.pieces for entry in journal) == len(names)


def test_one_of_many_judges_on_all_nodes_declares(beds: list[Bed]) -> None:
    """I4, I18."""
    judges = [beds[0].engine(f'judge-{number}') for number in range(6)]
    for number in range(10):
        victim = beds[0].engine(f'victim-{number}')
        row = beds[0].row(victim)
        results = at_once(*(
            functools.partial(beds[each % 3].members.declare, row, judge, 'watched', False, {})
            for each, judge in enumerate(judges)))
        assert sorted(results, key=str) == [False] * 5 + [True]
        (death,) = beds[1].journal.search(victim, 'death')
        assert death.taken_by == judges[results.index(True)]
        assert beds[2].row(victim).declared_by == death.taken_by


def test_a_lock_acquired_on_all_nodes_at_once_has_one_owner(beds: list[Bed]) -> None:
    """I1."""
    takers = [beds[0].engine(f'e{number}') for number in range(3)]
    for number in range(20):
        results = at_once(*(
            functools.partial(bed.locks.acquire, f'lock-{number}', 'task', None, taker)
            for bed, taker in zip(beds, takers, strict=True)))
        won = [each for each in results if not isinstance(each, BaseException)]
        assert len(won) == 1, results
        assert all(type(each) in {errors.LockHeld, errors.Contended} for each in results
                   if isinstance(each, BaseException)), results


def test_of_receivers_on_all_nodes_one_uses_a_token(beds: list[Bed], galera: Cluster) -> None:
    """I9."""
    heat = Heat(beds[0].url)
    galera.settle()
    try:
        for number in range(1, 10):
            order = heat.order(number)
            assert heat.orders.sending(order, 'me', [])
            results = at_once(*(
                functools.partial(type(heat.orders)(bed.database).use, order.id, receiver)
                for bed, receiver in zip(beds, ('me', 'other', 'me'), strict=True)))
            assert sorted(results, key=str) == [False, False, True]
    finally:
        heat.close()


def test_syncs_on_all_nodes_at_once_make_the_tables_and_frighten_nobody(
        urls: list[str], tmp_path: pathlib.Path) -> None:
    """As processes: alembic's context belongs to a whole process."""
    commands = []
    for number, url in enumerate(urls):
        file = tmp_path / f'{number}.conf'
        file.write_text(f'[database]\nconnection = {url}\n')
        commands.append(subprocess.Popen(
            [sys.executable, '-m', 'heat_liveness.cmd.manage', '--config-file', str(file),
             'db', 'sync'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for command in commands:
        said = command.communicate(timeout=250)[0]
        assert command.returncode == 0, said
        assert 'rror' not in said
    for url in urls:
        database = Database(url, read_timeout=60)
        migration.check(database)
        with database.transaction() as connection:
            for table in models.metadata.tables.values():
                present = {index['name'] for index in sa.inspect(connection).get_indexes(
                    table.name)}
                assert {index.name for index in table.indexes} <= present
        database.close()


def test_a_sync_completes_what_one_that_was_killed_has_begun(urls: list[str]) -> None:
    database = Database(urls[0], read_timeout=60)
    migration.sync(database)
    with database.transaction() as connection:
        connection.exec_driver_sql('DROP TABLE liveness_takeover')
        connection.exec_driver_sql('DROP INDEX liveness_service_boot_id ON liveness_service')
        connection.exec_driver_sql(f'DELETE FROM {models.VERSION_TABLE}')
    assert migration.sync(database) == (None, migration.head())
    with database.transaction() as connection:
        assert sa.inspect(connection).has_table('liveness_takeover')
        assert 'liveness_service_boot_id' in {
            index['name'] for index in sa.inspect(connection).get_indexes('liveness_service')}
    database.close()


def test_no_table_is_without_a_primary_key(beds: list[Bed]) -> None:
    with beds[0].database.transaction() as connection:
        for table in (*models.metadata.tables, models.VERSION_TABLE):
            assert sa.inspect(connection).get_pk_constraint(table)['constrained_columns']


def test_a_node_that_refuses_is_left_for_a_better_one(beds: list[Bed], galera: Cluster) -> None:
    """1047, as from a node without a quorum: a proxy may have another by now."""
    beds[1].engine('e1')

    def connection_id() -> int:
        with beds[1].database.autocommit() as connection:
            return int(connection.scalar(sa.text('SELECT CONNECTION_ID()')))

    before = connection_id()
    assert connection_id() == before
    galera.nodes[1].execute('SET GLOBAL wsrep_reject_queries = ALL')
    try:
        with pytest.raises(errors.DatabaseError):
            beds[1].row('e1')
    finally:
        galera.nodes[1].execute('SET GLOBAL wsrep_reject_queries = NONE')
    assert connection_id() != before
    assert beds[1].row('e1').live
