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

"""The engine that waits for a nested stack dies; the nested stack goes on undisturbed."""

import time

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import LIVENESS
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import Stack

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

OBSERVATION_SECONDS = 20.0
"""Longer than any time after which something is done about what does not move."""
TRIES = 8
SECONDS = 120.0


def held_apart(fleet: Fleet) -> tuple[Stack, str, dict[str, str]]:
    """Return a stack whose parent is locked by one engine and children by another as well.

    Which engine takes a message is the queue's choice, so it may need some tries.
    """
    for number in range(TRIES):
        fleet.hold('create', 'wide?')
        stack = fleet.create(f'{number}', templates.with_a_file(), files=templates.files())

        def locked(stack: Stack = stack) -> dict[str, str]:
            family = stack.family
            found = {name: engine for (stack_id, name), engine in fleet.working_on().items()
                     if stack_id in family}
            return found if len(found) == templates.WIDTH + 1 else {}

        engines = wait_until(locked, SECONDS, 'The locks')
        parent = engines.pop('group')
        if set(engines.values()) - {parent}:
            return stack, parent, engines
        fleet.release('create')
        stack.wait_for('CREATE_COMPLETE')
    raise AssertionError(f'In {TRIES} tries no other engine had a child.')


def test_a_nested_stack_outlives_the_engine_of_its_parent(lab: Lab) -> None:
    with lab.fleet(LIVENESS) as fleet:
        fleet.start_engines('e1', 'e2')
        before = lab.keystone.left_behind()
        stack, parent, children = held_apart(fleet)
        nested = stack.family[1]
        traversal = fleet.sql('SELECT current_traversal FROM stack WHERE id = %s', nested)
        victim = next(each for each in fleet.engines.values() if each.engine_id == parent)
        kept = {name for name, engine in children.items() if engine != parent}
        victim.program.kill()
        wait_until(lambda: fleet.members()[parent]['state'] == 'dead', SECONDS,
                   "The declaration of the parent's engine")

        end = time.monotonic() + OBSERVATION_SECONDS
        while time.monotonic() < end:
            assert stack.state == 'CREATE_IN_PROGRESS', stack.describe()
            assert fleet.sql('SELECT current_traversal FROM stack WHERE id = %s',
                             nested) == traversal
            time.sleep(1)
        fleet.release('create')
        stack.wait_for('CREATE_COMPLETE')
        runs = [run for run in fleet.runs if run.stack == nested]
        assert not [run for run in runs if run.handler.endswith('-cancel')]
        assert {run.name for run in runs if run.handler == 'create'} == set(children)
        for name in kept:
            assert sum(run.name == name and run.handler == 'create' for run in runs) == 1
        verdict.assert_at_rest(fleet, stack)
        stack.update(templates.with_a_file('b'), files=templates.files())
        stack.wait_for('UPDATE_COMPLETE')
        for number in range(int(stack.name.rpartition('-')[2])):
            other = Stack(fleet, f'{fleet.name}-{number}')
            other.delete()
            other.wait_for('gone')
        verdict.assert_serves(fleet, stack, before)
