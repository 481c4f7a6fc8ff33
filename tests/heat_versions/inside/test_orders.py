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

"""Orders: each is carried out once, and what cannot be carried out is told with its reason."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from bench import CONVERGENT, LIVES, Bench, Counted, before, chain, once_in
from heat.engine import check_resource, resource, worker
from heat.rpc import worker_client
from heat.tests.convergence.framework import processes
from oslo_config import cfg

from heat_liveness import errors
from heat_liveness.heat import calls, lifecycle

CHECK = 'heat.engine.check_resource:CheckResource'
MARK_FAILED = 'heat.engine.stack:Stack.mark_failed'
CAST = 'heat.rpc.worker_client:WorkerClient.check_resource'


# Messages.

def test_of_two_copies_of_a_message_one_has_an_effect(bench: Bench) -> None:
    bench.dies(bench.at('create', 'a'), Bench.create)
    bench.survivor.look()
    queue = processes.worker.queue._queue
    message, = queue
    assert 'liveness_order' in message.data.data
    queue.extend([message, message])
    bench.work()
    assert bench.calls('create', 'a') == ['doomed', 'survivor']
    assert bench.state == 'CREATE_COMPLETE'
    assert bench.journal() == [('resource', 'create again', 'done')]


def send_again(bench: Bench, begin: Callable[[Bench], object]) -> list[Any]:
    """Have the first message of an operation sent again; return the one that seemed lost."""
    begin(bench)
    late = list(processes.worker.queue._queue)
    processes.worker.clear()
    bench.survivor.look()
    bench.clock.ahead += 45
    bench.survivor.look()
    again, = processes.worker.queue._queue
    assert 'liveness_order' in again.data.data
    return late


def test_a_message_that_only_seemed_lost_comes_first_and_is_enough(bench: Bench) -> None:
    processes.worker.queue._queue.extendleft(send_again(bench, Bench.create))
    bench.work()
    assert bench.calls('create', 'a') == bench.calls('create', 'b') == ['survivor']
    assert bench.state == 'CREATE_COMPLETE'
    assert bench.journal() == [('message', 'send again', 'done')]


def assert_replaced_once(bench: Bench) -> None:
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    assert bench.ended
    assert [bench.value(name, '!a') for name in 'ab'] == ['other', 'other']
    assert len(bench.resources()) == 2
    assert bench.calls('create', 'a') == bench.calls('create', 'b') == ['survivor'] * 2


REPLACED = chain('a', 'b', **{'!a': 'other'})


def replace(bench: Bench) -> None:
    bench.update(REPLACED)


def test_a_message_that_only_seemed_lost_and_comes_last_replaces_nothing(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, 'prepare_for_replace',
                        lambda self: self.bench.note('prepare', self))
    bench.create()
    bench.work()
    processes.worker.queue._queue.extend(send_again(bench, replace))
    bench.work()
    bench.recover()
    assert_replaced_once(bench)
    # Nor is what was replaced made ready for that once more.
    assert bench.calls('prepare', 'a') == bench.calls('prepare', 'b') == ['survivor']


def test_a_message_that_only_seemed_lost_and_comes_at_the_same_time_replaces_nothing(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.create()
    bench.work()
    late = send_again(bench, replace)
    queue = processes.worker.queue._queue
    again = list(queue)
    processes.worker.clear()
    make_replacement = resource.Resource.make_replacement

    def overtaken(self: Any, *args: Any) -> Any:
        """The one that was sent again is worked on when the late one is about to replace."""
        monkeypatch.undo()
        queue.extend(again)
        processes.worker()
        return make_replacement(self, *args)

    monkeypatch.setattr(resource.Resource, 'make_replacement', overtaken)
    queue.extend(late)
    bench.work()
    bench.recover()
    assert_replaced_once(bench)


@pytest.mark.parametrize('first', ['late', 'again'])
def test_a_message_that_only_seemed_lost_and_comes_at_the_same_time_fails_no_delete(
        bench: Bench, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """What the second finds deleted, it would take for a failure."""
    bench.create()
    bench.work()
    late = send_again(bench, lambda bench: bench.do('delete_stack'))
    queue = processes.worker.queue._queue
    again = list(queue)
    processes.worker.clear()
    delete_convergence = resource.Resource.delete_convergence

    def overtaken(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The other one is worked on when this one is about to lock the resource."""
        monkeypatch.undo()
        queue.extend(again if first == 'late' else late)
        processes.worker()
        return delete_convergence(self, *args, **kwargs)

    monkeypatch.setattr(resource.Resource, 'delete_convergence', overtaken)
    queue.extend(late if first == 'late' else again)
    bench.work()
    bench.recover()
    assert bench.state == 'DELETE_COMPLETE deleted'
    assert bench.calls('delete', 'a') == bench.calls('delete', 'b') == ['survivor']


@pytest.fixture
def locks_at_once() -> Iterator[None]:
    """What cannot be locked is not tried again by the same check."""
    cfg.CONF.set_override('client_retry_limit', 0)
    yield
    cfg.CONF.clear_override('client_retry_limit')


@pytest.mark.usefixtures('locks_at_once')
@pytest.mark.parametrize('action', ['create', 'delete'])
def test_a_check_that_heat_sends_to_itself_once_more_is_no_copy(
        bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """As something has changed its resource before it could be locked."""
    if action == 'delete':
        bench.create()
        bench.work()
    send_again(bench, Bench.create if action == 'create'
               else lambda bench: bench.do('delete_stack'))
    convergence = f'{action}_convergence'
    original, cast = getattr(resource.Resource, convergence), worker_client.WorkerClient.cast

    def overtaken(self: Any, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        monkeypatch.setattr(worker_client.WorkerClient, 'cast', received_at_once)
        bench.run(f'UPDATE resource SET atomic_key = COALESCE(atomic_key, 0) + 1 '
                  f'WHERE id = {self.id}')
        return original(self, *args, **kwargs)

    def received_at_once(*args: Any, **kwargs: Any) -> None:
        """Another engine acts on it before the check that has sent it is over."""
        monkeypatch.undo()
        cast(*args, **kwargs)
        bench.join('quick')
        processes.worker()
        bench.at_work, LIVES.current = bench.survivor, bench.survivor.life

    monkeypatch.setattr(resource.Resource, convergence, overtaken)
    bench.work()
    assert bench.state.startswith(f'{action.upper()}_COMPLETE'), bench.reason
    first, second = 'ab' if action == 'create' else 'ba'
    assert bench.calls(action, first) == ['quick']
    assert bench.calls(action, second) == ['survivor']
    assert bench.journal() == [('message', 'send again', 'done')]
    assert bench.outcomes() == ['Heat checks it once more']


@pytest.mark.parametrize('template', ['in place', 'replaced'])
def test_an_update_outlasts_a_stall_of_the_database(
        bench: Bench, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    """Whether it is late is asked for only where it may be, and until that is known."""
    bench.create()
    bench.work()
    monkeypatch.setattr(lifecycle, '_ASK_AGAIN_SECONDS', 0)
    replaced, asked = bench.survivor.work.replaced, []

    def stalls(*about: Any) -> bool:
        asked.append(about)
        if len(asked) % 2:
            raise errors.DatabaseError('No answer within 3 s.')
        return replaced(*about)

    monkeypatch.setattr(bench.survivor.work, 'replaced', stalls)
    bench.update(REPLACED if template == 'replaced' else chain('a', 'b', a='second'))
    bench.work()
    assert len(asked) == (4 if template == 'replaced' else 0)
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    assert bench.ended
    assert bench.journal() == []


def test_what_may_be_replaced_is_sent_once_where_somebody_knows_no_tokens(bench: Bench) -> None:
    bench.create()
    bench.work()
    bench.dies(before(f'{CHECK}.check'), replace)
    bench.strange()
    bench.survivor.look()
    sent = len(bench.sent)
    for _ in range(9):
        bench.wait(15)
    assert len(bench.sent) == sent + 1
    # Another engine dies, and has taken the message with it.
    bench.dies(before(f'{CHECK}.check'), name='doomed too')
    bench.wait(15)
    assert len(bench.sent) == sent + 2
    bench.work()
    assert bench.state == 'UPDATE_COMPLETE'
    assert len(bench.live) == 2


def test_what_was_replaced_is_replaced_again_by_the_next_update(bench: Bench) -> None:
    bench.create()
    bench.work()
    late = send_again(bench, replace)
    bench.update(chain('a', 'b', **{'!a': 'another'}))
    processes.worker.queue._queue.extend(late)
    bench.work()
    bench.recover()
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    assert [bench.value(name, '!a') for name in 'ab'] == ['another', 'another']
    assert len(bench.resources()) == 2


def test_a_message_carries_what_the_graph_holds(bench: Bench) -> None:
    """The input of the node, and the arguments that this Heat has."""
    bench.dies(before(CAST, nth=2), Bench.create)
    bench.recover()
    again = next(arguments for _, arguments in bench.sent
                 if 'liveness_order' in arguments['data'])
    sender, = again['data']['input_data']
    assert sender == ("tuple:(2, True, 'resource')" if CONVERGENT else 'tuple:(2, True)')
    more = {'skip_propagate', 'accumulated_failures', 'node_type', 'abandon'}
    assert more & set(again) == (more if CONVERGENT else set())
    assert bench.state == 'CREATE_COMPLETE'


def test_an_engine_that_dies_with_a_message_hands_its_order_on(bench: Bench) -> None:
    bench.dies(bench.at('create', 'a'), Bench.create)
    # It has used the token up and not locked anything yet.
    bench.dies(before(f'{CHECK}.check'), lambda bench: bench.at_work.look(), 'doomed too')
    assert bench.locks == {}
    assert bench.open_orders == [('resource', 'create again', 'used')]
    bench.recover()
    assert bench.state == 'CREATE_COMPLETE'
    assert bench.calls('create', 'a') == ['doomed', 'survivor']


# What is FAILED until its check begins.

def claim_an_update(bench: Bench) -> list[int]:
    """Have the survivor claim an update, without sending it; return the ids of the rows."""
    bench.create()
    bench.work()
    bench.dies(bench.at('update', 'a'), lambda bench: bench.update(chain('a', 'b', a='second')))
    delivery = bench.survivor.work.delivery
    delivery.carry_out = lambda found: 0
    bench.survivor.look()
    del delivery.carry_out
    assert bench.open_orders == [('resource', 'run again', 'claimed')]
    assert bench.resources('a')[0].state == 'UPDATE_FAILED'
    return [row.id for row in bench.resources()]


def assert_updated_in_place(bench: Bench, ids: list[int]) -> None:
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    assert [row.id for row in bench.resources()] == ids
    assert [bench.value(name) for name in 'ab'] == ['second', 'second']


@pytest.mark.parametrize('taker', ['with', 'without'])
def test_an_update_is_not_replaced_by_an_engine_that_has_appeared_since_it_was_claimed(
        bench: Bench, taker: str) -> None:
    ids = claim_an_update(bench)
    bench.strange()
    bench.wait(15)
    message, = processes.worker.queue._queue
    if taker == 'without':
        # An engine without the package does not see it.
        del message.data.data['liveness_order']
    bench.work()
    assert_updated_in_place(bench, ids)


def test_a_check_that_fails_before_it_locks_is_done_once_more(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = claim_an_update(bench)
    bench.wait(15)

    def fail(*_: Any) -> Any:
        monkeypatch.undo()
        raise RuntimeError('Keystone is away.')

    monkeypatch.setattr(check_resource, 'load_resource', fail)
    with pytest.raises(RuntimeError):
        bench.work()
    assert bench.open_orders == [('resource', 'run again', 'claimed')]
    bench.wait(15)
    bench.work()
    assert_updated_in_place(bench, ids)
    assert bench.outcomes()[-1] == 'it was checked'


def test_of_what_is_replaced_it_is_told_what_may_be_left_behind_if_anything_is(
        bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.create()
    bench.work()
    bench.dies(bench.at('update', 'a'), lambda bench: bench.update(chain('a', 'b', a='second')))
    # Its update had come to its new template, and is not known to have made anything.
    bench.run('UPDATE resource SET nova_instance = NULL, '
              "current_template_id = (SELECT raw_template_id FROM stack) WHERE name = 'a'")
    bench.survivor.look()
    assert ('is replaced. What engine doomed had made of it may be left behind until'
            in caplog.text)


# Rows that are gone, as after another engine's purge of what is deleted.

PURGE = "DELETE FROM resource WHERE (action, status) = ('DELETE', 'COMPLETE')"


def test_a_resource_that_was_cleaned_up_and_not_reported_is_reported(bench: Bench) -> None:
    bench.create(chain('a', 'b'))
    bench.work()
    bench.dies(
        before(f'{CHECK}._initiate_propagate_resource',
               when=lambda *args, **_: args[5].name == 'b'),
        lambda bench: bench.update(chain('a')))
    bench.run(PURGE)
    assert [row.name for row in bench.resources()] == ['a']
    bench.recover()
    assert bench.state == 'UPDATE_COMPLETE', bench.reason
    assert bench.ended
    assert 'its row was gone, and it was reported as done' in bench.outcomes()


def test_the_last_of_a_delete_is_reported(bench: Bench) -> None:
    bench.create(chain('a', 'b'))
    bench.work()
    bench.dies(before(f'{CHECK}._initiate_propagate_resource', nth=2),
               lambda bench: bench.do('delete_stack'))
    bench.run(PURGE)
    assert bench.resources() == []
    bench.recover()
    assert bench.state == 'DELETE_COMPLETE deleted'
    assert 'its row was gone, and it was reported as done' in bench.outcomes()


@pytest.mark.parametrize('action', ['create', 'delete'])
def test_a_delete_that_is_begun_anew_stops_who_works_on_the_stack(
        bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """As Heat does: he may be waiting for what is to be deleted."""
    stopped: list[str] = []
    monkeypatch.setattr(worker.WorkerService, 'stop_all_workers',
                        lambda self, stack: stopped.append(stack.id))
    window = before('heat.engine.sync_point:create')
    if action == 'create':
        bench.dies(window, Bench.create)
    else:
        bench.create()
        bench.work()
        bench.dies(window, lambda bench: bench.do('delete_stack'))
    bench.recover()
    assert 'it was begun anew' in bench.outcomes()
    assert bench.state.startswith(f'{action.upper()}_COMPLETE')
    assert stopped == ([bench.stack_id] if action == 'delete' else [])


def test_a_keystone_that_never_answers_keeps_no_order_for_ever(bench: Bench) -> None:
    bench.create()
    stack = calls.load(bench.stack_id)
    assert 0 < stack.context._keystone_session.timeout < 600


def test_a_traversal_that_cannot_be_written_out_is_told_in_the_log(
        caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError('The template is gone.')

    calls._Threads().start('a stack', fail)
    calls.wait_for_traversals()
    assert 'The traversal of stack a stack could not be written out' in caplog.text
    assert 'The template is gone.' in caplog.text


# What ends badly.

@pytest.mark.parametrize('window', ['locked', 'lost'])
@pytest.mark.parametrize('disable_rollback', [True, False])
def test_a_stack_past_its_timeout_is_timed_out(
        bench: Bench, window: str, *, disable_rollback: bool) -> None:
    bench.dies(bench.at('create', 'a') if window == 'locked' else before(CAST),
               lambda bench: bench.create(timeout_mins=1, disable_rollback=disable_rollback))
    bench.shift(120)
    bench.recover()
    assert bench.ended
    if disable_rollback:
        assert (bench.state, bench.reason) == ('CREATE_FAILED', 'Timed out')
    else:
        assert bench.state == 'ROLLBACK_COMPLETE', bench.reason
        assert bench.resources() == []


@pytest.mark.parametrize('disable_rollback', [True, False])
def test_an_update_that_failed_fails_its_stack_though_the_engine_died(
        bench: Bench, *, disable_rollback: bool) -> None:
    bench.create()
    bench.work()
    bench.dies(before(MARK_FAILED), lambda bench: bench.update(
        chain('a', 'b', a='fail'), disable_rollback=disable_rollback))
    assert bench.state == 'UPDATE_IN_PROGRESS'
    bench.recover()
    assert bench.ended
    # A rollback replaces what has failed, as it does where nobody dies.
    assert bench.calls('create', 'a') == ['survivor'] * (1 if disable_rollback else 2)
    assert bench.calls('update', 'a') == ['doomed']
    if disable_rollback:
        assert bench.state == 'UPDATE_FAILED'
        assert bench.reason == 'Resource UPDATE failed: ValueError: resources.a: it was told to'
    else:
        assert bench.state == 'ROLLBACK_COMPLETE', bench.reason


def test_a_rollback_that_has_lost_its_target_is_not_begun_anew_and_says_so(bench: Bench) -> None:
    bench.create()
    bench.work()
    bench.dies(once_in('heat.engine.stack:Stack.rollback',
                       before('heat.engine.stack:Stack.converge_stack')),
               lambda bench: bench.update(chain('a', 'b', a='fail'), disable_rollback=False))
    assert bench.state == 'UPDATE_FAILED'
    bench.recover()
    assert bench.ended
    assert bench.state == 'UPDATE_FAILED'
    assert bench.reason.endswith(
        'it was told to. It is not rolled back: that would delete everything')
    assert bench.calls('delete') == []


def test_a_resource_that_kills_is_given_to_nobody_any_more(bench: Bench) -> None:
    bench.dies(bench.at('create', 'a'), Bench.create, 'first')
    for name in ('second', 'third'):
        bench.dies(bench.at('create', 'a'), lambda bench: bench.at_work.look(), name)
    bench.recover()
    assert bench.ended
    assert bench.state == 'CREATE_FAILED'
    assert bench.reason.endswith(
        'esource a killed the engines that worked on it, 3 of them: first, second, third')
    assert bench.calls('create', 'a') == ['first', 'second', 'third']
    assert [row.state for row in bench.resources('a')] == ['CREATE_FAILED']
    bench.do('delete_stack')
    bench.work()
    assert bench.state == 'DELETE_COMPLETE deleted'


def test_what_may_kill_is_sent_to_one_engine_alone(bench: Bench) -> None:
    bench.dies(bench.at('create', 'a'), Bench.create, 'first')
    bench.dies(bench.at('create', 'a'), lambda bench: bench.at_work.look(), 'second')
    bench.survivor.look()
    assert bench.sent[-1][0] == 'survivor'
    bench.work()
    assert bench.state == 'CREATE_COMPLETE'


@pytest.fixture
def adopts_and_abandons() -> Iterator[None]:
    for name in ('enable_stack_adopt', 'enable_stack_abandon'):
        cfg.CONF.set_override(name, True)
    yield
    for name in ('enable_stack_adopt', 'enable_stack_abandon'):
        cfg.CONF.clear_override(name)


ADOPTED = json.dumps({
    'name': 'stack', 'id': 'old', 'action': 'CREATE', 'status': 'COMPLETE', 'environment': {},
    'template': chain('a', 'b'), 'resources': {
        name: {'name': name, 'type': 'OS::Heat::TestResource', 'action': 'CREATE',
               'status': 'COMPLETE', 'metadata': {}, 'resource_data': {},
               'resource_id': f'old {name}'}
        for name in 'ab'}})


@pytest.mark.usefixtures('adopts_and_abandons')
@pytest.mark.parametrize('window', ['locked', 'lost'])
def test_an_adopt_is_failed_and_not_rolled_back(bench: Bench, window: str) -> None:
    bench.dies(bench.at('adopt', 'a') if window == 'locked' else before(CAST),
               lambda bench: bench.create(adopt_stack_data=ADOPTED, disable_rollback=False))
    bench.recover()
    assert bench.ended
    assert bench.state == 'ADOPT_FAILED'
    assert 'to be adopted from is not kept' in bench.reason
    assert bench.calls('delete') == []


@pytest.mark.usefixtures('adopts_and_abandons')
def test_what_could_not_be_adopted_fails_its_stack_though_the_engine_died(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not made instead: a later update would delete what was to be adopted."""
    def handle_adopt(self: Any, resource_data: Mapping[str, Any]) -> None:
        self.resource_id_set(resource_data['resource_id'])
        if self.name == 'b':
            raise ValueError('it cannot be adopted')

    monkeypatch.setattr(Counted, 'handle_adopt', handle_adopt)
    bench.dies(before(MARK_FAILED), lambda bench: bench.create(adopt_stack_data=ADOPTED))
    bench.recover()
    assert bench.state == 'ADOPT_FAILED'
    assert bench.reason == (
        'Resource ADOPT failed: ValueError: resources.b: it cannot be adopted')
    assert {row.physical_id for row in bench.resources()} == {'old a', 'old b'}
    assert bench.calls('create') == bench.calls('delete') == []


@pytest.mark.usefixtures('adopts_and_abandons')
def test_an_adopt_in_which_nobody_dies_is_done(bench: Bench) -> None:
    bench.create(adopt_stack_data=ADOPTED)
    bench.work()
    assert bench.state == 'ADOPT_COMPLETE'
    assert {row.physical_id for row in bench.resources()} == {'old a', 'old b'}


@pytest.mark.usefixtures('adopts_and_abandons')
def test_what_may_be_an_abandon_is_failed_and_deletes_nothing(bench: Bench) -> None:
    bench.create()
    bench.work()
    bench.dies(before(f'{CHECK}.check') if CONVERGENT else
               before('heat.engine.resource:Resource.destroy'),
               lambda bench: bench.do('abandon_stack'))
    assert bench.state == 'DELETE_IN_PROGRESS'
    bench.recover()
    assert bench.ended
    assert bench.state == 'DELETE_FAILED'
    assert 'whether this one is to be deleted or abandoned' in bench.reason
    assert bench.calls('delete') == []
