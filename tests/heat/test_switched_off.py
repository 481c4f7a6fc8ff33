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

"""Installed, but not switched on, or not ready: Heat is as it was."""

import pytest

from tests.heat.lab import templates
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

JOIN_SECONDS = 120.0


def create_a_stack(fleet: Fleet) -> None:
    fleet.open_gate()
    fleet.create_stacks(1, templates.gated(3))
    fleet.wait_until_complete()


def test_disabled_it_changes_nothing(lab: Lab) -> None:
    with lab.fleet({}) as fleet:
        # Here the package is installed and its tables are there; only the option is not set.
        engine = fleet.start_engine('e1')
        create_a_stack(fleet)
        threads = engine.threads()
        assert 'cotyledon' in threads
        assert 'heat_liveness' not in threads
        for table in ('service', 'lock', 'takeover'):
            assert not fleet.sql(f'SELECT * FROM liveness_{table}'), table
        assert not [line for line in engine.errors if 'liveness' in line]


def test_without_its_tables_heat_works_and_one_error_names_the_command(lab: Lab) -> None:
    with lab.fleet({'enabled': 'true'}, synced=False) as fleet:
        engine = fleet.start_engine('e1')
        create_a_stack(fleet)

        fleet.liveness_manage('db', 'sync')
        wait_until(lambda: engine.engine_id in fleet.members(), JOIN_SECONDS,
                   'A later join of the engine')
        # So it had tried again, and had not complained again.
        complaints = [line for line in engine.errors if 'liveness' in line]
        assert len(complaints) == 1, complaints
        assert 'heat-liveness-manage db sync' in complaints[0]
