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


"""Delivery, as far as it asks the database alone: Heat's own code is replaced by a list."""

import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from heat_liveness import conf
from heat_liveness.db import models
from heat_liveness.heat.graph import Node
from heat_liveness.work import Context
from tests.bed.waiting import wait_until
from tests.databases import heat_tables as tables
from tests.databases.heat_rooms import Rooms
from tests.databases.heat_tables import Heat
from tests.unit import fakes

ONE, TWO = (Node(number, is_update=True) for number in (1, 2))
LONG = 1000.0
"""Longer than any pause before a message is sent again."""


class Sender:
    """The engine ``me``, which carries its orders out."""

    def __init__(self, heat: Heat, rooms: Rooms, max_takeovers: int) -> None:
        self.heat = heat
        self.sent: list[tuple[int | str, str | None]] = []
        """Each row that was to be checked, with the engine that it was sent to, if to one."""
        self.calls = rooms.calls
        self.calls.load = lambda stack_id: types.SimpleNamespace(
            id=stack_id, current_traversal=heat.the_stack(stack_id).traversal)
        self.calls.send = self._send
        self.clock = fakes.Clock()
        self.delivery: Any = rooms.delivery.Delivery(Context(
            identity=fakes.identity('me'), settings=conf.Settings(max_takeovers=max_takeovers),
            database=heat.database, members=heat.members,
            gate=types.SimpleNamespace(wait=lambda: None), clock=self.clock), heat.rows, 'me')

    def _send(self, stack: Any, node: Node, target: int | str, token: int,
              receiver: str | None) -> bool:
        self.sent.append((target, receiver))
        return True

    def follow(self, seconds: float = LONG) -> None:
        """Let time pass, and carry out what is due."""
        self.clock.forward(seconds)
        for name in ('me', 'other'):
            self.heat.shift(models.takeover, 'updated_at', seconds, taken_by=name)
        self.delivery.follow_in_time()
        wait_until(lambda: not self.delivery.running, 10, 'The orders are carried out.')


@pytest.fixture
def sender(heat: Heat, rooms: Rooms) -> Iterator[Sender]:
    """An engine to which each resource of a dead engine is one that may kill it."""
    found = Sender(heat, rooms, max_takeovers=2)
    yield found
    found.delivery.stop()


# What cannot be carried out.

@pytest.mark.parametrize('what', ['load', 'send'])
@pytest.mark.parametrize('error', [ConnectionError('Keystone is away.'), ValueError('a fault')],
                         ids=['away', 'fault'])
def test_what_cannot_be_carried_out_is_told_with_a_traceback_only_if_that_is_no_outage(
        heat: Heat, sender: Sender, caplog: pytest.LogCaptureFixture, what: str,
        error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    order = heat.order(1)
    setattr(sender.calls, what, fail)
    sender.follow()
    record, = (record for record in caplog.records if record.levelname == 'ERROR')
    assert 'tried again after a while' in record.message
    assert str(error) in record.message
    assert bool(record.exc_info) == isinstance(error, ValueError)
    assert heat.found(order).status in {'claimed', 'sent'}


# What a dead engine had asked for, and began after its lock was cleared.

def nested(heat: Heat, status: str, action: str = 'CREATE') -> None:
    heat.stack('c1', [], owner_id='s1', parent_resource_name='r1', status=status, action=action)


def test_a_nested_stack_that_begins_late_is_waited_for_and_kept(
        heat: Heat, sender: Sender) -> None:
    order = heat.order(1)
    assert heat.state(1)[:2] == ('INIT', 'COMPLETE')
    nested(heat, 'IN_PROGRESS')
    sender.follow()
    assert sender.sent == []
    heat.change(tables.stack, 'c1', status='COMPLETE')
    sender.follow()
    assert (*heat.state(1)[:2], heat.read(1)['nova_instance']) == ('CREATE', 'FAILED', 'c1')
    sender.follow()
    assert sender.sent == [(1, 'me')]
    assert sender.delivery.use(order.id)


@pytest.mark.parametrize('action', ['CREATE', 'UPDATE'])
def test_a_message_that_meets_a_nested_stack_at_work_is_sent_again_later(
        heat: Heat, sender: Sender, action: str) -> None:
    """A check would interrupt it."""
    if action == 'UPDATE':
        heat.change(tables.stack, 's1', action='UPDATE')
        nested(heat, 'COMPLETE')
    order = heat.order(1, action=action, nova_instance='c1' if action == 'UPDATE' else None)
    sender.follow()
    if action == 'UPDATE':
        heat.change(tables.stack, 'c1', action='UPDATE', status='IN_PROGRESS')
    else:
        nested(heat, 'IN_PROGRESS')
    assert not sender.delivery.use(order.id)
    assert heat.found(order).status == 'claimed'
    sender.follow()
    assert len(sender.sent) == 1
    heat.change(tables.stack, 'c1', status='COMPLETE')
    for _ in range(2 if action == 'CREATE' else 1):
        sender.follow()
    assert len(sender.sent) == 2
    assert sender.delivery.use(order.id)


# A check that sends its own message once more.

SAME = {'resource_id': 1, 'traversal': 't1 of s1', 'is_update': True}


@pytest.mark.parametrize(('differs', 'culprit', 'status'), [
    ({}, None, 'done'),
    # It is worked on alone, and would lose its place.
    ({}, 'dead', 'used'),
    # It has come to its replacement, to another resource, or to its cleanup; or a newer traversal
    # has waited for it.
    ({'resource_id': 2}, None, 'used'),
    ({'is_update': False}, None, 'used'),
    ({'traversal': 't2 of s1'}, None, 'used'),
])
def test_a_message_that_its_own_check_sends_once_more_is_one_like_any_other(
        heat: Heat, sender: Sender, differs: dict[str, Any], culprit: str | None,
        status: str) -> None:
    heat.resource(1, engine_id=None)
    assert heat.orders.message(heat.the_stack(), ONE, 'r1', 'nothing has moved', 'me', culprit)
    sender.follow()
    order, = heat.orders.of('me', 9)
    assert sender.delivery.use(order.id)
    sender.delivery.sends(**SAME | differs)
    assert heat.found(order).status == status
    assert sender.delivery.again(**SAME) == (None if status == 'done' else order.id)
    sender.delivery.used(order.id, None)
    assert heat.found(order).status == 'done'
    assert sender.delivery.idle


def test_a_message_that_another_check_sends_is_a_copy(heat: Heat, sender: Sender) -> None:
    heat.resource(1, engine_id=None)
    assert heat.orders.message(heat.the_stack(), ONE, 'r1', 'nothing has moved', 'me')
    sender.follow()
    order, = heat.orders.of('me', 9)
    sender.delivery.sends(**SAME)
    assert sender.delivery.use(order.id)
    elsewhere = threading.Thread(target=sender.delivery.sends, kwargs=SAME)
    elsewhere.start()
    elsewhere.join()
    assert heat.found(order).status == 'used'
    sender.delivery.used(order.id, None)


# What is worked on alone.

def test_what_may_kill_is_worked_on_here_one_at_a_time(heat: Heat, sender: Sender) -> None:
    heat.order(1), heat.order(2)
    sender.follow()
    assert sender.sent == [(1, 'me')]
    heat.report(ONE, Node('s1', is_update=True))
    sender.follow(1)
    assert sender.sent == [(1, 'me'), (2, 'me')]


def test_what_is_worked_on_alone_is_sent_again_by_another_order(
        heat: Heat, sender: Sender) -> None:
    """Its check began and handed over, and that message was lost."""
    order = heat.order(1)
    sender.follow()
    assert sender.delivery.use(order.id)
    sender.delivery.used(order.id, None)
    assert heat.found(order).status == 'done'
    assert heat.orders.message(heat.the_stack(), ONE, 'r1', 'nothing has moved', 'me')
    sender.follow()
    assert sender.sent == [(1, 'me'), (1, 'me')]


def could_interrupt(heat: Heat) -> None:
    """Let a message that is sent again be one that could interrupt a nested stack."""
    heat.stranger()
    heat.stack('c1', [], owner_id='s1', parent_resource_name='r1', status='COMPLETE')
    heat.change(tables.resource, 1, action='CREATE', status='FAILED', nova_instance='c1')


def could_replace_twice(heat: Heat) -> None:
    heat.stranger()
    heat.change(tables.resource, 1, action='CREATE', status='FAILED')


FREES: dict[str, Callable[[Heat], object]] = {
    'it is not sent again, for its nested stack': could_interrupt,
    'it is not sent again, or it could be replaced twice': could_replace_twice,
    'its stack was reset': lambda heat: heat.change(
        tables.stack, 's1', status='FAILED', status_reason='Stack status manually reset'),
    'its stack does something else': lambda heat: heat.change(
        tables.stack, 's1', current_traversal='t2'),
    'its stack is gone': lambda heat: heat.change(tables.stack, 's1', deleted_at=tables.ago(0)),
    'it waits at a hook': lambda heat: heat.run(tables.data.insert().values(
        id=1, resource_id=1, key='pre-create')),
    'it waits for its nested stack': lambda heat: heat.stack(
        'c1', [], owner_id='s1', parent_resource_name='r1'),
    'it is done': lambda heat: heat.report(ONE, Node('s1', is_update=True)),
    '': lambda heat: None,
}


@pytest.mark.parametrize('free', FREES)
def test_the_place_is_free_when_nothing_is_worked_on_there(
        heat: Heat, sender: Sender, free: str) -> None:
    heat.order(1)
    heat.stack('s2', [(Node(20, is_update=True), None)])
    sender.follow()
    FREES[free](heat)
    heat.order(20, stack_id='s2')
    sender.follow()
    sender.follow(1)
    sent = [target for target, _ in sender.sent]
    assert (20 in sent) == bool(free)
