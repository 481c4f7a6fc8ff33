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

"""What the graph of a traversal tells: who is ready, who is done, whose message is lost."""

import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heat_liveness.heat import graph
from heat_liveness.heat.graph import Node, Point

SNAPSHOT = Node('5b1c4a2e-0000-4000-8000-000000000001', is_update=False, kind='snapshot')
ONE, TWO, THREE, FOUR = (Node(number, is_update=True) for number in (1, 2, 3, 4))
CHAIN = [(ONE, TWO), (TWO, THREE)]
"""One requires two, and two requires three."""
DIAMOND = [(ONE, TWO), (ONE, THREE), (TWO, FOUR), (THREE, FOUR)]
STACK = Node('s', is_update=True)
"""What roots report to has the stack's id."""


def traversal(pairs: Iterable[tuple[Node, Node | None]] | None,
              reports: dict[Node, Iterable[Node]] | None = None) -> graph.Traversal:
    """Return a traversal that was written out; ``reports`` are by who has received them."""
    found = None if pairs is None else list(pairs)
    nodes = {each for pair in found or () for each in pair if each is not None} | {STACK}
    return graph.Traversal('s', found, [
        Point(str(each.id), each.is_update, frozenset((reports or {}).get(each, ())))
        for each in nodes])


def test_nodes_are_read_as_heat_25_writes_them() -> None:
    deps = json.dumps({'edges': [[[20, True], [10, True]], [[10, False], None]]})
    assert graph.edges(deps) == [
        (Node(20, is_update=True), Node(10, is_update=True)), (Node(10, is_update=False), None)]
    data = json.dumps({'input_data': {'tuple:(20, True)': {'id': 20, 'attrs': {}},
                                      'tuple:(10, False)': None}})
    assert graph.reported(data) == {Node(20, is_update=True), Node(10, is_update=False)}


def test_nodes_are_read_as_heat_26_and_later_write_them() -> None:
    deps = json.dumps({'edges': [[[20, True], None], [list(SNAPSHOT), None]]})
    assert graph.edges(deps) == [(Node(20, is_update=True), None), (SNAPSHOT, None)]
    data = json.dumps({'input_data': {
        "tuple:(20, True, 'resource')": {'attrs': {"tuple:('a', 'b')": 1}},
        f"tuple:('{SNAPSHOT.id}', False, 'snapshot')": None}})
    assert graph.reported(data) == {Node(20, is_update=True), SNAPSHOT}


def test_a_node_is_the_same_in_the_graph_and_in_what_it_reported() -> None:
    """Heat 26 leaves the kind of a resource out of the graph, and names it in a sync point."""
    pairs = graph.edges('{"edges": [[[1, true], null]]}')
    reported = graph.reported('{"input_data": {"tuple:(1, True, \'resource\')": null}}')
    assert traversal(pairs, {STACK: reported}).done(ONE)


@pytest.mark.parametrize('stored', [None, '', '{}', '{"input_data": {}}', '{"input_data": null}'])
def test_a_sync_point_is_empty_in_every_form(stored: str | None) -> None:
    assert graph.reported(stored) == frozenset()


@pytest.mark.parametrize('stored', [None, '', 'null', '{}'])
def test_a_graph_that_was_never_written_is_none(stored: str | None) -> None:
    assert graph.edges(stored) is None


def test_a_graph_without_nodes_is_written() -> None:
    assert graph.edges('{"edges": []}') == []


@pytest.mark.parametrize('stored', [
    'no JSON', '[1]', '"text"', '7', '{"nodes": []}', '{"edges": 7}', '{"edges": [7]}',
    '{"edges": [[[1, true]]]}', '{"edges": [[[1], null]]}', '{"edges": [[1, 2]]}',
    '{"edges": [[[1, true, "resource", 4], null]]}', '{"edges": [[[[1], true], null]]}',
    '{"edges": [[[{}, true], null]]}',
])
def test_a_graph_that_heat_did_not_write_is_refused(stored: str) -> None:
    with pytest.raises(ValueError, match=r'.'):
        graph.edges(stored)


@pytest.mark.parametrize('stored', [
    'no JSON', '[1]', '"text"', '7', '{"input_data": [1]}', '{"input_data": {"5": null}}',
    '{"input_data": {"tuple:": null}}', '{"input_data": {"tuple:(1": null}}',
    '{"input_data": {"tuple:(1,)": null}}', '{"input_data": {"tuple:1": null}}',
    '{"input_data": {"tuple:open(1)": null}}', '{"input_data": {"tuple:([1], True)": null}}',
    '{"input_data": {"tuple:(1, True, 2, 3)": null}}',
])
def test_a_sync_point_that_heat_did_not_write_is_refused(stored: str) -> None:
    with pytest.raises(ValueError, match=r'.'):
        graph.reported(stored)


def test_a_node_is_named_for_people() -> None:
    assert str(ONE) == 'resource 1 (update)'
    assert str(SNAPSHOT) == f'snapshot {SNAPSHOT.id} (cleanup)'


def test_a_traversal_is_written_when_its_stack_has_its_sync_point() -> None:
    assert traversal(CHAIN).written
    assert traversal([]).written
    points = [Point(str(each.id), each.is_update, frozenset()) for each in (ONE, TWO, THREE)]
    assert not graph.Traversal('s', CHAIN, points).written
    assert not graph.Traversal('s', CHAIN, [*points[1:], Point('s', is_update=True, reported=
                                                              frozenset())]).written
    assert not graph.Traversal('s', CHAIN, []).written


def test_a_traversal_without_a_graph_was_not_written() -> None:
    assert not traversal(None).written
    assert traversal(None).due() == traversal(None).roots() == []


def test_the_points_of_the_other_kind_of_node_do_not_count() -> None:
    points = [Point('1', is_update=False, reported=frozenset()),
              Point('s', is_update=True, reported=frozenset())]
    assert not graph.Traversal('s', [(ONE, None)], points).written


def test_a_chain_goes_from_the_leaf_to_the_root() -> None:
    reports: dict[Node, Iterable[Node]] = {}
    for due, receiver in ((THREE, TWO), (TWO, ONE), (ONE, STACK)):
        found = traversal(CHAIN, reports)
        assert found.due() == [due]
        assert found.ready(due)
        assert not found.done(due)
        reports[receiver] = [due]
    found = traversal(CHAIN, reports)
    assert found.due() == []
    assert all(found.done(each) for each in (ONE, TWO, THREE))
    assert found.roots() == [ONE]


def test_a_diamond_waits_for_both_of_its_sides() -> None:
    found = traversal(DIAMOND, {TWO: [FOUR], THREE: [FOUR], ONE: [TWO]})
    assert found.due() == [THREE]
    assert not found.ready(ONE)
    found = traversal(DIAMOND, {TWO: [FOUR], THREE: [FOUR], ONE: [TWO, THREE]})
    assert found.due() == [ONE]


def test_a_node_that_has_reported_to_some_is_not_done() -> None:
    found = traversal(DIAMOND, {TWO: [FOUR]})
    assert not found.done(FOUR)
    assert found.due() == [TWO, FOUR]


def test_a_report_of_the_cleanup_is_not_one_of_the_update() -> None:
    found = traversal(CHAIN, {TWO: [Node(3, is_update=False)]})
    assert not found.ready(TWO)
    assert not found.done(THREE)


def test_reports_of_strangers_change_nothing() -> None:
    found = traversal(CHAIN, {TWO: [FOUR], STACK: [FOUR]})
    assert found.due() == [THREE]


def test_what_is_due_for_update_comes_before_what_is_cleaned_up() -> None:
    cleanups = [(Node(number, is_update=False), None) for number in (1, 2)]
    found = traversal([*cleanups, (SNAPSHOT, None), (TWO, None), (ONE, None)])
    assert found.due() == [ONE, TWO, *(each for each, _ in cleanups), SNAPSHOT]
    assert found.roots() == found.due()


def test_what_is_in_the_graph() -> None:
    found = traversal([(ONE, None), (SNAPSHOT, None)])
    assert ONE in found
    assert SNAPSHOT in found
    assert TWO not in found
    assert Node(1, is_update=False) not in found


def test_a_resource_works_first_for_its_update_and_then_for_its_cleanup() -> None:
    cleanup = Node(1, is_update=False)
    pairs = [(cleanup, ONE)]
    assert traversal(pairs).waits_for(1) == ONE
    assert traversal(pairs, {cleanup: [ONE]}).waits_for(1) == cleanup
    assert traversal(pairs, {cleanup: [ONE], STACK: [cleanup]}).waits_for(1) is None


def test_a_resource_that_is_no_node_works_for_nobody() -> None:
    assert traversal(CHAIN).waits_for(7) is None
    assert traversal(None).waits_for(1) is None


def test_a_replacement_works_for_what_it_replaces() -> None:
    assert traversal(CHAIN).waits_for(7, [3]) == THREE
    assert traversal(CHAIN).waits_for(8, [7, 3]) == THREE
    assert traversal(CHAIN, {TWO: [THREE]}).waits_for(8, [7, 3]) is None


def test_a_replacement_of_an_earlier_traversal_works_for_itself() -> None:
    cleanup = Node(7, is_update=False)
    assert traversal([*CHAIN, (cleanup, None)]).waits_for(7, [3]) == cleanup


def test_a_replacement_never_works_for_the_cleanup_of_what_it_replaces() -> None:
    assert traversal([(Node(3, is_update=False), None)]).waits_for(7, [3]) is None


class Fleet:
    """Heat's workers, as far as the graph goes, and a queue; both lose what they like."""

    def __init__(self, pairs: list[tuple[Node, Node | None]], chance: random.Random) -> None:
        self.chance = chance
        self.losses = chance.randrange(30)
        self.deps = json.dumps({'edges': pairs})
        whole = traversal(pairs)
        self.requires, self.required_by = whole.requires, whole.required_by
        self.data: dict[Node, set[Node]] = {each: set() for each in [*self.requires, STACK]}
        self.queue: list[Node] = []

    def lost(self) -> bool:
        if self.losses and self.chance.random() < .5:
            self.losses -= 1
            return True
        return False

    def read(self) -> graph.Traversal:
        """Read how far it has come from the text that Heat keeps."""
        return graph.Traversal('s', graph.edges(self.deps), [
            Point(str(each.id), each.is_update, graph.reported(json.dumps({'input_data': {
                f'tuple:{tuple(other)}': None for other in reported}})))
            for each, reported in self.data.items()])

    def send(self, nodes: Iterable[Node]) -> None:
        self.queue += [each for each in nodes if not self.lost()]

    def work(self) -> None:
        """Check all nodes that a message reaches, in any order, and as far as one lives."""
        while self.queue:
            each = self.queue.pop(self.chance.randrange(len(self.queue)))
            assert self.requires[each] <= self.data[each]
            for other in sorted(self.required_by[each] or {STACK}, key=str):
                if self.lost():
                    break
                self.data[other].add(each)
                if other != STACK and self.requires[other] <= self.data[other]:
                    self.send([other])


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[Node, Node | None]]:
    """Graphs without cycles, as Heat writes them: a node alone is a pair with none."""
    nodes = [draw(st.sampled_from([
        Node(number, is_update=True), Node(number, is_update=False),
        Node(f'snapshot-{number}', is_update=False, kind='snapshot')]))
        for number in range(draw(st.integers(0, 8)))]
    edges: list[tuple[Node, Node | None]] = [
        (nodes[later], nodes[earlier]) for later in range(len(nodes)) for earlier in range(later)
        if draw(st.booleans())]
    alone = set(nodes) - {each for pair in edges for each in pair if each is not None}
    return edges + [(each, None) for each in nodes if each in alone]


@given(graphs(), st.randoms(use_true_random=False), st.booleans())
def test_whatever_is_lost_is_due_and_sent_again_brings_the_end(
        pairs: list[tuple[Node, Node | None]], chance: random.Random, spares: bool) -> None:
    """I8: nothing is due when, and only when, all have reported.

    It is enough to send what requires nothing that is sent again: that sends the others.
    """
    fleet = Fleet(pairs, chance)
    assert fleet.read().written
    fleet.send(each for each, others in fleet.requires.items() if not others)
    for _ in range(len(fleet.requires) + 31):
        fleet.work()
        found = fleet.read()
        ended = set(found.roots()) <= fleet.data[STACK] and all(map(found.done, found.requires))
        assert (found.due() == []) == ended
        if ended:
            break
        due = found.due()
        again = [each for each in due if not (spares and found.requires[each] & set(due))]
        assert bool(again) == bool(due)
        fleet.send(again)
    assert fleet.read().due() == []
    assert fleet.data[STACK] == set(fleet.read().roots())


def test_a_traversal_is_over_when_every_node_has_reported_to_all() -> None:
    reports: dict[Node, Iterable[Node]] = {ONE: [TWO], TWO: [THREE]}
    assert not traversal(CHAIN, reports).over
    assert traversal(CHAIN, {**reports, STACK: [ONE]}).over
    assert not traversal(CHAIN, {ONE: [TWO], STACK: [ONE]}).over
