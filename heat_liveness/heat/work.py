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

"""Heat's resources as work: what a dead heat-engine holds is made to go on.

A claim clears the lock, writes the state from which Heat does the right thing by itself,
and writes an *order* into the journal, all in one transaction (:mod:`.rows`).  The order is
then carried out: Heat's own ``retrigger_check_resource`` sends the check of that node of the
stack's graph to any living engine, with the credentials of the stack's owner.

An order may be carried out by anyone: its claimer, again, when the first try failed (it asks
Keystone and the message queue, which may be away), or another engine when the claimer has
died.  Before it is sent, the resource must be as the takeover left it; if its atomic_key has
moved on, somebody has taken it up, and another message would only disturb him.

This release recovers CREATE.  What it cannot recover safely it leaves alone, with the
reason in the journal and one WARNING.
"""

import collections
import logging
import threading
from collections.abc import Collection, Container, Sequence
from concurrent import futures

from heat.common import context as heat_context
from heat.common import exception as heat_exception
from heat.engine import check_resource, sync_point
from heat.engine import stack as heat_stack
from heat.objects import resource as heat_resource
from heat.rpc import worker_client

from heat_liveness import errors
from heat_liveness.db.members import ServiceRow
from heat_liveness.heat import rows
from heat_liveness.work import Claim, Context

LOG = logging.getLogger(__name__)

_ORDERS_AT_ONCE = 100
_SENDERS = 4
"""Threads that carry out orders: each waits for Keystone most of its time."""


class HeatWork:
    """The work store of a heat-engine."""

    def __init__(self, context: Context) -> None:
        self.doubts = False
        self._me = context.identity.engine_id
        self._gate = context.gate
        self._most = context.settings.max_tasks
        self._retry_seconds = context.settings.service_down_time
        self._rows = rows.HeatRows(context.database)
        self._pool = futures.ThreadPoolExecutor(_SENDERS, thread_name_prefix='liveness-order')
        self._guard = threading.Lock()
        self._running: set[int] = set()
        self._left_alone: set[tuple[int, int]] = set()
        self._draining = False

    def claim(self, owner: ServiceRow) -> Claim:
        """Take over locked resources and unsent orders of an ended engine; see :class:`Claim`."""
        self._rows.hide_service(owner.engine_id)
        room = self._room()
        if not room:
            return Claim(0, more=True)
        try:
            adopted = self._rows.adopt(owner.engine_id, self._me, room)
            decided = self._rows.take_over(owner, self._me, room, self._left_alone)
        except errors.UnclearOutcome:
            self.doubts = True
            raise
        taken = 0
        for row, plan, reason in decided:
            if plan is rows.Plan.LEAVE_ALONE:
                self._left_alone.add((row.id, row.atomic_key))
                if reason:
                    LOG.warning(
                        'Resource %s of stack %s (%s) is locked by the ended engine %s and is '
                        'left alone: %s.', row.name, row.stack_name, row.stack_id,
                        row.engine_id, reason)
            else:
                taken += 1
                LOG.info('Resource %s of stack %s (%s) is taken over from engine %s: %s, as %s.',
                         row.name, row.stack_name, row.stack_id, row.engine_id, plan, reason)
        self._carry_out(adopted)
        if taken:
            self.reclaim()
        return Claim(taken + len(adopted), more=len(decided) + len(adopted) >= room)

    def reclaim(self) -> int:
        """Carry out what this engine has claimed and not sent: a try failed, or was unclear."""
        self.doubts = False
        sent = last = 0
        # All of them: orders that cannot be sent must not stand before those that can.
        while orders := self._rows.orders(self._me, _ORDERS_AT_ONCE, last):
            sent += self._carry_out(orders)
            last = orders[-1].id
        return sent

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that hold a resource, or an order, of a stack in progress."""
        return self._rows.owners(engine_ids)

    def drain(self) -> None:
        """Claim nothing more; what is not sent yet, the others will send."""
        self._draining = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _room(self) -> int:
        return 0 if self._draining else max(0, self._most - len(self._running))

    def _carry_out(self, orders: Collection[rows.Order]) -> int:
        with self._guard:
            new = [order for order in orders if order.id not in self._running]
            self._running.update(order.id for order in new)
        # A stack is loaded, and its owner's token asked for, once for all its orders.
        by_stack = collections.defaultdict(list)
        for order in new:
            by_stack[order.stack_id].append(order)
        for batch in by_stack.values():
            self._pool.submit(self._send, batch)
        return len(new)

    def _send(self, orders: Sequence[rows.Order]) -> None:
        first = orders[0]
        try:
            self._gate.wait()
            stack = self._load(first.stack_id)
            for order in orders:
                self._send_one(order, stack)
        except errors.EngineDead as error:
            LOG.warning('The checks of %d resources of stack %s (%s) are not sent: %s',
                        len(orders), first.stack_name, first.stack_id, error)
        except Exception:
            LOG.exception('Stack %s (%s) cannot be loaded, so the checks of %d of its resources '
                          'are not sent; it is tried again within %g s.', first.stack_name,
                          first.stack_id, len(orders), self._retry_seconds)
        finally:
            with self._guard:
                self._running.difference_update(order.id for order in orders)

    def _send_one(self, order: rows.Order, stack: heat_stack.Stack | None) -> None:
        try:
            self._gate.wait()
            outcome = self._resume(order, stack)
            self._rows.close(order, self._me, outcome)
            LOG.info('Resource %s of stack %s (%s): %s.', order.name, order.stack_name,
                     order.stack_id, outcome)
        except errors.EngineDead:
            raise
        except Exception:
            LOG.exception('The check of resource %s of stack %s (%s) could not be sent; it is '
                          'tried again within %g s.', order.name, order.stack_name,
                          order.stack_id, self._retry_seconds)

    @staticmethod
    def _load(stack_id: str) -> heat_stack.Stack | None:
        try:
            return heat_stack.Stack.load(heat_context.get_admin_context(), stack_id,
                                         use_stored_context=True)
        except heat_exception.NotFound:
            return None

    def _resume(self, order: rows.Order, stack: heat_stack.Stack | None) -> str:
        """Send the check, unless the work has gone on already; return what was done."""
        if stack is None:
            return 'its stack is gone'
        if stack.status != stack.IN_PROGRESS or stack.current_traversal != order.traversal:
            return 'its stack has begun something else'
        if not self._rows.untouched(order):
            return 'somebody has taken it up already'
        graph = stack.convergence_dependencies.graph()
        if (order.replaces is not None and order.plan == rows.Plan.CREATE_AGAIN
                and not _knows(graph, order.resource_id) and _knows(graph, order.replaces)):
            return self._check_replacement(order, order.replaces, stack)
        node = _node(graph, order.resource_id, stack)
        if node is None:
            return 'it is not in the graph of its stack'
        check_resource.CheckResource(
            self._me, worker_client.WorkerClient(), None, None, None,
        ).retrigger_check_resource(stack.context, node, stack)
        return 'its check was sent'

    @staticmethod
    def _check_replacement(order: rows.Order, replaces: int, stack: heat_stack.Stack) -> str:
        """Have a replacement created in its row, with the input of the node that it stands for.

        A check of the original would make another replacement and leave this row behind.
        """
        point = sync_point.get(stack.context, replaces, stack.current_traversal, True)
        worker_client.WorkerClient().check_resource(
            stack.context, order.resource_id, stack.current_traversal,
            point.input_data or {'input_data': {}}, True, None)
        return 'its check was sent, as a replacement'


def _knows(graph: Container[object], resource_id: int) -> bool:
    return any(heat_stack.ConvergenceNode(resource_id, is_update) in graph
               for is_update in (True, False))


def _node(graph: Container[object], resource_id: int, stack: heat_stack.Stack) -> int | None:
    """Return the id under which the graph knows a resource: that of what it replaces, and so on.

    Heat looks one replacement back only; a check of a later one would end in a KeyError
    there, and a check of the original makes another replacement.
    """
    node: int | None = resource_id
    while node is not None and not _knows(graph, node):
        try:
            node = heat_resource.Resource.get_obj(stack.context, node).replaces
        except heat_exception.NotFound:
            return None
    return node
