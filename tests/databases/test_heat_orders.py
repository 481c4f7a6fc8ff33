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

"""Orders: each step has one winner, whoever dies in between, and every step is told."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness.db import models
from heat_liveness.heat import orders
from heat_liveness.heat.graph import Node
from heat_liveness.heat.orders import Order
from heat_liveness.heat.plans import Plan
from tests.databases.conftest import at_once
from tests.databases.heat_tables import Heat

ONE, TWO = (Node(number, is_update=True) for number in (1, 2))
SNAPSHOT = Node('snapshot-1', is_update=False, kind='snapshot')


@pytest.fixture
def heat(database_url: str) -> Iterator[Heat]:
    heat = Heat(database_url)
    yield heat
    heat.close()


def story(order: Order) -> list[tuple[str, str]]:
    return [(step['what'], step['engine']) for step in order.story]


def send(heat: Heat, order: Order, sender: str = 'me') -> bool:
    return heat.orders.sending(order, sender, [[1, 2]])


def use(heat: Heat, order: Order, receiver: str = 'other') -> bool:
    return heat.orders.use(order.id, receiver)


BRINGS: dict[str, Callable[[Heat, Order], object]] = {
    'claimed': lambda heat, order: None,
    'sent': send,
    'used': lambda heat, order: send(heat, order) and use(heat, order, 'me'),
    'done': lambda heat, order: heat.orders.close(order.id, 'me', 'enough'),
}


def bring(heat: Heat, order: Order, status: str) -> Order:
    """Bring an order of the engine ``me`` to a status; it stays that engine's."""
    BRINGS[status](heat, order)
    now = heat.found(order)
    assert (now.status, now.taken_by) == (status, 'me')
    return now


# From the claim to the end.

def test_an_order_goes_from_its_claim_to_its_end(heat: Heat) -> None:
    order = heat.order()
    assert (order.kind, order.status, order.taken_by) == ('resource', 'claimed', 'me')
    assert (order.stack_id, order.stack_name, order.name) == ('s1', 'name of s1', 'r1')
    assert (order.plan, order.traversal, order.resource_id) == ('create again', 't1 of s1', 1)
    assert (order.generation, order.atomic_key) == (1, 2)
    assert (order.node, order.seen, order.attempts, order.story) == (None, None, 0, [])
    assert send(heat, order)
    assert use(heat, order)
    assert heat.found(order).taken_by == 'other'
    assert heat.orders.close(order.id, 'other', 'it was checked')
    now = heat.found(order)
    assert (now.status, now.taken_by, now.seen) == ('done', 'other', [[1, 2]])
    assert now.detail['outcome'] == 'it was checked'
    assert story(now) == [('sent', 'me'), ('used', 'other'), ('it was checked', 'other')]
    assert all(len(step['at']) == len('2026-01-01 00:00:00') for step in now.story)
    assert heat.orders.of('me', 9) == heat.orders.of('other', 9) == []


def test_an_order_tells_how_long_ago_its_last_step_was(heat: Heat) -> None:
    order = heat.order()
    heat.shift(models.takeover, 'updated_at', 100, id=order.id)
    assert 99 < heat.found(order).age < 160
    send(heat, order)
    assert heat.found(order).age < 60


def test_all_that_an_engine_has_open_is_read_page_by_page(
        heat: Heat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, 'AT_ONCE', 2)
    given = [heat.order(number).id for number in range(1, 6)]
    assert [order.id for order in heat.orders.each('me')] == given
    assert list(heat.orders.each('other')) == []


def test_a_message_is_sent_until_it_lands(heat: Heat) -> None:
    order = heat.order()
    for attempts in (1, 2, 3):
        assert heat.orders.sending(order, 'me', [[1, attempts]])
        now = heat.found(order)
        assert (now.attempts, now.seen) == (attempts, [[1, attempts]])
    assert use(heat, order)
    assert not send(heat, order)


@pytest.mark.parametrize('status', ['used', 'done'])
def test_what_has_landed_is_not_sent_again(heat: Heat, status: str) -> None:
    order = bring(heat, heat.order(), status)
    assert not send(heat, order)
    now = heat.found(order)
    assert (now.status, now.detail) == (status, order.detail)


@pytest.mark.parametrize('status', ['claimed', 'used', 'done'])
def test_a_token_is_used_only_when_its_message_is_out(heat: Heat, status: str) -> None:
    """I9."""
    order = bring(heat, heat.order(), status)
    assert not use(heat, order)
    assert not use(heat, order, 'me')
    assert heat.found(order).status == status


def test_a_message_that_was_sent_again_is_known_while_its_order_is_open(heat: Heat) -> None:
    """It counts as one of the copies then."""
    stack = heat.the_stack()
    assert heat.orders.message(stack, TWO, 'r2', 'quiet', 'me')
    assert heat.orders.message(stack, Node(12, is_update=True), 'r12', 'quiet', 'me')
    order = next(each for each in heat.orders.of('me', 10) if each.name == 'r2')
    about = {'is_update': TWO.is_update}
    assert heat.orders.again(TWO.id, stack.traversal, **about) == order.id
    assert heat.orders.again(TWO.id, 'another', **about) is None
    assert heat.orders.again(TWO.id, stack.traversal, is_update=not TWO.is_update) is None
    assert heat.orders.close(order.id, 'me', 'it was checked')
    assert heat.orders.again(TWO.id, stack.traversal, **about) is None


def test_who_does_not_have_what_is_worked_on_alone_cannot_use_its_token(heat: Heat) -> None:
    """I10: the message that seemed lost may come to another engine."""
    assert heat.orders.message(heat.the_stack(), TWO, 'r2', 'quiet', 'me')
    order, = heat.orders.of('me', 10)
    assert heat.orders.sending(order, 'me', [], alone=True)
    assert not heat.orders.use(order.id, 'other')
    assert heat.orders.use(order.id, 'me')


def test_nobody_uses_a_token_of_something_else(heat: Heat) -> None:
    death, = heat.journal.search(kind='death')
    heat.run(models.takeover.update().values(status='sent'))
    assert not heat.orders.use(death.id, 'me')
    assert not heat.orders.use(999_999, 'me')
    assert heat.orders.find(999_999) is None


def test_of_many_copies_of_a_message_one_has_an_effect(heat: Heat) -> None:
    """I9."""
    heat.engine('third')
    order = heat.order()
    send(heat, order)
    results = at_once(*(functools.partial(use, heat, order, receiver)
                        for receiver in ('me', 'other', 'third', 'me')))
    assert sorted(results, key=str) == [False, False, False, True]
    now = heat.found(order)
    assert now.status == 'used'
    assert [what for what, _ in story(now)] == ['sent', 'used']


def test_only_the_one_who_has_an_order_sends_it(heat: Heat) -> None:
    order = heat.order()
    assert not send(heat, order, 'other')
    results = at_once(*(functools.partial(send, heat, order, sender)
                        for sender in ('me', 'other')))
    assert results == [True, False]
    assert story(heat.found(order)) == [('sent', 'me')]


def test_a_receiver_that_fails_gives_its_token_back_and_sends_again(heat: Heat) -> None:
    order = heat.order()
    send(heat, order)
    use(heat, order)
    assert not heat.orders.give_back(order.id, 'me')
    assert heat.orders.give_back(order.id, 'other')
    assert not heat.orders.give_back(order.id, 'other')
    now = heat.found(order)
    assert (now.status, now.taken_by) == ('claimed', 'other')
    assert not send(heat, order, 'me')
    assert send(heat, order, 'other')
    assert use(heat, order, 'me')
    assert story(heat.found(order)) == [
        ('sent', 'me'), ('used', 'other'), ('failed', 'other'), ('sent', 'other'), ('used', 'me')]
    assert heat.rows.deaths(heat.the_stack(), 'r1') == ['dead']


@pytest.mark.parametrize('status', ['claimed', 'sent', 'done'])
def test_a_token_that_was_not_used_is_not_given_back(heat: Heat, status: str) -> None:
    order = bring(heat, heat.order(), status)
    assert not heat.orders.give_back(order.id, 'me')
    assert heat.found(order).status == status


@pytest.mark.parametrize('status', ['claimed', 'sent', 'used'])
def test_an_order_is_closed_once_and_by_the_one_who_has_it(heat: Heat, status: str) -> None:
    order = bring(heat, heat.order(), status)
    assert not heat.orders.close(order.id, 'other', 'no')
    assert heat.orders.close(order.id, 'me', 'yes')
    assert not heat.orders.close(order.id, 'me', 'again')
    now = heat.found(order)
    assert (now.status, now.detail['outcome']) == ('done', 'yes')


def test_who_has_lost_an_order_to_its_receiver_cannot_close_it(heat: Heat) -> None:
    order = heat.order()
    send(heat, order)
    use(heat, order)
    assert not heat.orders.close(order.id, 'me', 'it seems lost')


def test_a_dead_engine_neither_sends_nor_uses_nor_gives(heat: Heat) -> None:
    """I7."""
    mine, theirs = heat.order(1), heat.order(2)
    send(heat, theirs)
    heat.kill('me', by='other')
    assert not send(heat, mine)
    assert not use(heat, theirs, 'me')
    assert not heat.orders.message(heat.the_stack(), TWO, 'r2', 'quiet', 'me')
    assert not heat.orders.stack(heat.the_stack(), Plan.RESTART, 'quiet', 'me')
    assert not heat.orders.stack(heat.the_stack(), Plan.RESTART, 'quiet', 'nobody')
    assert [heat.found(order).status for order in (mine, theirs)] == ['claimed', 'sent']
    assert heat.entries('message') == heat.entries('stack') == []


# Whose owner has ended.

@pytest.mark.parametrize(('status', 'how', 'what'), [
    ('claimed', {}, 'ended'), ('sent', {}, 'ended'), ('used', {}, 'died'),
    ('used', {'mass': True}, 'ended'), ('used', {'left': True}, 'ended'),
])
def test_the_order_of_one_who_has_ended_begins_anew(
        heat: Heat, status: str, how: dict[str, bool], what: str) -> None:
    """I8, I12: it has died *of* it only if it was working on it."""
    order = heat.order()
    if status != 'claimed':
        send(heat, order)
    if status == 'used':
        use(heat, order, 'me')
    if how.get('left'):
        heat.members.leave('me')
    else:
        heat.kill('me', mass=how.get('mass', False))
    assert heat.orders.abandoned() == {'me'}
    adopted, = heat.orders.adopt(heat.row('me'), 'other', 9)
    assert (adopted.id, adopted.status, adopted.taken_by) == (order.id, 'claimed', 'other')
    assert story(adopted)[-1] == (what, 'me')
    assert heat.rows.deaths(heat.the_stack(), 'r1') == ['dead', *['me'] * (what == 'died')]
    assert heat.orders.adopt(heat.row('me'), 'other', 9) == []
    assert heat.orders.abandoned() == set()
    assert send(heat, order, 'other')


def test_an_order_is_adopted_by_one(heat: Heat) -> None:
    """I9."""
    heat.engine('third')
    orders = [heat.order(number) for number in range(1, 8)]
    owner = heat.kill('me')
    results: list[Any] = at_once(*(functools.partial(heat.orders.adopt, owner, taker, 99)
                                   for taker in ('other', 'third')))
    assert sorted(order.id for result in results for order in result) == [
        order.id for order in orders]
    assert all(len(heat.found(order).story) == 1 for order in orders)


def test_a_message_that_lands_while_its_sender_is_relieved_has_one_owner(heat: Heat) -> None:
    """I9: either its receiver has it, or who took it over sends another."""
    heat.engine('third')
    for number in range(1, 7):
        order = heat.order(number)
        send(heat, order)
    owner = heat.kill('me')
    orders = heat.orders.of('me', 9)
    adopted, *used = at_once(
        lambda: {order.id for order in heat.orders.adopt(owner, 'third', 99)},
        *(functools.partial(use, heat, order) for order in orders))
    assert isinstance(adopted, set)
    landed = {order.id for order, was in zip(orders, used, strict=True) if was is True}
    assert adopted | landed == {order.id for order in orders}
    assert adopted & landed == set()
    for order in orders:
        now = heat.found(order)
        assert (now.status, now.taken_by) == (
            ('used', 'other') if order.id in landed else ('claimed', 'third'))


def test_no_more_is_adopted_than_there_is_room_for_and_the_oldest_first(heat: Heat) -> None:
    orders = [heat.order(number) for number in (1, 2, 3)]
    owner = heat.kill('me')
    assert [order.id for order in heat.orders.adopt(owner, 'other', 2)] == [
        order.id for order in orders[:2]]


def test_nothing_is_adopted_from_the_living_nor_by_the_dead(heat: Heat) -> None:
    """I5, I7."""
    order = heat.order()
    believed = dataclasses.replace(heat.row('me'), state='dead')
    assert heat.orders.adopt(believed, 'other', 9) == []
    assert heat.orders.adopt(heat.kill('me'), 'dead', 9) == []
    assert heat.found(order).taken_by == 'me'


def test_who_ended_adopts_nothing_back_and_closes_nothing(heat: Heat) -> None:
    order = heat.order()
    heat.orders.adopt(heat.kill('me'), 'other', 9)
    assert not send(heat, order)
    assert not heat.orders.close(order.id, 'me', 'too late')
    assert heat.found(order).status == 'claimed'


def test_orders_that_are_done_are_nobodys(heat: Heat) -> None:
    order = bring(heat, heat.order(), 'done')
    assert heat.orders.claimers(['me', 'other']) == set()
    assert heat.orders.adopt(heat.kill('me'), 'other', 9) == []
    assert heat.orders.abandoned() == set()
    assert heat.found(order).status == 'done'


@pytest.mark.parametrize('status', ['claimed', 'sent', 'used'])
def test_who_has_an_open_order_owns_work(heat: Heat, status: str) -> None:
    bring(heat, heat.order(), status)
    assert heat.orders.claimers(['me', 'other']) == heat.claims.owners(['me', 'other']) == {'me'}


def test_orders_are_read_on_behind_those_that_were_tried(heat: Heat) -> None:
    first, second, third = (heat.order(number) for number in (1, 2, 3))
    assert [order.id for order in heat.orders.of('me', 2)] == [first.id, second.id]
    assert [order.id for order in heat.orders.of('me', 2, second.id)] == [third.id]


def test_all_in_which_an_engine_had_a_part_is_found(heat: Heat) -> None:
    used, waiting = heat.order(1), heat.order(2)
    send(heat, used)
    use(heat, used)
    heat.orders.give_back(used.id, 'other')
    heat.orders.adopt(heat.kill('other'), 'me', 9)
    assert [order.id for order in heat.orders.by('other')] == [used.id]
    assert [order.id for order in heat.orders.by('me')] == [used.id, waiting.id]
    assert heat.orders.by('o%er') == []


# Messages and stacks.

def test_a_message_is_given_once_while_it_is_open_and_again_afterwards(heat: Heat) -> None:
    stack = heat.the_stack()
    give = functools.partial(heat.orders.message, stack, ONE, 'r1', 'quiet for 120 s')
    assert give('me')
    order, = heat.orders.of('me', 9)
    assert (order.kind, order.generation, order.plan) == ('message', 0, 'send again')
    assert (order.node, order.name, order.resource_id) == (ONE, 'r1', None)
    assert (order.stack_id, order.traversal, order.reason) == (
        's1', 't1 of s1', 'quiet for 120 s')
    for step in (lambda: None, lambda: send(heat, order), lambda: use(heat, order)):
        step()
        assert not give('me')
        assert not give('other')
    heat.orders.close(order.id, 'other', 'it was checked')
    assert give('other')
    for generation in (1, 2, 3):
        again, = heat.orders.of('other', 9)
        assert again.generation == generation
        assert not give('me')
        heat.orders.close(again.id, 'other', 'it was checked')
        assert give('other')


def test_messages_of_different_nodes_are_different(heat: Heat) -> None:
    stack = heat.the_stack()
    for node in (ONE, TWO, Node(1, is_update=False), SNAPSHOT):
        assert heat.orders.message(stack, node, 'r', 'quiet', 'me')
    assert [order.node for order in heat.orders.of('me', 9)] == [
        ONE, TWO, Node(1, is_update=False), SNAPSHOT]


def test_of_two_who_give_the_same_order_one_does(heat: Heat) -> None:
    stack = heat.the_stack()
    for give in (
            functools.partial(heat.orders.message, stack, ONE, 'r1', 'quiet'),
            functools.partial(heat.orders.stack, stack, Plan.RESTART, 'never written')):
        results = at_once(*(functools.partial(give, giver) for giver in ('me', 'other')))
        assert sorted(results, key=str) == [False, True]


STORED = {Plan.RESTART: 0, Plan.TIME_OUT: 1, Plan.FINISH: 2, Plan.FAIL: 3, Plan.END_DELETE: 4,
          Plan.PURGE: 5}
"""The generation of each plan, by which engines of two releases know that it was given."""


@pytest.mark.parametrize('plan', STORED)
def test_each_plan_for_a_stack_is_given_once_in_a_traversal(heat: Heat, plan: Plan) -> None:
    stack = heat.the_stack()
    assert heat.orders.stack(stack, plan, 'a reason', 'me')
    order, = heat.orders.of('me', 9)
    assert (order.kind, order.plan, order.reason) == ('stack', plan, 'a reason')
    assert order.generation == STORED[plan]
    assert (order.name, order.traversal, order.node) == ('name of s1', 't1 of s1', None)
    heat.orders.close(order.id, 'me', 'it was begun anew')
    assert not heat.orders.stack(stack, plan, 'another reason', 'other')
    assert heat.orders.stack(dataclasses.replace(stack, traversal='t2'), plan, 'a reason', 'me')


def test_the_plans_for_a_stack_do_not_hinder_each_other(heat: Heat) -> None:
    stack = heat.the_stack()
    for plan in STORED:
        assert heat.orders.stack(stack, plan, 'a reason', 'me')
    assert len(heat.orders.of('me', 9)) == len(STORED)


def test_whether_a_message_of_this_traversal_was_sent_again_is_known(heat: Heat) -> None:
    stack = heat.the_stack()
    heat.order()
    heat.orders.stack(stack, Plan.FINISH, 'a reason', 'me')
    assert not heat.orders.resent('s1', 't1 of s1')
    heat.orders.message(stack, ONE, 'r2', 'quiet', 'me')
    assert heat.orders.resent('s1', 't1 of s1')
    assert not heat.orders.resent('s1', 't2')
    assert not heat.orders.resent('s2', 't1 of s1')


def test_a_message_is_not_given_while_a_lock_of_the_same_resource_is_under_way(
        heat: Heat) -> None:
    order = heat.order()
    assert not heat.orders.message(heat.the_stack(), ONE, 'r1', 'quiet', 'me')
    assert heat.orders.close(order.id, 'me', 'done')
    assert heat.orders.message(heat.the_stack(), ONE, 'r1', 'quiet', 'me')


def test_who_may_have_died_of_a_lost_message_counts_as_a_death(heat: Heat) -> None:
    assert heat.orders.message(heat.the_stack(), ONE, 'r1', 'quiet', 'me', 'culprit')
    assert heat.rows.deaths(heat.the_stack(), 'r1') == ['culprit']


def test_only_the_orders_about_some_stacks_are_adopted(heat: Heat) -> None:
    heat.order()
    gone = heat.ended('gone')
    heat.run(models.takeover.update().values(taken_by='gone'))
    assert heat.orders.adopt(gone, 'me', 10, {'s2'}) == []
    assert len(heat.orders.adopt(gone, 'me', 10, {'s1', 's2'})) == 1


def test_what_another_release_has_given_is_left_to_one_that_knows_what_it_asks_for(
        heat: Heat) -> None:
    theirs, ours = heat.order(1), heat.order(2)
    heat.run(models.takeover.update().where(models.takeover.c.id == theirs.id).values(
        detail=json.dumps({**theirs.detail, 'plan': 'something new'})))
    assert (heat.found(theirs).plan, heat.found(theirs).foreign) == (None, True)
    # Nor does it stand before what is known.
    adopted, = heat.orders.adopt(heat.kill('me'), 'other', 1)
    assert (adopted.id, adopted.plan, adopted.foreign) == (ours.id, Plan.CREATE_AGAIN, False)
    assert heat.orders.adopt(heat.row('me'), 'other', 10) == []
    assert heat.found(theirs).taken_by == 'me'
    assert heat.orders.abandoned() == {'me'}


def test_whether_a_stack_was_helped_along_in_this_operation_is_known(heat: Heat) -> None:
    heat.stack('s2')
    assert not heat.orders.known(heat.the_stack('s2'))
    heat.order()
    stack = heat.the_stack()
    assert heat.orders.known(stack)
    assert heat.orders.known(dataclasses.replace(stack, traversal='t2'))
    assert not heat.orders.known(dataclasses.replace(stack, action='DELETE'))
    assert not heat.orders.known(heat.the_stack('s2'))


def test_deaths_of_a_message_count_for_its_resource(heat: Heat) -> None:
    """I10: who dies before it has the lock has died of it all the same."""
    heat.orders.message(heat.the_stack(), ONE, 'r1', 'quiet', 'me')
    order, = heat.orders.of('me', 9)
    send(heat, order)
    use(heat, order)
    heat.orders.adopt(heat.kill('other'), 'me', 9)
    assert heat.rows.deaths(heat.the_stack(), 'r1') == ['other']
    assert heat.rows.deaths(heat.the_stack(), 'r2') == []


def test_an_order_that_somebody_has_edited_is_passed_on_as_it_stands(heat: Heat) -> None:
    order = heat.order()
    heat.run(models.takeover.update().where(models.takeover.c.id == order.id).values(
        detail='no JSON'))
    assert not heat.orders.resent('s1', 't1 of s1')
    assert not heat.orders.known(heat.the_stack())
    now = heat.found(order)
    assert (now.stack_id, now.resource_id, now.node, now.story) == ('None', None, None, [])
    assert (now.plan, now.foreign) == (None, False)
    assert heat.orders.close(order.id, 'me', 'nobody knows what it was')
    with heat.database.autocommit() as connection:
        assert 'no JSON' in connection.scalar(sa.select(models.takeover.c.detail).where(
            models.takeover.c.id == order.id))
