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

"""Engines die, hang, stop and come back, as processes."""

import pathlib
import signal
from collections.abc import Iterator

import pytest

from heat_liveness import agent
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members
from tests.bed.server import Server
from tests.bed.waiting import wait_until
from tests.processes.fleet import Fleet

pytestmark = pytest.mark.processes


def test_the_survivors_finish_what_a_killed_engine_began(fleet: Fleet) -> None:
    victim = fleet.start_at_work('a', 'b', 'c')
    others = [fleet.start_at_work('d'), fleet.start_at_work('e')]
    generations = {name: fleet.lock(name).generation for name in 'abcde'}
    victim.signal(signal.SIGKILL)
    assert fleet.wait_until_dead(victim).evidence == 'kernel'
    for name in 'abc':
        fleet.wait_until_owned(name, *others)
        assert fleet.lock(name).generation == generations[name] + 1
        assert fleet.lock(name).takeovers == 1
    fleet.let_tasks_end()
    fleet.wait_until_complete(*'abcde')
    # Nobody alive was robbed: I5.
    assert [fleet.lock(name).generation for name in 'de'] == [generations[name] for name in 'de']
    assert len(fleet.deaths) == 1


def test_a_stopped_engine_is_ended_by_the_kernel_while_it_is_stopped(fleet: Fleet) -> None:
    stopped = fleet.start_at_work('a', elsewhere=True)
    other = fleet.start_at_work()
    stopped.signal(signal.SIGSTOP)
    # Nobody continues it; the fence's timer ends it all the same: I6.
    assert stopped.wait_for_exit() == -signal.SIGKILL
    assert fleet.row(stopped).state == 'up'
    assert fleet.wait_until_dead(stopped).evidence == 'watched'
    fleet.wait_until_owned('a', other)
    fleet.let_tasks_end()
    fleet.wait_until_complete('a')


def test_an_engine_declared_dead_while_it_is_stopped_ends_and_writes_nothing(
        fleet: Fleet) -> None:
    stopped, other = fleet.start_at_work('a'), fleet.start_at_work()
    stopped.signal(signal.SIGSTOP)
    # An observer that is wrong: it declares what is only stopped.
    database = Database(fleet.url)
    members = Members(database)
    row = members.read(fleet.row(stopped).engine_id)
    assert row is not None
    wait_until(lambda: members.declare(row, fleet.row(other).engine_id, 'operator', False, {}),
               10, 'The declaration')
    fleet.wait_until_owned('a', other)
    stopped.signal(signal.SIGCONT)
    # I7: it learns that it is dead, by its beat or by its write, and ends.
    assert stopped.wait_for_exit() in {agent.EXIT_DEAD, -signal.SIGKILL}
    before = fleet.lock('a').generation
    fleet.wait_for_beats(other)
    assert fleet.runs('a', other)
    assert fleet.lock('a').generation == before
    assert fleet.row(stopped).report_count == row.report_count
    fleet.let_tasks_end()
    fleet.wait_until_complete('a')


def test_an_engine_that_is_told_to_stop_beats_until_its_last_task_has_ended(
        fleet: Fleet) -> None:
    leaving, other = fleet.start_at_work('a'), fleet.start_at_work()
    leaving.signal(signal.SIGTERM)
    wait_until(lambda: fleet.row(leaving).state == 'draining', 30, 'The drain')
    fleet.wait_for_beats(leaving)
    assert fleet.runs('a', leaving)
    fleet.let_tasks_end()
    assert leaving.wait_for_exit() == 0
    assert fleet.row(leaving).state == 'left'
    assert fleet.lock('a').status == 'complete'
    assert fleet.deaths == []
    fleet.wait_for_beats(other)


def test_work_whose_taker_dies_too_is_found_again(fleet: Fleet) -> None:
    first = fleet.start_at_work('a')
    rest = [fleet.start_at_work() for _ in range(2)]
    first.signal(signal.SIGKILL)
    taker = fleet.wait_until_owned('a', *rest)
    taker.signal(signal.SIGKILL)
    rest.remove(taker)
    fleet.wait_until_owned('a', *rest)
    assert fleet.lock('a').takeovers == 2
    assert [line['engine_id'] for line in fleet.lock('a').history] == [
        fleet.row(engine).engine_id for engine in (first, taker)]
    fleet.let_tasks_end()
    fleet.wait_until_complete('a')
    assert len(fleet.deaths) == 2


def test_a_row_that_somebody_removed_is_written_again_by_its_living_engine(
        fleet: Fleet) -> None:
    engine, other = fleet.start_at_work('a'), fleet.start_at_work()
    database = Database(fleet.url)
    engine_id = fleet.row(engine).engine_id
    with database.transaction() as connection:
        connection.exec_driver_sql('DELETE FROM liveness_service')
    wait_until(lambda: {row.process.pid for row in fleet.rows} == {engine.pid, other.pid}, 30,
               'The rows to heal')
    assert fleet.row(engine).engine_id == engine_id
    fleet.wait_for_beats(engine, other)
    assert fleet.runs('a', engine)
    assert fleet.deaths == []


def test_a_new_engine_on_the_same_host_inherits_nothing_and_hides_nothing(
        fleet: Fleet) -> None:
    old = fleet.start_at_work('a')
    old_id = fleet.row(old).engine_id
    old.signal(signal.SIGKILL)
    old.wait_for_exit()
    new = fleet.start_at_work()
    # I14: it finds the old one dead like any other, and takes over like any other.
    assert fleet.wait_until_dead(old).declared_by == fleet.row(new).engine_id
    fleet.wait_until_owned('a', new)
    assert fleet.row(new).engine_id != old_id
    assert fleet.lock('a').generation == 2


@pytest.fixture
def server_fleet(database_server: Server, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """A fleet over a server that the test may disturb."""
    fleet = Fleet(database_server.create_database(), tmp_path)
    yield fleet
    database_server.heal()
    fleet.close()


@pytest.mark.parametrize('elsewhere', [False, True], ids=['one machine', 'several machines'])
def test_a_frozen_database_costs_nobody_an_engine(
        server_fleet: Fleet, database_server: Server, elsewhere: bool) -> None:
    fleet = server_fleet
    for name in 'abc':
        fleet.start_at_work(name, elsewhere=elsewhere)
    database_server.freeze()
    fleet.outlast()
    fresh = fleet.start(elsewhere=elsewhere)
    database_server.thaw()
    fleet.wait_until_up(fresh)
    fleet.wait_for_beats(*fleet.engines)
    fleet.assert_undisturbed(*'abc')


def test_a_database_killed_and_restarted_costs_nobody_an_engine(
        server_fleet: Fleet, database_server: Server) -> None:
    fleet = server_fleet
    for name in 'abc':
        fleet.start_at_work(name, elsewhere=True)
    database_server.kill()
    fleet.outlast()
    fresh = fleet.start(elsewhere=True)
    database_server.start()
    fleet.wait_until_up(fresh)
    fleet.wait_for_beats(*fleet.engines)
    fleet.assert_undisturbed(*'abc')
