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

"""Each engine is restarted in turn, in an orderly way, with stacks in flight."""

from collections.abc import Callable

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import BUSY, GRACEFUL_SECONDS
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until

pytestmark = [pytest.mark.heat, pytest.mark.long, pytest.mark.timeout(900)]

STACKS = 6
CREATE_SECONDS = 3 * GRACEFUL_SECONDS
"""Longer than an engine waits for it."""
RESTART_SECONDS = 120.0


def terminate(fleet: Fleet, name: str) -> None:
    """Stop one engine, as a service manager does, and start it again."""
    engine = fleet.engines[name]
    engine.terminate()
    wait_until(lambda: not engine.program.running, RESTART_SECONDS, f'The end of {name}')
    fleet.start_engine(f'{name}-again', host=name)


def cut_short(fleet: Fleet, name: str) -> None:
    """Stop one engine, as a supervisor does that waits for less than it needs; start it again."""
    engine = fleet.engines[name]
    engine_id = engine.engine_id
    engine.terminate()
    wait_until(lambda: fleet.members()[engine_id]['state'] == 'draining', RESTART_SECONDS,
               f'The drain of {name}')
    engine.program.kill()
    fleet.start_engine(f'{name}-again', host=name)


def reload(fleet: Fleet, name: str) -> None:
    """Have one engine replace its worker."""
    engine = fleet.engines[name]
    old = engine.pid
    engine.reload()
    wait_until(lambda: engine.pid != old and not verdict.is_alive(old), RESTART_SECONDS,
               f'Another worker of {name}')


@pytest.mark.parametrize('restart', [terminate, cut_short, reload])
def test_a_rolling_restart_loses_nothing(
    lab: Lab, figure: Callable[[str], None], restart: Callable[[Fleet, str], None],
) -> None:
    with lab.fleet(BUSY, options={'graceful_shutdown_timeout': GRACEFUL_SECONDS}) as fleet:
        names = ('e1', 'e2', 'e3')
        fleet.start_engines(*names)
        before = lab.keystone.left_behind()
        began = fleet.now
        stacks = fleet.create_stacks(STACKS, templates.layered(seconds=CREATE_SECONDS))
        wait_until(fleet.working_on, RESTART_SECONDS, 'A lock')
        for name in names:
            restart(fleet, name)
        for stack in stacks:
            stack.wait_for('CREATE_COMPLETE')
        figure(f'rolling restart ({restart.__name__}) of {len(names)} engines, {STACKS} stacks: '
               f'{(fleet.now - began).total_seconds():.1f} s, '
               f'{sum(times > 1 for times in fleet.creates.values())} creates done twice')
        for stack in stacks:
            verdict.assert_at_rest(fleet, stack)
            stack.delete()
        for stack in stacks:
            stack.wait_for('gone')
        verdict.assert_nothing_is_left(fleet, [stack.id for stack in stacks], before)
