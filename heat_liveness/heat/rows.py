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

Nothing here scans ``resource``, which has no index on its owner: stacks first, then their
resources by ``stack_id``.  No column of Heat's is joined with one of ours; their collations
may differ.

The lock of a resource is its ``engine_id`` with ``atomic_key`` as generation.  Heat's own
workers expect it to be NULL when they acquire it, so a takeover *clears* it; what is to
happen then stands in the journal (:mod:`.orders`), written in the same transaction.
"""

import dataclasses
import math
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.db import models, times
from heat_liveness.db.database import Database, again_if_contended
from heat_liveness.db.members import Ending, Members, ServiceRow, alive, ended
from heat_liveness.heat import bridge, graph, orders, plans, tables
from heat_liveness.heat.plans import Child, Decision, Plan, Resource, Stack

_STACKS_AT_ONCE = 200
_RESET = 'Stack status manually reset'
"""What Heat writes into a stack, and its resources, that an operator has reset."""
_HOOKS = tuple(f'{when}-{action}' for when in ('pre', 'post')
               for action in ('create', 'update', 'delete'))

_stack, _resource, _service = tables.stack, tables.resource, tables.service
_point, _data, _snapshot = tables.point, tables.data, tables.snapshot

_AT_WORK = (_stack.c.status.in_(('IN_PROGRESS', 'FAILED')), _stack.c.convergence.is_(sa.true()),
            _stack.c.deleted_at.is_(None))
_STACK = tuple(_stack.c[name] for name in (
    'id', 'name', 'action', 'status', 'current_traversal', 'owner_id', 'raw_template_id',
    'prev_raw_template_id', 'created_at', 'updated_at', 'timeout'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides beside the rows themselves."""

    max_takeovers: int
    abandons: bool = False
    """Whether this Heat lets stacks be abandoned, so that a DELETE may be an abandon."""
    only: Collection[str] | None = None
    """The stacks that are recovered; all for None."""
    tokened: bool = True
    """Whether all who may receive a message know tokens."""
    fenced: bool = True
    """Whether the engines that are recovered cannot come back and write."""


@dataclasses.dataclass(frozen=True)
class View:
    """A stack in full: its graph, its resources, its nested stacks.

    Read by several statements, so not all as of one moment; whoever acts on it says in his own
    WHERE, or by a token, what must still be so.
    """

    stack: Stack
    traversal: graph.Traversal
    resources: Mapping[int, Resource]
    children: Collection[tuple[str, Child]]
    """Each nested stack with the name of the resource that it belongs to."""
    problem: str = ''
    """Why the graph cannot be read, if so."""

    def ancestors(self, row: Resource) -> list[int]:
        """Return what a row replaces, what that replaces, and so on."""
        found: list[int] = []
        older = row.replaces
        while older is not None and older not in found:
            found.append(older)
            older = self.resources[older].replaces if older in self.resources else None
        return found

    def newest(self, name: str | None) -> Resource | None:
        """Return the row that stands for a resource now."""
        return max((row for row in self.resources.values() if row.name == name),
                   key=lambda row: row.id, default=None)

    def node(self, row: Resource) -> graph.Node | None:
        """Return the node for which a row is at work."""
        return self.traversal.waits_for(row.id, self.ancestors(row))

    def child(self, row: Resource) -> Child | None:
        """Return the nested stack of a row, even where its id was not written yet."""
        if row.physical_id is not None:
            return next((child for _, child in self.children if child.id == row.physical_id), None)
        known = {other.physical_id for other in self.resources.values()}
        return next((child for name, child in self.children
                     if name == row.name and child.id not in known), None)


class HeatRows:
    """Heat's stacks and resources, as a recoverer sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._members = Members(database)
        self.orders = orders.Orders(database)

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that own work of Heat's still.

        These hold a resource, or an order.  Where Heat's tables are not in this database, no
        engine does.
        """
        if not engine_ids:
            return set()
        try:
            holders = self.holders(engine_ids)
        except errors.SchemaError:
            holders = set()
        return holders | self.orders.claimers(engine_ids)

    def holders(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that hold a resource of a stack in progress, or failed."""
        found: set[str] = set()
        with self._database.autocommit() as connection:
            for ids in _chunks(sorted(connection.scalars(sa.select(_stack.c.id).where(*_AT_WORK)))):
                found.update(connection.scalars(
                    sa.select(_resource.c.engine_id).distinct().where(
                        _resource.c.stack_id.in_(ids), _resource.c.engine_id.in_(engine_ids))))
        return found

    def unknown_holders(self, known: Collection[str]) -> set[str]:
        """Return the engines beside the known ones that hold a resource.

        Of a stack in progress, or failed.
        """
        found: set[str] = set()
        with self._database.autocommit() as connection:
            for ids in _chunks(sorted(connection.scalars(sa.select(_stack.c.id).where(*_AT_WORK)))):
                found.update(connection.scalars(
                    sa.select(_resource.c.engine_id).distinct().where(
                        _resource.c.stack_id.in_(ids), _resource.c.engine_id.is_not(None))))
        return found - set(known)

    def view(self, stack_id: str) -> View | None:
        """Return all of a stack, or None if it is gone.  Five statements."""
        with self._database.autocommit() as connection:
            row = connection.execute(sa.select(*_STACK).where(
                _stack.c.id == stack_id, _stack.c.deleted_at.is_(None))).first()
            return None if row is None else _view(connection, _as_stack(row))

    def hooked(self, resource_ids: Collection[int]) -> set[int]:
        """Return those of the resources that wait at a hook for their user."""
        if not resource_ids:
            return set()
        with self._database.autocommit() as connection:
            return set(connection.scalars(sa.select(_data.c.resource_id).where(
                _data.c.resource_id.in_(resource_ids), _data.c.key.in_(_HOOKS))))

    @again_if_contended
    def take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                  known: Collection[tuple[int, int]], rules: Rules,
                  ) -> list[tuple[Resource, Decision]]:
        """Clear at most ``limit`` locks of an ended engine and write what is to be done.

        The UPDATE decides: owner and atomic_key as read, owner ended, taker alive.  State and
        journal commit together, so between the claim and the resumption there is always a row
        that says so.

        :param known: (id, generation) of what was left alone before
        :return: what this call has decided; wins count, as it has committed
        """
        decided: list[tuple[Resource, Decision]] = []
        views: dict[str, tuple[View, Mapping[str, list[str]]]] = {}
        cleared = 0
        with self._database.transaction() as connection:
            for row in _held(connection, owner.engine_id, limit, rules.only, taker_id):
                if (row.id, row.generation) in known:
                    continue
                if row.stack.id not in views:
                    views[row.stack.id] = (_view(connection, row.stack),
                                           self.orders.deaths(connection, row.stack))
                decision = _decide(row, *views[row.stack.id], owner, rules)
                if self._write(connection, row, decision, owner, taker_id, rules):
                    decided.append((row, decision))
                    cleared += decision.clears
                if cleared >= limit:
                    break
        return decided

    def _write(self, connection: sa.Connection, row: Resource, decision: Decision,
               owner: ServiceRow, taker_id: str, rules: Rules) -> bool:
        """Write what was decided, if anything; return False if somebody else was first."""
        if decision.plan is Plan.WAIT:
            return True
        if decision.plan is Plan.LEAVE_ALONE:
            if not self.orders.left_alone(connection, row):
                self.orders.write(connection, row, decision, owner, taker_id)
            return True
        revives = rules.tokened and _is_revived(row, decision)
        if not _clear(connection, row, decision, owner, taker_id, revives=revives):
            return False
        self.orders.overtake(connection, row)
        self.orders.write(connection, row, decision, owner, taker_id, revives=revives)
        return True

    def consider(self, owner: ServiceRow, rules: Rules) -> list[tuple[Resource, Decision]]:
        """Return what a takeover would decide, and change nothing."""
        with self._database.autocommit() as connection:
            return [(row, _decide(row, _view(connection, row.stack),
                                  self.orders.deaths(connection, row.stack), owner, rules))
                    for row in _held(connection, owner.engine_id, None, rules.only)]

    def deaths(self, stack: Stack, name: str) -> list[str]:
        """Return the engines that died working on a resource in its stack's present operation."""
        with self._database.autocommit() as connection:
            return self.orders.deaths(connection, stack).get(name, [])

    def fail(self, stack: Stack, reason: str) -> bool:
        """Set a stack in progress to FAILED; return whether it was so still."""
        with self._database.autocommit() as connection:
            return connection.execute(
                _at_this_point(_stack.update(), stack)
                .values(status='FAILED', status_reason=reason)).rowcount == 1

    def blame(self, row: Resource, reason: str) -> None:
        """Let a row say why its stack has failed, unless what stands in it is good still.

        A resource whose engines died before they had begun was only meant to be created.
        """
        with self._database.autocommit() as connection:
            connection.execute(
                _resource.update().where(
                    _resource.c.id == row.id, _resource.c.engine_id.is_(None),
                    _resource.c.atomic_key == row.atomic_key,
                    sa.or_(_resource.c.action == 'INIT', _resource.c.status == 'FAILED'))
                .values(action=sa.case((_resource.c.action == 'INIT', 'CREATE'),
                                       else_=_resource.c.action),
                        status='FAILED', status_reason=reason, atomic_key=row.generation + 1))

    def begin_anew(self, stack: Stack, traversal: str) -> bool:
        """Give a stack in progress a new traversal instead of its own; return whether it was we.

        Of many one wins, and whoever wrote out the old one is fenced off by it.  Template,
        parameters, the template to roll back to and the start of the timeout stay.
        """
        with self._database.autocommit() as connection:
            return connection.execute(
                _at_this_point(_stack.update(), stack)
                .values(current_traversal=traversal)).rowcount == 1

    def exists(self, node: graph.Node) -> bool:
        """Return whether what a node stands for is there; of a snapshot there is no resource."""
        if node.kind != graph.SNAPSHOT:
            return True
        with self._database.autocommit() as connection:
            return connection.execute(
                sa.select(_snapshot.c.id).where(_snapshot.c.id == node.id)).first() is not None

    def strangers(self) -> set[str]:
        """Return the engines that beat in Heat's own table and have no row in ours."""
        beat = sa.func.coalesce(_service.c.updated_at, _service.c.created_at)
        with self._database.autocommit() as connection:
            theirs = set(connection.scalars(sa.select(_service.c.engine_id).where(
                _service.c.deleted_at.is_(None),
                times.age(beat) <= 3 * _service.c.report_interval)))
            ours = set(connection.scalars(sa.select(models.service.c.engine_id).where(
                models.service.c.protocol != engines.OBSERVED)))
        return theirs - ours

    def endings(self) -> list[Ending]:
        """Return the engines of Heat that have ended, the last one first.

        Of those that have no row of ours these are the ones whose row in Heat's own table is
        deleted.  Heat deletes it when an engine stops; where one is silent, an engine that starts
        on its host does, or an operator (``heat-manage service clean``), who may be wrong.  But
        one that lives brings its row back with its next beat.
        """
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(_service.c.engine_id, times.age(_service.c.deleted_at).label('age'))
                .where(_service.c.binary == bridge.BINARY,
                       # Its own clock, or another engine's, may be as far ahead as that.
                       times.age(_service.c.deleted_at) > 2 * _service.c.report_interval)).all()
            ours = set(connection.scalars(sa.select(models.service.c.engine_id)))
        theirs = [Ending(row.engine_id, float(row.age), blamed=False)
                  for row in rows if row.engine_id not in ours]
        return sorted([*self._members.endings(bridge.BINARY), *theirs], key=lambda each: each.age)

    def half_deleted(self) -> list[Stack]:
        """Return the stacks whose delete we helped along and that failed at their project."""
        with self._database.autocommit() as connection:
            rows = connection.execute(sa.select(*_STACK).where(
                _stack.c.action == 'DELETE', _stack.c.status == 'FAILED',
                _stack.c.deleted_at.is_(None), _stack.c.convergence.is_(sa.true()),
                _stack.c.status_reason.like('Error deleting project%'))).all()
        return [stack for stack in map(_as_stack, rows) if self.orders.known(stack)]

    @again_if_contended
    def revive(self, order: orders.Order, seen: orders.Seen, engine_id: str) -> None:
        """Let a row be in progress again, just before its check, if nobody has changed it.

        :param seen: how the rows that may be at work stand then; it is written into the order
        :param engine_id: who carries the order out; if that is another by now, nothing is done
        """
        with self._database.transaction() as connection:
            if self.orders.holds(connection, order, engine_id) and connection.execute(
                    _resource.update().where(
                        _resource.c.id == order.resource_id, _resource.c.engine_id.is_(None),
                        _resource.c.atomic_key == order.atomic_key, _resource.c.status == 'FAILED')
                    .values(status='IN_PROGRESS', atomic_key=order.atomic_key + 1)).rowcount:
                self.orders.note(connection, order, seen=seen)

    def replaced(self, resource_id: int, template_id: int) -> bool:
        """Return whether another row has taken a resource's place, made to this template.

        One that has failed has not: another is made then.  Two rows are read, by primary key:
        Heat names the replacement in what it replaces, in the transaction that makes it.
        """
        old, new = _resource.alias('old'), _resource.alias('new')
        with self._database.autocommit() as connection:
            return connection.execute(
                sa.select(new.c.id).join_from(old, new, new.c.id == old.c.replaced_by).where(
                    old.c.id == resource_id, new.c.current_template_id == template_id,
                    new.c.status != 'FAILED',
                    sa.or_(new.c.action != 'DELETE', new.c.status != 'COMPLETE'),
                )).first() is not None

    def family(self, stack_id: str) -> frozenset[str]:
        """Return a stack's id and those of all stacks nested in it."""
        found = [stack_id]
        with self._database.autocommit() as connection:
            for each in found:
                found += connection.scalars(sa.select(_stack.c.id).where(
                    _stack.c.owner_id == each, _stack.c.deleted_at.is_(None))).all()
        return frozenset(found)

    def untouched(self, order: orders.Order) -> bool:
        """Return whether the resource is as the takeover left it: nobody has taken it up."""
        with self._database.autocommit() as connection:
            row = connection.execute(
                sa.select(_resource.c.engine_id, _resource.c.atomic_key)
                .where(_resource.c.id == order.resource_id)).first()
        return row is not None and row.engine_id is None and row.atomic_key == order.atomic_key

    def hide_service(self, engine_id: str) -> None:
        """Remove an ended engine from what Heat's own commands show, as service clean does."""
        with self._database.autocommit() as connection:
            connection.execute(
                _service.update()
                .where(_service.c.engine_id == engine_id, _service.c.deleted_at.is_(None),
                       ended(engine_id))
                .values(deleted_at=times.now()))

    def candidates(self) -> list[tuple[Stack, float]]:
        """Return the stacks that may hang, each with the seconds since its operation began.

        Those IN_PROGRESS, and those whose end was not carried through: a stack that has ended
        has no sync points, and a deleted one is gone.  One that an operator has reset
        (``heat-manage reset_stack_status``) has them still, and is to be left as it is.
        """
        # Two statements: within an OR, MariaDB asks for the sync points of each stack by itself.
        leftover = sa.and_(
            _stack.c.status != 'IN_PROGRESS',
            _stack.c.current_traversal.in_(sa.select(_point.c.traversal_id)),
            sa.func.coalesce(_stack.c.status_reason, '') != _RESET)
        open_ended = sa.or_(
            _stack.c.status == 'IN_PROGRESS',
            sa.and_(_stack.c.action == 'DELETE', _stack.c.status == 'COMPLETE'))
        began = sa.func.coalesce(_stack.c.updated_at, _stack.c.created_at)
        with self._database.autocommit() as connection:
            rows = [row for which in (open_ended, leftover) for row in connection.execute(
                sa.select(*_STACK, times.age(began).label('age')).where(
                    _stack.c.convergence.is_(sa.true()), _stack.c.deleted_at.is_(None), which))]
        # What began at no time began long ago: it must not keep the others from being seen.
        return [(_as_stack(row), math.inf if row.age is None else float(row.age))
                for row in {row.id: row for row in rows}.values()]

    def prints(self, stack_ids: Collection[str]) -> dict[str, object]:
        """Return something for each stack that changes with each step of its traversal.

        Every step raises an atomic_key, or makes or removes a row; none lowers one.  Two
        statements for 200 stacks.
        """
        found: dict[str, list[object]] = {stack_id: [] for stack_id in stack_ids}
        with self._database.autocommit() as connection:
            for ids in _chunks(sorted(stack_ids)):
                for statement in (
                        sa.select(_resource.c.stack_id, sa.func.count(),
                                  sa.func.max(_resource.c.id),
                                  sa.func.sum(_resource.c.atomic_key),
                                  sa.func.count(_resource.c.engine_id))
                        .where(_resource.c.stack_id.in_(ids)).group_by(_resource.c.stack_id),
                        sa.select(_point.c.stack_id, _point.c.traversal_id, sa.func.count(),
                                  sa.func.sum(_point.c.atomic_key))
                        .where(_point.c.stack_id.in_(ids))
                        .group_by(_point.c.stack_id, _point.c.traversal_id)
                        .order_by(_point.c.traversal_id)):
                    for row in connection.execute(statement):
                        found[row[0]].append(tuple(row[1:]))
        return {stack_id: tuple(each) for stack_id, each in found.items()}


def _at_this_point(statement: sa.Update, stack: Stack) -> sa.Update:
    """Change a stack only where it is in progress still, and in the same traversal.

    Heat's own statements name the traversal only: they change a stack that is complete.
    """
    return statement.where(
        _stack.c.id == stack.id, _stack.c.current_traversal == stack.traversal,
        _stack.c.status == 'IN_PROGRESS', _stack.c.deleted_at.is_(None))


def _at_work(connection: sa.Connection) -> dict[str, Stack]:
    """Return the convergence stacks in which locks matter, nested ones among them, by id.

    A stack that has failed lets what it had begun go on; it is no more than looked at.
    """
    rows: Iterable[sa.Row[Any]] = connection.execute(sa.select(*_STACK).where(*_AT_WORK))
    return {row.id: _as_stack(row) for row in rows}


def _held(connection: sa.Connection, engine_id: str, page: int | None,
          only: Collection[str] | None, reader_id: str = '') -> Iterator[Resource]:
    """Lock resources that an engine holds, page by page, passing by what others have locked.

    For None they are read, and not locked.  Each reader has an order of its own: between the
    nodes of Galera nobody sees what others have locked.
    """
    stacks = {stack_id: stack for stack_id, stack in _at_work(connection).items()
              if only is None or stack_id in only}
    ordered = sorted(stacks, key=lambda each: zlib.crc32(f'{reader_id} {each}'.encode()))
    going = [each for each in ordered if stacks[each].status == 'IN_PROGRESS']
    rest = [each for each in ordered if stacks[each].status != 'IN_PROGRESS']
    for ids in (*_chunks(going), *_chunks(rest)):
        last = 0
        while True:
            statement = sa.select(_resource).where(
                _resource.c.stack_id.in_(ids), _resource.c.engine_id == engine_id,
                _resource.c.id > last).order_by(_resource.c.id)
            if page is not None:
                statement = statement.limit(page).with_for_update(skip_locked=True)
            found = connection.execute(statement).all()
            yield from (_as_resource(row, stacks[row.stack_id]) for row in found)
            if page is None or len(found) < page:
                break
            last = found[-1].id


def _decide(row: Resource, view: View, deaths: Mapping[str, list[str]], owner: ServiceRow,
            rules: Rules) -> Decision:
    if view.problem:
        return Decision(Plan.LEAVE_ALONE, view.problem)
    decision = plans.decide(row, view.node(row), view.child(row), abandons=rules.abandons,
                            fenced=rules.fenced)
    dead = dict.fromkeys(deaths.get(row.name, []))
    if owner.blamed:
        dead[owner.engine_id] = None
    if decision.plan not in {Plan.WAIT, Plan.RELEASE} and len(dead) >= rules.max_takeovers:
        return plans.poisoned(row, list(dead))
    return decision


def _is_revived(row: Resource, decision: Decision) -> bool:
    """Return whether a row that stays as it is must not be met so by another traversal.

    Heat takes a resource that is in progress, and not locked, for done where its template did
    not change, though it was half updated or deleted.  Until its own check begins it is FAILED.
    """
    return decision.plan is Plan.RUN_AGAIN and decision.status is None and (
        row.status == 'IN_PROGRESS')


def _clear(connection: sa.Connection, row: Resource, decision: Decision, owner: ServiceRow,
           taker_id: str, *, revives: bool) -> bool:
    status = 'FAILED' if revives else decision.status
    values: dict[str, Any] = {
        'action': decision.action, 'status': status, 'nova_instance': decision.physical_id}
    values = {name: value for name, value in values.items() if value is not None}
    if status is not None:
        values['status_reason'] = (
            f'Engine {owner.engine_id} ended during {row.action}; {taker_id} took over')
    return bool(connection.execute(
        _resource.update()
        .where(_resource.c.id == row.id, _resource.c.engine_id == owner.engine_id,
               _resource.c.atomic_key == row.atomic_key, ended(owner.engine_id),
               alive(taker_id))
        .values(engine_id=None, atomic_key=row.generation + 1, **values)).rowcount == 1)


def _view(connection: sa.Connection, stack: Stack) -> View:
    deps = connection.scalar(sa.select(_stack.c.current_deps).where(_stack.c.id == stack.id))
    points = connection.execute(
        sa.select(_point.c.entity_id, _point.c.is_update, _point.c.input_data)
        .where(_point.c.stack_id == stack.id, _point.c.traversal_id == stack.traversal))
    resources = connection.execute(sa.select(_resource).where(_resource.c.stack_id == stack.id))
    children = connection.execute(
        sa.select(*_STACK, _stack.c.parent_resource_name, _stack.c.status_reason)
        .where(_stack.c.owner_id == stack.id, _stack.c.deleted_at.is_(None)))
    problem = ''
    try:
        traversal = graph.Traversal(stack.id, graph.edges(deps), [
            graph.Point(row.entity_id, bool(row.is_update), graph.reported(row.input_data))
            for row in points])
    except ValueError as error:
        # One row that somebody has edited must not stand in the way of all others.
        traversal = graph.Traversal(stack.id, None, ())
        problem = f'the graph of its stack cannot be read ({error})'
    return View(
        stack, traversal,
        {row.id: _as_resource(row, stack) for row in resources},
        [(row.parent_resource_name, _as_child(_as_stack(row), row.status_reason, stack))
         for row in children], problem)


def _as_child(child: Stack, status_reason: str | None, parent: Stack) -> Child:
    failed = (child.action in {'CREATE', 'UPDATE'} and child.status == 'FAILED'
              and child.began is not None and parent.began is not None
              and child.began >= parent.began)
    return Child(child.id, child.name, child.status == 'IN_PROGRESS',
                 (status_reason or 'no reason was given') if failed else None)


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _STACKS_AT_ONCE):
        yield ids[start:start + _STACKS_AT_ONCE]


def _as_stack(row: Any) -> Stack:
    return Stack(
        id=row.id, name=row.name, action=row.action, status=row.status,
        traversal=row.current_traversal or '', owner_id=row.owner_id,
        template_id=row.raw_template_id, previous_template_id=row.prev_raw_template_id,
        created_at=row.created_at, updated_at=row.updated_at, timeout_minutes=row.timeout)


def _as_resource(row: sa.Row[Any], stack: Stack) -> Resource:
    return Resource(
        id=row.id, name=row.name, action=row.action, status=row.status, engine_id=row.engine_id,
        atomic_key=row.atomic_key, status_reason=row.status_reason,
        physical_id=row.nova_instance, replaces=row.replaces,
        template_id=row.current_template_id, updated_at=row.updated_at, stack=stack)
