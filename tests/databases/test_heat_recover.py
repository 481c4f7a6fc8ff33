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

"""What the dry run says is what ``recover --once`` then does, without Heat."""

import dataclasses
import re
import types
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness.db import models, times
from heat_liveness.heat.graph import Node
from heat_liveness.heat.plans import Plan
from tests.databases import heat_tables as tables
from tests.databases.heat_crew import AGENT, ENGINE, PEER, RECOVER, Crew, Recover
from tests.databases.heat_rooms import Rooms
from tests.databases.heat_tables import Heat

NODE = Node(1, is_update=True)


@pytest.fixture(autouse=True)
def obedient(heat: Heat, rooms: Rooms) -> None:
    """Let there be no stack yet, and a Heat that does at once what it is asked for."""
    heat.run(tables.point.delete())
    heat.run(tables.stack.delete())

    def end(stack: Any, status: str, **values: Any) -> None:
        heat.run(tables.point.delete().where(tables.point.c.stack_id == stack.id))
        heat.change(tables.stack, stack.id, status=status, **values)

    def send(stack: Any, node: Node, target: int, token: int, receiver: str | None) -> bool:
        assert heat.orders.use(token, 'me')
        heat.change(tables.resource, target, status='COMPLETE')
        end(stack, 'COMPLETE')
        assert heat.orders.close(token, 'me', 'it was checked')
        return True

    def fail(stack: Any, reason: str) -> bool:
        end(stack, 'FAILED')
        return True

    def load(stack_id: str) -> Any:
        view = heat.rows.view(stack_id)
        return None if view is None else types.SimpleNamespace(
            id=stack_id, current_traversal=view.stack.traversal)

    rooms.calls.load, rooms.calls.send, rooms.calls.fail = load, send, fail
    rooms.calls.finish = lambda stack, roll_back: end(stack, 'COMPLETE')
    rooms.calls.write_out = lambda stack, traversal: end(stack, 'COMPLETE')
    rooms.calls.end_delete = lambda stack: end(stack, 'COMPLETE', deleted_at=times.now())
    rooms.calls.ping = lambda engine_id: False


def one(heat: Heat, **values: Any) -> None:
    """Put a stack there that has one resource to create, or to clean up."""
    heat.stack('a', [(NODE, None)], **values)


def held(heat: Heat, engine_id: str | None, **values: Any) -> None:
    one(heat)
    heat.resource(1, stack_id='a', engine_id=engine_id, **values)


def dead(crew: Crew, name: str = 'gone') -> str:
    crew.heat.kill(crew.engine(name, ENGINE))
    return name


def by_a_dead_engine(crew: Crew) -> None:
    held(crew.heat, dead(crew))


def half_made(crew: Crew) -> None:
    held(crew.heat, dead(crew), nova_instance='a server')


def without_the_plug_in(crew: Crew) -> None:
    crew.heat.members.introduce('stock', 'h', 'h', *ENGINE, 60)
    crew.heat.kill('stock')
    held(crew.heat, 'stock', nova_instance='a server')


def left_alone_before(crew: Crew) -> None:
    without_the_plug_in(crew)


def waited_for_before(crew: Crew) -> None:
    for_its_nested_stack(crew)


def by_a_silent_engine(crew: Crew) -> None:
    held(crew.heat, crew.engine('plug', ENGINE, silent=3600))


def by_one_without_a_row(crew: Crew) -> None:
    held(crew.heat, 'unknown')


def by_one_of_another_version(crew: Crew) -> None:
    held(crew.heat, crew.engine('later', ENGINE))
    crew.heat.run(models.service.update().where(models.service.c.engine_id == 'later').values(
        protocol=9))


def by_one_that_has_peers(crew: Crew) -> None:
    """These have tokens."""
    held(crew.heat, dead(crew))
    crew.engine(PEER, ENGINE)


def for_its_nested_stack(crew: Crew) -> None:
    held(crew.heat, dead(crew))
    crew.heat.stack('c', [(Node(20, is_update=True), None)], owner_id='a',
                    parent_resource_name='r1')
    crew.heat.resource(20, stack_id='c', engine_id='me')


def of_a_stack_that_has_failed(crew: Crew) -> None:
    crew.heat.stack('a', written=False, status='FAILED')
    crew.heat.resource(1, stack_id='a', engine_id=dead(crew))


def that_has_killed_others(crew: Crew) -> None:
    held(crew.heat, None)
    for name in ('first', 'second'):
        crew.heat.change(tables.resource, 1, engine_id=dead(crew, name), status='IN_PROGRESS')
        crew.heat.take_over(crew.heat.row(name))
        for order in crew.heat.orders.of('me', 9):
            crew.heat.orders.close(order.id, 'me', 'it was checked')
    crew.heat.change(tables.resource, 1, engine_id=dead(crew, 'third'), action='CREATE',
                     status='IN_PROGRESS')


def given_by_a_command_that_was_killed(crew: Crew) -> None:
    held(crew.heat, dead(crew))
    crew.heat.take_over(crew.heat.row('gone'), taker=crew.engine('killed', RECOVER, silent=3600))


def given_by_a_command_that_has_left(crew: Crew) -> None:
    held(crew.heat, dead(crew))
    crew.heat.take_over(crew.heat.row('gone'), taker=crew.engine('left', RECOVER))
    crew.heat.members.leave('left')


def lost(crew: Crew) -> None:
    held(crew.heat, None, action='INIT', status='COMPLETE')


def being_sent_again(crew: Crew) -> None:
    lost(crew)
    assert crew.heat.orders.message(crew.heat.the_stack('a'), NODE, 'r1', 'a reason',
                                    crew.engine('agent', AGENT))


def of_what_is_taken_over(crew: Crew) -> None:
    """Its lock was cleared by an agent, which has not sent it yet."""
    held(crew.heat, dead(crew))
    crew.heat.take_over(crew.heat.row('gone'), taker=crew.engine('agent', AGENT))


def late(crew: Crew) -> None:
    one(crew.heat, timeout=60, created_at=tables.ago(7200))
    crew.heat.resource(1, stack_id='a', engine_id='me')


def late_and_told(crew: Crew) -> None:
    late(crew)
    assert crew.heat.orders.stack(crew.heat.the_stack('a'), Plan.TIME_OUT, 'a reason',
                                  crew.engine('agent', AGENT))


def never_written(crew: Crew) -> None:
    crew.heat.stack('a', written=False)
    dead(crew)


def not_ended(crew: Crew) -> None:
    one(crew.heat, status='COMPLETE')
    dead(crew)


def failed_long_ago(crew: Crew) -> None:
    one(crew.heat, status='FAILED', timeout=60, created_at=tables.ago(36000))
    dead(crew)


def half_deleted(crew: Crew) -> None:
    crew.heat.stack('a', written=False, action='DELETE', status='FAILED',
                    status_reason='Error deleting project: no')
    stack = crew.heat.the_stack('a')
    assert crew.heat.orders.stack(stack, Plan.FINISH, 'a reason', 'me')
    order, = crew.heat.orders.of('me', 9)
    crew.heat.orders.close(order.id, 'me', 'its end was carried through')


def half_deleted_and_told(crew: Crew) -> None:
    half_deleted(crew)
    assert crew.heat.orders.stack(crew.heat.the_stack('a'), Plan.END_DELETE, 'a reason', 'me')


Arrange = Callable[[Crew], object]

SITUATIONS: dict[Arrange, Plan | None] = {
    by_a_dead_engine: Plan.CREATE_AGAIN,
    half_made: Plan.REPLACE,
    without_the_plug_in: Plan.LEAVE_ALONE,
    left_alone_before: Plan.LEAVE_ALONE,
    waited_for_before: Plan.WAIT,
    by_a_silent_engine: Plan.CREATE_AGAIN,
    by_one_without_a_row: Plan.CREATE_AGAIN,
    by_one_of_another_version: None,
    by_one_that_has_peers: None,
    for_its_nested_stack: Plan.WAIT,
    of_a_stack_that_has_failed: Plan.RELEASE,
    that_has_killed_others: Plan.FAIL,
    given_by_a_command_that_was_killed: Plan.CREATE_AGAIN,
    given_by_a_command_that_has_left: Plan.CREATE_AGAIN,
    lost: Plan.SEND_AGAIN,
    being_sent_again: None,
    of_what_is_taken_over: None,
    late: Plan.TIME_OUT,
    late_and_told: None,
    never_written: Plan.RESTART,
    not_ended: Plan.FINISH,
    failed_long_ago: Plan.PURGE,
    half_deleted: Plan.END_DELETE,
    half_deleted_and_told: None,
}

DONE_BEFORE = (left_alone_before, waited_for_before)
"""Where it is not the first time that the command recovers."""


@dataclasses.dataclass(frozen=True)
class Line:
    """What is said of a stack or a resource."""

    subject: str
    plan: str
    why: str


def lines(said: str) -> list[Line]:
    found = []
    for line in said.splitlines():
        if line.startswith('Stack '):
            match = re.fullmatch(
                r'Stack name of \w+ \((?P<stack>\w+)\)(?: [A-Z_]+)?'
                r'(?:,(?: resource)? (?P<name>[\w ]+)(?: \(\w+\), held by engine \w+)?)?: '
                r'(?P<plan>[a-z ]+), as (?P<why>.*)', line)
            assert match is not None, line
            # Time goes on.
            found.append(Line(match['name'] or f'name of {match["stack"]}', match['plan'],
                              re.sub(r'\d+ s ago', 'long ago', match['why'])))
    return found


def everything(heat: Heat) -> list[Any]:
    """Return all rows, but that of the peer, which beats."""
    others = sa.select(models.service).where(models.service.c.engine_id != PEER)
    with heat.database.autocommit() as connection:
        return [connection.execute(statement).all() for statement in (
            others, *map(sa.select, (
                tables.stack, tables.resource, tables.point, models.takeover)))]


@pytest.mark.parametrize(('arrange', 'plan'), SITUATIONS.items(),
                         ids=[each.__name__ for each in SITUATIONS])
def test_what_the_dry_run_says_is_done(
        crew: Crew, recover: Recover, arrange: Arrange, plan: Plan | None) -> None:
    arrange(crew)
    if arrange in DONE_BEFORE:
        recover()
    before = everything(crew.heat)
    said = recover(dry_run=True)
    assert everything(crew.heat) == before
    would = lines(said)
    assert [line.plan for line in would] == ([] if plan is None else [plan])
    told = recover()
    done = lines(told)
    assert [(line.subject, line.plan) for line in done] == [
        (line.subject, line.plan) for line in would], told
    for this, that in zip(would, done, strict=True):
        # What follows it is who was to do it, or what became of it.
        assert that.why.startswith(re.split(r'\.$|; engine \w+ was', this.why)[0])


def test_what_has_peers_is_left_to_them(crew: Crew, recover: Recover) -> None:
    by_one_that_has_peers(crew)
    assert recover(dry_run=True) == ('What engine gone holds is left to the engines with the '
                                     'plug-in, such as peer.')
    assert recover() == 'Nothing was to be done.'
    assert crew.heat.read(1)['engine_id'] == 'gone'


def test_of_one_stack_nothing_else_is_told_or_done(crew: Crew, recover: Recover) -> None:
    heat = crew.heat
    for_its_nested_stack(crew)
    heat.stack('b', [(Node(2, is_update=True), None)])
    heat.resource(2, stack_id='b', engine_id='gone')
    heat.stack('d', [(Node(3, is_update=True), None)])
    heat.resource(3, stack_id='d', engine_id='gone', nova_instance='a server')
    would, done = (lines(recover(dry_run=dry_run, only='b')) for dry_run in (True, False))
    assert [(line.subject, line.plan) for line in would] == [('r2', Plan.CREATE_AGAIN)]
    assert [(line.subject, line.plan) for line in done] == [('r2', Plan.CREATE_AGAIN)]
    assert [heat.read(number)['engine_id'] for number in (1, 2, 3)] == ['gone', None, 'gone']
