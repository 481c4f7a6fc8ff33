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

"""What is asked of Heat's own tables, and what is written into them, beside the claims of locks.

Nothing here scans ``resource``, which has no index on its owner: stacks first, then their
resources by ``stack_id``.
"""

import math
from collections.abc import Collection

import sqlalchemy as sa

from heat_liveness import engine as engines
from heat_liveness.db import models, times
from heat_liveness.db.database import Database, again_if_contended
from heat_liveness.db.members import Ending, Members, ended
from heat_liveness.heat import bridge, claims, graph, orders, tables, views
from heat_liveness.heat.plans import Resource, Stack

_RESET = 'Stack status manually reset'
"""What Heat writes into a stack, and its resources, that an operator has reset."""
_HOOKS = tuple(f'{when}-{action}' for when in ('pre', 'post')
               for action in ('create', 'update', 'delete'))

_stack, _resource, _service = tables.stack, tables.resource, tables.service
_point, _data, _snapshot = tables.point, tables.data, tables.snapshot


class HeatRows:
    """Heat's stacks and resources, as a recoverer sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._members = Members(database)
        self.orders = orders.Orders(database)
        self.claims = claims.Claims(database)

    def view(self, stack_id: str) -> views.View | None:
        """Return all of a stack, or None if it is gone.  Five statements."""
        with self._database.autocommit() as connection:
            row = connection.execute(sa.select(*views.STACK).where(
                _stack.c.id == stack_id, _stack.c.deleted_at.is_(None))).first()
            return None if row is None else views.read(connection, views.as_stack(row))

    def hooked(self, resource_ids: Collection[int]) -> set[int]:
        """Return those of the resources that wait at a hook for their user."""
        if not resource_ids:
            return set()
        with self._database.autocommit() as connection:
            return set(connection.scalars(sa.select(_data.c.resource_id).where(
                _data.c.resource_id.in_(resource_ids), _data.c.key.in_(_HOOKS))))

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
            rows = connection.execute(sa.select(*views.STACK).where(
                _stack.c.action == 'DELETE', _stack.c.status == 'FAILED',
                _stack.c.deleted_at.is_(None), _stack.c.convergence.is_(sa.true()),
                _stack.c.status_reason.like('Error deleting project%'))).all()
        return [stack for stack in map(views.as_stack, rows) if self.orders.known(stack)]

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

    @again_if_contended
    def own_nested(self, order: orders.Order, row: Resource, child_id: str,
                   seen: orders.Seen, engine_id: str) -> None:
        """Let a resource that was thought not to be made have its nested stack, if it is as read.

        As a takeover does where it finds one.

        :param seen: as in :meth:`revive`
        :param engine_id: as in :meth:`revive`
        """
        with self._database.transaction() as connection:
            if self.orders.holds(connection, order, engine_id) and connection.execute(
                    _resource.update().where(
                        _resource.c.id == row.id, _resource.c.engine_id.is_(None),
                        _resource.c.atomic_key == row.atomic_key, _resource.c.action == 'INIT')
                    .values(action='CREATE', status='FAILED', nova_instance=child_id,
                            atomic_key=row.generation + 1)).rowcount:
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
                sa.select(*views.STACK, times.age(began).label('age')).where(
                    _stack.c.convergence.is_(sa.true()), _stack.c.deleted_at.is_(None), which))]
        # What began at no time began long ago: it must not keep the others from being seen.
        return [(views.as_stack(row), math.inf if row.age is None else float(row.age))
                for row in {row.id: row for row in rows}.values()]

    def prints(self, stack_ids: Collection[str]) -> dict[str, object]:
        """Return something for each stack that changes with each step of its traversal.

        Every step raises an atomic_key, or makes or removes a row; none lowers one.  Two
        statements for 200 stacks.
        """
        found: dict[str, list[object]] = {stack_id: [] for stack_id in stack_ids}
        with self._database.autocommit() as connection:
            for ids in views.chunks(sorted(stack_ids)):
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
