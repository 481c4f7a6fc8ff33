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

"""A stack past its timeout fails, though nobody works on it."""

from collections.abc import Callable

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import LIVENESS
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

TIMED_OUT_SECONDS = 60.0
NEVER = 3600


def test_a_stack_that_nobody_works_on_times_out(
    lab: Lab, figure: Callable[[str], None],
) -> None:
    # Only its timeout is to find it, not that its message is lost.
    with lab.fleet({**LIVENESS, 'lost_message_time': NEVER}) as fleet:
        fleet.start_engines('e1', 'e2')
        before = lab.keystone.left_behind()
        fleet.strike('taken', resource='only0', how='worker')
        stack = fleet.create('late', templates.single(), timeout_mins=1)
        wait_until(lambda: fleet.struck, TIMED_OUT_SECONDS, 'A strike')
        assert stack.state == 'CREATE_IN_PROGRESS'
        assert not fleet.working_on()

        # As if it had been asked for a minute ago.
        fleet.sql('UPDATE stack SET created_at = created_at - INTERVAL 60 SECOND WHERE id = %s',
                  stack.id)
        late = fleet.now
        stack.wait_for('CREATE_FAILED', TIMED_OUT_SECONDS)
        figure(f'timed out: CREATE_FAILED {(fleet.now - late).total_seconds():.1f} s after '
               f'the end of its time')
        assert 'Timed out' in stack.row['status_reason']
        verdict.assert_at_rest(fleet, stack)
        verdict.assert_serves(fleet, stack, before)


@pytest.mark.long
def test_a_locked_stack_whose_engines_were_all_away_times_out(lab: Lab) -> None:
    with lab.fleet(LIVENESS) as fleet:
        fleet.start_engines('e1', 'e2')
        before = lab.keystone.left_behind()
        fleet.hold('create', 'wide?')
        stack = fleet.create('late', templates.layered(), timeout_mins=1)
        fleet.wait_until_working_on(templates.WIDTH)
        for engine in fleet.engines.values():
            engine.program.kill()
        fleet.sql('UPDATE stack SET created_at = created_at - INTERVAL 60 SECOND WHERE id = %s',
                  stack.id)
        fleet.start_engine('e3')
        stack.wait_for('CREATE_FAILED', TIMED_OUT_SECONDS)
        assert 'Timed out' in stack.row['status_reason']
        wait_until(lambda: not fleet.working_on(), TIMED_OUT_SECONDS, 'The end of all locks')
        fleet.release('create')
        verdict.assert_serves(fleet, stack, before)
