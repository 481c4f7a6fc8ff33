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

"""Carrying orders out: look at the stack as it stands now, and have Heat do what is left to do.

An order is closed where nothing is to be done any more: the stack has begun something else, or
somebody has taken the work up.  Otherwise the message of the node that waits goes out, again
and again with longer pauses, until an engine uses its token up.  That engine looks once more
whether the work is still to be done (a message that only seemed lost may have come first),
and then has the order; if it dies the order begins anew.  Engines that know no tokens act on each
copy: where one may have it, a message that could have a resource replaced goes out again only
if an engine has ended since.

**Poison.**  A resource whose engines have died ``max_takeovers`` times fails, and its stack with
it.  When one more death would be the last, it is worked on alone: by the engine that carries
the order out, one such resource at a time, so that it takes no other with it.  The place is free
again when the resource is done, or waits for its user or its nested stack, and where its message
is not sent again though nobody works on it.
"""

import collections
import logging
import threading
from collections.abc import Collection, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from oslo_utils import uuidutils

from heat_liveness import errors
from heat_liveness.heat import calls, graph, orders, rows, sweep, views
from heat_liveness.heat.plans import HALF_ADOPTED, Plan
from heat_liveness.work import Context

LOG = logging.getLogger(__name__)

_SENDERS = 4
"""Threads that carry out orders: each waits for Keystone most of its time."""
_RESEND_SECONDS = 10.0
"""How long a message may take to land before it is sent again; twice that the next time."""
_LONGEST_RESEND_SECONDS = 640.0

_ENDS = (Plan.FINISH, Plan.PURGE, Plan.END_DELETE)
"""What is done with a stack whether it is in progress or not."""


class _Place(NamedTuple):
    """What an engine works on alone, whichever order it is about."""

    stack_id: str
    traversal: str
    node: graph.Node


class Delivery:
    """Carries out the orders of one engine."""

    def __init__(self, context: Context, heat: rows.HeatRows, receiver: str | None) -> None:
        """Begin with none.

        :param receiver: the engine that works on what must be worked on alone; any for None
        """
        self._me = context.identity.engine_id
        self._gate = context.gate
        self._clock = context.clock
        self._most_deaths = context.settings.max_takeovers
        self._rows = heat
        self._orders = heat.orders
        self._receiver = receiver
        self._pool = futures.ThreadPoolExecutor(_SENDERS, thread_name_prefix='liveness-order')
        self._guard = threading.Lock()
        self._running: set[int] = set()
        self._using: set[int] = set()
        self._alone: _Place | None = None
        self._followed: float | None = None
        self._here = threading.local()
        self._failures: dict[int, tuple[int, float]] = {}
        """Of orders that could not be carried out: how often, and when they are tried again."""
        self.draining = False
        """Whether this engine takes no messages any more."""
        self._stopped = False

    @property
    def running(self) -> int:
        """How many orders are being carried out now."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether this engine has no order open: all that it has begun has come to its end."""
        return not self._orders.of(self._me, 1)

    def follow(self) -> int:
        """Carry out what this engine has claimed, and follow what it has sent or used."""
        self._followed = self._clock.now()
        # All of them: orders that cannot be carried out must not stand before those that can.
        return self.carry_out([order for order in self._orders.each(self._me) if self._due(order)])

    def follow_in_time(self) -> None:
        """Follow, if that was not done for a while, or the next may be worked on alone."""
        late = (self._followed is None
                or self._clock.now() - self._followed >= _RESEND_SECONDS)
        if late or (self._alone is not None and not self._alone_is_busy()):
            self.follow()

    def _due(self, order: orders.Order) -> bool:
        if order.status == orders.USED:
            with self._guard:
                used_here = order.id in self._using
            if not used_here:
                # The outcome of its last step was unclear, or its check failed.
                self._failed(order.id)
                self._orders.give_back(order.id, self._me)
            return False
        if order.status == orders.SENT:
            return order.age >= _pause(order.attempts)
        return self._clock.now() >= self._failures.get(order.id, (0, 0.0))[1]

    def again(self, resource_id: int | str, traversal: str, *, is_update: bool) -> int | None:
        """Return the order to send this message again, as long as that is open."""
        return self._orders.again(resource_id, traversal, is_update=is_update)

    def use(self, order_id: int) -> bool:
        """Use up the token of a message that has reached this engine; False: do not act on it.

        :raises DatabaseError: nobody knows; the message is sent again
        """
        with self._guard:
            self._using.add(order_id)
        used = False
        try:
            used = self._orders.use(order_id, self._me) and self._is_wanted(order_id)
        finally:
            if not used:
                with self._guard:
                    self._using.discard(order_id)
        return used

    def _is_wanted(self, order_id: int) -> bool:
        """Return whether what a message asks for is still to be done; it may have come late.

        Where the message that seemed lost had only waited in a long queue, it came first.
        """
        order = self._orders.find(order_id)
        if order is None:
            return False
        view = self._rows.view(order.stack_id)
        if view is None or view.stack.traversal != order.traversal:
            self._orders.close(order_id, self._me, 'its stack has begun something else')
            return False
        node = self._node(order, view)
        if isinstance(node, str):
            self._orders.close(order_id, self._me, node)
            return False
        if self._awaits_nested(order, view, node):
            self._failed(order_id)
            self._orders.give_back(order_id, self._me)
            return False
        self._revive(order, order.seen or [])
        self._here.order = order
        return True

    def _revive(self, order: orders.Order, seen: orders.Seen) -> orders.Seen:
        """Let a row that is FAILED only until its check begins be in progress again.

        :param seen: the rows that may be at work, as they stand
        :return: how they stand now
        """
        if not order.revives:
            return seen
        before, after = ([order.resource_id, key]
                         for key in (order.atomic_key, order.atomic_key + 1))
        revived = [after if row == before else row for row in seen]
        self._rows.revive(order, revived, self._me)
        return revived

    @property
    def stays(self) -> bool:
        """Whether this thread's messages go to this engine, as what it checks is here alone."""
        order = self._checked_here
        return order is not None and order.alone

    @property
    def _checked_here(self) -> orders.Order | None:
        """The order whose message this thread is acting on, if it is at any."""
        return getattr(self._here, 'order', None)

    def sends(self, resource_id: int | str, traversal: str, *, is_update: bool) -> None:
        """Close the order whose message this thread is acting on, if it sends that once more.

        Heat does so where the resource has changed before it was locked.  As long as the order is
        open that would be taken for a copy.  Closed, it is a message like any other; so what is
        worked on alone waits until the sweep gives another order, as it would lose its place.

        :raises DatabaseError: the order may be open still
        """
        order = self._checked_here
        if order is None or order.alone or order.node is None:
            return
        if (order.node.id, order.node.is_update, order.traversal) == (
                resource_id, is_update, traversal):
            self._orders.close(order.id, self._me, 'Heat checks it once more')

    def used(self, order_id: int, failure: BaseException | None) -> None:
        """Note that the check of a message whose token was used has ended, well or not.

        :raises DatabaseError: it is found again later, among what this engine has used
        """
        self._here.order = None
        try:
            if failure is None:
                self._orders.close(order_id, self._me, 'it was checked')
            else:
                self._failed(order_id)
                self._orders.give_back(order_id, self._me)
        finally:
            with self._guard:
                self._using.discard(order_id)

    def _failed(self, order_id: int) -> None:
        """Note that an order could not be carried out; it is tried again after longer pauses."""
        times = self._failures.get(order_id, (0, 0.0))[0] + 1
        self._failures[order_id] = times, self._clock.now() + _pause(times)

    def stop(self) -> None:
        """Carry out nothing more, and return when what is being carried out has ended."""
        with self._guard:
            self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def carry_out(self, found: Collection[orders.Order]) -> int:
        """Carry orders out on threads of their own; return how many were not under way."""
        with self._guard:
            if self._stopped:
                return 0
            new = [order for order in found if order.id not in self._running]
            self._running.update(order.id for order in new)
            # A stack is loaded, and its owner's token asked for, once for all its orders.
            by_stack = collections.defaultdict(list)
            for order in new:
                by_stack[order.stack_id].append(order)
            for batch in by_stack.values():
                self._pool.submit(self._send, batch)
        return len(new)

    def _send(self, batch: Sequence[orders.Order]) -> None:
        first = batch[0]
        try:
            self._gate.wait()
            stack = calls.load(first.stack_id)
            for order in batch:
                self._send_one(order, stack)
        except errors.EngineDead as error:
            LOG.warning('%d orders about stack %s (%s) are not carried out: %s', len(batch),
                        first.stack_name, first.stack_id, error)
        except Exception as error:
            for order in batch:
                self._failed(order.id)
            _log(error, 'Stack %s (%s) cannot be loaded, so %d orders about it are not carried '
                 'out; it is tried again after a while: %s', first.stack_name, first.stack_id,
                 len(batch), error)
        finally:
            with self._guard:
                self._running.difference_update(order.id for order in batch)

    def _send_one(self, order: orders.Order, stack: Any) -> None:
        what = f'{order.name} of stack {order.stack_name} ({order.stack_id})'
        try:
            self._gate.wait()
            outcome = self._resume(order, stack)
            if outcome is not None:
                self._orders.close(order.id, self._me, outcome)
                LOG.info('%s: %s.', what, outcome)
            self._failures.pop(order.id, None)
        except errors.EngineDead:
            raise
        except Exception as error:
            self._failed(order.id)
            _log(error, 'The order to %s, about %s, could not be carried out; it is tried again '
                 'after a while: %s', order.plan, what, error)

    def _resume(self, order: orders.Order, stack: Any) -> str | None:
        """Do what the order says, as far as that is still to be done.

        :return: what became of it; None while its message is on the way
        """
        view = None if stack is None else self._rows.view(order.stack_id)
        if view is None:
            return 'its stack is gone'
        if stack.current_traversal != order.traversal or view.stack.traversal != order.traversal:
            return 'its stack has begun something else'
        if order.plan in _ENDS:
            return _end(order, stack)
        if view.stack.status != 'IN_PROGRESS':
            return f'its stack is {view.stack.action}_{view.stack.status}'
        if order.kind == orders.STACK:
            return self._resume_stack(order, stack, view)
        return self._resume_resource(order, stack, view)

    def _resume_resource(self, order: orders.Order, stack: Any, view: views.View) -> str | None:
        if order.plan == Plan.FAIL:
            return self._fail(stack, view, order.reason, order.name)
        if sweep.half_adopted(view):
            return self._fail(stack, view, HALF_ADOPTED)
        died = self._rows.deaths(view.stack, order.name)
        if len(died) >= self._most_deaths:
            return self._fail(stack, view, f'Resource {order.name} killed the engines that worked '
                              f'on it, {len(died)} of them: {", ".join(died)}', order.name)
        node = self._node(order, view)
        if isinstance(node, str):
            return node
        if self._awaits_nested(order, view, node):
            return None
        return self._check(order, stack, view, node, alone=len(died) + 1 >= self._most_deaths)

    def _resume_stack(self, order: orders.Order, stack: Any, view: views.View) -> str:
        if order.plan == Plan.TIME_OUT:
            return self._fail(stack, view, 'Timed out')
        if order.plan == Plan.FAIL:
            return self._fail(stack, view, order.reason)
        if order.plan != Plan.RESTART:
            return 'nobody knows what it asks for'
        times = self._orders.restarts(order)
        if times > self._most_deaths:
            return self._fail(stack, view, f'Its traversal was begun anew {times - 1} times, and '
                              f'never written out')
        traversal = uuidutils.generate_uuid()
        if not self._rows.begin_anew(view.stack, traversal):
            return 'somebody has begun it anew, or it has ended'
        calls.write_out(stack, traversal)
        return 'it was begun anew'

    def _fail(self, stack: Any, view: views.View, reason: str, culprit: str | None = None) -> str:
        reason = f'{reason[:1].upper()}{reason[1:]}'
        # If this engine dies behind the first of these, the end is carried through by the sweep.
        if self._rows.fail(view.stack, reason):
            if (row := view.newest(culprit)) is not None:
                self._rows.blame(row, reason)
            if calls.fail(stack, reason):
                return 'its stack was failed'
        return 'its stack has begun something else'

    def _node(self, order: orders.Order, view: views.View) -> graph.Node | str:
        """Return the node that is to be checked, or why none is."""
        if order.resource_id is not None:
            row = view.resources.get(order.resource_id)
            node = None if row is None else view.node(row)
            if order.seen is None and not self._rows.untouched(order):
                return 'somebody has taken it up already'
        else:
            node = order.node
        if node is None or node not in view.traversal or (
                # Where all are done, one that reports once more brings the stack's end about.
                view.traversal.done(node) and not view.traversal.over):
            return 'nobody waits for it now'
        if not view.traversal.ready(node):
            return 'it is checked when what it requires is done'
        if any(row.engine_id is not None for row in sweep.workers(view, node)):
            return 'an engine works on it'
        if order.seen is not None and order.seen != _seen(view, node):
            return 'somebody has taken it up'
        return node

    def _check(self, order: orders.Order, stack: Any, view: views.View, node: graph.Node, *,
               alone: bool) -> str | None:
        target = sweep.target(view, node)
        if target is None or not self._rows.exists(node):
            if node.is_update:
                return self._fail(stack, view, f'Resource {order.name}: its row is gone')
            calls.report(stack, node)
            return 'its row was gone, and it was reported as done'
        place = _Place(order.stack_id, order.traversal, node)
        if order.attempts and self._may_interrupt(view, node):
            self._leave(place)
            return ('it is not sent again, as an engine without this package could interrupt its '
                    'nested stack: if it hangs, update the stack')
        if order.status == orders.SENT and self._may_replace_twice(order, view, node):
            self._leave(place)
            return None
        alone = alone and not self.draining
        if alone and not self._is_alone(place):
            return None
        seen = _seen(view, node)
        if not self.tokened:
            # Whoever gets it without seeing the token would replace what is FAILED.
            seen = self._revive(order, seen)
        if not self._orders.sending(order, self._me, seen, alone=alone):
            return None
        sent = calls.send(stack, node, target, order.id, self._receiver if alone else None)
        return None if sent else 'its stack has begun something else'

    def _awaits_nested(self, order: orders.Order, view: views.View, node: graph.Node) -> bool:
        """Return whether a nested stack stands before the check of a node now.

        What a dead engine had asked for may have begun after its lock was cleared: to check its
        resource would interrupt it, or make it a second time, which fails.
        """
        for row in sweep.workers(view, node):
            child = view.child(row)
            if child is not None and child.in_progress:
                return True
            if child is not None and row.action == 'INIT':
                seen: orders.Seen = [
                    [each, row.generation + 1 if each == row.id else key]
                    for each, key in _seen(view, node)]
                self._rows.own_nested(order, row, child.id, seen, self._me)
                return True
        return False

    def _may_interrupt(self, view: views.View, node: graph.Node) -> bool:
        """Return whether a second message could interrupt a nested stack."""
        return (any(view.child(row) is not None for row in sweep.workers(view, node))
                and not self.tokened)

    def _may_replace_twice(self, order: orders.Order, view: views.View, node: graph.Node) -> bool:
        """Return whether the last message may be on its way still, and replace a resource too.

        If an engine has ended since it was sent, it is taken for lost with that.
        """
        return (sweep.may_be_replaced(view, node) and not self.tokened
                and all(each.age > order.age for each in self._rows.endings()))

    @property
    def tokened(self) -> bool:
        """Whether all who may receive a message know tokens."""
        return self._receiver is not None and not self._rows.strangers()

    def _is_alone(self, place: _Place) -> bool:
        """Return whether a node is what this engine works on alone, or can become it."""
        with self._guard:
            if self._alone is None:
                self._alone = place
            return self._alone == place

    def _leave(self, place: _Place) -> None:
        """Let another be worked on alone, if it is this place that is taken."""
        with self._guard:
            if self._alone == place:
                self._alone = None
                # Whoever waits for it is not to wait for longer.
                self._followed = None

    def _alone_is_busy(self) -> bool:
        place = self._alone
        assert place is not None
        view = self._rows.view(place.stack_id)
        if view is not None and (view.stack.traversal, view.stack.status) == (
                place.traversal, 'IN_PROGRESS'):
            working = sweep.workers(view, place.node)
            if (place.node in view.traversal and not view.traversal.done(place.node)
                    # While it waits for its nested stack, that may need the place.
                    and not any(child.in_progress for child in map(view.child, working)
                                if child is not None)
                    and not self._rows.hooked([row.id for row in working])):
                return True
        self._leave(place)
        return False


def _log(error: Exception, message: str, *arguments: object) -> None:
    """Log an ERROR; where nothing is away that may be, with a traceback."""
    LOG.error(message, *arguments, exc_info=not isinstance(
        error, (errors.LivenessError, *calls.OUTAGES)))


def _pause(times: int) -> float:
    """Return the seconds before something is tried again that was tried so many times."""
    return min(_RESEND_SECONDS * 2.0 ** (times - 1), _LONGEST_RESEND_SECONDS)


def _seen(view: views.View, node: graph.Node) -> orders.Seen:
    return [[row.id, row.atomic_key] for row in sweep.workers(view, node)]


def _end(order: orders.Order, stack: Any) -> str:
    if order.plan == Plan.END_DELETE:
        calls.end_delete(stack)
        return 'it is deleted'
    try:
        calls.finish(stack, roll_back=order.plan == Plan.FINISH)
    except calls.NotFound:
        return 'somebody has carried its end through'
    return 'its end was carried through'
