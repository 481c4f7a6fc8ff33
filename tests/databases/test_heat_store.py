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

"""The work stores of engine, agent and command: who watches whom, and who sweeps; without Heat."""

from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness.db import models, times
from heat_liveness.heat import bridge
from heat_liveness.heat.plans import Plan
from tests.databases import heat_tables as tables
from tests.databases.heat_crew import AGENT, ENGINE, RECOVER, SETTINGS, Crew, Recover
from tests.databases.heat_rooms import Rooms
from tests.databases.heat_tables import Heat


def state(heat: Heat, name: str) -> str:
    return heat.row(name).state


@pytest.mark.parametrize('kind', [RECOVER, AGENT])
def test_orders_of_one_that_never_comes_back_are_adopted_by_whoever_sweeps(
        crew: Crew, kind: tuple[str, str]) -> None:
    """A command that was killed has no peers that would declare it dead."""
    heat = crew.heat
    crew.engine('gone', kind, silent=3600)
    heat.resource(1)
    heat.take_over(taker='gone')
    live = crew.live('survivor', ENGINE)
    crew.run(live, 60)
    row = heat.row('gone')
    assert (row.state, row.declared_by, row.evidence) == ('dead', 'survivor', 'watched')
    entry, = heat.journal.search('gone', 'death')
    assert entry.detail['watched_seconds'] >= SETTINGS.window
    assert heat.orders.claimers(['gone']) == set()
    assert heat.orders.claimers(['survivor']) == set()


def test_what_beats_is_not_declared_dead_however_late_it_looks(crew: Crew) -> None:
    """I4, I15: an agent on a node of the database whose clock is behind."""
    heat = crew.heat
    crew.engine('agent', AGENT)
    heat.resource(1)
    heat.take_over(taker='agent')
    live = crew.live('survivor', ENGINE)
    for _ in range(40):
        assert heat.members.beat('agent')
        heat.shift(models.service, 'updated_at', 3600, engine_id='agent')
        crew.run(live, 4)
    assert state(heat, 'agent') == 'up'


def test_one_of_another_kind_that_owns_nothing_is_nobodys_business(crew: Crew) -> None:
    crew.engine('agent', AGENT, silent=3600)
    live = crew.live('survivor', ENGINE)
    crew.run(live, 100)
    assert state(crew.heat, 'agent') == 'up'


def test_one_that_may_not_be_judged_is_not(crew: Crew) -> None:
    heat = crew.heat
    crew.engine('later', AGENT, silent=3600)
    heat.run(models.service.update().where(models.service.c.engine_id == 'later').values(
        protocol=9))
    heat.resource(1)
    heat.take_over(taker='later')
    live: Any = crew.live('survivor', ENGINE)
    crew.run(live, 100)
    assert state(heat, 'later') == 'up'
    assert live.work.silent == set()


def test_who_is_silent_and_owns_nothing_costs_no_look_at_the_stacks(
        crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that was killed before it had begun stays ``up``; it can hold no resource."""
    crew.engine('killed', RECOVER, silent=3600)
    live: Any = crew.live('survivor', ENGINE)
    asked: list[set[str]] = []
    monkeypatch.setattr(live.work._rows.claims, 'holders',
                        lambda those: asked.append(those) or set())
    crew.run(live, 20)
    assert live.work.silent == set()
    assert asked == []
    crew.engine('plug', ENGINE, silent=3600)
    crew.run(live, 20)
    assert asked[0] == {'plug'}


def test_what_an_engine_without_the_plug_in_has_lost_is_sent_again_once_it_has_stopped(
        crew: Crew, rooms: Rooms) -> None:
    """It held nothing, so nobody has watched it."""
    heat = crew.heat
    heat.change(tables.stack, 's1', action='UPDATE')
    heat.resource(1, status='COMPLETE', engine_id=None)
    heat.run(tables.service.insert().values(
        id='stock', engine_id='stock', binary='heat-engine', report_interval=60,
        updated_at=times.now()))
    live = crew.live('agent', AGENT, rooms.observed.ObservedWork)
    crew.run(live, 100)
    assert 'r1' not in {order.name for order in heat.orders.by('agent')}
    heat.change(tables.service, 'stock', deleted_at=tables.ago(130))
    heat.change(tables.stack, 's1', updated_at=tables.ago(130))
    crew.run(live, 100)
    assert 'r1' in {order.name for order in heat.orders.by('agent')}


def test_only_who_sweeps_watches_the_others(crew: Crew) -> None:
    heat = crew.heat
    crew.engine('eldest', ENGINE)
    crew.engine('gone', RECOVER, silent=3600)
    heat.resource(1)
    heat.take_over(taker='gone')
    live = crew.live('younger', ENGINE)
    crew.run(live, 100)
    assert state(heat, 'gone') == 'up'


def test_the_agent_finds_the_only_engine_with_the_plug_in_dead_and_relieves_it(
        crew: Crew, rooms: Rooms) -> None:
    """The command ends when nobody is silent: what it has declared must be relieved by then."""
    heat = crew.heat
    crew.engine('plug', ENGINE, silent=3600)
    heat.resource(1, engine_id='plug')
    live: Any = crew.live('agent', AGENT, rooms.observed.ObservedWork)
    crew.run(live, 15)
    assert live.work.silent == {'plug'}
    while live.work.silent:
        crew.run(live, 2)
        assert crew.clock.now() < 2000
    row = heat.row('plug')
    assert (row.state, row.declared_by, row.evidence) == ('dead', 'agent', 'watched')
    assert heat.state(1) == ('INIT', 'COMPLETE', None, 2)


def test_the_agent_leaves_what_engines_with_the_plug_in_will_do(
        crew: Crew, rooms: Rooms) -> None:
    """They know tokens, and it does not."""
    heat = crew.heat
    for name in ('plug', 'peer'):
        crew.engine(name, ENGINE)
    heat.resource(1, engine_id='plug')
    assert heat.members.declare(heat.row('plug'), 'peer', 'watched', mass=False, detail={})
    live: Any = crew.live('agent', AGENT, rooms.observed.ObservedWork)
    crew.run(live, 30)
    assert heat.read(1)['engine_id'] == 'plug'
    heat.members.leave('peer')
    crew.run(live, 30)
    assert heat.read(1)['engine_id'] is None


def test_who_sweeps_not_for_a_moment_still_knows_what_it_has_seen(
        crew: Crew, rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it had to begin anew each time, a database that flaps would prevent every verdict."""
    crew.engine('plug', ENGINE, silent=3600)
    crew.heat.resource(1, engine_id='plug')
    live: Any = crew.live('agent', AGENT, rooms.observed.ObservedWork)
    moments = 0
    while crew.heat.row('plug').state == 'up':
        crew.run(live, 20)
        with monkeypatch.context() as patch:
            patch.setattr(live.work, '_sweeps', lambda: False)
            crew.run(live, 10)
        moments += 1
        assert moments < 20


@pytest.mark.parametrize(('elder', 'sweeps'), [(False, 3), (True, 0)])
def test_deletes_that_failed_at_their_project_are_looked_for_at_each_sweep_by_who_sweeps(
        crew: Crew, rooms: Rooms, monkeypatch: pytest.MonkeyPatch, *, elder: bool,
        sweeps: int) -> None:
    if elder:
        crew.engine('elder', AGENT)
    live: Any = crew.live('agent', AGENT, rooms.observed.ObservedWork)
    asked: list[bool] = []
    monkeypatch.setattr(live.work._rows, 'half_deleted', lambda: asked.append(True) or [])
    crew.run(live, 30)
    assert len(asked) == sweeps


def test_a_delete_that_failed_at_its_project_is_ended_in_the_sweep_that_finds_it(
        crew: Crew, rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = crew.heat
    heat.stack('a', action='DELETE', status='FAILED',
               status_reason='Error deleting project: no')
    giver = crew.engine('giver', ENGINE)
    assert heat.orders.stack(heat.the_stack('a'), Plan.FINISH, 'a reason', giver)
    live: Any = crew.live('agent', AGENT, rooms.observed.ObservedWork)
    begun: list[Plan | None] = []
    monkeypatch.setattr(live.work.delivery, 'carry_out',
                        lambda found: begun.extend(order.plan for order in found) or len(found))
    live.scan()
    assert Plan.END_DELETE in begun


@pytest.mark.parametrize('knows_us', [False, True])
def test_what_may_come_back_keeps_its_row_in_heats_own_table(
        crew: Crew, rooms: Rooms, *, knows_us: bool) -> None:
    heat = crew.heat
    if knows_us:
        crew.engine('e1', ENGINE)
    else:
        heat.members.introduce('e1', 'h', 'h', *ENGINE, 60)
    heat.kill('e1')
    heat.resource(1, engine_id='e1')
    heat.run(tables.service.insert().values(
        id='e1', engine_id='e1', binary=bridge.BINARY, report_interval=60, created_at=times.now()))
    rooms.calls.ping = lambda engine_id: False
    crew.live('agent', AGENT, rooms.observed.ObservedWork).scan()
    assert heat.read(1)['engine_id'] is None
    with heat.database.autocommit() as connection:
        deleted_at = connection.scalar(sa.select(tables.service.c.deleted_at))
    assert (deleted_at is not None) is knows_us


def test_recovering_adopts_what_a_killed_command_had_begun(
        crew: Crew, recover: Recover) -> None:
    heat = crew.heat
    crew.engine('killed', RECOVER, silent=3600)
    heat.resource(1)
    heat.take_over(taker='killed')
    said: list[str] = []
    told = recover(say=said.append)
    assert state(heat, 'killed') == 'dead'
    assert heat.orders.claimers(['killed']) == set()
    assert 'Engine killed was declared dead.' in told
    assert 'r1: create again' in told
    assert said[0].startswith('Watching 1 engines that own work and do not beat any more')


def test_recovering_relieves_the_only_engine_with_the_plug_in(
        crew: Crew, recover: Recover) -> None:
    crew.engine('plug', ENGINE, silent=3600)
    crew.heat.resource(1, engine_id='plug')
    told = recover()
    assert 'Engine plug was declared dead.' in told
    assert crew.heat.read(1)['engine_id'] is None


def test_recovering_says_of_whom_it_is_not_certain(
        crew: Crew, rooms: Rooms, recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms.recover, '_longest', lambda settings: 70)
    heat = crew.heat
    crew.engine('slow', AGENT, silent=3600)
    heat.run(models.service.update().where(models.service.c.engine_id == 'slow').values(
        fence_time=3600))
    heat.resource(1)
    heat.take_over(taker='slow')
    assert 'Engine slow owns work and does not beat, and it is not certain' in recover()
    assert state(heat, 'slow') == 'up'


def test_the_dry_run_tells_of_who_is_silent(crew: Crew, recover: Recover) -> None:
    heat = crew.heat
    crew.engine('plug', ENGINE, silent=3600)
    heat.resource(1, engine_id='plug')
    crew.engine('killed', RECOVER, silent=3600)
    heat.resource(2)
    heat.take_over(taker='killed')
    told = recover(dry_run=True)
    assert 'Engine plug on host-of-plug (heat-engine) owns work and does not beat' in told
    assert 'resource r1 (CREATE_IN_PROGRESS), held by engine plug: create again' in told
    assert 'r2: create again, as' in told
    assert 'engine killed was to do that' in told
    assert heat.state(1)[2] == 'plug'


def test_recovering_that_is_interrupted_leaves_and_whoever_sweeps_goes_on(
        crew: Crew, rooms: Rooms, recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = crew.heat
    heat.kill(crew.engine('dead engine', ENGINE))
    heat.resource(1, engine_id='dead engine')
    # Keystone is away.
    rooms.calls.load = None

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rooms.recover.time, 'sleep', interrupt)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        recover(say=said.append)
    command, = heat.orders.abandoned()
    assert state(heat, command) == 'left'
    assert 'whoever recovers next' in said[-1]
    rooms.calls.load = lambda stack_id: None
    crew.live('survivor', ENGINE).scan()
    assert heat.orders.claimers([command]) == set()


def test_recovering_sweeps_beside_an_older_command(crew: Crew, recover: Recover) -> None:
    heat = crew.heat
    crew.engine('older', RECOVER)
    crew.engine('gone', AGENT)
    heat.resource(1)
    heat.take_over(taker='gone')
    heat.members.leave('gone')
    assert 'r1: create again' in recover()
    assert heat.orders.claimers(['gone']) == set()
