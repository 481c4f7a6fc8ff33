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

"""The bridge: Heat loads it, and what it wraps is there and is what it takes it for."""

import importlib.metadata
import inspect
import types
from typing import Any

import pytest
from bench import CONVERGENT, LIVES, Bench, _found
from heat.common import exception
from heat.engine import service, worker
from heat.engine import stack as heat_stack
from heat.engine import template as templatem
from heat.engine.resources import stack_resource
from heat.objects import stack as stack_objects
from heat.rpc import client, worker_client
from heat.tests import utils
from heat.tests.convergence.framework import engine_wrapper
from heat.tests.engine import tools
from oslo_config import cfg

from heat_liveness import conf
from heat_liveness.heat import bridge, calls


class Recorder:
    """A lifecycle that does nothing but remember."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.twice = False

    def starting(self, *args: str) -> None:
        self.said.append(('starting', *args))

    def stopping(self) -> None:
        self.said.append(('stopping',))

    def stopped(self) -> None:
        self.said.append(('stopped',))

    def sent_twice(self, *args: str) -> bool:
        self.said.append(args)
        return self.twice


@pytest.fixture
def life(bench: Bench) -> Recorder:
    LIVES.current = Recorder()
    return LIVES.current


@pytest.mark.usefixtures('bench')
def test_heat_has_let_the_bridge_in() -> None:
    assert 'liveness' in importlib.metadata.entry_points(group='heat.clients').names
    assert bridge.LivenessBridge._entered
    for wrap in bridge._wraps():
        owner, name = _found(wrap.path)
        assert hasattr(getattr(owner, name), '__wrapped__'), wrap.path


@pytest.mark.usefixtures('bench')
def test_the_signatures_are_those_that_are_wrapped() -> None:
    bridge._check_signatures(bridge._wraps())
    found = inspect.signature(worker_client.WorkerClient.check_resource).parameters
    assert ('node_type' in found) == CONVERGENT


@pytest.mark.usefixtures('bench')
def test_a_bridge_that_is_not_enabled_stays_outside() -> None:
    cfg.CONF.set_override('enabled', False, conf.GROUP)
    try:
        assert not bridge.enter(cfg.CONF)
    finally:
        cfg.CONF.set_override('enabled', True, conf.GROUP)


def test_an_engine_joins_before_it_listens_and_leaves_when_it_stops(life: Recorder) -> None:
    works = worker.WorkerService('a host', 'engine_worker', 'an engine',
                                 engine_wrapper.SynchronousThreadGroupManager())
    works.start()
    works.stop()
    (what, engine_id, host, _, binary, topic), = life.said
    assert (what, engine_id, host, binary, topic) == (
        'starting', 'an engine', 'a host', 'heat-engine', 'engine')
    service.EngineService('host', 'engine').stop()
    assert life.said[1:] == [('stopping',), ('stopped',)]


@pytest.mark.usefixtures('bench')
@pytest.mark.parametrize('twice', [True, False])
def test_a_nested_stack_is_not_interrupted_by_a_copy_of_a_message(
        life: Recorder, *, twice: bool) -> None:
    interrupted = []
    life.twice = twice
    stack_resource.StackResource.handle_preempt(types.SimpleNamespace(
        name='a', stack=types.SimpleNamespace(id='a stack', current_traversal='a traversal'),
        _handle_cancel=lambda: interrupted.append('it')))
    assert life.said == [('a stack', 'a traversal')]
    assert interrupted == ([] if twice else ['it'])


@pytest.mark.usefixtures('life')
@pytest.mark.parametrize(('owner', 'resource'), [
    ('a parent', 'a group'), ('another', 'a group'), ('a parent', 'another')])
def test_a_nested_stack_that_a_dead_engine_has_asked_for_is_taken(
        monkeypatch: pytest.MonkeyPatch, owner: str, resource: str) -> None:
    ctxt = utils.dummy_context()
    child_id = tools.get_stack(
        'a-name', ctxt, owner_id='a parent', parent_resource='a group').store()
    spare = templatem.Template.create_empty_template().store(ctxt)

    def refuse(*_: object, **__: object) -> None:
        raise exception.StackExists(stack_name='a-name')

    monkeypatch.setattr(client.EngineClient, 'call', refuse)

    def create() -> Any:
        return client.EngineClient()._create_stack(
            ctxt, 'a-name', None, {}, {}, {}, owner_id=owner, parent_resource_name=resource,
            template_id=spare)

    if (owner, resource) != ('a parent', 'a group'):
        with pytest.raises(exception.StackExists):
            create()
        return
    assert create() == {'stack_id': child_id}
    # Heat stores the template before it asks, and removes it if it is refused.
    with pytest.raises(exception.NotFound):
        templatem.Template.load(ctxt, spare)


@pytest.mark.usefixtures('life')
def test_a_nested_stack_that_is_deleted_is_loaded_without_its_parents_credentials() -> None:
    """These are gone when its parent is; it is still to be purged."""
    ctxt = utils.dummy_context()
    child = tools.get_stack('a-name', ctxt, owner_id='a parent')
    child.action, child.status = 'DELETE', 'COMPLETE'
    child_id = child.store()
    stack_objects.Stack.update_by_id(ctxt, child_id, {'user_creds_id': None})
    found = calls.load(child_id)
    assert found is not None
    assert found.id == child_id


@pytest.mark.usefixtures('life')
def test_keystone_is_asked_for_a_client_before_the_trust_is_gone() -> None:
    said = []

    class Keystone:
        def client(self, name: str) -> Any:
            said.append(f'client of {name}')
            return self

        def delete_stack_domain_project(self, project_id: str) -> None:
            said.append(f'delete {project_id}')

    def delete_trust(*state: str) -> tuple[str, ...]:
        said.append('delete trust')
        return state

    heat_stack.Stack._delete_credentials(types.SimpleNamespace(
        id='a stack', stack_user_project_id='project', clients=Keystone(), store=lambda: None,
        context=types.SimpleNamespace(trust_id='trust'), _delete_user_cred=delete_trust),
        'COMPLETE', 'a reason', False)
    assert said == ['client of keystone', 'delete trust', 'client of keystone', 'delete project']
