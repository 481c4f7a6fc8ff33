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

"""The graph of a traversal, and how far it has come: told from Heat's own tables.

A convergence stack is worked on along a graph whose nodes are resources, to be made or
updated (``is_update``) or cleaned up, and in a delete the stack's snapshots.  A node is checked
when all that it requires have *reported* to it: each writes itself into the sync point of each
node that requires it, and a node that nobody requires into the sync point of the stack.

Two questions tell what hangs, and neither needs to know who was to do it:

* *ready*: has everybody reported to it that it requires?
* *done*: has it reported to everybody who requires it?

A node that is ready and not done has a message on its way, or is being worked on; where
neither is the case, its message is lost.  A node that has reported to some and not to all
died in between; checked again, it reports again, and that changes nothing for the others.

Pure functions of what was read; nothing here asks a database or Heat.
"""

import ast
import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

RESOURCE = 'resource'
SNAPSHOT = 'snapshot'


class Node(NamedTuple):
    """A node of the graph, as Heat 26 and later name it; earlier ones know no kind."""

    id: int | str
    is_update: bool
    kind: str = RESOURCE

    def __str__(self) -> str:
        return f'{self.kind} {self.id} ({"update" if self.is_update else "cleanup"})'


class Point(NamedTuple):
    """A sync point: who has reported to a node, or to the stack."""

    entity_id: str
    is_update: bool
    reported: frozenset[Node]


def node(parts: Iterable[Any]) -> Node:
    """Return a node from its form in ``current_deps`` or in a sync point.

    :raises ValueError: it is not what Heat writes
    """
    with _written_by_heat():
        identity, is_update, *kind = parts
        hash(identity)
        return Node(identity, bool(is_update), *kind)


def reported(input_data: str | None) -> frozenset[Node]:
    """Read who has reported from what is stored in a sync point.

    :raises ValueError: it is not what Heat writes
    """
    with _written_by_heat():
        found = json.loads(input_data or '{}').get('input_data') or {}
        return frozenset(node(ast.literal_eval(key.partition(':')[2])) for key in found)


def edges(current_deps: str | None) -> list[tuple[Node, Node | None]] | None:
    """Read the graph of a stack: pairs of a node and one that it requires; None if never written.

    :raises ValueError: it is not what Heat writes
    """
    with _written_by_heat():
        found = json.loads(current_deps or 'null')
        if not found:
            return None
        return [(node(requirer), None if required is None else node(required))
                for requirer, required in found['edges']]


@contextlib.contextmanager
def _written_by_heat() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
        raise ValueError(f'Heat does not write this: {error!r}') from error


class Traversal:
    """One traversal's graph and sync points."""

    def __init__(self, stack_id: str, pairs: Collection[tuple[Node, Node | None]] | None,
                 points: Iterable[Point]) -> None:
        self._points: Mapping[tuple[str, bool], frozenset[Node]] = {
            (point.entity_id, point.is_update): point.reported for point in points}
        self._stack = (stack_id, True)
        self.requires: dict[Node, set[Node]] = {}
        self.required_by: dict[Node, set[Node]] = {}
        for requirer, required in pairs or ():
            self.requires.setdefault(requirer, set())
            self.required_by.setdefault(requirer, set())
            if required is not None:
                self.requires.setdefault(required, set())
                self.requires[requirer].add(required)
                self.required_by.setdefault(required, set()).add(requirer)
        self._has_graph = pairs is not None

    @property
    def written(self) -> bool:
        """Whether it was written out: the stack's sync point is the last thing before the start."""
        return self._has_graph and self._stack in self._points and all(
            (str(each.id), each.is_update) in self._points for each in self.requires)

    def __contains__(self, each: Node) -> bool:
        return each in self.requires

    def ready(self, each: Node) -> bool:
        """Whether all that a node requires have reported to it."""
        return self.requires[each] <= self._reported((str(each.id), each.is_update))

    def done(self, each: Node) -> bool:
        """Whether a node has reported to all who require it, and a root to the stack."""
        if not self.required_by[each]:
            return each in self._reported(self._stack)
        return all(each in self._reported((str(other.id), other.is_update))
                   for other in self.required_by[each])

    def _reported(self, key: tuple[str, bool]) -> frozenset[Node]:
        return self._points.get(key, frozenset())

    def due(self) -> list[Node]:
        """Return the nodes that are ready and not done, those that clean up last."""
        found = [each for each in self.requires if self.ready(each) and not self.done(each)]
        return sorted(found, key=lambda each: (not each.is_update, str(each.id)))

    @property
    def over(self) -> bool:
        """Whether every node is done, so that only the stack's own end is left."""
        return all(map(self.done, self.requires))

    def roots(self) -> list[Node]:
        """Return the nodes that nobody requires; when all have reported, the stack is complete."""
        return sorted((each for each, others in self.required_by.items() if not others),
                      key=lambda each: (not each.is_update, str(each.id)))

    def waits_for(self, resource_id: int, ancestors: Iterable[int] = ()) -> Node | None:
        """Return the node for which a resource's row is at work, or None if nobody waits for it.

        The same resource may be a node twice: to be updated, and later to be cleaned up; it is
        at work for the first that is not done.  A replacement is not in the graph: it stands
        for what it replaces.

        :param ancestors: what the row replaces, what that replaces, and so on
        """
        for each in (Node(resource_id, True), Node(resource_id, False),
                     *(Node(ancestor, True) for ancestor in ancestors)):
            if each in self and not self.done(each):
                return each
        return None
