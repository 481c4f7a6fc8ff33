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

"""Orders: what is to be done with a stack or a resource, from the decision to its end.

An order is a row of the journal.  Whatever happens between the decision and its effect, there
is a row that says so, and each of its steps is one compare-and-swap::

    claimed ──send──> sent ──use──> used ──> done
       ^                │             │
       └────────────────┴──give back──┘

*claimed*: somebody (``taken_by``) is to carry it out.  *sent*: the message is out, and may be
lost, late, or in the hands of an engine that is stopped; it is sent again until it lands.
*used*: a receiver (``taken_by``) has used up the message's token.  Each copy of the message
carries the same token, the order's id, so of many copies one has an effect, on the engines
that know of tokens; and the message that only seemed lost counts as one of them, if it comes
while the order is open.  The one that its own check sends once more is none of them: the order is
closed before.  A receiver that fails gives the token back; of one that dies another
engine takes the order over, as of a sender that dies, and the order begins anew.

The subject and generation of the row are unique, and with them the decision:
``resource:STACK:ID`` at an atomic_key, for a lock that was cleared; ``message:STACK:ID:KIND``
with a count, for a message that was lost; ``stack:ID:TRAVERSAL`` for a traversal that is
restarted, timed out or brought to its end, with a number for each of these.

The deaths of those who held a resource, or were working on one of our messages, are counted
from here, by stack, resource *name* (a replacement is a new row) and operation.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import models, stored, times
from heat_liveness.db.database import Database, again_if_contended
from heat_liveness.db.members import ServiceRow, alive, ended
from heat_liveness.heat import graph
from heat_liveness.heat.plans import Decision, Plan, Resource, Stack

RESOURCE = 'resource'
MESSAGE = 'message'
STACK = 'stack'
KINDS = (RESOURCE, MESSAGE, STACK)

CLAIMED = 'claimed'
SENT = 'sent'
USED = 'used'
DONE = 'done'
OPEN = (CLAIMED, SENT, USED)

AT_ONCE = 100
"""How many orders are read or adopted in one go."""

_GENERATIONS = {Plan.RESTART: 0, Plan.TIME_OUT: 1, Plan.FINISH: 2, Plan.FAIL: 3,
                Plan.END_DELETE: 4, Plan.PURGE: 5}
"""Of the orders about one traversal.  They are stored, so no other release may have others."""

_t = models.takeover

Seen = list[list[int | None]]
"""Id and atomic_key of rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """One order."""

    id: int
    kind: str
    status: str
    generation: int
    taken_by: str
    age: float
    """Seconds since its last step."""
    detail: Mapping[str, Any]

    @property
    def stack_id(self) -> str:
        """The stack that it is about."""
        return str(self.detail.get('stack_id'))

    @property
    def stack_name(self) -> str:
        """The name of that stack."""
        return str(self.detail.get('stack_name'))

    @property
    def name(self) -> str:
        """The resource's name, or that of the stack where it is about all of it."""
        return str(self.detail.get('resource') or self.stack_name)

    @property
    def plan(self) -> Plan | None:
        """What is to be done; None where that is not known here."""
        found = self.detail.get('plan')
        return next((plan for plan in Plan if plan == found), None)

    @property
    def foreign(self) -> bool:
        """Whether another release has given it, with a plan that this one does not know."""
        return self.plan is None and 'plan' in self.detail

    @property
    def reason(self) -> str:
        """Why."""
        return str(self.detail.get('reason'))

    @property
    def traversal(self) -> str:
        """The traversal for which it was given."""
        return str(self.detail.get('traversal'))

    @property
    def resource_id(self) -> int | None:
        """The resource's row whose lock was cleared."""
        found = self.detail.get('resource_id')
        return found if isinstance(found, int) else None

    @property
    def atomic_key(self) -> int:
        """As the takeover left it: if it has moved on, somebody has taken the work up."""
        return self.generation + 1

    @property
    def revives(self) -> bool:
        """Whether the row was set to FAILED only until its check begins."""
        return bool(self.detail.get('revives'))

    @property
    def alone(self) -> bool:
        """Whether it is worked on alone."""
        return bool(self.detail.get('alone'))

    @property
    def node(self) -> graph.Node | None:
        """The node whose message was lost."""
        found = self.detail.get('node')
        return graph.node(found) if found else None

    @property
    def seen(self) -> Seen | None:
        """Id and atomic_key of the rows that could be at work when it was sent."""
        found = self.detail.get('seen')
        return found if isinstance(found, list) else None

    @property
    def attempts(self) -> int:
        """How often it was sent."""
        return sum(step.get('what') == SENT for step in self.story)

    @property
    def story(self) -> list[dict[str, Any]]:
        """Its steps so far: ``at``, ``what``, ``engine``."""
        return stored.mappings(self.detail.get('story'))


def _order(row: sa.Row[Any]) -> Order:
    return Order(id=row.id, kind=row.kind, status=row.status, generation=row.generation,
                 # A step at no time is an old one: it is followed.
                 taken_by=row.taken_by, age=math.inf if row.age is None else float(row.age),
                 detail=stored.mapping(row.detail))


_ROW = (*_t.c, times.age(_t.c.updated_at).label('age'))


class Orders:
    """The journal's rows about Heat's stacks and resources."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, connection: sa.Connection, row: Resource, decision: Decision,
              owner: ServiceRow, taker_id: str, *, revives: bool = False) -> None:
        """Write what was decided about a lock, in the transaction that clears it.

        :param revives: whether the row is FAILED only until its check begins
        """
        _insert(connection, RESOURCE, f'{RESOURCE}:{row.stack.id}:{row.id}', row.generation,
                taker_id, owner.engine_id, CLAIMED if decision.sends else DONE, {
                    'plan': decision.plan, 'reason': decision.reason, **_about(row.stack),
                    'resource': row.name, 'resource_id': row.id,
                    'state': f'{row.action}_{row.status}', 'physical_id': row.physical_id,
                    'replaces': row.replaces, 'blamed': owner.blamed, 'revives': revives})

    def left_alone(self, connection: sa.Connection, row: Resource) -> bool:
        """Return whether somebody has written already that this lock was left alone."""
        return connection.execute(sa.select(_t.c.id).where(
            _t.c.subject == f'{RESOURCE}:{row.stack.id}:{row.id}',
            _t.c.generation == row.generation)).first() is not None

    @staticmethod
    def overtake(connection: sa.Connection, row: Resource) -> None:
        """Remove the note that this lock was left alone: what stood in the way is gone."""
        connection.execute(_t.delete().where(
            _t.c.subject == f'{RESOURCE}:{row.stack.id}:{row.id}',
            _t.c.generation == row.generation, _t.c.status == DONE))

    def message(self, stack: Stack, node: graph.Node, name: str, reason: str, giver_id: str,
                culprit: str | None = None) -> bool:
        """Give the order to send the message of a node again, unless there is one.

        :param culprit: the engine that may have died working on it
        :return: whether it was given now
        """
        generation = self._next(stack, node, name)
        if generation is None:
            return False
        return self._give(MESSAGE, _message(stack, node), generation, giver_id,
                          {'plan': Plan.SEND_AGAIN, 'reason': reason, **_about(stack),
                           'resource': name, 'node': list(node),
                           'blamed': culprit is not None}, culprit)

    def _next(self, stack: Stack, node: graph.Node, name: str) -> int | None:
        """Return the generation of another order to send a message; None while one is open."""
        with self._database.autocommit() as connection:
            locks = connection.scalars(sa.select(_t.c.detail).where(
                _t.c.status.in_(OPEN), _t.c.subject.like(f'{RESOURCE}:{stack.id}:%'))).all()
            if any(stored.mapping(detail).get('resource') == name for detail in locks):
                # Its lock was taken over, and its message is under way.
                return None
            before = connection.execute(
                sa.select(_t.c.generation, _t.c.status)
                .where(_t.c.subject == _message(stack, node))
                .order_by(_t.c.generation.desc()).limit(1)).first()
        if before is None:
            return 0
        return before.generation + 1 if before.status == DONE else None

    def stack(self, stack: Stack, plan: Plan, reason: str, giver_id: str) -> bool:
        """Give an order about a whole traversal: each plan once for each of them."""
        return self._give(STACK, _traversal(stack), _GENERATIONS[plan], giver_id,
                          {'plan': plan, 'reason': reason, **_about(stack)})

    def given(self, stack: Stack, plan: Plan, node: graph.Node | None = None,
              name: str = '') -> bool:
        """Return whether an order stands in the way of giving this one.

        :param node: whose message is sent again, if it is about a message
        """
        if node is not None:
            return self._next(stack, node, name) is None
        with self._database.autocommit() as connection:
            return connection.execute(sa.select(_t.c.id).where(
                _t.c.subject == _traversal(stack),
                _t.c.generation == _GENERATIONS[plan])).first() is not None

    @again_if_contended
    def _give(self, kind: str, subject: str, generation: int, giver_id: str,
              detail: Mapping[str, Any], culprit: str | None = None) -> bool:
        try:
            with self._database.transaction() as connection:
                if not connection.scalar(sa.select(alive(giver_id))):
                    return False
                _insert(connection, kind, subject, generation, giver_id, culprit, CLAIMED, detail)
        except errors.LockHeld:
            return False
        return True

    def of(self, engine_id: str, limit: int, after: int = 0) -> list[Order]:
        """Return the open orders that an engine is to carry out, or has sent or used, oldest first.

        :param after: begin behind the order with this id
        """
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(*_ROW).where(
                    _t.c.status.in_(OPEN), _t.c.kind.in_(KINDS), _t.c.taken_by == engine_id,
                    _t.c.id > after)
                .order_by(_t.c.id).limit(limit)).all()
        return [_order(row) for row in rows]

    def each(self, engine_id: str) -> Iterator[Order]:
        """Yield all open orders of an engine, oldest first, page by page."""
        last = 0
        while found := self.of(engine_id, AT_ONCE, last):
            last = found[-1].id
            yield from found

    def by(self, engine_id: str) -> list[Order]:
        """Return all orders in which an engine has had a part, the oldest first."""
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(*_ROW).where(_t.c.kind.in_(KINDS), sa.or_(
                    _t.c.taken_by == engine_id, _t.c.detail.contains(engine_id, autoescape=True)))
                .order_by(_t.c.id)).all()
        return [_order(row) for row in rows]

    def find(self, order_id: int) -> Order | None:
        """Return an order as it stands after all that was committed before, or None."""
        with self._database.autocommit() as connection:
            row = connection.execute(sa.select(*_ROW).where(_t.c.id == order_id)).first()
        return None if row is None else _order(row)

    def claimers(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that have open orders."""
        with self._database.autocommit() as connection:
            return set(connection.scalars(
                sa.select(_t.c.taken_by).distinct().where(
                    _t.c.status.in_(OPEN), _t.c.kind.in_(KINDS),
                    _t.c.taken_by.in_(engine_ids))))

    def abandoned(self) -> set[str]:
        """Return the engines, of whatever kind, that have ended with open orders."""
        with self._database.autocommit() as connection:
            return set(connection.scalars(
                sa.select(_t.c.taken_by).distinct()
                .join(models.service, models.service.c.engine_id == _t.c.taken_by)
                .where(_t.c.status.in_(OPEN), _t.c.kind.in_(KINDS),
                       models.service.c.state.in_(models.ENDED))))

    def known(self, stack: Stack) -> bool:
        """Return whether there was an order about a stack in its present operation."""
        with self._database.autocommit() as connection:
            details = connection.scalars(sa.select(_t.c.detail).where(sa.or_(
                *(_t.c.subject.like(f'{kind}:{stack.id}:%') for kind in KINDS)))).all()
        return any(stored.mapping(detail).get('operation') == stack.operation
                   for detail in details)

    def restarts(self, order: Order) -> int:
        """Return how often a stack's present operation was to be begun anew, this time too."""
        with self._database.autocommit() as connection:
            details = connection.scalars(sa.select(_t.c.detail).where(
                _t.c.subject.like(f'{STACK}:{order.stack_id}:%'))).all()
        about = (order.detail.get('operation'), Plan.RESTART)
        return sum((each.get('operation'), each.get('plan')) == about
                   for each in map(stored.mapping, details))

    def resent(self, stack_id: str, traversal: str) -> bool:
        """Return whether a message of this traversal was sent again because it seemed lost."""
        with self._database.autocommit() as connection:
            details = connection.scalars(sa.select(_t.c.detail).where(
                _t.c.subject.like(f'{MESSAGE}:{stack_id}:%'))).all()
        return any(stored.mapping(detail).get('traversal') == traversal for detail in details)

    def again(self, resource_id: int | str, traversal: str, *, is_update: bool) -> int | None:
        """Return the order to send this message again, as long as that is open.

        There are few of them at a time, and the index on the status has them.
        """
        with self._database.autocommit() as connection:
            rows = connection.execute(sa.select(_t.c.id, _t.c.detail).where(
                _t.c.status.in_(OPEN), _t.c.kind == MESSAGE,
                _t.c.subject.like(f'%:{_half(resource_id, is_update=is_update)}'))).all()
        return next((row.id for row in rows
                     if stored.mapping(row.detail).get('traversal') == traversal), None)

    def deaths(self, connection: sa.Connection, stack: Stack) -> dict[str, list[str]]:
        """Return, by resource, the engines that died working on it in the present operation.

        A rollback belongs to what it rolls back.
        """
        rows = connection.execute(sa.select(_t).where(sa.or_(
            *(_t.c.subject.like(f'{kind}:{stack.id}:%') for kind in (RESOURCE, MESSAGE))))
            .order_by(_t.c.id)).all()
        details = [(row.engine_id, stored.mapping(row.detail)) for row in rows]
        operations = {stack.operation}
        if stack.action == 'ROLLBACK':
            # What is rolled back has gone to the template that the stack comes from now.
            earlier = [detail.get('operation') for _, detail in details
                       if detail.get('operation') != stack.operation
                       and detail.get('template') == stack.previous_template_id]
            operations.update(map(str, earlier[-1:]))
        found: dict[str, dict[str, None]] = {}
        for engine_id, detail in details:
            if detail.get('operation') in operations:
                died = found.setdefault(str(detail.get('resource')), {})
                if detail.get('blamed') and engine_id:
                    died[engine_id] = None
                died.update((str(step.get('engine')), None)
                            for step in stored.mappings(detail.get('story'))
                            if step.get('what') == 'died')
        return {name: list(died) for name, died in found.items()}

    def adopt(self, owner: ServiceRow, taker_id: str, limit: int,
              only: Collection[str] | None = None) -> list[Order]:
        """Take over open orders of an ended engine; each begins anew.

        What another release has given is left to whoever knows what it asks for.

        :param only: the stacks that are recovered; all for None
        :return: those whose compare-and-swap this engine has won, as they stand since
        """
        def won(order: Order) -> bool:
            what = 'died' if order.status == USED and owner.blamed else 'ended'
            return self._step(order.id, what, owner.engine_id, CLAIMED, taker_id,
                              _t.c.status == order.status, _t.c.taken_by == owner.engine_id,
                              ended(owner.engine_id), alive(taker_id))

        mine = (order for order in self.each(owner.engine_id)
                if not order.foreign and (only is None or order.stack_id in only) and won(order))
        # Its owner may have noted something between the reading and the swap.
        return [now for order in itertools.islice(mine, limit)
                if (now := self.find(order.id)) is not None]

    def sending(self, order: Order, sender_id: str, seen: Seen, *,
                alone: bool = False) -> bool:
        """Note, before it is done, that a message goes out; return whether it may.

        :param seen: the rows that may be at work, as they stand; see :attr:`Order.seen`
        :param alone: whether nothing else may be taken down with it
        """
        return self._step(order.id, SENT, sender_id, SENT, sender_id,
                          _t.c.status.in_((CLAIMED, SENT)), _t.c.taken_by == sender_id,
                          alive(sender_id), seen=seen, alone=alone)

    def use(self, order_id: int, receiver_id: str) -> bool:
        """Use up the token of a message; return whether it is this receiver that may act on it.

        What is worked on alone only whoever has the order may act on.
        """
        order = self.find(order_id)
        if order is None or (order.alone and order.taken_by != receiver_id):
            return False
        return self._step(order_id, USED, receiver_id, USED, receiver_id,
                          _t.c.status == SENT, _t.c.kind.in_(KINDS), alive(receiver_id))

    def give_back(self, order_id: int, receiver_id: str) -> bool:
        """Return a token that was used in vain; the order is sent again, by this receiver."""
        return self._step(order_id, 'failed', receiver_id, CLAIMED, receiver_id,
                          _t.c.status == USED, _t.c.taken_by == receiver_id)

    def close(self, order_id: int, engine_id: str, outcome: str) -> bool:
        """Write what became of an order."""
        return self._step(order_id, outcome, engine_id, DONE, engine_id,
                          _t.c.status.in_(OPEN), _t.c.taken_by == engine_id, outcome=outcome)

    @staticmethod
    def holds(connection: sa.Connection, order: Order, engine_id: str) -> bool:
        """Lock an order's row; return whether it is this engine that carries the order out."""
        return connection.execute(sa.select(_t.c.id).where(
            _t.c.id == order.id, _t.c.status.in_(OPEN), _t.c.taken_by == engine_id,
            alive(engine_id)).with_for_update()).first() is not None

    @staticmethod
    def note(connection: sa.Connection, order: Order, **more: object) -> None:
        """Add to what an order says, in the transaction in which that becomes true."""
        detail = connection.scalars(
            sa.select(_t.c.detail).where(_t.c.id == order.id).with_for_update()).one()
        connection.execute(_t.update().where(_t.c.id == order.id).values(
            detail=json.dumps({**stored.mapping(detail), **more})))

    @again_if_contended
    def _step(self, order_id: int, what: str, engine_id: str, status: str, taken_by: str,
              *where: sa.ColumnElement[bool], **more: object) -> bool:
        """Take one step of an order, if it stands as expected, and add it to its story."""
        with self._database.transaction() as connection:
            row = connection.execute(
                sa.select(_t.c.detail, sa.cast(times.now(), sa.String()).label('now'))
                .where(_t.c.id == order_id, *where).with_for_update()).first()
            if row is None:
                return False
            detail = stored.mapping(row.detail)
            detail.update(more)
            detail['story'] = [*stored.mappings(detail.get('story')),
                               {'at': row.now[:19], 'what': what, 'engine': engine_id}]
            return connection.execute(
                _t.update().where(_t.c.id == order_id, *where)
                .values(status=status, taken_by=taken_by, updated_at=times.now(),
                        detail=json.dumps(detail))).rowcount == 1


def _half(resource_id: int | str, *, is_update: bool) -> str:
    """Name the update of a resource, or its clean-up, in a subject."""
    return f'{resource_id}:{"update" if is_update else "cleanup"}'


def _message(stack: Stack, node: graph.Node) -> str:
    return f'{MESSAGE}:{stack.id}:{_half(node.id, is_update=node.is_update)}'


def _traversal(stack: Stack) -> str:
    return f'{STACK}:{stack.id}:{stack.traversal}'


def _about(stack: Stack) -> dict[str, Any]:
    return {'stack_id': stack.id, 'stack_name': stack.name, 'operation': stack.operation,
            'traversal': stack.traversal, 'template': stack.template_id}


def _insert(connection: sa.Connection, kind: str, subject: str, generation: int, taker_id: str,
            owner_id: str | None, status: str, detail: Mapping[str, Any]) -> None:
    connection.execute(_t.insert().values(
        kind=kind, subject=subject, generation=generation, engine_id=owner_id, taken_by=taker_id,
        pieces=1, status=status, detail=json.dumps(detail), created_at=times.now(),
        updated_at=times.now()))
