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

"""Statements about Heat's tables: one winner, one order, and nothing guessed."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import models, times
from heat_liveness.db.members import ServiceRow
from heat_liveness.heat import views
from heat_liveness.heat.graph import Node
from heat_liveness.heat.plans import Plan
from tests.databases import heat_tables as tables
from tests.databases.conftest import at_once
from tests.databases.heat_tables import RULES, Heat

ONE, TWO, THREE = (Node(number, is_update=True) for number in (1, 2, 3))
SNAPSHOT = Node('snapshot-1', is_update=False, kind='snapshot')


@pytest.fixture
def heat(database_url: str) -> Iterator[Heat]:
    heat = Heat(database_url)
    yield heat
    heat.close()


# What a takeover writes.

def test_a_takeover_writes_state_reason_and_generation_with_the_lock(heat: Heat) -> None:
    heat.resource(1, nova_instance='server-1')
    before = dict(heat.read(1))
    assert heat.take_over() == {1: Plan.REPLACE}
    assert heat.read(1) == {
        **before, 'status': 'FAILED', 'engine_id': None, 'atomic_key': 2,
        'status_reason': 'Engine dead ended during CREATE; me took over'}


def test_where_somebody_knows_no_tokens_a_state_that_need_not_change_is_not_written(
        heat: Heat) -> None:
    heat.change(tables.stack, 's1', action='UPDATE')
    heat.resource(1, action='UPDATE', status_reason='state changed')
    before = dict(heat.read(1))
    rules = dataclasses.replace(RULES, tokened=False)
    assert heat.take_over(rules=rules) == {1: Plan.RUN_AGAIN}
    assert heat.read(1) == {**before, 'engine_id': None, 'atomic_key': 2}


def test_what_is_run_again_is_failed_for_all_others_until_its_check_begins(heat: Heat) -> None:
    heat.change(tables.stack, 's1', action='UPDATE')
    heat.resource(1, action='UPDATE')
    assert heat.take_over() == {1: Plan.RUN_AGAIN}
    assert heat.state(1) == ('UPDATE', 'FAILED', None, 2)
    order, = heat.orders.of('me', 10)
    assert order.revives
    heat.rows.revive(order, [[1, 3]], 'me')
    assert heat.state(1) == ('UPDATE', 'IN_PROGRESS', None, 3)
    # Once is enough.
    heat.rows.revive(order, [[1, 4]], 'me')
    assert heat.state(1) == ('UPDATE', 'IN_PROGRESS', None, 3)
    assert heat.found(order).seen == [[1, 3]]


@pytest.mark.parametrize('change', [{'engine_id': 'e9'}, {'atomic_key': 7}, {'status': 'COMPLETE'}],
                         ids=['locked', 'moved on', 'complete'])
def test_what_somebody_has_changed_is_not_revived(heat: Heat, change: dict[str, Any]) -> None:
    heat.change(tables.stack, 's1', action='UPDATE')
    heat.resource(1, action='UPDATE')
    heat.take_over()
    order, = heat.orders.of('me', 10)
    heat.change(tables.resource, 1, **change)
    before = heat.state(1)
    heat.rows.revive(order, [[1, 3]], 'me')
    assert heat.state(1) == before
    assert heat.found(order).seen is None


@pytest.mark.parametrize('how', ['dead', 'adopted', 'closed'])
def test_who_does_not_carry_an_order_out_any_more_revives_nothing(heat: Heat, how: str) -> None:
    """Whoever has adopted it would take the row for taken up."""
    heat.change(tables.stack, 's1', action='UPDATE')
    heat.resource(1, action='UPDATE')
    heat.take_over()
    order, = heat.orders.of('me', 10)
    if how == 'closed':
        assert heat.orders.close(order.id, 'me', 'enough')
    else:
        ended = heat.kill('me')
        assert len(heat.orders.adopt(ended, 'other', 10 if how == 'adopted' else 0)) == (
            how == 'adopted')
    heat.rows.revive(order, [[1, 3]], 'me')
    assert heat.state(1) == ('UPDATE', 'FAILED', None, 2)
    assert heat.found(order).seen is None


def test_many_that_wait_do_not_stand_before_those_that_can_be_taken(heat: Heat) -> None:
    for number in range(1, 8):
        heat.resource(number, nova_instance=f'child-{number}')
        heat.stack(f'child-{number}', owner_id='s1', parent_resource_name=f'r{number}')
    heat.resource(8)
    heat.resource(9)
    decided = heat.take_over(limit=2)
    assert [number for number, plan in decided.items() if plan is not Plan.WAIT] == [8, 9]


moments = pytest.mark.parametrize(('values', 'done'), [
    ({}, True), ({'status': 'COMPLETE'}, False), ({'current_traversal': 't2'}, False),
    ({'deleted_at': tables.ago(0)}, False)],
    ids=['in progress', 'complete', 'begun anew', 'deleted'])


@moments
def test_only_a_stack_in_progress_is_failed(
        heat: Heat, values: dict[str, Any], done: bool) -> None:
    stack = heat.the_stack()
    heat.change(tables.stack, 's1', **{'status': 'IN_PROGRESS', **values})
    assert heat.rows.fail(stack, 'a reason') is done
    with heat.database.autocommit() as connection:
        status = connection.scalar(sa.select(tables.stack.c.status).where(
            tables.stack.c.id == 's1'))
    assert status == ('FAILED' if done else values.get('status', 'IN_PROGRESS'))


@moments
def test_only_a_stack_in_progress_is_begun_anew(
        heat: Heat, values: dict[str, Any], done: bool) -> None:
    stack = heat.the_stack()
    heat.change(tables.stack, 's1', **{'status': 'IN_PROGRESS', **values})
    assert heat.rows.begin_anew(stack, 'another') is done
    assert heat.rows.begin_anew(stack, 'a third') is False
    with heat.database.autocommit() as connection:
        traversal = connection.scalar(sa.select(tables.stack.c.current_traversal).where(
            tables.stack.c.id == 's1'))
    assert traversal == ('another' if done else values.get('current_traversal', stack.traversal))


@pytest.mark.parametrize(('values', 'state'), [
    ({'action': 'INIT', 'status': 'COMPLETE'}, ('CREATE', 'FAILED', None, 2)),
    ({'action': 'INIT', 'status': 'COMPLETE', 'atomic_key': None}, ('CREATE', 'FAILED', None, 1)),
    ({'action': 'UPDATE', 'status': 'FAILED'}, ('UPDATE', 'FAILED', None, 2)),
    ({'action': 'CREATE', 'status': 'COMPLETE'}, ('CREATE', 'COMPLETE', None, 1)),
    ({'action': 'INIT', 'status': 'COMPLETE', 'engine_id': 'e9'}, ('INIT', 'COMPLETE', 'e9', 1))],
    ids=['not begun', 'never locked', 'failed', 'good', 'locked'])
def test_what_fails_its_stack_fails_with_it(
        heat: Heat, values: dict[str, Any], state: tuple[Any, ...]) -> None:
    heat.resource(1, name='older')
    heat.resource(2, **{'name': 'killer', 'engine_id': None, 'atomic_key': 1, **values})
    view = heat.rows.view('s1')
    assert view is not None
    row = view.newest('killer')
    assert row is not None
    assert view.newest('nobody') is None
    heat.rows.blame(row, 'a reason')
    assert heat.state(2) == state
    assert (heat.read(2)['status_reason'] == 'a reason') == (state[1] == 'FAILED')
    heat.change(tables.resource, 2, atomic_key=7, status='COMPLETE', status_reason='well')
    heat.rows.blame(row, 'another')
    assert heat.read(2)['status_reason'] == 'well'


@pytest.mark.parametrize(('values', 'replaced'), [
    ({}, True), ({'action': 'INIT'}, True), ({'engine_id': 'other', 'status': 'IN_PROGRESS'}, True),
    ({'status': 'FAILED'}, False), ({'action': 'DELETE'}, False),
    ({'action': 'DELETE', 'status': 'IN_PROGRESS'}, True),
    ({'current_template_id': 1}, False)])
def test_a_resource_is_replaced_for_a_template_by_a_row_that_has_not_failed(
        heat: Heat, values: dict[str, Any], *, replaced: bool) -> None:
    heat.resource(1)
    heat.resource(10, **{'name': 'r1', 'replaces': 1, 'status': 'COMPLETE', 'engine_id': None,
                         'current_template_id': 2, **values})
    assert not heat.rows.replaced(1, 2)
    heat.change(tables.resource, 1, replaced_by=10)
    with heat.statements() as sent:
        assert heat.rows.replaced(1, 2) == replaced
    # There may be no index on it.
    assert not any('stack_id' in statement for statement in sent)


def test_a_family_is_a_stack_with_all_that_are_nested_in_it(heat: Heat) -> None:
    heat.stack('child', owner_id='s1')
    heat.stack('grandchild', owner_id='child')
    heat.stack('gone', owner_id='s1', deleted_at=tables.ago(0))
    heat.stack('other')
    assert heat.rows.family('s1') == {'s1', 'child', 'grandchild'}


def test_a_create_without_a_physical_id_begins_again_in_its_row(heat: Heat) -> None:
    heat.resource(1)
    assert heat.take_over() == {1: Plan.CREATE_AGAIN}
    assert heat.state(1) == ('INIT', 'COMPLETE', None, 2)


def test_a_nested_stack_that_exists_without_its_id_is_given_to_its_resource(heat: Heat) -> None:
    heat.resource(1)
    heat.stack('c1', owner_id='s1', parent_resource_name='r1', status='COMPLETE')
    assert heat.take_over() == {1: Plan.RUN_AGAIN}
    assert heat.read(1)['nova_instance'] == 'c1'
    assert heat.state(1) == ('CREATE', 'FAILED', None, 2)


def test_the_first_generation_of_heat_is_none(heat: Heat) -> None:
    heat.resource(1, atomic_key=None)
    assert heat.take_over() == {1: Plan.CREATE_AGAIN}
    assert heat.state(1) == ('INIT', 'COMPLETE', None, 1)


def test_the_order_says_all_that_was_known(heat: Heat) -> None:
    heat.resource(1, nova_instance='server-1', replaces=77, atomic_key=4)
    heat.take_over()
    entry, = heat.entries()
    assert (entry.kind, entry.subject, entry.generation) == ('resource', 'resource:s1:1', 4)
    assert (entry.engine_id, entry.taken_by, entry.status) == ('dead', 'me', 'claimed')
    created = heat.the_stack().created_at.isoformat()
    assert entry.detail == {
        'plan': 'replace', 'reason': 'it may exist half-made', 'stack_id': 's1',
        'stack_name': 'name of s1', 'operation': f'CREATE {created}', 'traversal': 't1 of s1',
        'template': 2, 'resource': 'r1', 'resource_id': 1, 'state': 'CREATE_IN_PROGRESS',
        'physical_id': 'server-1', 'replaces': 77, 'blamed': True, 'revives': False}


def test_lock_and_order_commit_together_or_not_at_all(heat: Heat) -> None:
    """I12."""
    heat.resource(1)
    heat.resource(2)
    heat.run(models.takeover.insert().values(
        kind='resource', subject='resource:s1:2', generation=1, taken_by='other', pieces=1,
        status='claimed', detail='{}', created_at=times.now(), updated_at=times.now()))
    with pytest.raises(errors.LockHeld):
        heat.take_over()
    assert heat.state(1) == heat.state(2) == ('CREATE', 'IN_PROGRESS', 'dead', 1)
    assert len(heat.entries()) == 1


def test_what_nobody_waits_for_is_only_released(heat: Heat) -> None:
    heat.resource(10)
    assert heat.take_over() == {10: Plan.RELEASE}
    assert heat.state(10) == ('INIT', 'COMPLETE', None, 2)
    entry, = heat.entries()
    assert entry.status == 'done'
    assert heat.orders.of('me', 10) == []


def test_what_has_reported_is_only_released(heat: Heat) -> None:
    heat.resource(1, status='COMPLETE')
    heat.report(ONE, Node('s1', is_update=True))
    assert heat.take_over() == {1: Plan.RELEASE}
    assert heat.state(1) == ('CREATE', 'COMPLETE', None, 2)


def test_a_replacement_is_at_work_for_what_it_replaces(heat: Heat) -> None:
    heat.resource(1, action='CREATE', status='COMPLETE', engine_id=None)
    heat.resource(10, replaces=1)
    heat.resource(11, replaces=10, nova_instance='server-1')
    assert heat.take_over() == {10: Plan.CREATE_AGAIN, 11: Plan.REPLACE}


def test_nested_stacks_of_other_names_and_owners_are_nobodys_child(heat: Heat) -> None:
    heat.resource(1)
    heat.stack('c1', owner_id='s1', parent_resource_name='r2')
    heat.stack('c2', owner_id='s2', parent_resource_name='r1')
    heat.stack('c3', owner_id='s1', parent_resource_name='r1', deleted_at=times.now())
    assert heat.take_over() == {1: Plan.CREATE_AGAIN}


def test_a_delete_fails_where_stacks_may_be_abandoned(heat: Heat) -> None:
    heat.change(tables.stack, 's1', action='DELETE')
    heat.resource(1, action='DELETE')
    rules = dataclasses.replace(RULES, abandons=True)
    assert heat.take_over(rules=rules) == {1: Plan.FAIL}
    assert heat.state(1) == ('DELETE', 'FAILED', None, 2)
    assert heat.orders.of('me', 1)[0].plan == Plan.FAIL


# Whose locks, of which stacks, and how many.

@pytest.mark.parametrize('values', [
    {'status': 'COMPLETE'}, {'convergence': False}, {'deleted_at': times.now()},
], ids=['complete', 'legacy', 'deleted'])
def test_other_stacks_are_not_touched(heat: Heat, values: dict[str, Any]) -> None:
    heat.stack('s2', **values)
    heat.resource(1, stack_id='s2')
    assert heat.take_over() == {}
    assert heat.claims.holders(['dead']) == set()
    assert heat.claims.unknown_holders([]) == set()


def test_in_a_stack_that_has_failed_locks_are_released_without_an_order(heat: Heat) -> None:
    heat.change(tables.stack, 's1', status='FAILED')
    heat.resource(1)
    heat.resource(2, status='COMPLETE')
    assert heat.claims.holders(['dead']) == {'dead'}
    assert heat.take_over() == {1: Plan.RELEASE, 2: Plan.RELEASE}
    assert heat.state(1) == ('CREATE', 'FAILED', None, 2)
    assert heat.state(2) == ('CREATE', 'COMPLETE', None, 2)
    assert {entry.status for entry in heat.entries()} == {'done'}
    assert heat.claims.owners(['me', 'dead']) == set()


def test_stacks_in_progress_come_before_those_that_have_failed(heat: Heat) -> None:
    heat.stack('a', status='FAILED')
    heat.resource(1, stack_id='a')
    heat.resource(2)
    assert heat.take_over(limit=1) == {2: Plan.CREATE_AGAIN}
    assert heat.take_over(limit=1) == {1: Plan.RELEASE}


@pytest.mark.parametrize('owner', ['other', 'somebody-without-a-row'])
def test_nobody_alive_or_unknown_is_robbed(heat: Heat, owner: str) -> None:
    """I5: not even by an observer who believes that the owner is dead."""
    heat.resource(1, engine_id=owner)
    assert heat.take_over(dataclasses.replace(heat.dead, engine_id=owner)) == {}
    assert heat.state(1) == ('CREATE', 'IN_PROGRESS', owner, 1)
    assert heat.entries() == []


def test_a_dead_taker_takes_nothing(heat: Heat) -> None:
    """I7."""
    heat.resource(1)
    for taker in ('dead', 'somebody-without-a-row'):
        assert heat.take_over(taker=taker) == {}
    assert heat.state(1)[2] == 'dead'
    assert heat.entries() == []


def test_a_draining_engine_takes_over_and_one_that_has_left_is_relieved(heat: Heat) -> None:
    """I13."""
    heat.resource(1, engine_id='left')
    heat.members.drain('me')
    assert heat.take_over(heat.ended('left', left=True)) == {1: Plan.CREATE_AGAIN}
    entry, = heat.entries()
    assert entry.detail['blamed'] is False


def test_no_more_is_taken_than_there_is_room_for(heat: Heat) -> None:
    for number in range(1, 6):
        heat.resource(number)
    assert len(heat.take_over(limit=2)) == 2
    assert heat.claims.holders(['dead', 'me']) == {'dead'}
    assert len(heat.take_over(taker='other')) == 3
    assert heat.claims.holders(['dead']) == set()


def test_more_stacks_than_one_statement_names_are_looked_at(
        heat: Heat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, '_STACKS_AT_ONCE', 2)
    for number in range(2, 8):
        heat.stack(f's{number}')
        heat.resource(number, stack_id=f's{number}')
    heat.resource(1)
    assert heat.claims.holders(['dead']) == heat.claims.unknown_holders(['me']) == {'dead'}
    assert len(heat.take_over(limit=3)) == 3
    assert len(heat.take_over()) == 4


def test_one_stack_can_be_recovered_alone(heat: Heat) -> None:
    heat.stack('s2')
    heat.resource(1)
    heat.resource(2, stack_id='s2')
    assert heat.take_over(rules=dataclasses.replace(RULES, only='s2')) == {2: Plan.CREATE_AGAIN}
    assert heat.state(1)[2] == 'dead'


def test_of_two_takers_at_once_each_lock_has_one(heat: Heat) -> None:
    """I1, I9."""
    for number in range(1, 21):
        heat.resource(number)
    results = at_once(*(lambda taker=taker: heat.decide(taker=taker, limit=20)
                        for taker in ('me', 'other')))
    taken = [row.id for result in results for row, _ in result]
    taken += [row.id for row, _ in heat.decide(limit=20)]
    assert sorted(taken) == list(range(1, 21))
    assert sorted(entry.detail['resource_id'] for entry in heat.entries()) == list(range(1, 21))
    assert {heat.state(number)[2:] for number in range(1, 21)} == {(None, 2)}


def test_a_release_that_lands_late_and_a_takeover_do_not_both_happen(heat: Heat) -> None:
    """I3: Heat's own release names owner and atomic_key too."""
    def release(number: int) -> bool:
        return heat.run(tables.resource.update().where(
            tables.resource.c.id == number, tables.resource.c.engine_id == 'dead',
            tables.resource.c.atomic_key == 1).values(
                status='COMPLETE', engine_id=None, atomic_key=2)).rowcount == 1

    for number in range(1, 10):
        heat.resource(number)
    decided, *released = at_once(
        heat.take_over, *(functools.partial(release, number) for number in range(1, 10)))
    assert isinstance(decided, dict)
    assert {number for number, was in enumerate(released, 1) if was is not True} == set(decided)
    assert {number: heat.state(number) for number in range(1, 10)} == {
        number: ('INIT' if number in decided else 'CREATE', 'COMPLETE', None, 2)
        for number in range(1, 10)}
    assert {entry.detail['resource_id'] for entry in heat.entries()} == set(decided)


# What is not taken, and when it is.

def test_the_resource_of_a_nested_stack_waits_until_that_has_ended(heat: Heat) -> None:
    heat.resource(1, nova_instance='c1')
    heat.stack('c1', owner_id='s1', parent_resource_name='r1')
    heat.resource(2)
    assert heat.take_over() == {1: Plan.WAIT, 2: Plan.CREATE_AGAIN}
    assert heat.state(1) == ('CREATE', 'IN_PROGRESS', 'dead', 1)
    assert [entry.detail['resource_id'] for entry in heat.entries()] == [2]
    heat.change(tables.stack, 'c1', status='COMPLETE')
    assert heat.take_over() == {1: Plan.RUN_AGAIN}


def test_what_was_left_alone_or_waits_takes_no_room(heat: Heat) -> None:
    for number in (1, 2, 3, 4):
        heat.resource(number)
    decided = heat.decide(limit=2, known={(1, 1), (2, 1)})
    assert [row.id for row, _ in decided] == [3, 4]


def test_what_was_left_alone_in_an_earlier_generation_is_taken(heat: Heat) -> None:
    heat.resource(1, atomic_key=2)
    assert heat.take_over(known={(1, 1)}) == {1: Plan.CREATE_AGAIN}


def test_what_is_left_alone_is_journaled_once_and_taken_when_nothing_stands_in_the_way(
        heat: Heat) -> None:
    unfenced = dataclasses.replace(RULES, fenced=False)
    heat.resource(1, nova_instance='server-1')
    for taker in ('me', 'other'):
        assert heat.take_over(taker=taker, rules=unfenced) == {1: Plan.LEAVE_ALONE}
    assert heat.state(1) == ('CREATE', 'IN_PROGRESS', 'dead', 1)
    entry, = heat.entries()
    assert (entry.status, entry.detail['plan']) == ('done', 'leave alone')
    assert heat.take_over() == {1: Plan.REPLACE}
    entry, = heat.entries()
    assert (entry.status, entry.detail['plan']) == ('claimed', 'replace')


@pytest.mark.parametrize('spoil', [
    tables.stack.update().values(current_deps='no JSON').where(tables.stack.c.id == 's1'),
    tables.stack.update().values(current_deps='{"edges": [[{}, 1]]}').where(
        tables.stack.c.id == 's1'),
    tables.point.update().values(input_data='[]').where(tables.point.c.stack_id == 's1'),
    tables.point.update().values(input_data='{"input_data": {"tuple:(": 1}}').where(
        tables.point.c.stack_id == 's1'),
], ids=['no graph', 'a strange graph', 'no sync point', 'a strange sync point'])
def test_a_graph_that_cannot_be_read_is_left_alone_and_hinders_nobody(
        heat: Heat, spoil: sa.Update) -> None:
    heat.run(spoil)
    heat.resource(1)
    heat.stack('s2')
    heat.resource(2, stack_id='s2')
    assert heat.take_over() == {1: Plan.LEAVE_ALONE, 2: Plan.CREATE_AGAIN}
    assert heat.state(1) == ('CREATE', 'IN_PROGRESS', 'dead', 1)
    assert 'cannot be read' in heat.entries()[0].detail['reason']
    view = heat.rows.view('s1')
    assert view is not None
    assert view.problem
    assert view.traversal.due() == []


def test_a_graph_that_was_never_written_leaves_nobody_waiting(heat: Heat) -> None:
    heat.stack('s2', written=False)
    heat.resource(1, stack_id='s2')
    assert heat.take_over() == {1: Plan.RELEASE}


def test_what_would_be_decided_is_told_without_a_change(heat: Heat) -> None:
    heat.resource(1)
    heat.resource(2, nova_instance='c1')
    heat.stack('c1', owner_id='s1', parent_resource_name='r2')
    heat.stack('s2')
    heat.resource(3, stack_id='s2')
    told = {row.id: decision.plan for row, decision in heat.claims.consider(heat.dead, RULES)}
    assert told == {1: Plan.CREATE_AGAIN, 2: Plan.WAIT, 3: Plan.CREATE_AGAIN}
    assert heat.state(1) == ('CREATE', 'IN_PROGRESS', 'dead', 1)
    assert heat.entries() == []
    only = heat.claims.consider(heat.dead, dataclasses.replace(RULES, only='s2'))
    assert [row.id for row, _ in only] == [3]
    assert heat.take_over() == told


# Poison.

def victim(heat: Heat, name: str, resource_id: int = 1, **how: bool) -> ServiceRow:
    """Return an engine that has ended while it held a resource."""
    heat.run(tables.resource.update().where(tables.resource.c.id == resource_id).values(
        action='CREATE', status='IN_PROGRESS', engine_id=name, nova_instance=None,
        atomic_key=tables.resource.c.atomic_key + 1))
    return heat.ended(name, **how)


def test_a_resource_that_kills_whoever_works_on_it_fails_with_its_stack(heat: Heat) -> None:
    """I10."""
    heat.resource(1)
    heat.resource(2, engine_id='e3')
    heat.take_over()
    assert heat.take_over(victim(heat, 'e2')) == {1: Plan.CREATE_AGAIN}
    assert heat.take_over(victim(heat, 'e3')) == {1: Plan.FAIL, 2: Plan.CREATE_AGAIN}
    assert heat.state(1)[:3] == ('CREATE', 'FAILED', None)
    reason = next(entry.detail['reason'] for entry in reversed(heat.entries())
                  if entry.detail['resource'] == 'r1')
    assert reason.endswith('killed the engines that worked on it, 3 of them: dead, e2, e3')


@pytest.mark.parametrize('how', [{'mass': True}, {'left': True}])
def test_deaths_with_half_of_the_fleet_and_departures_are_nobodys_fault(
        heat: Heat, how: dict[str, bool]) -> None:
    heat.resource(1)
    for name in ('e1', 'e2', 'e3', 'e4'):
        assert heat.take_over(victim(heat, name, **how)) == {1: Plan.CREATE_AGAIN}
    assert heat.rows.deaths(heat.the_stack(), 'r1') == []


def test_deaths_are_counted_across_a_replacement(heat: Heat) -> None:
    heat.resource(1)
    heat.take_over()
    heat.take_over(victim(heat, 'e2'))
    heat.resource(10, name='r1', replaces=1)
    assert heat.take_over(victim(heat, 'e3', 10)) == {10: Plan.FAIL}


def test_one_death_counts_once_whatever_the_engine_held(heat: Heat) -> None:
    """It may have held a lock, and an order whose message had brought it there."""
    order = heat.order()
    assert heat.orders.sending(order, 'me', [])
    assert heat.orders.use(order.id, 'other')
    owner = victim(heat, 'other-2')
    heat.run(tables.resource.update().values(engine_id='other'))
    other = heat.kill('other')
    heat.orders.adopt(other, 'me', 10)
    assert heat.rows.deaths(heat.the_stack(), 'r1') == ['dead', 'other']
    assert heat.take_over(other) == {1: Plan.CREATE_AGAIN}
    heat.run(tables.resource.update().values(engine_id='other-2'))
    assert heat.take_over(owner) == {1: Plan.FAIL}


def test_an_engine_that_held_two_rows_of_one_name_died_once(heat: Heat) -> None:
    heat.resource(1)
    heat.resource(10, name='r1', replaces=1)
    rules = dataclasses.replace(RULES, max_takeovers=2)
    assert heat.take_over(rules=rules) == {1: Plan.CREATE_AGAIN, 10: Plan.CREATE_AGAIN}


ROLLED_BACK: dict[str, Any] = {
    'action': 'ROLLBACK', 'raw_template_id': 1, 'prev_raw_template_id': 2}
"""As Heat rolls a stack back that was on its way to template 2."""


@pytest.mark.parametrize(('values', 'expected'), [
    ({'status': 'FAILED'}, ['dead']), ({'current_traversal': 't2'}, ['dead']),
    ({'action': 'UPDATE'}, []), (ROLLED_BACK, ['dead']),
    ({'updated_at': tables.ago(-60)}, []),
    ({**ROLLED_BACK, 'updated_at': tables.ago(-60)}, ['dead']),
    ({**ROLLED_BACK, 'prev_raw_template_id': 3}, []),
], ids=['the same', 'restarted', 'another action', 'rolled back', 'a later one',
        'rolled back later', 'another is rolled back'])
def test_the_deaths_of_another_operation_do_not_count(
        heat: Heat, values: dict[str, Any], expected: list[str]) -> None:
    heat.resource(1)
    heat.take_over()
    heat.change(tables.stack, 's1', **values)
    assert heat.rows.deaths(heat.the_stack(), 'r1') == expected


def test_a_rollback_belongs_to_the_operation_before_it_and_to_no_earlier_one(heat: Heat) -> None:
    heat.resource(1)
    heat.take_over()
    heat.change(tables.stack, 's1', action='UPDATE', updated_at=tables.ago(60))
    second = heat.ended('second')
    heat.resource(2, name='r1', engine_id='second')
    heat.take_over(second)
    heat.change(tables.stack, 's1', **ROLLED_BACK, updated_at=tables.ago(0))
    assert heat.rows.deaths(heat.the_stack(), 'r1') == ['second']


def test_what_waits_for_its_nested_stack_is_not_failed_as_poison(heat: Heat) -> None:
    heat.resource(1, nova_instance='s2')
    heat.stack('s2', owner_id='s1', parent_resource_name='r1')
    assert heat.take_over(rules=dataclasses.replace(RULES, max_takeovers=1)) == {1: Plan.WAIT}


def test_the_deaths_of_another_resource_or_stack_do_not_count(heat: Heat) -> None:
    heat.stack('s2')
    heat.resource(1)
    heat.resource(2, name='r1', stack_id='s2')
    heat.take_over()
    assert heat.rows.deaths(heat.the_stack('s1'), 'r2') == []
    heat.run(models.takeover.delete().where(models.takeover.c.subject == 'resource:s2:2'))
    assert heat.rows.deaths(heat.the_stack('s2'), 'r1') == []


def test_poison_in_a_stack_that_has_failed_already_is_only_released(heat: Heat) -> None:
    heat.resource(1)
    heat.change(tables.stack, 's1', status='FAILED')
    assert heat.take_over(rules=dataclasses.replace(RULES, max_takeovers=1)) == {1: Plan.RELEASE}


def test_a_journal_that_somebody_has_edited_blames_nobody(heat: Heat) -> None:
    heat.order()
    heat.run(models.takeover.update().values(detail='no JSON').where(
        models.takeover.c.kind == 'resource'))
    assert heat.rows.deaths(heat.the_stack(), 'r1') == []
    assert heat.take_over(victim(heat, 'e2')) == {1: Plan.CREATE_AGAIN}


# Who owns what.

def test_an_engine_owns_what_it_holds_and_what_it_is_to_carry_out(heat: Heat) -> None:
    heat.resource(1)
    heat.resource(2, engine_id='other')
    heat.take_over()
    assert heat.claims.owners(['me', 'other', 'dead']) == {'me', 'other'}
    assert heat.claims.owners([]) == set()
    heat.run(tables.resource.update().values(engine_id='stranger'))
    assert heat.claims.unknown_holders(['me', 'other', 'dead']) == {'stranger'}


def test_where_heats_tables_are_not_no_engine_owns_more_than_orders(heat: Heat) -> None:
    heat.order()
    heat.run(sa.schema.DropTable(tables.resource))
    assert heat.claims.owners(['me', 'dead']) == {'me'}


@pytest.mark.parametrize('change', [{'engine_id': 'e9'}, {'atomic_key': 5}],
                         ids=['locked', 'moved on'])
def test_a_resource_is_touched_when_somebody_has_taken_it_up(
        heat: Heat, change: dict[str, Any]) -> None:
    order = heat.order()
    assert heat.rows.untouched(order)
    heat.run(tables.resource.update().values(**change))
    assert not heat.rows.untouched(order)
    heat.run(tables.resource.delete())
    assert not heat.rows.untouched(order)


def test_only_an_ended_engine_disappears_from_heats_own_list(heat: Heat) -> None:
    for engine_id in ('dead', 'other'):
        heat.run(tables.service.insert().values(id=engine_id, engine_id=engine_id))
        heat.rows.hide_service(engine_id)
    with heat.database.autocommit() as connection:
        shown = connection.scalars(sa.select(tables.service.c.engine_id).where(
            tables.service.c.deleted_at.is_(None))).all()
    assert shown == ['other']


def test_strangers_beat_in_heats_own_table_and_have_no_row_in_ours(heat: Heat) -> None:
    for name, values in {
            'fresh': {'updated_at': times.now()},
            'late': {'updated_at': tables.ago(150)},
            'new': {'created_at': times.now()},
            'silent': {'updated_at': tables.ago(200)},
            'old': {'created_at': tables.ago(200)},
            'gone': {'updated_at': times.now(), 'deleted_at': times.now()},
            'me': {'updated_at': times.now()}}.items():
        heat.run(tables.service.insert().values(
            id=name, engine_id=name, report_interval=60, **values))
    assert heat.rows.strangers() == {'fresh', 'late', 'new'}


def test_an_engine_without_a_row_of_ours_has_ended_when_its_own_is_deleted_and_stays_so(
        heat: Heat) -> None:
    for name, values in {
            'stopped': {'deleted_at': tables.ago(125)},
            'stopped earlier': {'deleted_at': tables.ago(400)},
            # It may live, and will beat.
            'just now': {'deleted_at': tables.ago(115)},
            'up': {'updated_at': times.now()},
            'silent': {'updated_at': tables.ago(9999)},
            'at no time': {'deleted_at': sa.text("'0000-00-00 00:00:00'")},
            'heat-api': {'deleted_at': tables.ago(300), 'binary': 'heat-api'},
            'me': {'deleted_at': tables.ago(300)},
            'dead': {'deleted_at': tables.ago(300)}}.items():
        if name != 'at no time' or heat.database.engine.dialect.name == 'sqlite':
            heat.run(tables.service.insert().values(**{
                'id': name, 'engine_id': name, 'report_interval': 60, 'binary': 'heat-engine',
                **values}))
    heat.run(models.service.update().where(models.service.c.engine_id == 'dead').values(
        binary='heat-engine'))
    assert [(each.engine_id, each.blamed) for each in heat.rows.endings()] == [
        ('dead', True), ('stopped', False), ('stopped earlier', False)]
    assert [each.age for each in heat.rows.endings()] == pytest.approx([0, 125, 400], abs=60)


# A stack in full.

def test_a_stack_that_is_gone_has_no_view(heat: Heat) -> None:
    assert heat.rows.view('s9') is None
    heat.change(tables.stack, 's1', deleted_at=times.now())
    assert heat.rows.view('s1') is None


def test_a_view_costs_five_statements(heat: Heat) -> None:
    """I17."""
    for number in (1, 2, 3):
        heat.resource(number)
        heat.stack(f'c{number}', owner_id='s1', parent_resource_name=f'r{number}')
    heat.rows.view('s1')
    with heat.statements() as sent:
        heat.rows.view('s1')
    assert len(sent) == 5


def test_a_view_has_the_stack_as_it_stands(heat: Heat) -> None:
    heat.stack('s2', action='UPDATE', updated_at=tables.ago(60), timeout=7, owner_id='s1',
               parent_resource_name='r1')
    found = heat.the_stack('s2')
    assert (found.id, found.name, found.action, found.status) == (
        's2', 'name of s2', 'UPDATE', 'IN_PROGRESS')
    assert (found.traversal, found.owner_id, found.timeout_minutes) == ('t1 of s2', 's1', 7)
    assert (found.template_id, found.previous_template_id) == (2, 1)
    assert found.updated_at is not None
    assert 50 < (found.created_at - found.updated_at).total_seconds() < 70
    view = heat.rows.view('s1')
    assert view is not None
    (name, child), = view.children
    assert (name, child.id, child.in_progress) == ('r1', 's2', True)


def test_the_sync_points_of_an_earlier_traversal_are_not_seen(heat: Heat) -> None:
    heat.report(ONE, Node('s1', is_update=True))
    heat.change(tables.stack, 's1', current_traversal='t2')
    view = heat.rows.view('s1')
    assert view is not None
    assert not view.traversal.written


def test_the_child_of_a_resource_is_known_by_its_id_or_by_its_name(heat: Heat) -> None:
    heat.resource(1, nova_instance='c1')
    heat.resource(2)
    heat.resource(3, nova_instance='server-1')
    heat.resource(10, name='r1', replaces=1)
    for child, name in (('c1', 'r1'), ('c2', 'r2'), ('c3', 'r3')):
        heat.stack(child, owner_id='s1', parent_resource_name=name)
    view = heat.rows.view('s1')
    assert view is not None
    found = {number: view.child(row) for number, row in view.resources.items()}
    assert {number: child and child.id for number, child in found.items()} == {
        1: 'c1', 2: 'c2', 3: None, 10: None}


@pytest.mark.parametrize(('values', 'failure'), [
    pytest.param({}, 'of no quota', id='made'),
    pytest.param({'action': 'UPDATE', 'updated_at': tables.ago(1)}, 'of no quota', id='updated'),
    pytest.param({'status_reason': None}, 'no reason was given', id='for no reason'),
    pytest.param({'status': 'COMPLETE'}, None, id='complete'),
    pytest.param({'status': 'IN_PROGRESS'}, None, id='in progress'),
    pytest.param({'action': 'DELETE'}, None, id='deleted'),
    pytest.param({'created_at': tables.ago(99)}, None, id='before'),
    pytest.param({'created_at': None}, None, id='at no time')])
def test_a_nested_stack_has_failed_if_it_has_in_this_operation(
        heat: Heat, values: dict[str, Any], failure: str | None) -> None:
    """What failed before, this operation may be about to mend."""
    heat.change(tables.stack, 's1', action='UPDATE', updated_at=tables.ago(5))
    heat.stack('c1', owner_id='s1', parent_resource_name='r1', **{
        'status': 'FAILED', 'status_reason': 'of no quota', **values})
    view = heat.rows.view('s1')
    assert view is not None
    (_, child), = view.children
    assert child.failure == failure


def test_what_a_replacement_replaces_is_followed_to_the_first(heat: Heat) -> None:
    heat.resource(1)
    heat.resource(10, replaces=1)
    heat.resource(11, replaces=10)
    heat.resource(12, replaces=99)
    heat.resource(13, replaces=14)
    heat.resource(14, replaces=13)
    view = heat.rows.view('s1')
    assert view is not None
    ancestors = {number: view.ancestors(row) for number, row in view.resources.items()}
    assert ancestors == {1: [], 10: [1], 11: [10, 1], 12: [99], 13: [14, 13], 14: [13, 14]}
    assert {number: view.node(row) for number, row in view.resources.items()} == {
        1: ONE, 10: ONE, 11: ONE, 12: None, 13: None, 14: None}


def test_a_resource_that_waits_at_a_hook_is_known(heat: Heat) -> None:
    for number, key, resource_id in (
            (1, 'pre-create', 1), (2, 'post-update', 2), (3, 'pre-delete', 3), (4, 'color', 4),
            (5, 'pre-creation', 5), (6, 'pre-create', 6)):
        heat.run(tables.data.insert().values(id=number, key=key, resource_id=resource_id))
    assert heat.rows.hooked([1, 2, 3, 4, 5]) == {1, 2, 3}
    assert heat.rows.hooked([]) == set()


def test_a_snapshot_may_be_gone_while_its_node_is_there(heat: Heat) -> None:
    assert not heat.rows.exists(SNAPSHOT)
    heat.run(tables.snapshot.insert().values(id=SNAPSHOT.id))
    assert heat.rows.exists(SNAPSHOT)
    assert heat.rows.exists(Node(999, is_update=True))


# What may hang.

def candidates(heat: Heat) -> set[str]:
    return {stack.id for stack, _ in heat.rows.candidates()}


def test_stacks_that_may_hang_are_in_progress_or_have_not_quite_ended(heat: Heat) -> None:
    for stack_id, values in {
            'failed and not purged': {'status': 'FAILED'},
            'reset by hand': {'status': 'FAILED', 'status_reason': 'Stack status manually reset'},
            'reset and updated': {'status_reason': 'Stack status manually reset'},
            'complete and not purged': {'status': 'COMPLETE'},
            'never written': {'written': False},
            'deleted and there': {'action': 'DELETE', 'status': 'COMPLETE', 'written': False},
            'complete': {'status': 'COMPLETE', 'written': False},
            'failed': {'status': 'FAILED', 'written': False},
            'failed to delete': {'action': 'DELETE', 'status': 'FAILED', 'written': False},
            'legacy': {'convergence': False},
            'unknown kind': {'convergence': None},
            'deleted': {'deleted_at': times.now()}}.items():
        heat.stack(stack_id, **values)
    heat.stack('purged', status='COMPLETE', written=False, current_traversal='t2')
    heat.points('purged', [ONE], 't1')
    assert candidates(heat) == {
        's1', 'failed and not purged', 'reset and updated', 'complete and not purged',
        'never written', 'deleted and there'}


def test_an_operation_began_with_its_update_or_else_with_its_create(heat: Heat) -> None:
    heat.stack('updated', created_at=tables.ago(1000), updated_at=tables.ago(500))
    heat.stack('created', created_at=tables.ago(1000))
    ages = {stack.id: age for stack, age in heat.rows.candidates()}
    assert 490 < ages['updated'] < 550
    assert 990 < ages['created'] < 1050


STEPS: dict[str, Callable[[Heat], object]] = {
    'a lock is taken': lambda heat: heat.run(tables.resource.update().where(
        tables.resource.c.id == 2).values(engine_id='e1', atomic_key=1)),
    'a lock is released': lambda heat: heat.run(tables.resource.update().where(
        tables.resource.c.id == 1).values(engine_id=None, atomic_key=2)),
    'a lock is cleared by hand': lambda heat: heat.run(tables.resource.update().where(
        tables.resource.c.id == 1).values(engine_id=None)),
    'a lock is taken over': lambda heat: heat.take_over(),
    'a signal has come': lambda heat: heat.run(tables.resource.update().where(
        tables.resource.c.id == 1).values(atomic_key=2)),
    'a resource is added': lambda heat: heat.resource(4, engine_id=None, atomic_key=None),
    'a resource is removed': lambda heat: heat.run(tables.resource.delete().where(
        tables.resource.c.id == 2)),
    'the newest resource makes way for another': lambda heat: (
        heat.run(tables.resource.delete().where(tables.resource.c.id == 3)),
        heat.resource(4, engine_id=None, atomic_key=None)),
    'a node reports': lambda heat: heat.report(ONE, Node('s1', is_update=True)),
    'a node reports again': lambda heat: heat.report(TWO, Node('s1', is_update=True)),
    'a sync point is added': lambda heat: heat.points(
        's1', [Node(99, is_update=True)], 't1 of s1'),
    'the sync points are purged': lambda heat: heat.run(tables.point.delete().where(
        tables.point.c.stack_id == 's1')),
    'a traversal begins': lambda heat: heat.run(tables.point.update().where(
        tables.point.c.stack_id == 's1').values(traversal_id='t2')),
}


@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS.keys())
def test_each_step_of_a_traversal_shows(heat: Heat, step: Callable[[Heat], object]) -> None:
    heat.resource(1)
    for number in (2, 3):
        heat.resource(number, engine_id=None, atomic_key=None)
    heat.report(TWO, Node('s1', is_update=True))
    heat.stack('s2')
    before = heat.rows.prints(['s1', 's2'])
    assert heat.rows.prints(['s1', 's2']) == before
    step(heat)
    after = heat.rows.prints(['s1', 's2'])
    assert after['s1'] != before['s1']
    assert after['s2'] == before['s2']


def test_a_stack_without_anything_has_a_print(heat: Heat) -> None:
    assert heat.rows.prints(['s9']) == {'s9': ()}
    assert heat.rows.prints([]) == {}


def test_stacks_whose_delete_failed_at_their_project_are_found_if_they_are_ours(
        heat: Heat) -> None:
    failed = {'action': 'DELETE', 'status': 'FAILED',
              'status_reason': 'Error deleting project: no'}
    for stack_id, values in {
            'a': {}, 'b': {}, 'c': {'status_reason': 'Resource r1 failed'},
            'd': {'deleted_at': times.now()}, 'e': {'convergence': False}}.items():
        heat.stack(stack_id, **{**failed, **values})
    for stack_id in ('a', 'c'):
        assert heat.orders.stack(heat.the_stack(stack_id), Plan.FINISH, 'a reason', 'me')
    assert [stack.id for stack in heat.rows.half_deleted()] == ['a']


def test_details_are_stored_as_json(heat: Heat) -> None:
    heat.order(name='a "name" with \\ and \u2603')
    assert heat.orders.of('me', 1)[0].name == 'a "name" with \\ and \u2603'
    with heat.database.autocommit() as connection:
        json.loads(connection.scalar(sa.select(models.takeover.c.detail).where(
            models.takeover.c.kind == 'resource')))
