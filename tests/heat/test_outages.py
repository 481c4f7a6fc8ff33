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

"""The database is away for longer than any limit: nobody may die of it."""

import time
from collections.abc import Callable

import pytest

from tests.heat.lab import templates
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

STACKS, WIDTH = 2, 10
FROZEN_SECONDS, DEAD_SECONDS = 120.0, 25.0
BEATS = 10
"""So many beats last longer than it would take to declare somebody dead."""


def start_work(fleet: Fleet) -> None:
    """Have two engines create what waits at the gate."""
    for name in ('e1', 'e2'):
        fleet.start_engine(name)
    fleet.create_stacks(STACKS, templates.gated(WIDTH))
    fleet.wait_until_working_on(STACKS * WIDTH)


def assert_nobody_was_robbed(fleet: Fleet) -> None:
    """All engines that ever were are still there, and nothing was done twice."""
    everyone = {engine.engine_id for engine in fleet.engines.values()}
    wait_until(lambda: everyone <= set(fleet.members()), 60, 'A row of each engine')
    counts = {engine: member['report_count'] for engine, member in fleet.members().items()}

    def lived_on() -> bool:
        return all(member['report_count'] >= counts[engine] + BEATS
                   for engine, member in fleet.members().items())

    wait_until(lived_on, 120, f'{BEATS} more beats of each engine')
    assert {engine: member['state'] for engine, member in fleet.members().items()} == (
        dict.fromkeys(everyone, 'up'))
    assert [len(engine.workers) for engine in fleet.engines.values()] == [1, 1, 1]
    assert set(fleet.creates.values()) == {1}
    assert not [row for row in fleet.resources if row['replaces'] or row['status'] != 'COMPLETE']


@pytest.mark.long
def test_a_frozen_database_costs_nobody(lab: Lab, figure: Callable[[str], None]) -> None:
    with lab.fleet({'enabled': 'true'}) as fleet:
        start_work(fleet)
        lab.mariadb.freeze()
        try:
            thaw_at = time.monotonic() + FROZEN_SECONDS
            fleet.start_engine('e3')
            # Now the engines have to write that they are done, and to wait for it.
            fleet.open_gate()
            time.sleep(max(0.0, thaw_at - time.monotonic()))
        finally:
            lab.mariadb.heal()
        healed = time.monotonic()
        fleet.wait_until_complete()
        figure(f'database frozen for {FROZEN_SECONDS:g} s: complete '
               f'{time.monotonic() - healed:.1f} s after its end')
        assert_nobody_was_robbed(fleet)


def test_a_database_that_is_restarted_costs_nobody(
    lab: Lab, figure: Callable[[str], None],
) -> None:
    with lab.fleet({'enabled': 'true'}) as fleet:
        start_work(fleet)
        lab.mariadb.kill()
        try:
            start_at = time.monotonic() + DEAD_SECONDS
            fleet.start_engine('e3')
            time.sleep(max(0.0, start_at - time.monotonic()))
        finally:
            lab.mariadb.heal()
        healed = time.monotonic()
        # Not sooner: an error of the database amid these writes is a failure in Heat itself.
        fleet.open_gate()
        fleet.wait_until_complete()
        figure(f'database dead for {DEAD_SECONDS:g} s: complete '
               f'{time.monotonic() - healed:.1f} s after its end')
        assert_nobody_was_robbed(fleet)
