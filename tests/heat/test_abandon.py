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

"""What Heat itself forgets cannot be guessed: adopt and abandon end with a reason."""

import json

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import LIVENESS
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import GONE, Stack

pytestmark = [pytest.mark.heat, pytest.mark.long, pytest.mark.timeout(900)]

OPTIONS = {'enable_stack_abandon': 'true', 'enable_stack_adopt': 'true'}
SECONDS = 120.0


@pytest.mark.parametrize('window', ['stored', 'taken', 'done', 'ready'])
def test_an_abandon_never_deletes_what_it_abandons(lab: Lab, window: str) -> None:
    with lab.fleet(LIVENESS, options=OPTIONS) as fleet:
        fleet.start_engines('e1', 'e2')
        stack = fleet.create('abandoned', templates.layered())
        stack.wait_for('CREATE_COMPLETE')
        fleet.strike(window, stack=stack.name,
                     **({} if window == 'stored' else {'resource': 'wide?'}))
        stack.abandon_unheard()
        wait_until(lambda: fleet.struck, SECONDS, 'A strike')
        wait_until(lambda: stack.state in {'DELETE_FAILED', GONE}, SECONDS,
                   'The end of the abandon')
        assert not [run for run in fleet.runs if run.handler == 'delete']
        if stack.state != GONE:
            assert 'abandon' in stack.row['status_reason']
            stack.abandon()
            wait_until(lambda: stack.state == GONE, SECONDS, 'The end of a second abandon')
        assert not [run for run in fleet.runs if run.handler == 'delete']
        # Heat marks a stack first, and then cleans up.
        wait_until(lambda: not verdict.sync_points(fleet, [stack.id]), SECONDS,
                   'The end of the sync points')


@pytest.mark.parametrize('window', ['locked', 'taken', 'done'])
def test_an_adopt_ends_right_or_with_a_reason(lab: Lab, window: str) -> None:
    with lab.fleet(LIVENESS, options=OPTIONS) as fleet:
        fleet.start_engines('e1', 'e2')
        first = fleet.create('first', templates.layered())
        first.wait_for('CREATE_COMPLETE')
        data = json.dumps(first.abandon())
        wait_until(lambda: first.state == GONE, SECONDS, 'The end of the abandon')

        stack = Stack(fleet, f'{fleet.name}-adopted')
        if window == 'locked':
            fleet.hold('adopt', 'wide?')
            stack.adopt(data, templates.layered())
            held = fleet.wait_until_working_on(templates.WIDTH)
            engine_id = next(iter(held.values()))
            next(engine for engine in fleet.engines.values()
                 if engine.engine_id == engine_id).program.kill()
            fleet.release('adopt')
        else:
            fleet.strike(window, stack=stack.name, resource='wide?')
            stack.adopt(data, templates.layered())
            wait_until(lambda: fleet.struck, SECONDS, 'A strike')
        wait_until(lambda: stack.state in {'ADOPT_FAILED', 'ADOPT_COMPLETE'}, SECONDS,
                   'The end of the adopt')
        wait_until(lambda: not fleet.working_on(), SECONDS, 'The end of all locks')
        if stack.state == 'ADOPT_FAILED':
            assert 'adopt' in stack.row['status_reason'].partition('ADOPT')[2] or (
                'adopted' in stack.row['status_reason'])
        # Nobody made anew what was to be adopted.
        assert max(fleet.creates.values()) == 1
        assert {run.stack for run in fleet.runs if run.handler == 'create'} == {first.id}
        # Heat marks a stack first, and then cleans up.
        wait_until(lambda: not verdict.sync_points(fleet, [stack.id]), SECONDS,
                   'The end of the sync points')
