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

# ruff: noqa: INP001 - it is run where Heat is, apart from the other tests

"""Whatever a stack is being brought to, and wherever the engine dies, it gets there."""

import dataclasses
from collections.abc import Callable, Collection, Iterator

import pytest
from bench import CONVERGENT, Bench, Window, before, chain, once_in

FIRST = chain('a', 'b', a='first')


def nothing(bench: Bench) -> None:
    pass


def created(bench: Bench) -> None:
    bench.create(FIRST)


def suspended(bench: Bench) -> None:
    bench.create(FIRST)
    bench.work()
    bench.do('stack_suspend')


def kept(bench: Bench) -> None:
    bench.create(FIRST)
    bench.work()
    bench.do('stack_snapshot', 'snapshot')


@dataclasses.dataclass(frozen=True)
class Action:
    """Something that a stack is brought to."""

    begin: Callable[[Bench], object]
    done: Callable[[Bench], object]
    """Asserts that it is there."""
    state: str
    prepare: Callable[[Bench], object] = created
    into: Callable[[Window], Window] = lambda window: window
    restarts: bool = True
    """Whether it can be begun anew."""


def is_first(bench: Bench) -> None:
    assert [bench.value(name) for name in 'ab'] == ['first', 'first']


def is_second(bench: Bench) -> None:
    assert [bench.value(name) for name in 'ab'] == ['second', 'second']


def is_replaced(bench: Bench) -> None:
    assert [bench.value(name, '!a') for name in 'ab'] == ['other', 'other']
    # Those that were replaced are gone.
    assert {row.id for row in bench.resources()} & {1, 2} == set()


def is_gone(bench: Bench) -> None:
    assert bench.resources() == []


def all_are(state: str) -> Callable[[Bench], object]:
    def are(bench: Bench) -> None:
        is_first(bench)
        assert {row.state for row in bench.resources()} == {state}
    return are


def is_kept(bench: Bench) -> None:
    all_are('SNAPSHOT_COMPLETE')(bench)
    assert bench.rows('SELECT status FROM snapshot') == [('COMPLETE',)]
    assert bench.rows('SELECT DISTINCT resource_name FROM resource_snapshot ORDER BY 1') == [
        ('a',), ('b',)]


ACTIONS = {
    'create': Action(created, is_first, 'CREATE_COMPLETE', prepare=nothing),
    'update': Action(lambda bench: bench.update(chain('a', 'b', a='second')), is_second,
                     'UPDATE_COMPLETE'),
    'replace': Action(lambda bench: bench.update(chain('a', 'b', **{'!a': 'other'})), is_replaced,
                      'UPDATE_COMPLETE'),
    'delete': Action(lambda bench: bench.do('delete_stack'), is_gone, 'DELETE_COMPLETE deleted'),
    'roll back': Action(
        lambda bench: bench.update(
            {**chain('a', 'b', a='second'), 'resources': {
                **chain('a', a='second')['resources'],
                'b': {'type': 'OS::Heat::TestResource', 'depends_on': 'a',
                      'properties': {'a': 'fail'}}}}, disable_rollback=False),
        is_first, 'ROLLBACK_COMPLETE',
        into=lambda window: once_in('heat.engine.stack:Stack.rollback', window)),
}
if CONVERGENT:
    ACTIONS |= {
        'suspend': Action(lambda bench: bench.do('stack_suspend'), all_are('SUSPEND_COMPLETE'),
                          'SUSPEND_COMPLETE'),
        'resume': Action(lambda bench: bench.do('stack_resume'), all_are('RESUME_COMPLETE'),
                         'RESUME_COMPLETE', prepare=suspended),
        'check': Action(lambda bench: bench.do('stack_check'), all_are('CHECK_COMPLETE'),
                        'CHECK_COMPLETE'),
        'snapshot': Action(lambda bench: bench.do('stack_snapshot', 'snapshot'), is_kept,
                           'SNAPSHOT_COMPLETE', restarts=False),
        'delete with a snapshot': Action(
            lambda bench: bench.do('delete_stack'), is_gone, 'DELETE_COMPLETE deleted',
            prepare=kept),
    }

CAST = 'heat.rpc.worker_client:WorkerClient.check_resource'
CHECK = 'heat.engine.check_resource:CheckResource'
UNWRITTEN = {
    'graph not written': before('heat.engine.stack:Stack._converge_create_or_update'),
    'sync points not written': before('heat.engine.sync_point:create'),
    'some sync points written': before('heat.engine.sync_point:create', nth=2),
}
WINDOWS = {
    'first message not sent': before(CAST),
    'message received': before(f'{CHECK}.check'),
    'done and not reported': before(f'{CHECK}._initiate_propagate_resource'),
    'reported and not sent': before(CAST, nth=2),
    'all have reported': before('heat.engine.stack:Stack.mark_complete'),
    'not purged': before('heat.engine.stack:Stack.purge_db'),
}


def cells(windows: dict[str, Window], only: Collection[str] = ()) -> Iterator[object]:
    return (pytest.param(action, window, id=f'{what}: {where}')
            for what, action in ACTIONS.items() for where, window in windows.items()
            if not only or where in only or what in {'create', 'delete'})


def die(bench: Bench, action: Action, window: Window) -> None:
    """Let an engine die within an action."""
    bench.prepare(action.prepare.__name__, action.prepare)
    bench.dies(action.into(window), action.begin)


@pytest.mark.parametrize(('action', 'window'), cells(WINDOWS))
def test_what_was_lost_is_made_good(bench: Bench, action: Action, window: Window) -> None:
    die(bench, action, window)
    assert not bench.ended
    bench.recover()
    assert bench.state == action.state, bench.reason
    assert bench.ended
    action.done(bench)


@pytest.mark.parametrize(('action', 'window'), cells(UNWRITTEN, only={'some sync points written'}))
def test_a_traversal_that_was_never_written_out_is_begun_anew(
        bench: Bench, action: Action, window: Window) -> None:
    die(bench, action, window)
    bench.recover()
    assert bench.ended
    if action.restarts:
        assert bench.state == action.state, bench.reason
        assert bench.journal() == [('stack', 'restart', 'done')]
        action.done(bench)
    else:
        assert bench.state == 'SNAPSHOT_FAILED'
        assert bench.reason == 'The engine that began the snapshot has died: take it again'
        assert bench.rows('SELECT status FROM snapshot') == [('FAILED',)]


@pytest.mark.parametrize('action', ACTIONS.values(), ids=ACTIONS.keys())
def test_an_action_in_which_nobody_dies_needs_nothing(bench: Bench, action: Action) -> None:
    """The control: the bench does what Heat does."""
    bench.prepare(action.prepare.__name__, action.prepare)
    action.begin(bench)
    bench.work()
    assert bench.ended
    assert bench.state == action.state, bench.reason
    action.done(bench)
    bench.recover(3)
    assert bench.journal() == []


# With a lock.

LOCKED = {
    'create': ('create', 'a', 'create again'),
    'update': ('update', 'b', 'run again'),
    'replace': ('create', 'a', 'create again'),
    'delete': ('delete', 'b', 'run again'),
    'roll back': ('update', 'a', 'run again'),
    'suspend': ('suspend', 'b', 'run again'),
    'resume': ('resume', 'a', 'run again'),
    'check': ('check', 'a', 'run again'),
    'snapshot': ('snapshot', 'a', 'run again'),
    'delete with a snapshot': ('delete', 'a', 'run again'),
}


@pytest.mark.parametrize('what', ACTIONS)
def test_what_was_locked_is_run_again(bench: Bench, what: str) -> None:
    action, (handler, name, plan) = ACTIONS[what], LOCKED[what]
    die(bench, action, bench.at(handler, name))
    assert bench.locks == {name: 'doomed'}
    before_it = len(bench.calls(handler, name))
    bench.recover()
    assert bench.ended
    assert bench.state == action.state, bench.reason
    assert ('resource', plan, 'done') in bench.journal()
    assert bench.calls(handler, name)[before_it:] == ['survivor']
    action.done(bench)


MADE = {
    'create': ('created', 'a'),
    'replace': ('created', 'b'),
}


@pytest.mark.parametrize('what', MADE)
def test_what_may_exist_half_made_is_replaced(bench: Bench, what: str) -> None:
    action = ACTIONS[what]
    die(bench, action, bench.at(*MADE[what]))
    bench.recover()
    assert bench.state == action.state, bench.reason
    assert ('resource', 'replace', 'done') in bench.journal()
    name = MADE[what][1]
    left, = (row for row in bench.resources(name) if row.state == 'CREATE_FAILED')
    assert left.physical_id not in {None, bench.live[name].physical_id}
    # It keeps nobody from a suspend, and goes with the next update.
    for verb in ('suspend', 'resume') if CONVERGENT else ():
        bench.do(f'stack_{verb}')
        bench.work()
        assert bench.state == f'{verb.upper()}_COMPLETE', bench.reason
    bench.update(chain('a', 'b', a='third'))
    bench.work()
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    assert len(bench.live) == len(bench.resources()) == 2
    bench.do('delete_stack')
    bench.work()
    assert bench.state == 'DELETE_COMPLETE deleted'


@pytest.mark.parametrize('handler', ['update', 'updated'])
def test_an_update_that_was_half_done_is_done_in_place(bench: Bench, handler: str) -> None:
    die(bench, ACTIONS['update'], bench.at(handler, 'a'))
    before_it = {row.id for row in bench.resources()}
    bench.recover()
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    is_second(bench)
    assert {row.id for row in bench.resources()} == before_it
