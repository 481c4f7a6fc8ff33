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

"""What only some releases do: suspend, resume, check and snapshot by traversals, or without."""

import pytest
from bench import CONVERGENT, Bench, before, chain
from heat.engine import stack as heat_stack

CHECK = 'heat.engine.check_resource:CheckResource'
CAST = 'heat.rpc.worker_client:WorkerClient.check_resource'

by_traversals = pytest.mark.skipif(not CONVERGENT, reason='Heat 25 does these without a traversal')
without = pytest.mark.skipif(CONVERGENT, reason='Heat 26 and later do these by a traversal')

SICK = chain('a', 'b', 'c', c='sick')
REASON = 'Resource CHECK failed: a: '


def test_the_release_is_the_one_that_is_thought(bench: Bench) -> None:
    assert ('node_type' in getattr(heat_stack.ConvergenceNode, '_fields', ())) == CONVERGENT
    columns = {row.name for row in bench.rows('SELECT name FROM pragma_table_info("sync_point")')}
    assert ('extra_data' in columns) == CONVERGENT


@by_traversals
@pytest.mark.parametrize('dies', [None, before(CAST, nth=2), before(f'{CHECK}.check', nth=2),
                                  before(f'{CHECK}._initiate_propagate_resource', nth=2)],
                         ids=['nobody dies', 'not sent', 'received', 'not reported'])
def test_what_failed_its_check_is_remembered(bench: Bench, dies: object) -> None:
    """It stands in the sync point, and what comes behind it is not checked."""
    bench.create(SICK)
    bench.work()
    if dies is None:
        bench.do('stack_check')
        bench.work()
    else:
        bench.dies(dies, lambda bench: bench.do('stack_check'))
        bench.recover()
    assert bench.ended
    assert bench.state == 'CHECK_FAILED'
    assert bench.reason.startswith(REASON), bench.reason
    assert len(bench.calls('check', 'a')) == 1
    assert bench.calls('check', 'b') == bench.calls('check', 'c') == []


@by_traversals
def test_what_failed_its_check_goes_with_the_message_that_is_sent_again(bench: Bench) -> None:
    """Where it stands nowhere but in the sync point of the node whose message was lost."""
    template = chain('a', 'b')
    template['resources']['b']['properties'] = {'c': 'sick'}
    bench.create(template)
    bench.work()
    # Those of a and b are sent before, and this is that of b's cleanup.
    bench.dies(before(CAST, nth=3), lambda bench: bench.do('stack_check'))
    bench.recover()
    assert bench.ended
    assert bench.state == 'CHECK_FAILED'
    assert 'Resource CHECK failed: b: ' in bench.reason
    assert len(bench.calls('check', 'b')) == 1


@by_traversals
@pytest.mark.parametrize('window', ['heat.engine.worker:WorkerService._handle_snapshot_node',
                                    'heat.engine.worker:WorkerService._propagate_snapshot_complete',
                                    ])
def test_a_snapshot_that_is_deleted_with_its_stack_is_a_node(bench: Bench, window: str) -> None:
    bench.create()
    bench.work()
    bench.do('stack_snapshot', 'snapshot')
    bench.work()
    bench.dies(before(window), lambda bench: bench.do('delete_stack'))
    left = 1 if 'handle' in window else 0
    assert len(bench.rows('SELECT * FROM snapshot')) == left
    bench.recover()
    assert bench.state == 'DELETE_COMPLETE deleted'
    assert bench.rows('SELECT * FROM snapshot') == bench.resources() == []
    assert ('its row was gone, and it was reported as done' in bench.outcomes()) == (not left)


@without
@pytest.mark.parametrize('action', ['stack_suspend', 'stack_check', 'stack_snapshot'])
def test_an_action_without_a_graph_is_left_alone(bench: Bench, action: str) -> None:
    """It may be in the hands of an engine that lives, and nothing would tell."""
    bench.create()
    bench.work()
    arguments = ['snapshot'] if action == 'stack_snapshot' else []
    bench.dies(bench.at(action.removeprefix('stack_'), 'a'),
               lambda bench: bench.do(action, *arguments))
    stands = f'{action.removeprefix("stack_").upper()}_IN_PROGRESS'
    assert bench.state == stands
    bench.recover(6)
    bench.shift(7200)
    bench.recover(3)
    assert bench.state == stands
    assert bench.journal() == []
    bench.do('delete_stack')
    bench.work()
    assert bench.state == 'DELETE_COMPLETE deleted'
