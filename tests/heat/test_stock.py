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

"""What this package is for: Heat without it."""

import collections
import time
from collections.abc import Callable

import pytest

from tests.heat.lab import templates
from tests.heat.lab.heat import Lab

pytestmark = [pytest.mark.heat, pytest.mark.long, pytest.mark.timeout(900)]

OBSERVATION_SECONDS = 45.0
WIDTH = 7


def test_the_work_of_a_killed_engine_hangs(lab: Lab, figure: Callable[[str], None]) -> None:
    with lab.fleet() as fleet:
        dead, _ = fleet.start_engine('e1'), fleet.start_engine('e2')
        fleet.create_stacks(2, templates.gated(WIDTH))
        held = fleet.wait_until_working_on(2 * WIDTH)
        lost = {work for work, engine_id in held.items() if engine_id == dead.engine_id}
        assert 0 < len(lost) < len(held), collections.Counter(held.values())

        dead.program.kill()
        fleet.open_gate()
        killed = time.monotonic()
        while time.monotonic() < killed + OBSERVATION_SECONDS:
            assert ('CREATE', 'IN_PROGRESS') in fleet.stacks
            time.sleep(1)

        assert set(fleet.working_on()) == lost
        assert set(fleet.working_on().values()) == {dead.engine_id}
        figure(f'stock Heat: {len(lost)} of {len(held)} resources still locked by an engine '
               f'that was killed {OBSERVATION_SECONDS:g} s ago; servers up in '
               f'{lab.start_seconds:.0f} s')
