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

"""Work that ends whoever does it: it takes down a few engines, and no more."""

from collections.abc import Callable

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import LIVENESS
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.stacks import Stack

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

MAX_TAKEOVERS = 3
FAILED_SECONDS = 180.0


@pytest.mark.parametrize('locked', [
    pytest.param(True, id='locked'),
    pytest.param(False, id='not-yet-locked', marks=pytest.mark.long)])
def test_poison_takes_down_few_engines(
    lab: Lab, figure: Callable[[str], None], *, locked: bool,
) -> None:
    with lab.fleet({**LIVENESS, 'max_takeovers': MAX_TAKEOVERS}) as fleet:
        fleet.start_engines('e1', 'e2')
        before = lab.keystone.left_behind()
        if locked:
            fleet.poison('killer')
        else:
            fleet.strike('taken', resource='killer', is_update=True, how='worker', keep=True)
        began = fleet.now
        stack = fleet.create('poison', templates.poisoned())
        stack.wait_for('CREATE_FAILED', FAILED_SECONDS)
        seconds = (fleet.now - began).total_seconds()

        deaths = count_deaths(fleet)
        figure(f'poison {"in its lock" if locked else "before its lock"}: {deaths} engines dead, '
               f'CREATE_FAILED after {seconds:.1f} s: {stack.row["status_reason"]}')
        assert 0 < deaths <= MAX_TAKEOVERS
        assert 'killer' in stack.row['status_reason']
        # Each death before the last has it replaced.
        assert {(row['status'], row['engine_id']) for row in stack.resources
                if row['name'] == 'killer'} == {('FAILED', None)}
        # What was beside it is not quarantined with it.
        assert {row['status'] for row in stack.resources if row['name'] != 'killer'} == {
            'COMPLETE'}
        assert_works(fleet, stack, before)
        assert count_deaths(fleet) == deaths


def count_deaths(fleet: Fleet) -> int:
    """Return how many workers have ended."""
    return sum(not verdict.is_alive(pid) for engine in fleet.engines.values()
               for pid, _ in engine.workers)


def assert_works(fleet: Fleet, stack: Stack, before: set[tuple[str, str]]) -> None:
    """A new stack is made, and both can be deleted."""
    other = fleet.create('other', templates.layered())
    other.wait_for('CREATE_COMPLETE')
    for each in (stack, other):
        each.delete()
    for each in (stack, other):
        each.wait_for('gone')
    verdict.assert_nothing_is_left(fleet, [stack.id, other.id], before)
