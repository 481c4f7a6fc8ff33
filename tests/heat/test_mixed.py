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

"""The plug-in on some engines only: the others are unknown, and never robbed."""

import time

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import LIVENESS
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until

pytestmark = [pytest.mark.heat, pytest.mark.long, pytest.mark.timeout(900)]

OBSERVATION_SECONDS = 60.0
"""Twice as long as an engine that does not beat would live."""
SECONDS = 120.0
WIDTH = 9


def test_an_engine_without_the_plug_in_keeps_its_locks(lab: Lab) -> None:
    with lab.fleet(LIVENESS) as fleet:
        stock = fleet.start_engine('stock', lab.stock)
        with_it, _ = fleet.start_engines('e1', 'e2')
        before = lab.keystone.left_behind()
        fleet.create_stacks(1, templates.gated(WIDTH))
        held = fleet.wait_until_working_on(WIDTH)
        theirs = {work for work, engine in held.items() if engine == stock.engine_id}
        lost = {work for work, engine in held.items() if engine == with_it.engine_id}
        assert theirs, 'The queue gave the stock engine nothing.'
        assert lost, 'The queue gave the engine nothing that is killed.'
        with_it.program.kill()
        wait_until(lambda: with_it.engine_id not in fleet.working_on().values(), SECONDS,
                   'The takeover')

        end = time.monotonic() + OBSERVATION_SECONDS
        while time.monotonic() < end:
            assert {work for work, engine in fleet.working_on().items()
                    if engine == stock.engine_id} >= theirs
            assert stock.engine_id not in fleet.members()
            time.sleep(1)
        fleet.open_gate()
        fleet.wait_until_complete()
        creates = fleet.creates
        assert {creates[work] for work in theirs} == {1}
        assert {work for work, times in creates.items() if times > 1} <= lost
        stack = next(iter(theirs))[0]
        fleet.lab.ask('DELETE', f'stacks/{fleet.name}-0/{stack}')
        wait_until(lambda: fleet.sql('SELECT id FROM stack WHERE id = %s AND deleted_at IS NOT '
                                     'NULL', stack), SECONDS, 'The delete')
        verdict.assert_nothing_is_left(fleet, [stack], before)
