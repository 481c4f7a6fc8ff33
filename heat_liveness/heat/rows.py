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

"""Statements about Heat's own tables, beside ours in one database.

Nothing here scans ``resource``, which has no index on its owner: stacks IN_PROGRESS first,
then their resources by ``stack_id``.  No column of Heat's is joined with one of ours; their
collations may differ.

The lock of a resource is its ``engine_id`` with ``atomic_key`` as generation.  Heat's own
workers expect it to be NULL when they acquire it, so a takeover *clears* it; what is to
happen then stands in the journal, written in the same transaction, as one row per
(resource, atomic_key).
"""

import dataclasses
import enum
import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import models, times
from heat_liveness.db.database import Database
from heat_liveness.db.members import ServiceRow, alive, ended

KIND = 'resource'
CLAIMED = 'claimed'
DONE = 'done'

_STACKS_AT_ONCE = 200

_stack = sa.table('stack', *map(sa.column, (
    'id', 'name', 'action', 'status', 'convergence', 'current_traversal', 'deleted_at',
    'owner_id', 'parent_resource_name')))
_resource = sa.table('resource', *map(sa.column, (
    'id', 'name', 'action', 'status', 'status_reason', 'engine_id', 'atomic_key', 'stack_id',
    'nova_instance', 'replaces')))
_service = sa.table('service', sa.column('engine_id'), sa.column('deleted_at'))
_journal = models.takeover


class Plan(enum.StrEnum):
    """What is done with a resource whose owner is dead; the reasons stand in ``plan``."""

    CREATE_AGAIN = 'create again'
    REPLACE = 'replace'
    LEAVE_ALONE = 'leave alone'


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldResource:
    """A resource that an ended engine holds."""

    id: int
    name: str
    action: str
    status: str
    engine_id: str
    atomic_key: int
    stack_id: str
    physical_id: str | None
    replaces: int | None
    stack_name: str
    stack_action: str
    traversal: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """A resource whose lock was cleared and whose check must be sent: a row of the journal."""

    id: int
    resource_id: int
    atomic_key: int
    """As the takeover left it: if it has moved on, somebody has taken the work up."""
    stack_id: str
    stack_name: str
    name: str
    traversal: str
    plan: str
    replaces: int | None


def plan(row: HeldResource, nested_exists: bool) -> tuple[Plan, str]:
    """Decide what can be done safely; return it with its reason.

    A lock that is only cleared makes Heat take a CREATE for done: the stack would become
    CREATE_COMPLETE with a resource that was never made.  So the state is written too.

    :param nested_exists: whether a nested stack of this resource is there already
    """
    if row.action != 'CREATE' or row.status != 'IN_PROGRESS':
        return Plan.LEAVE_ALONE, f'{row.action} {row.status} is not recovered by this release'
    if row.replaces is not None and row.stack_action != 'CREATE':
        return Plan.LEAVE_ALONE, (
            f'it replaces another resource during {row.stack_action}, which is not recovered by '
            f'this release')
    if row.physical_id is not None:
        return Plan.REPLACE, 'it may exist half-made, so Heat replaces it'
    if nested_exists:
        return Plan.LEAVE_ALONE, 'its nested stack exists, and its id was never written'
    return Plan.CREATE_AGAIN, 'nothing was made yet'


_STATE = {
    Plan.CREATE_AGAIN: {'action': 'INIT', 'status': 'COMPLETE'},
    Plan.REPLACE: {'status': 'FAILED'},
}


class HeatRows:
    """Heat's stacks and resources, as a recoverer sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that own work of Heat's still.

        These hold a resource, or an order, of a stack in progress.  Where Heat's tables are
        not in this database, no engine does.
        """
        if not engine_ids:
            return set()
        try:
            holders = self.holders(engine_ids)
        except errors.SchemaError:
            holders = set()
        return holders | self.claimers(engine_ids)

    def holders(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that hold a resource of a stack IN_PROGRESS."""
        found: set[str] = set()
        with self._database.autocommit() as connection:
            for ids in _chunks(sorted(_in_progress(connection))):
                found.update(connection.scalars(
                    sa.select(_resource.c.engine_id).distinct().where(
                        _resource.c.stack_id.in_(ids), _resource.c.engine_id.in_(engine_ids))))
        return found

    @staticmethod
    def _held(connection: sa.Connection, engine_id: str, limit: int) -> list[HeldResource]:
        """Lock resources that an engine holds, passing by those another survivor has locked."""
        stacks = _in_progress(connection)
        found: list[HeldResource] = []
        for ids in _chunks(sorted(stacks)):
            rows = connection.execute(
                sa.select(_resource)
                .where(_resource.c.stack_id.in_(ids), _resource.c.engine_id == engine_id)
                .order_by(_resource.c.id).limit(limit - len(found))
                .with_for_update(skip_locked=True))
            found += [_held(row, stacks[row.stack_id]) for row in rows]
            if len(found) >= limit:
                break
        return found

    def nested_exists(self, connection: sa.Connection, row: HeldResource) -> bool:
        """Return whether a nested stack of this resource is there."""
        return connection.execute(
            sa.select(_stack.c.id).where(
                _stack.c.owner_id == row.stack_id, _stack.c.parent_resource_name == row.name,
                _stack.c.deleted_at.is_(None)).limit(1)).first() is not None

    def take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                  known: Collection[tuple[int, int]]) -> list[tuple[HeldResource, Plan, str]]:
        """Clear at most ``limit`` locks of an ended engine and write what is to be done.

        The UPDATE decides: owner and atomic_key as read, owner ended, taker alive.  State and
        journal commit together, so between the claim and the resumption there is always a row
        that says so.

        :param known: (id, atomic_key) of what was left alone before
        :return: what this call has decided; wins count, as it has committed
        """
        decided: list[tuple[HeldResource, Plan, str]] = []
        with self._database.transaction() as connection:
            for row in self._held(connection, owner.engine_id, limit + len(known)):
                if (row.id, row.atomic_key) in known or len(decided) >= limit:
                    continue
                what, why = plan(row, self.nested_exists(connection, row))
                if what is Plan.LEAVE_ALONE:
                    if self._left_alone_before(connection, row):
                        decided.append((row, what, ''))
                        continue
                elif self._clear(connection, row, what, owner, taker_id):
                    self._overtake(connection, row)
                else:
                    continue
                self._write(connection, row, what, why, taker_id)
                decided.append((row, what, why))
        return decided

    def _clear(self, connection: sa.Connection, row: HeldResource, what: Plan,
               owner: ServiceRow, taker_id: str) -> bool:
        reason = f'Engine {owner.engine_id} died during {row.action}; {taker_id} took over'
        return bool(connection.execute(
            _resource.update()
            .where(_resource.c.id == row.id, _resource.c.engine_id == owner.engine_id,
                   _resource.c.atomic_key == row.atomic_key, ended(owner.engine_id),
                   alive(taker_id))
            .values(engine_id=None, atomic_key=row.atomic_key + 1, status_reason=reason,
                    **_STATE[what])).rowcount == 1)

    def _left_alone_before(self, connection: sa.Connection, row: HeldResource) -> bool:
        return connection.execute(
            sa.select(_journal.c.id).where(
                _journal.c.subject == f'{KIND}:{row.id}',
                _journal.c.generation == row.atomic_key)).first() is not None

    @staticmethod
    def _overtake(connection: sa.Connection, row: HeldResource) -> None:
        """Remove the note that this lock was left alone: what stood in the way is gone."""
        connection.execute(_journal.delete().where(
            _journal.c.subject == f'{KIND}:{row.id}', _journal.c.generation == row.atomic_key,
            _journal.c.status == DONE))

    def _write(self, connection: sa.Connection, row: HeldResource, what: Plan, why: str,
               taker_id: str) -> None:
        connection.execute(_journal.insert().values(
            kind=KIND, subject=f'{KIND}:{row.id}', generation=row.atomic_key,
            engine_id=row.engine_id, taken_by=taker_id, pieces=1,
            status=DONE if what is Plan.LEAVE_ALONE else CLAIMED,
            detail=json.dumps({
                'plan': what, 'reason': why, 'stack_id': row.stack_id,
                'stack_name': row.stack_name, 'resource': row.name,
                'state': f'{row.action}_{row.status}', 'physical_id': row.physical_id,
                'traversal': row.traversal, 'replaces': row.replaces}),
            created_at=times.now(), updated_at=times.now()))

    def adopt(self, owner_id: str, taker_id: str, limit: int) -> list[Order]:
        """Take over orders that an ended engine has claimed and perhaps not sent.

        :return: those whose compare-and-swap this engine has won
        """
        won = []
        for order in self.orders(owner_id, limit):
            with self._database.autocommit() as connection:
                if connection.execute(
                        _journal.update()
                        .where(_journal.c.id == order.id, _journal.c.status == CLAIMED,
                               _journal.c.taken_by == owner_id, ended(owner_id), alive(taker_id))
                        .values(taken_by=taker_id, updated_at=times.now())).rowcount:
                    won.append(order)
        return won

    def orders(self, taker_id: str, limit: int, after: int = 0) -> list[Order]:
        """Return orders that an engine has claimed and not yet sent, oldest first.

        :param after: begin behind the order with this id
        """
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(_journal).where(
                    _journal.c.status == CLAIMED, _journal.c.kind == KIND,
                    _journal.c.taken_by == taker_id, _journal.c.id > after)
                .order_by(_journal.c.id).limit(limit)).all()
        return [_order(row) for row in rows]

    def claimers(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that have claimed orders and not sent them."""
        with self._database.autocommit() as connection:
            return set(connection.scalars(
                sa.select(_journal.c.taken_by).distinct().where(
                    _journal.c.status == CLAIMED, _journal.c.kind == KIND,
                    _journal.c.taken_by.in_(engine_ids))))

    def untouched(self, order: Order) -> bool:
        """Return whether the resource is as the takeover left it: nobody has taken it up."""
        with self._database.fresh() as connection:
            row = connection.execute(
                sa.select(_resource.c.engine_id, _resource.c.atomic_key)
                .where(_resource.c.id == order.resource_id)).first()
        return row is not None and row.engine_id is None and row.atomic_key == order.atomic_key

    def close(self, order: Order, taker_id: str, outcome: str) -> None:
        """Write into the journal what became of an order."""
        with self._database.transaction() as connection:
            detail = connection.scalar(
                sa.select(_journal.c.detail).where(_journal.c.id == order.id).with_for_update())
            connection.execute(
                _journal.update()
                .where(_journal.c.id == order.id, _journal.c.status == CLAIMED,
                       _journal.c.taken_by == taker_id)
                .values(status=DONE, updated_at=times.now(),
                        detail=json.dumps({**json.loads(detail or '{}'), 'outcome': outcome})))

    def hide_service(self, engine_id: str) -> None:
        """Remove an ended engine from what Heat's own commands show, as service clean does."""
        with self._database.autocommit() as connection:
            connection.execute(
                _service.update()
                .where(_service.c.engine_id == engine_id, _service.c.deleted_at.is_(None),
                       ended(engine_id))
                .values(deleted_at=times.now()))


def _in_progress(connection: sa.Connection) -> dict[str, sa.Row[Any]]:
    """Return the convergence stacks that are being worked on, nested ones among them, by id."""
    rows: Iterable[sa.Row[Any]] = connection.execute(
        sa.select(_stack.c.id, _stack.c.name, _stack.c.action, _stack.c.current_traversal)
        .where(_stack.c.status == 'IN_PROGRESS', _stack.c.convergence.is_(sa.true()),
               _stack.c.deleted_at.is_(None)))
    return {row.id: row for row in rows}


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _STACKS_AT_ONCE):
        yield ids[start:start + _STACKS_AT_ONCE]


def _held(row: sa.Row[Any], stack: sa.Row[Any]) -> HeldResource:
    return HeldResource(
        id=row.id, name=row.name, action=row.action, status=row.status,
        engine_id=row.engine_id, atomic_key=row.atomic_key, stack_id=row.stack_id,
        physical_id=row.nova_instance, replaces=row.replaces, stack_name=stack.name,
        stack_action=stack.action, traversal=stack.current_traversal)


def _order(row: sa.Row[Any]) -> Order:
    detail = json.loads(row.detail)
    return Order(
        id=row.id, resource_id=int(row.subject.partition(':')[2]),
        atomic_key=row.generation + 1, stack_id=detail['stack_id'],
        stack_name=detail['stack_name'], name=detail['resource'],
        traversal=detail['traversal'], plan=detail['plan'], replaces=detail['replaces'])
