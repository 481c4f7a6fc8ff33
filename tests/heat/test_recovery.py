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

"""An engine dies, or is frozen for too long: its work is finished, and it never comes back."""

import collections
from collections.abc import Callable

import pytest

from tests.bed import processes
from tests.heat.lab import templates
from tests.heat.lab.fleet import Engine, Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

ENABLED = {'enabled': 'true'}
DEATH_SECONDS = 90.0
"""Far beyond the bound of 37 s that the options promise."""


def assert_finished_once(fleet: Fleet, lost: set[tuple[str, str]]) -> None:
    """Every resource is there once, and only what the dead engine held was begun again."""
    rows = fleet.resources
    assert {row['status'] for row in rows if not row['replaced_by']} == {'COMPLETE'}
    assert not [row for row in rows if row['engine_id'] or row['status'] == 'IN_PROGRESS']
    kept = [(row['stack_id'], row['name']) for row in rows if not row['replaced_by']]
    assert len(kept) == len(set(kept))
    creates = fleet.creates
    assert set(creates) == set(kept)
    assert {work for work, count in creates.items() if count > 1} <= lost
    assert max(creates.values()) <= 2


def assert_all_lists_name(fleet: Fleet, *engines: Engine) -> None:
    """Heat's two commands and our own name the same engines as up."""
    alive = {engine.engine_id for engine in engines}

    def all_agree() -> bool:
        return all(alive == {engine for engine, status in services().items() if status == 'up'}
                   for services in (fleet.heat_services, fleet.openstack_services,
                                    fleet.liveness_services))

    # Heat writes the row of a new engine a moment after it has begun to work.
    wait_until(all_agree, 60, f'A list of {alive} by all three commands')


def test_the_work_of_a_killed_engine_is_finished(lab: Lab, figure: Callable[[str], None]) -> None:
    stacks, width = 10, 19
    with lab.fleet(ENABLED) as fleet:
        dead, survivor = fleet.start_engine('e1'), fleet.start_engine('e2')
        fleet.create_stacks(stacks, templates.gated(width))
        held = fleet.wait_until_working_on(stacks * width)
        lost = {work for work, engine_id in held.items() if engine_id == dead.engine_id}
        assert 0 < len(lost) < len(held), collections.Counter(held.values())

        dead.program.kill()
        killed = fleet.now
        fleet.open_gate()
        fleet.wait_until_complete()
        finished = fleet.now

        assert_finished_once(fleet, lost)
        assert_all_lists_name(fleet, survivor)
        member = fleet.members()[dead.engine_id]
        assert (member['state'], member['declared_by']) == ('dead', survivor.engine_id)
        twice = sum(count > 1 for count in fleet.creates.values())
        figure(f'killed mid-create: {stacks} stacks of {width + 1} resources, {len(lost)} of '
               f'{len(held)} locks held by the dead engine')
        figure(f'  death to declaration     {(member["declared_at"] - killed).total_seconds():6.1f}'
               f' s ({member["evidence"]})')
        figure(f'  death to CREATE_COMPLETE {(finished - killed).total_seconds():6.1f} s')
        figure(f'  handlers run twice       {twice:4}')


def test_an_engine_frozen_past_the_limit_writes_nothing_more(
    lab: Lab, figure: Callable[[str], None],
) -> None:
    stacks, width = 2, 10
    with lab.fleet(ENABLED) as fleet:
        frozen, other = fleet.start_engine('e1'), fleet.start_engine('e2')
        old_pid, old_id = frozen.pid, frozen.engine_id
        fleet.create_stacks(stacks, templates.gated(width))
        held = fleet.wait_until_working_on(stacks * width)
        lost = {work for work, engine_id in held.items() if engine_id == old_id}
        assert 0 < len(lost) < len(held), collections.Counter(held.values())
        fleet.sql('CREATE TABLE audit (id INT AUTO_INCREMENT PRIMARY KEY, engine_id VARCHAR(36))')
        for side in ('OLD', 'NEW'):
            fleet.sql(f'CREATE TRIGGER audit_{side} AFTER UPDATE ON resource FOR EACH ROW '
                      f'INSERT INTO audit (engine_id) VALUES ({side}.engine_id)')

        frozen.program.freeze()
        began = fleet.now
        wait_until(lambda: fleet.members()[old_id]['state'] == 'dead',
                   DEATH_SECONDS, 'The declaration of the frozen engine')
        wait_until(lambda: old_id not in fleet.working_on().values(),
                   DEATH_SECONDS, 'The takeover of its locks')
        taken = fleet.sql('SELECT COALESCE(MAX(id), 0) AS id FROM audit')[0]['id']
        member = fleet.members()[old_id]
        # The worst moment to wake: each create that it was waiting for can be completed.
        fleet.open_gate()
        frozen.program.thaw()

        fleet.wait_until_complete()
        wait_until(lambda: frozen.engine_id != old_id, DEATH_SECONDS,
                   'A new engine in place of the frozen one')
        wait_until(lambda: frozen.engine_id in fleet.members(), DEATH_SECONDS,
                   'The row of the new engine')
        assert not processes.is_alive(old_pid)
        assert not fleet.sql('SELECT id FROM audit WHERE engine_id = %s AND id > %s',
                             old_id, taken)
        after = fleet.members()[old_id]
        assert after == member
        assert_finished_once(fleet, lost)
        completed = {run.row: run for run in fleet.runs if run.handler == 'complete'}
        for row in fleet.resources:
            if (row['stack_id'], row['name']) in lost and not row['replaced_by']:
                assert completed[row['id']].pid != old_pid
                assert completed[row['id']].physical_id == row['physical_id']
        assert_all_lists_name(fleet, frozen, other)
        figure(f'frozen (SIGSTOP): declared after '
               f'{(member["declared_at"] - began).total_seconds():.1f} s ({member["evidence"]})')
