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

"""A stack of Heat's in full: its graph, its resources, its nested stacks.

This is what all decisions look at: those about a lock (:mod:`.plans`), those about what hangs
(:mod:`.sweep`), and those about a message (:mod:`.delivery`).
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness.heat import graph, tables
from heat_liveness.heat.plans import Child, Resource, Stack

_STACKS_AT_ONCE = 200

_stack, _resource, _point = tables.stack, tables.resource, tables.point

STACK = tuple(_stack.c[name] for name in (
    'id', 'name', 'action', 'status', 'current_traversal', 'owner_id', 'raw_template_id',
    'prev_raw_template_id', 'created_at', 'updated_at', 'timeout'))


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
        return self.traversal.waits_for(
            row.id, self.ancestors(row) if self.is_wanted(row) else [])

    def is_wanted(self, row: Resource) -> bool:
        """Return whether a replacement is one of the present operation's.

        An engine that was late may have made one for an operation that has been overtaken.
        """
        return row.template_id == self.stack.template_id

    def child(self, row: Resource) -> Child | None:
        """Return the nested stack of a row, even where its id was not written yet."""
        if row.physical_id is not None:
            return next((child for _, child in self.children if child.id == row.physical_id), None)
        known = {other.physical_id for other in self.resources.values()}
        return next((child for name, child in self.children
                     if name == row.name and child.id not in known), None)


def read(connection: sa.Connection, stack: Stack) -> View:
    deps = connection.scalar(sa.select(_stack.c.current_deps).where(_stack.c.id == stack.id))
    points = connection.execute(
        sa.select(_point.c.entity_id, _point.c.is_update, _point.c.input_data)
        .where(_point.c.stack_id == stack.id, _point.c.traversal_id == stack.traversal))
    resources = connection.execute(sa.select(_resource).where(_resource.c.stack_id == stack.id))
    children = connection.execute(
        sa.select(*STACK, _stack.c.parent_resource_name, _stack.c.status_reason)
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
        {row.id: as_resource(row, stack) for row in resources},
        [(row.parent_resource_name, _as_child(as_stack(row), row.status_reason, stack))
         for row in children], problem)


def _as_child(child: Stack, status_reason: str | None, parent: Stack) -> Child:
    failed = (child.action in {'CREATE', 'UPDATE'} and child.status == 'FAILED'
              and child.began is not None and parent.began is not None
              and child.began >= parent.began)
    return Child(child.id, child.name, child.status == 'IN_PROGRESS',
                 (status_reason or 'no reason was given') if failed else None)


def as_stack(row: Any) -> Stack:
    return Stack(
        id=row.id, name=row.name, action=row.action, status=row.status,
        traversal=row.current_traversal or '', owner_id=row.owner_id,
        template_id=row.raw_template_id, previous_template_id=row.prev_raw_template_id,
        created_at=row.created_at, updated_at=row.updated_at, timeout_minutes=row.timeout)


def as_resource(row: sa.Row[Any], stack: Stack) -> Resource:
    return Resource(
        id=row.id, name=row.name, action=row.action, status=row.status, engine_id=row.engine_id,
        atomic_key=row.atomic_key, status_reason=row.status_reason,
        physical_id=row.nova_instance, replaces=row.replaces,
        template_id=row.current_template_id, updated_at=row.updated_at, stack=stack)


def chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _STACKS_AT_ONCE):
        yield ids[start:start + _STACKS_AT_ONCE]
