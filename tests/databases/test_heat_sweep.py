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

"""The sweep: what hangs is found, and what only waits is not."""

import datetime
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness import clock, errors
from heat_liveness.db import times
from heat_liveness.db.members import Ending
from heat_liveness.heat import sweep, views
from heat_liveness.heat.graph import Node
from heat_liveness.heat.plans import Plan
from heat_liveness.heat.sweep import Finding
from tests.databases import heat_tables as tables
from tests.databases.heat_tables import Heat
from tests.unit import fakes

ONE, TWO, THREE = (Node(number, is_update=True) for number in (1, 2, 3))
CLEANUP = Node(1, is_update=False)
SNAPSHOT = Node('snapshot-1', is_update=False, kind='snapshot')
QUIET = 100.0
IDLE: dict[str, Any] = {
    'action': 'INIT', 'status': 'COMPLETE', 'engine_id': None, 'atomic_key': None}
"""A resource that waits for its message."""


class Observer:
    """An engine that sweeps, on a clock of its own."""

    def __init__(self, heat: Heat) -> None:
        self.heat = heat
        self.clock = fakes.Clock()
        self.endings = [Ending('dead', 0.0, blamed=True)]
        self.sweep = sweep.Sweep(heat.rows, self.clock)

    def look(self, seconds: float = 0, only: str | None = None, **policy: Any) -> list[Finding]:
        """Look, so many seconds after the last time."""
        self.clock.forward(seconds)
        return self.sweep.look(sweep.Policy(
            **{'lost_message_time': QUIET, 'sweep_interval': 10.0, 'stack_timeout': 3600.0,
               **policy}), only, self.endings)

    def watch(self, **policy: Any) -> list[Finding]:
        """Return what hangs when everything has been quiet for long enough."""
        assert [finding for finding in self.look(**policy) if finding.plan != 'time out'] == []
        return self.look(QUIET, **policy)


@pytest.fixture
def heat(tmp_path: pathlib.Path) -> Iterator[Heat]:
    """Heat's tables on SQLite; what the statements do elsewhere, test_heat_rows proves."""
    heat = Heat(f'sqlite:///{tmp_path}/liveness.sqlite')
    heat.run(tables.stack.delete())
    heat.run(tables.point.delete())
    yield heat
    heat.close()


@pytest.fixture
def observer(heat: Heat) -> Observer:
    return Observer(heat)


def hang(heat: Heat, *nodes: Node, stack_id: str = 's1', row: Any = None, **stack: Any) -> None:
    """Put a stack there whose messages are all lost, and the resource of each node."""
    heat.stack(stack_id, [(each, None) for each in nodes or (ONE,)], **stack)
    for number in {each.id for each in nodes or (ONE,) if each.kind == 'resource'}:
        heat.resource(int(number), **{**IDLE, 'stack_id': stack_id, **(row or {})})


def told(findings: Iterable[Finding]) -> list[tuple[str, str, Node | None, str]]:
    return [(found.stack.id, found.plan, found.node, found.name) for found in findings]


SENT = ('s1', 'send again', ONE, 'r1')


# Quiet.

def test_a_message_is_lost_when_nothing_has_moved_for_long_enough(
        heat: Heat, observer: Observer) -> None:
    hang(heat)
    assert observer.look() == []
    assert observer.look(QUIET - 1) == []
    found, = observer.look(1)
    assert told([found]) == [SENT]
    assert found.reason == 'nothing has moved for 100 s'


def test_a_stack_that_hangs_still_is_told_again_only_when_as_much_time_has_passed(
        heat: Heat, observer: Observer) -> None:
    hang(heat)
    assert len(observer.watch()) == 1
    assert observer.look(1) == observer.look(QUIET - 2) == []
    assert len(observer.look(1)) == 1


def test_what_happened_before_the_first_look_is_not_known(
        heat: Heat, observer: Observer) -> None:
    hang(heat, created_at=tables.ago(3000))
    observer.look()
    observer.look(QUIET - 1)
    assert Observer(heat).look() == []
    newer = Observer(heat)
    assert newer.watch() != []


MOVES: dict[str, Callable[[Heat], object]] = {
    'a lock': lambda heat: heat.change(tables.resource, 2, engine_id='other', atomic_key=1),
    'a report': lambda heat: heat.report(TWO, Node('s1', is_update=True)),
    'a new resource': lambda heat: heat.resource(9, **IDLE),
    'a new traversal': lambda heat: heat.change(tables.stack, 's1', action='UPDATE'),
    'a signal': lambda heat: heat.change(tables.resource, 2, atomic_key=1),
}


@pytest.mark.parametrize('move', MOVES.values(), ids=MOVES.keys())
def test_any_movement_begins_the_wait_anew(
        heat: Heat, observer: Observer, move: Callable[[Heat], object]) -> None:
    hang(heat, ONE, TWO)
    observer.look()
    observer.look(QUIET / 2)
    move(heat)
    assert observer.look(QUIET / 2) == []
    assert observer.look(QUIET - 1) == []
    assert ONE in {found.node for found in observer.look(1)}


def test_the_movement_of_another_stack_changes_nothing(heat: Heat, observer: Observer) -> None:
    hang(heat)
    hang(heat, TWO, stack_id='s2')
    observer.look()
    heat.change(tables.resource, 2, atomic_key=1)
    assert told(observer.look(QUIET)) == [SENT]


def test_an_outage_neither_loses_nor_forges_quiet(
        heat: Heat, observer: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    hang(heat)
    observer.look()
    for name in ('candidates', 'prints'):
        with monkeypatch.context() as patch:
            patch.setattr(heat.rows, name, raise_error)
            with pytest.raises(errors.DatabaseError):
                observer.look(QUIET / 2)
    assert len(observer.look()) == 1


def raise_error(*arguments: object) -> None:
    raise errors.DatabaseError('The database is away.')


def test_a_stack_that_came_back_is_watched_anew(heat: Heat, observer: Observer) -> None:
    hang(heat)
    observer.look()
    heat.change(tables.stack, 's1', convergence=False)
    observer.look(QUIET / 2)
    heat.change(tables.stack, 's1', convergence=True)
    assert observer.look(QUIET / 2) == []
    assert len(observer.look(QUIET)) == 1


@pytest.mark.parametrize('change', [
    {'deleted_at': times.now()}, {'current_traversal': 't2'}, {'status': 'COMPLETE'},
])
def test_a_stack_that_moves_while_it_is_looked_at_is_let_go(
        heat: Heat, observer: Observer, monkeypatch: pytest.MonkeyPatch,
        change: dict[str, Any]) -> None:
    hang(heat)
    observer.look()
    view = heat.rows.view

    def late_view(stack_id: str) -> views.View | None:
        heat.change(tables.stack, stack_id, **change)
        return view(stack_id)

    monkeypatch.setattr(heat.rows, 'view', late_view)
    assert observer.look(QUIET) == []


def test_many_stacks_are_read_a_few_at_a_time_and_each_has_its_turn(
        heat: Heat, observer: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, '_AT_ONCE', 2)
    for number in range(1, 6):
        hang(heat, Node(number, is_update=True), stack_id=f's{number}')
    observer.look()
    turns = [[found.stack.id for found in observer.look(seconds)] for seconds in (QUIET, 1, 1, 1)]
    assert [len(turn) for turn in turns] == [2, 2, 1, 0]
    assert {stack_id for turn in turns for stack_id in turn} == {'s1', 's2', 's3', 's4', 's5'}


def test_one_stack_can_be_looked_at_alone(heat: Heat, observer: Observer) -> None:
    hang(heat)
    hang(heat, TWO, stack_id='s2')
    hang(heat, THREE, stack_id='s3', created_at=tables.ago(4000))
    assert observer.look(only='s2') == []
    assert [found.stack.id for found in observer.look(QUIET, only='s2')] == ['s2']
    assert [found.plan for found in observer.look(only='s3')] == ['time out']


# What is lost, and what only waits.

def test_only_what_is_ready_is_sent_again(heat: Heat, observer: Observer) -> None:
    heat.stack('s1', [(ONE, TWO), (TWO, THREE), (CLEANUP, ONE)])
    for number in (1, 2, 3):
        heat.resource(number, **IDLE)
    heat.report(THREE, TWO)
    assert told(observer.watch()) == [('s1', 'send again', TWO, 'r2')]


def test_a_node_that_died_before_it_had_reported_to_all_is_sent_again_and_sends_the_others(
        heat: Heat, observer: Observer) -> None:
    heat.stack('s1', [(ONE, THREE), (TWO, THREE)])
    for number in (1, 2, 3):
        heat.resource(number, **IDLE)
    heat.report(THREE, TWO)
    assert told(observer.watch()) == [('s1', 'send again', THREE, 'r3')]


def test_what_is_not_sent_again_itself_sends_no_others(heat: Heat, observer: Observer) -> None:
    heat.stack('s1', [(ONE, THREE), (TWO, THREE)])
    for number in (1, 2, 3):
        heat.resource(number, **IDLE)
    heat.report(THREE, TWO)
    heat.change(tables.resource, 3, engine_id='other')
    assert told(observer.watch()) == [('s1', 'send again', TWO, 'r2')]


@pytest.mark.parametrize('row', [
    {'action': 'CREATE', 'status': 'COMPLETE'}, {'action': 'CREATE', 'status': 'FAILED'},
    {'action': 'UPDATE', 'status': 'IN_PROGRESS'}])
def test_a_message_is_lost_whatever_the_state_of_its_resource(
        heat: Heat, observer: Observer, row: dict[str, Any]) -> None:
    hang(heat, row=row)
    assert told(observer.watch()) == [SENT]


def test_a_cleanup_is_sent_again(heat: Heat, observer: Observer) -> None:
    hang(heat, CLEANUP, action='DELETE')
    assert told(observer.watch()) == [('s1', 'send again', CLEANUP, 'r1')]


def test_a_snapshot_that_is_to_be_deleted_is_sent_again(heat: Heat, observer: Observer) -> None:
    hang(heat, SNAPSHOT, action='DELETE')
    assert told(observer.watch()) == [('s1', 'send again', SNAPSHOT, str(SNAPSHOT))]


def test_a_node_whose_row_is_gone_is_sent_again(heat: Heat, observer: Observer) -> None:
    hang(heat, CLEANUP, action='DELETE')
    heat.run(tables.resource.delete())
    assert told(observer.watch()) == [('s1', 'send again', CLEANUP, str(CLEANUP))]


@pytest.mark.parametrize('engine', ['other', 'dead', 'somebody-without-a-row'])
def test_what_somebody_has_locked_is_not_lost_but_what_is_beside_it_is(
        heat: Heat, observer: Observer, engine: str) -> None:
    hang(heat, ONE, TWO)
    heat.change(tables.resource, 2, engine_id=engine)
    assert told(observer.watch()) == [SENT]


def test_what_somebody_replaces_is_not_lost(heat: Heat, observer: Observer) -> None:
    hang(heat, row={'action': 'CREATE', 'status': 'FAILED'})
    heat.resource(10, name='r1', replaces=1, engine_id='other')
    assert observer.watch() == []
    heat.change(tables.resource, 10, engine_id=None, atomic_key=2)
    assert told(observer.watch()) == [SENT]


@pytest.mark.parametrize('physical_id', ['c1', None], ids=['known', 'not written yet'])
def test_what_waits_for_its_nested_stack_is_not_lost(
        heat: Heat, observer: Observer, physical_id: str | None) -> None:
    hang(heat, row={'nova_instance': physical_id})
    heat.stack('c1', [(TWO, None)], owner_id='s1', parent_resource_name='r1')
    heat.resource(2, stack_id='c1', engine_id='other')
    assert observer.watch() == []
    heat.change(tables.stack, 'c1', status='COMPLETE')
    heat.run(tables.point.delete().where(tables.point.c.stack_id == 'c1'))
    assert told(observer.look(QUIET)) == [SENT]


@pytest.mark.parametrize(('key', 'waits'), [
    ('pre-create', True), ('pre-update', True), ('post-delete', True), ('color', False)])
def test_what_waits_at_a_hook_is_not_lost(
        heat: Heat, observer: Observer, key: str, waits: bool) -> None:
    hang(heat)
    heat.run(tables.data.insert().values(id=1, resource_id=1, key=key))
    assert (observer.watch() == []) == waits


def test_a_replacement_that_waits_at_a_hook_is_not_lost(heat: Heat, observer: Observer) -> None:
    hang(heat, row={'action': 'CREATE', 'status': 'FAILED'})
    heat.resource(10, **IDLE, replaces=1)
    heat.run(tables.data.insert().values(id=1, resource_id=10, key='pre-create'))
    assert observer.watch() == []


def test_a_nested_stack_is_not_interrupted_where_somebody_knows_no_tokens(
        heat: Heat, observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    hang(heat, ONE, TWO)
    heat.change(tables.resource, 1, nova_instance='c1')
    heat.stack('c1', [], owner_id='s1', parent_resource_name='r1', status='COMPLETE',
               written=False)
    assert told(observer.watch(preempts=True)) == [('s1', 'send again', TWO, 'r2')]
    assert 'resource r1 of stack name of s1 (s1) seems lost. It is not sent again' in caplog.text
    assert len(observer.look(QUIET)) == 2


OLD = {'action': 'CREATE', 'status': 'COMPLETE', 'current_template_id': 1}


def test_on_time_alone_nothing_is_replaced_where_somebody_knows_no_tokens(
        heat: Heat, observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    hang(heat, ONE, action='UPDATE', row=OLD)
    observer.endings = []
    assert observer.watch(preempts=True) == []
    assert 'resource r1 of stack name of s1 (s1) seems lost. It is not sent again' in caplog.text
    assert 'would replace it twice' in caplog.text
    assert len(observer.look(QUIET)) == 1


@pytest.mark.parametrize('values', [
    {'action': 'INIT'}, {'current_template_id': 2}, {'status': 'FAILED'}, {}],
    ids=['not made yet', 'done', 'failed', 'old'])
def test_what_cannot_be_replaced_is_sent_again_on_time_alone(
        heat: Heat, observer: Observer, values: dict[str, Any]) -> None:
    hang(heat, ONE, action='UPDATE', row={**OLD, **values})
    observer.endings = []
    sent = {finding.node for finding in observer.watch(preempts=True)}
    assert sent == ({ONE} if values.keys() - {'status'} else set())


def test_a_cleanup_is_sent_again_on_time_alone_only_after_very_long_where_somebody_knows_no_tokens(
        heat: Heat, observer: Observer) -> None:
    """Two engines that delete the same at once fail it."""
    observer.endings = []
    hang(heat, CLEANUP, action='DELETE', row={'action': 'CREATE'})
    assert observer.watch(preempts=True) == []
    found: list[Finding] = []
    for _ in range(8):
        found += observer.look(QUIET, preempts=True)
    assert found == []
    assert told(observer.look(QUIET, preempts=True)) == [('s1', 'send again', CLEANUP, 'r1')]
    observer.endings = [Ending('dead', 0.0, blamed=True)]
    assert told(observer.look(QUIET, preempts=True)) == [('s1', 'send again', CLEANUP, 'r1')]


def test_each_ending_explains_what_is_lost_once(heat: Heat, observer: Observer) -> None:
    """Whether the stack has moved since or not; one before the operation explains nothing."""
    hang(heat, ONE, TWO, action='UPDATE', row=OLD, created_at=tables.ago(3000))
    observer.endings = [Ending('long before', 3100.0, blamed=False)]
    assert observer.watch(preempts=True) == []
    observer.endings = [Ending('dead', 2000.0, blamed=False), *observer.endings]
    assert len(observer.look(QUIET, preempts=True)) == 2
    assert observer.look(QUIET, preempts=True) == []
    heat.change(tables.resource, 2, engine_id='other', atomic_key=1)
    assert observer.look(preempts=True) == observer.look(QUIET, preempts=True) == []
    observer.endings = [Ending('another', QUIET / 2, blamed=False), *observer.endings]
    assert told(observer.look(QUIET, preempts=True)) == [SENT]
    observer.endings = [Ending('another', QUIET * 1.5, blamed=False)]
    assert observer.look(QUIET, preempts=True) == []


def test_an_ending_that_has_explained_nothing_yet_is_kept_until_it_does(
        heat: Heat, observer: Observer) -> None:
    hang(heat, ONE, action='UPDATE', row={**OLD, 'engine_id': 'other'})
    assert observer.watch(preempts=True) == observer.look(QUIET, preempts=True) == []
    heat.change(tables.resource, 1, engine_id=None, atomic_key=2)
    assert observer.look(preempts=True) == []
    assert told(observer.look(QUIET, preempts=True)) == [SENT]


def test_what_a_dead_engine_had_taken_is_lost_though_the_takeover_has_moved_its_stack(
        heat: Heat, observer: Observer) -> None:
    hang(heat, ONE, TWO, action='UPDATE', row=OLD, created_at=tables.ago(3000))
    heat.change(tables.resource, 2, engine_id='dead', status='IN_PROGRESS', action='UPDATE',
                atomic_key=3)
    observer.endings = []
    assert observer.watch(preempts=True) == observer.look(QUIET, preempts=True) == []
    heat.change(tables.resource, 2, engine_id=None, atomic_key=4)
    observer.clock.forward(5)
    observer.endings = [Ending('dead', 5.0, blamed=True)]
    assert observer.look(preempts=True) == []
    heat.change(tables.resource, 2, engine_id='other', atomic_key=5)
    observer.endings = [Ending('dead', 15.0, blamed=True)]
    assert observer.look(10, preempts=True) == []
    observer.endings = [Ending('dead', 15.0 + QUIET, blamed=True)]
    assert told(observer.look(QUIET, preempts=True)) == [SENT]


def test_an_engine_that_ends_just_after_its_stack_has_moved_explains_what_is_lost(
        heat: Heat, observer: Observer) -> None:
    hang(heat, ONE, TWO, action='UPDATE', row=OLD, created_at=tables.ago(3000))
    observer.endings = []
    assert observer.look(preempts=True) == []
    heat.change(tables.resource, 2, atomic_key=3, current_template_id=2)
    heat.report(TWO, Node('s1', is_update=True))
    observer.endings = [Ending('dead', 5.0, blamed=True)]
    assert observer.look(10, preempts=True) == []
    observer.endings = [Ending('dead', 5.0 + QUIET, blamed=True)]
    assert told(observer.look(QUIET, preempts=True)) == [SENT]


# What cannot be guessed.

@pytest.mark.parametrize('written', [True, False])
def test_a_delete_fails_where_it_may_be_an_abandon(
        heat: Heat, observer: Observer, written: bool) -> None:
    hang(heat, CLEANUP, action='DELETE', written=written)
    assert told(observer.watch(abandons=True)) == [('s1', Plan.FAIL, None, '')]
    plans = [found.plan for found in observer.look(QUIET)]
    assert plans == ['send again' if written else 'restart']


@pytest.mark.parametrize(('action', 'node'), [('DELETE', CLEANUP), ('ADOPT', ONE)])
def test_a_long_queue_alone_fails_nothing(
        heat: Heat, observer: Observer, action: str, node: Node) -> None:
    hang(heat, node, action=action)
    observer.endings = []
    assert observer.watch(abandons=True) == []
    for _ in range(8):
        assert observer.look(QUIET, abandons=True) == []
    assert [found.plan for found in observer.look(QUIET, abandons=True)] == [Plan.FAIL]


def test_an_update_goes_on_where_stacks_may_be_abandoned(heat: Heat, observer: Observer) -> None:
    hang(heat, CLEANUP, action='UPDATE')
    assert [found.plan for found in observer.watch(abandons=True)] == ['send again']


def test_what_was_to_be_adopted_fails_and_what_was_adopted_goes_on(
        heat: Heat, observer: Observer) -> None:
    hang(heat, action='ADOPT')
    found, = observer.watch()
    assert told([found]) == [('s1', Plan.FAIL, None, '')]
    assert found.reason.startswith('what its resources were to be adopted from is not kept')
    heat.change(tables.resource, 1, action='ADOPT')
    assert told(observer.look(QUIET)) == [SENT]


# What has failed, though its stack does not know yet.

HEATS = 'ValueError: resources.r1: it was told to'
OURS = 'Engine dead ended during UPDATE; me took over'


@pytest.mark.parametrize(('stack', 'row'), [
    ('UPDATE', 'UPDATE'), ('RESTORE', 'UPDATE'), ('ADOPT', 'ADOPT'), ('CREATE', 'ADOPT'),
    ('CREATE', 'CHECK')])
@pytest.mark.parametrize('reason', [
    HEATS, 'resources.r1: it was told to', 'Forbidden: Resources.r1: as in a CFN template',
    'ValueError: resources.r1.resources.inner: it was told to'])
def test_a_resource_that_has_failed_fails_its_stack_with_the_same_reason(
        heat: Heat, observer: Observer, stack: str, row: str, reason: str) -> None:
    """It would be replaced, or (what is external) taken for done."""
    hang(heat, action=stack, row={'action': row, 'status': 'FAILED', 'status_reason': reason,
                                  'current_template_id': 2, 'nova_instance': 'old'})
    observer.endings = []
    found, = observer.watch()
    assert told([found]) == [('s1', Plan.FAIL, None, '')]
    assert found.reason == f'Resource {row} failed: {reason}'


def test_a_number_may_be_a_name(heat: Heat, observer: Observer) -> None:
    hang(heat, action='UPDATE', row={
        'name': '5', 'action': 'UPDATE', 'status': 'FAILED', 'current_template_id': 2,
        'status_reason': 'ValueError: resources[5]: it was told to'})
    assert [found.plan for found in observer.watch()] == [Plan.FAIL]


@pytest.mark.parametrize(('stack', 'row'), [
    ('UPDATE', {'status': 'COMPLETE'}), ('UPDATE', {'status': 'IN_PROGRESS'}),
    ('UPDATE', {'current_template_id': 1}), ('UPDATE', {'status_reason': OURS}),
    ('UPDATE', {'status_reason': 'Worker went down during resource UPDATE'}),
    ('UPDATE', {'status_reason': None}),
    ('UPDATE', {'status_reason': 'ValueError: resources.r10: of another'}),
    ('UPDATE', {'action': 'CREATE'}), ('CREATE', {'action': 'CREATE'}),
    ('CREATE', {'action': 'DELETE'}), ('ROLLBACK', {}), ('CHECK', {'action': 'CHECK'}),
    ('RESUME', {'action': 'RESUME'}), ('SUSPEND', {}),
], ids=str)
def test_a_failure_that_may_be_an_older_one_or_ours_fails_nothing(
        heat: Heat, observer: Observer, stack: str, row: dict[str, Any]) -> None:
    hang(heat, action=stack, row={'action': 'UPDATE', 'status': 'FAILED', 'status_reason': HEATS,
                                  'current_template_id': 2, **row})
    assert told(observer.watch()) == [SENT]


def test_what_failed_with_its_nested_stack_fails_its_stack(
        heat: Heat, observer: Observer) -> None:
    hang(heat, row={'action': 'CREATE', 'status': 'FAILED', 'nova_instance': 'c1',
                    'current_template_id': 2})
    heat.stack('c1', [], owner_id='s1', parent_resource_name='r1', status='FAILED',
               status_reason='Resource CREATE failed: of no quota', written=False)
    found, = observer.watch()
    assert told([found]) == [('s1', Plan.FAIL, None, '')]
    assert found.reason == ('resource r1 failed with its nested stack name of c1 (c1): '
                            'Resource CREATE failed: of no quota')


def test_a_nested_stack_that_was_interrupted_for_this_operation_fails_nothing(
        heat: Heat, observer: Observer) -> None:
    """An engine that was late with the operation before had begun to update it."""
    hang(heat, action='UPDATE', created_at=tables.ago(3000), updated_at=tables.ago(100), row={
        'action': 'UPDATE', 'status': 'FAILED', 'nova_instance': 'c1', 'atomic_key': 4})
    heat.stack('c1', [], owner_id='s1', parent_resource_name='r1', action='UPDATE',
               status='FAILED', status_reason='Stack UPDATE cancelled',
               created_at=tables.ago(3000), updated_at=tables.ago(99), written=False)
    assert told(observer.watch()) == [SENT]


def test_what_was_replaced_may_have_failed(heat: Heat, observer: Observer) -> None:
    hang(heat, action='UPDATE', row={'action': 'UPDATE', 'status': 'FAILED',
                                     'status_reason': HEATS, 'current_template_id': 2})
    heat.resource(10, **{**IDLE, 'name': 'r1', 'replaces': 1})
    assert told(observer.watch()) == [SENT]


def test_what_could_not_be_adopted_is_not_made_instead(heat: Heat, observer: Observer) -> None:
    hang(heat, ONE, TWO, action='ADOPT', row={'action': 'ADOPT'})
    heat.change(tables.resource, 2, status='FAILED', nova_instance='old', status_reason=OURS)
    assert {found.plan for found in observer.watch()} == {Plan.FAIL}


# Traversals that were not written out, and ends that were not carried through.

@pytest.mark.parametrize(('action', 'plan'), [
    ('CREATE', 'restart'), ('UPDATE', 'restart'), ('DELETE', 'restart'), ('ROLLBACK', 'restart'),
    ('CHECK', 'restart'), ('SUSPEND', 'restart'), ('RESUME', 'restart'),
    ('SNAPSHOT', Plan.FAIL), ('ADOPT', Plan.FAIL)])
def test_a_traversal_that_was_never_written_out_is_restarted_or_fails(
        heat: Heat, observer: Observer, action: str, plan: str) -> None:
    heat.stack('s1', written=False, action=action)
    found, = observer.watch()
    assert told([found]) == [('s1', plan, None, '')]
    assert found.reason


@pytest.mark.parametrize('missing', [
    tables.point.c.entity_id == 's1', tables.point.c.entity_id == '1'])
def test_a_traversal_with_a_sync_point_missing_was_not_written_out(
        heat: Heat, observer: Observer, missing: sa.ColumnElement[bool]) -> None:
    hang(heat, ONE, TWO)
    heat.run(tables.point.delete().where(missing))
    assert [found.plan for found in observer.watch()] == ['restart']


def test_the_graph_of_an_earlier_traversal_is_not_that_of_this(
        heat: Heat, observer: Observer) -> None:
    hang(heat)
    heat.change(tables.stack, 's1', current_traversal='t2')
    assert [found.plan for found in observer.watch()] == ['restart']


@pytest.mark.parametrize(('action', 'status'), [
    ('CREATE', 'COMPLETE'), ('UPDATE', 'FAILED'), ('DELETE', 'COMPLETE')])
def test_an_end_that_was_not_carried_through_is(
        heat: Heat, observer: Observer, action: str, status: str) -> None:
    hang(heat, action=action, status=status, created_at=tables.ago(3700))
    found, = observer.watch()
    assert told([found]) == [('s1', 'finish', None, '')]
    assert found.reason == f'its end as {action}_{status} was not carried through'


def test_a_stack_that_has_nothing_to_do_is_ended(heat: Heat, observer: Observer) -> None:
    heat.stack('s1', [])
    assert told(observer.watch()) == [('s1', 'finish', None, '')]


def test_where_all_is_done_a_root_brings_the_end_about(heat: Heat, observer: Observer) -> None:
    heat.stack('s1', [(ONE, THREE), (TWO, THREE)])
    for number in (1, 2, 3):
        heat.resource(number, **{**IDLE, 'action': 'CREATE'})
    heat.report(THREE, ONE, TWO)
    heat.report(ONE, Node('s1', is_update=True))
    heat.report(TWO, Node('s1', is_update=True))
    assert told(observer.watch()) == [SENT]


def test_a_graph_that_cannot_be_read_is_told_and_hinders_nobody(
        heat: Heat, observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    hang(heat)
    hang(heat, TWO, stack_id='s2')
    heat.change(tables.stack, 's1', current_deps='no JSON')
    assert told(observer.watch()) == [('s2', 'send again', TWO, 'r2')]
    assert 'Stack name of s1 (s1) does not move, and nothing is done about it' in caplog.text


# Timeouts.

@pytest.mark.parametrize(('values', 'late'), [
    ({'created_at': tables.ago(3700)}, True),
    ({'created_at': tables.ago(3500)}, False),
    ({'created_at': tables.ago(3700), 'updated_at': tables.ago(60)}, False),
    ({'created_at': tables.ago(9999), 'updated_at': tables.ago(3700)}, True),
    ({'created_at': tables.ago(3700), 'timeout': 0}, True),
    ({'created_at': tables.ago(3700), 'timeout': 90}, False),
    ({'created_at': tables.ago(190), 'timeout': 3}, True),
    ({'created_at': tables.ago(170), 'timeout': 3}, False),
])
def test_a_stack_past_its_timeout_is_timed_out_at_once(
        heat: Heat, observer: Observer, values: dict[str, Any], late: bool) -> None:
    hang(heat, **values)
    assert [found.plan for found in observer.look()] == (['time out'] if late else [])


def test_a_timeout_is_told_though_somebody_works_on_the_stack(
        heat: Heat, observer: Observer) -> None:
    """Heat itself looks at it only where a message comes, or in the task that waits."""
    hang(heat, created_at=tables.ago(3700), row={'engine_id': 'other'})
    found, = observer.look()
    assert told([found]) == [('s1', 'time out', None, '')]
    assert found.reason.startswith('its CREATE began 37')


def test_the_clock_of_the_database_alone_times_nothing_out(
        heat: Heat, observer: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    hang(heat, created_at=tables.ago(3700))
    hang(heat, TWO, stack_id='s2', created_at=tables.ago(3900))
    behind = clock.wall() - datetime.timedelta(seconds=200)
    monkeypatch.setattr(clock, 'wall', lambda: behind)
    with heat.statements() as sent:
        assert told(observer.look()) == [('s2', 'time out', None, '')]
    assert len(sent) == 4
    # And the other is helped along.
    assert SENT in told(observer.look(QUIET))


@pytest.mark.parametrize('time', [None, 'yesterday', '0000-00-00 00:00:00'])
def test_a_stack_that_began_at_no_time_hinders_nobody(
        heat: Heat, observer: Observer, time: str | None) -> None:
    hang(heat)
    hang(heat, TWO, stack_id='s2')
    heat.run(sa.text("UPDATE stack SET created_at = :time WHERE id = 's1'").bindparams(time=time))
    assert told(observer.watch()) == [SENT, ('s2', 'send again', TWO, 'r2')]
    # Nor does it hinder the takeover of what its engine held beside it.
    for number, stack_id in ((3, 's1'), (4, 's2')):
        heat.resource(number, stack_id=stack_id, action='UPDATE')
    assert set(heat.take_over()) == {3, 4}


def test_a_stack_past_its_timeout_is_not_helped_along(heat: Heat, observer: Observer) -> None:
    hang(heat, created_at=tables.ago(3700))
    assert [found.plan for found in observer.watch()] == ['time out']


# Which row is checked.

def targets(heat: Heat, node: Node = ONE) -> tuple[list[int], int | str | None]:
    view = heat.rows.view('s1')
    assert view is not None
    return [row.id for row in sweep.workers(view, node)], sweep.target(view, node)


FAILED = {**IDLE, 'action': 'CREATE', 'status': 'FAILED'}
REPLACEMENTS: dict[str, tuple[dict[int, dict[str, Any]], list[int], int]] = {
    'none': ({}, [1], 1),
    'not begun': ({10: IDLE}, [10, 1], 10),
    'made': ({10: {**IDLE, 'action': 'CREATE'}}, [10, 1], 10),
    'failed': ({10: FAILED}, [10, 1], 1),
    'failed and replaced itself': ({10: FAILED, 11: {**IDLE, 'replaces': 10}}, [11, 10, 1], 11),
    'failed and made again': ({10: FAILED, 11: IDLE}, [11, 10, 1], 11),
    'failed twice': ({10: FAILED, 11: FAILED}, [11, 10, 1], 1),
    'failed with a nested stack': (
        {10: {**FAILED, 'nova_instance': 'c1'}}, [10, 1], 10),
    'deleted': ({10: {**IDLE, 'action': 'DELETE'}}, [1], 1),
    'not deleted quite': ({10: {**FAILED, 'action': 'DELETE'}}, [10, 1], 1),
    'of an earlier traversal': ({2: IDLE}, [1], 1),
    'of something else': ({10: {**IDLE, 'replaces': 3}}, [1], 1),
}


@pytest.mark.parametrize(('replacements', 'workers', 'target'), REPLACEMENTS.values(),
                         ids=REPLACEMENTS.keys())
def test_a_replacement_is_checked_itself_unless_it_failed(
        heat: Heat, replacements: dict[int, dict[str, Any]], workers: list[int],
        target: int) -> None:
    hang(heat, row={'action': 'CREATE', 'status': 'FAILED'})
    heat.change(tables.stack, 's1', current_deps='{"edges": [[[1, true], null], '
                                                 '[[2, false], null]]}')
    for number, values in replacements.items():
        heat.resource(number, **{'name': 'r1', 'replaces': 1, **values})
    if any(values.get('nova_instance') for values in replacements.values()):
        heat.stack('c1', [], owner_id='s1', parent_resource_name='r1', status='FAILED')
    assert targets(heat) == (workers, target)


def test_a_replacement_for_an_operation_that_was_overtaken_is_none(heat: Heat) -> None:
    """An engine that was late may make one when the graph is another already."""
    hang(heat, action='ROLLBACK', row={'action': 'CREATE', 'replaced_by': 2},
         raw_template_id=1, prev_raw_template_id=2)
    heat.resource(2, **{**IDLE, 'name': 'r1', 'replaces': 1, 'current_template_id': 2})
    view = heat.rows.view('s1')
    assert view is not None
    assert sweep.target(view, ONE) == 1
    assert view.node(view.resources[2]) is None
    heat.change(tables.resource, 2, current_template_id=1)
    view = heat.rows.view('s1')
    assert view is not None
    assert sweep.target(view, ONE) == 2
    assert view.node(view.resources[2]) == ONE


def test_what_is_cleaned_up_is_checked_itself_whatever_replaces_it(heat: Heat) -> None:
    hang(heat, CLEANUP)
    heat.resource(10, **IDLE, replaces=1)
    assert targets(heat, CLEANUP) == ([1], 1)


def test_nothing_is_checked_where_the_row_is_gone(heat: Heat) -> None:
    hang(heat, ONE, CLEANUP)
    heat.run(tables.resource.delete())
    assert targets(heat) == targets(heat, CLEANUP) == ([], None)
    heat.resource(10, **IDLE, replaces=1)
    assert targets(heat) == ([10], 10)
    assert targets(heat, CLEANUP) == ([], None)


def test_a_snapshot_is_checked_by_its_own_id(heat: Heat) -> None:
    hang(heat, SNAPSHOT)
    assert targets(heat, SNAPSHOT) == ([], SNAPSHOT.id)


# What it costs.

@pytest.fixture
def heats(database_url: str) -> Iterator[Heat]:
    """As ``heat``, on each kind of database in turn."""
    heat = Heat(database_url)
    yield heat
    heat.close()


def test_a_sweep_costs_two_statements_for_each_200_stacks_and_two_more(heats: Heat) -> None:
    """I17: while they move; and none of them reads a graph."""
    observer = Observer(heats)
    total = 1
    for more, expected in ((0, 4), (199, 4), (1, 6), (200, 8)):
        if more:
            heats.run(tables.stack.insert().values([{
                'id': f'n{total + number}', 'name': 'n', 'action': 'CREATE',
                'status': 'IN_PROGRESS', 'convergence': True, 'current_traversal': 't1',
                'current_deps': '{"edges": []}', 'created_at': times.now()}
                for number in range(more)]))
            total += more
        with heats.statements() as sent:
            assert observer.look() == []
        assert (total, len(sent)) == (total, expected)
        assert not any('current_deps' in each or 'input_data' in each for each in sent)


def test_a_stack_that_is_quiet_costs_no_more_than_a_view_and_its_due_nodes(heats: Heat) -> None:
    """I17."""
    heats.resource(1, **IDLE)
    observer = Observer(heats)
    observer.look()
    with heats.statements() as sent:
        assert len(observer.look(QUIET)) == 9
    assert len(sent) == 4 + 5 + 1
    with heats.statements() as sent:
        assert observer.look() == []
    assert len(sent) == 4


def test_an_action_that_this_heat_does_without_a_graph_is_not_judged_by_one(
        heat: Heat, observer: Observer) -> None:
    hang(heat, stack_id='s2', action='SUSPEND')
    assert observer.watch(graphless=frozenset({'SUSPEND'})) == []
    assert [found.stack.id for found in observer.watch()] == ['s2']


def test_a_stack_that_failed_long_ago_is_purged_and_not_rolled_back(
        heat: Heat, observer: Observer) -> None:
    hang(heat, action='UPDATE', status='FAILED', created_at=tables.ago(7300))
    assert told(observer.watch()) == [('s1', 'purge', None, '')]


@pytest.mark.parametrize('row', [
    {'action': 'CREATE', 'status': 'FAILED'}, {'action': 'DELETE', 'status': 'COMPLETE'}])
def test_what_waits_for_another_try_is_not_lost_yet(
        heat: Heat, observer: Observer, row: dict[str, Any]) -> None:
    hang(heat, row={**row, 'atomic_key': 4})
    pause = {'retry_pause': 2.5 * QUIET}
    assert observer.watch(**pause) == []
    assert observer.look(QUIET, **pause) == []
    assert told(observer.look(QUIET, **pause)) == [('s1', 'send again', ONE, 'r1')]


def test_a_replacement_that_waits_for_another_try_is_not_lost_yet(
        heat: Heat, observer: Observer) -> None:
    """Heat deletes it between two tries; another would be made beside it."""
    hang(heat, action='UPDATE', row={'action': 'CREATE', 'replaced_by': 2})
    heat.resource(2, **{**IDLE, 'name': 'r1', 'action': 'DELETE', 'replaces': 1,
                        'current_template_id': 2})
    assert observer.watch(retry_pause=QUIET + 50) == []
    assert told(observer.look(QUIET, retry_pause=QUIET + 50)) == [SENT]


@pytest.mark.parametrize('values', [
    {'written': False}, {'status': 'COMPLETE'}], ids=['not written', 'not ended'])
def test_what_has_no_message_is_lost_when_an_engine_has_ended_or_after_very_long(
        heat: Heat, observer: Observer, values: dict[str, Any]) -> None:
    hang(heat, created_at=tables.ago(600), **values)
    observer.endings = [Ending('long before', 700.0, blamed=True)]
    assert observer.watch() == []
    for _ in range(8):
        assert observer.look(QUIET) == []
    assert [found.plan for found in observer.look(QUIET)] in (['restart'], ['finish'])


def test_the_engine_that_ended_last_may_have_died_of_a_message(
        heat: Heat, observer: Observer) -> None:
    hang(heat)
    observer.endings = [Ending('left', 1.0, blamed=False), Ending('dead', 2.0, blamed=True),
                        Ending('earlier', 3.0, blamed=True)]
    found, = observer.watch()
    assert found.culprit == 'dead'


def test_who_ended_before_the_last_step_did_not_die_of_the_next(
        heat: Heat, observer: Observer) -> None:
    hang(heat, created_at=tables.ago(1000))
    for ended, culprit in ((QUIET + 11, None), (QUIET + 9, 'dead')):
        observer.endings = [Ending('dead', ended, blamed=True)]
        observer.sweep = sweep.Sweep(heat.rows, observer.clock)
        found, = observer.watch()
        assert found.culprit == culprit


def test_where_something_is_still_to_be_adopted_nothing_is_sent(
        heat: Heat, observer: Observer) -> None:
    hang(heat, ONE, stack_id='s1', action='ADOPT', row={
        'action': 'ADOPT', 'status': 'COMPLETE', 'atomic_key': 2})
    heat.resource(2, **IDLE)
    assert [found.plan for found in observer.watch()] == [Plan.FAIL]
