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

"""What the protocol costs: how many statements, on which tables."""

import random
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import agent, conf
from heat_liveness.db import migration
from heat_liveness.db.database import Database
from heat_liveness.work.native import NativeWork
from tests.bed.server import Server
from tests.databases.conftest import Bed, Statements
from tests.unit.fakes import Timer


def test_a_beat_is_one_statement(bed: Bed) -> None:
    """I17."""
    bed.engine('e1')
    bed.members.beat('e1')
    with bed.statements() as sent:
        for _ in range(10):
            bed.members.beat('e1')
    assert len(sent) == 10
    assert all(each.startswith('UPDATE liveness_service') for each in sent)


@pytest.mark.mariadb
def test_a_beat_is_one_round_trip_by_the_servers_own_count(mariadb_server: Server) -> None:
    """I17: no ping, no BEGIN, no COMMIT and no ROLLBACK beside it."""
    bed = Bed(mariadb_server.create_database())
    migration.sync(bed.database)
    bed.engine('e1')
    bed.members.beat('e1')
    # One connection for all questions: the server counts a farewell too, whenever it comes.
    with sa.create_engine(bed.database.url).connect() as connection:
        asked = min(questions_between(connection, lambda: beat(bed, 10)) for _ in range(5))
    assert asked == 10 + 1
    bed.members.hang_up()
    bed.database.close()


def beat(bed: Bed, times: int) -> None:
    for _ in range(times):
        assert bed.members.beat('e1')


def questions_between(connection: sa.Connection, action: Callable[[], None]) -> int:
    """Return how many statements the server has been asked meanwhile, our question included."""
    asked = []
    for step in (lambda: None, action):
        step()
        count = connection.execute(sa.text("SHOW GLOBAL STATUS LIKE 'Questions'")).one()[1]
        asked.append(int(count))
    return asked[1] - asked[0]


def test_a_declaration_and_a_takeover_cost_the_same_whatever_their_size(bed: Bed) -> None:
    """I17."""
    for name in ('judge', 'small', 'large'):
        bed.engine(name)
    bed.locks.acquire('one', 'task', None, 'small')
    for number in range(20):
        bed.locks.acquire(f'many-{number}', 'task', None, 'large')
    costs = []
    for name in ('small', 'large'):
        row = bed.row(name)
        with bed.statements() as sent:
            bed.members.declare(row, 'judge', 'watched', mass=False, detail={})
            bed.locks.take_over(row, 'judge', 99, tainted=False)
        costs.append(len([each for each in sent if not each.startswith('BEGIN')]))
    assert costs == [5, 5]


@pytest.fixture
def fleet(bed: Bed) -> Iterator[list[agent.Liveness]]:
    settings = conf.Settings(host='here')
    found: list[agent.Liveness] = []
    for number in range(6):
        database = Database(bed.url)
        live = agent.Liveness(
            bed.identity(f'e{number}', boot_id=f'boot-{number}'), settings, database,
            lambda context: NativeWork(context, {}), timer=Timer(), chance=random.Random(number))
        live.join()
        found.append(live)
    yield found
    for live in found:
        live.membership._members.hang_up()
        live._database.close()


def test_an_idle_engine_costs_a_constant_number_of_statements(
        bed: Bed, fleet: list[agent.Liveness]) -> None:
    """I17: whatever the fleet's size, and no other table is touched."""
    for live in fleet:
        live.membership.beat()
        live.scan()
    costs = set()
    for size in (1, 6):
        for live in fleet[:size]:
            with Statements(live._database) as sent:
                for _ in range(15):
                    live.membership.beat()
                for _ in range(25):
                    live.scan()
            costs.add(len(sent))
            assert {table(each) for each in sent} == {'liveness_service'}, set(sent)
    assert costs == {15 + 25}


def table(statement: str) -> str:
    words = statement.split()
    return next(word for word in words if word.startswith('liveness_')).split('.')[0]


def test_the_look_of_a_fleet_that_is_well_reads_by_index(bed: Bed) -> None:
    """I17."""
    if bed.database.backend != 'sqlite':
        pytest.skip('What an optimiser does with six rows proves nothing.')
    with bed.statements() as sent:
        bed.members.look(bed.identity('me'), 6, 60)
    with bed.database.engine.connect() as connection:
        plan = connection.exec_driver_sql(
            'EXPLAIN QUERY PLAN ' + sent[0], ('x',) * sent[0].count('?')).all()
    assert all('USING INDEX' in row[3] for row in plan if 'liveness_service' in row[3]), plan
