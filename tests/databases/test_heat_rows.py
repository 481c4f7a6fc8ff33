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

"""Statements about Heat's tables: one winner, one order, and nothing guessed.

The tables have the columns of Heat's that the statements use; the tests in tests/heat run
the same statements on Heat's own schema.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import engine
from heat_liveness.db import migration
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Journal
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.heat import rows
from heat_liveness.heat.rows import Plan

_heat = sa.MetaData()
_stack = sa.Table(
    'stack', _heat, sa.Column('id', sa.String(36), primary_key=True),
    *(sa.Column(name, sa.String(255)) for name in (
        'name', 'action', 'status', 'current_traversal', 'owner_id', 'parent_resource_name')),
    sa.Column('convergence', sa.Boolean), sa.Column('deleted_at', sa.DateTime))
_resource = sa.Table(
    'resource', _heat, sa.Column('id', sa.Integer, primary_key=True),
    *(sa.Column(name, sa.String(255)) for name in (
        'name', 'action', 'status', 'status_reason', 'engine_id', 'nova_instance')),
    sa.Column('atomic_key', sa.Integer), sa.Column('stack_id', sa.String(36)),
    sa.Column('replaces', sa.Integer))
_service = sa.Table(
    'service', _heat, sa.Column('id', sa.String(36), primary_key=True),
    sa.Column('engine_id', sa.String(36)), sa.Column('deleted_at', sa.DateTime))


class Heat:
    """A Heat database with one stack in progress, and engines of which one is dead."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, read_timeout=90)
        migration.sync(self.database)
        _heat.create_all(self.database.engine)
        self.rows = rows.HeatRows(self.database)
        self.members = Members(self.database)
        self.me, self.other, dead = (self._join() for _ in range(3))
        self.members.declare(self.members.read(dead), self.me, 'kernel', False, {})
        self.dead = self.read(dead)
        self.stack('s1')

    def _join(self) -> str:
        identity = engine.Identity.new(host='h', hostname='h', binary='heat-engine',
                                       topic='engine')
        self.members.insert(identity, 4, 20)
        return identity.engine_id

    def read(self, engine_id: str) -> ServiceRow:
        row = self.members.read(engine_id)
        assert row is not None
        return row

    def run(self, statement: sa.Executable) -> sa.CursorResult:
        with self.database.transaction() as connection:
            return connection.execute(statement)

    def stack(self, stack_id: str, **values: object) -> None:
        self.run(_stack.insert().values(**{
            'id': stack_id, 'name': stack_id, 'action': 'CREATE', 'status': 'IN_PROGRESS',
            'current_traversal': 't1', 'convergence': True, **values}))

    def resource(self, resource_id: int, **values: object) -> None:
        self.run(_resource.insert().values(**{
            'id': resource_id, 'name': f'r{resource_id}', 'action': 'CREATE',
            'status': 'IN_PROGRESS', 'engine_id': self.dead.engine_id, 'atomic_key': 1,
            'stack_id': 's1', **values}))

    def state(self, resource_id: int) -> tuple[object, ...]:
        with self.database.autocommit() as connection:
            return tuple(connection.execute(
                sa.select(_resource.c.action, _resource.c.status, _resource.c.engine_id,
                          _resource.c.atomic_key)
                .where(_resource.c.id == resource_id)).one())

    def take_over(self, taker: str | None = None, limit: int = 10) -> dict[int, Plan]:
        decided = self.rows.take_over(self.dead, taker or self.me, limit, set())
        return {row.id: plan for row, plan, _ in decided}


@pytest.fixture
def heat(database_url: str) -> Iterator[Heat]:
    heat = Heat(database_url)
    yield heat
    heat.database.close()


def test_a_create_without_a_physical_id_begins_again_in_its_row(heat: Heat) -> None:
    heat.resource(1)
    assert heat.take_over() == {1: Plan.CREATE_AGAIN}
    assert heat.state(1) == ('INIT', 'COMPLETE', None, 2)


def test_a_create_with_a_physical_id_is_replaced(heat: Heat) -> None:
    heat.resource(1, nova_instance='server-1')
    assert heat.take_over() == {1: Plan.REPLACE}
    assert heat.state(1) == ('CREATE', 'FAILED', None, 2)


@pytest.mark.parametrize('values', [
    {'action': 'UPDATE'}, {'action': 'DELETE'}, {'action': 'CREATE', 'status': 'COMPLETE'},
], ids=['update', 'delete', 'locked without a state'])
def test_what_cannot_be_recovered_safely_is_left_alone_and_journaled(
        heat: Heat, values: dict[str, object]) -> None:
    heat.resource(1, **values)
    before = heat.state(1)
    assert heat.take_over() == {1: Plan.LEAVE_ALONE}
    assert heat.state(1) == before
    entry, = Journal(heat.database).search(kind='resource')
    assert (entry.status, entry.detail['plan']) == ('done', 'leave alone')
    # Once is enough, whoever looks again.
    assert heat.take_over(heat.other) == {1: Plan.LEAVE_ALONE}
    assert len(Journal(heat.database).search(kind='resource')) == 1


def test_a_replacement_in_an_update_is_left_alone(heat: Heat) -> None:
    heat.stack('s2', action='UPDATE')
    heat.resource(1, stack_id='s2', replaces=7)
    assert heat.take_over() == {1: Plan.LEAVE_ALONE}


def test_a_replacement_in_a_create_is_recovered(heat: Heat) -> None:
    heat.resource(1, replaces=7)
    assert heat.take_over() == {1: Plan.CREATE_AGAIN}


def test_a_nested_stack_that_exists_without_its_id_is_left_alone(heat: Heat) -> None:
    heat.resource(1)
    heat.stack('s3', owner_id='s1', parent_resource_name='r1')
    assert heat.take_over() == {1: Plan.LEAVE_ALONE}


@pytest.mark.parametrize('values', [
    {'status': 'COMPLETE'}, {'convergence': False}, {'deleted_at': sa.func.current_timestamp()},
], ids=['not in progress', 'legacy', 'deleted'])
def test_other_stacks_are_not_touched(heat: Heat, values: dict[str, object]) -> None:
    heat.stack('s2', **values)
    heat.resource(1, stack_id='s2')
    assert heat.take_over() == {}
    assert heat.rows.holders([heat.dead.engine_id]) == set()


def test_nobody_alive_or_unknown_is_robbed(heat: Heat) -> None:
    heat.resource(1, engine_id=heat.other)
    heat.resource(2, engine_id='somebody-without-a-row')
    for owner in (heat.other, 'somebody-without-a-row'):
        # Even of an observer who believes that the owner is dead.
        believed = dataclasses.replace(heat.dead, engine_id=owner)
        assert heat.rows.take_over(believed, heat.me, 10, set()) == []
    assert (heat.state(1)[2], heat.state(2)[2]) == (heat.other, 'somebody-without-a-row')


def test_a_dead_taker_takes_nothing(heat: Heat) -> None:
    heat.resource(1)
    assert heat.take_over(heat.dead.engine_id) == {}
    assert heat.state(1)[2] == heat.dead.engine_id


def test_no_more_is_taken_than_there_is_room_for(heat: Heat) -> None:
    for number in range(1, 6):
        heat.resource(number)
    assert len(heat.take_over(limit=2)) == 2
    assert heat.rows.holders([heat.dead.engine_id, heat.me]) == {heat.dead.engine_id}
    assert len(heat.take_over(heat.other)) == 3
    assert heat.rows.holders([heat.dead.engine_id]) == set()


def test_what_was_left_alone_is_taken_when_nothing_stands_in_the_way_any_more(
        heat: Heat) -> None:
    heat.resource(1)
    heat.stack('s3', owner_id='s1', parent_resource_name='r1')
    assert heat.take_over() == {1: Plan.LEAVE_ALONE}
    heat.run(_stack.delete().where(_stack.c.id == 's3'))
    heat.resource(2)
    assert heat.take_over(heat.other) == {1: Plan.CREATE_AGAIN, 2: Plan.CREATE_AGAIN}
    assert [entry.status for entry in Journal(heat.database).search(kind='resource')] == [
        'claimed', 'claimed']


def test_orders_are_read_on_behind_those_that_were_tried(heat: Heat) -> None:
    for number in (1, 2, 3):
        heat.resource(number)
    heat.take_over()
    first, second = heat.rows.orders(heat.me, 2)
    assert [order.resource_id for order in heat.rows.orders(heat.me, 2, first.id)] == [2, 3]
    assert [order.resource_id for order in heat.rows.orders(heat.me, 2, second.id)] == [3]


def test_what_was_left_alone_before_takes_no_room(heat: Heat) -> None:
    heat.resource(1, action='UPDATE')
    for number in (2, 3, 4):
        heat.resource(number)
    decided = heat.rows.take_over(heat.dead, heat.me, 2, {(1, 1)})
    assert [row.id for row, _, _ in decided] == [2, 3]


def test_what_was_claimed_and_not_sent_is_found_by_its_claimer_and_then_closed(
        heat: Heat) -> None:
    heat.resource(1)
    heat.take_over()
    order, = heat.rows.orders(heat.me, 10)
    assert (order.resource_id, order.stack_id, order.traversal) == (1, 's1', 't1')
    assert heat.rows.untouched(order)
    assert heat.rows.claimers([heat.me, heat.other]) == {heat.me}
    heat.rows.close(order, heat.me, 'its check was sent')
    assert heat.rows.orders(heat.me, 10) == []
    entry, = Journal(heat.database).search(kind='resource')
    assert (entry.status, entry.detail['outcome']) == ('done', 'its check was sent')


def test_the_order_of_a_dead_claimer_is_adopted_by_one(heat: Heat) -> None:
    heat.resource(1)
    heat.take_over(heat.other)
    assert heat.rows.adopt(heat.other, heat.me, 10) == []
    heat.members.declare(heat.read(heat.other), heat.me, 'kernel', False, {})
    third = heat._join()
    assert [order.resource_id for order in heat.rows.adopt(heat.other, heat.me, 10)] == [1]
    assert heat.rows.adopt(heat.other, third, 10) == []
    assert [order.resource_id for order in heat.rows.orders(heat.me, 10)] == [1]


@pytest.mark.parametrize('change', [{'engine_id': 'e9'}, {'atomic_key': 5}],
                         ids=['locked', 'moved on'])
def test_what_somebody_has_taken_up_is_not_sent_again(
        heat: Heat, change: dict[str, object]) -> None:
    heat.resource(1)
    heat.take_over()
    order, = heat.rows.orders(heat.me, 10)
    heat.run(_resource.update().values(**change))
    assert not heat.rows.untouched(order)
    heat.run(_resource.delete())
    assert not heat.rows.untouched(order)


def test_only_an_ended_engine_disappears_from_heats_own_list(heat: Heat) -> None:
    for engine_id in (heat.dead.engine_id, heat.other):
        heat.run(_service.insert().values(id=engine_id, engine_id=engine_id))
        heat.rows.hide_service(engine_id)
    with heat.database.autocommit() as connection:
        shown = connection.scalars(
            sa.select(_service.c.engine_id).where(_service.c.deleted_at.is_(None))).all()
    assert shown == [heat.other]
