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

"""Heat without the plug-in, and recovery from outside: by an agent, and in one go."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.fleet import Engine, Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.place import Program
from tests.heat.lab.stacks import GONE, Stack

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

LIVENESS = {'work': 'heat', 'observed_down_time': 12, 'lost_message_time': 8}
BEAT_SECONDS = 2
"""How often the engines write into Heat's own service table; in production once a minute."""
JUDGE_SECONDS = 120.0
LOCK_SECONDS = 120.0


@pytest.fixture
def fleet(lab: Lab) -> Iterator[Fleet]:
    """Two engines in whose environment the package is not even installed."""
    with lab.fleet(LIVENESS, options={'periodic_interval': BEAT_SECONDS}) as found:
        for name in ('e1', 'e2'):
            found.start_engine(name, lab.stock)
        yield found


def start_agent(lab: Lab, fleet: Fleet) -> Program:
    return lab.place.start(f'{fleet.name}-agent', [
        *lab.liveness.command('heat-liveness-agent'), '--config-file', fleet._configuration])


def hold(fleet: Fleet, handler: str, stack: Stack) -> None:
    """Wait until the resources in the middle of a stack are held in a handler."""
    wait_until(lambda: sum(stack_id == stack.id for stack_id, _ in fleet.working_on()) == 3,
               LOCK_SECONDS, f'The locks of {handler} in {stack.name}')


def kill_who_holds(fleet: Fleet, *stacks: Stack) -> Engine:
    """Kill the engine that holds most in these stacks."""
    held = [engine_id for (stack_id, _), engine_id in fleet.working_on().items()
            if stack_id in {stack.id for stack in stacks}]
    victim = max(fleet.engines.values(), key=lambda engine: held.count(engine.engine_id))
    victim.program.kill()
    return victim


def test_an_agent_recovers_an_update_and_a_delete_to_their_ends(
        lab: Lab, fleet: Fleet, figure: Callable[[str], None]) -> None:
    updated, deleted = (fleet.create(name, templates.layered()) for name in ('u', 'd'))
    for stack in (updated, deleted):
        stack.wait_for('CREATE_COMPLETE')
    agent = start_agent(lab, fleet)
    fleet.hold('update', 'wide?')
    fleet.hold('delete', 'wide?')
    updated.update(templates.layered('b'))
    deleted.delete()
    for handler, stack in (('update', updated), ('delete', deleted)):
        hold(fleet, handler, stack)
    before = {row['id']: row['physical_id'] for row in updated.resources}

    victim = kill_who_holds(fleet, updated, deleted)
    killed = fleet.now
    fleet.release('update')
    fleet.release('delete')
    wait_until(lambda: fleet.members().get(victim.engine_id, {}).get('state') == 'dead',
               JUDGE_SECONDS, 'The verdict on the killed engine')
    declared = fleet.now
    updated.wait_for('UPDATE_COMPLETE')
    deleted.wait_for(GONE)
    figure(f'agent beside an unmodified Heat: declared after '
           f'{(declared - killed).total_seconds():.1f} s, complete after '
           f'{(fleet.now - killed).total_seconds():.1f} s')
    assert {row['id']: row['physical_id'] for row in updated.resources} == before
    assert fleet.members()[victim.engine_id]['evidence'] == 'observed'
    assert agent.running
    survivor, = (engine for engine in fleet.engines.values() if engine is not victim)
    assert survivor.engine_id not in fleet.members()


def test_in_one_go_it_says_what_it_would_do_and_then_does_it(fleet: Fleet) -> None:
    stack = fleet.create('c', templates.gated(6))
    held = fleet.wait_until_working_on(6)
    victim = next(engine for engine in fleet.engines.values()
                  if engine.engine_id in held.values())
    lost = {name for (_, name), engine_id in held.items() if engine_id == victim.engine_id}
    victim.program.kill()
    fleet.open_gate()

    told = fleet.liveness_manage('recover', '--once', '--dry-run')
    assert victim.engine_id in told
    assert victim.engine_id in fleet.working_on().values()
    assert victim.engine_id not in fleet.members()

    told = fleet.liveness_manage('recover', '--once')
    assert f'Engine {victim.engine_id} was declared dead' in told
    left = {name for (_, name), engine_id in fleet.working_on().items()
            if engine_id == victim.engine_id}
    # Those that have their physical id from the beginning may exist half-made.
    assert left == {name for name in lost if int(name.removeprefix('wide')) % 2 == 0}
    for name in left:
        assert f'{name}: leave alone' in told
    for name in lost - left:
        assert f'{name}: create again' in told
    assert stack.state == ('CREATE_IN_PROGRESS' if left else 'CREATE_COMPLETE')
    assert {row['state'] for row in fleet.members().values()} == {'dead', 'left'}


@pytest.mark.long
def test_an_engine_that_was_only_stopped_gets_its_name_back(lab: Lab, fleet: Fleet) -> None:
    stack = fleet.create('u', templates.layered())
    stack.wait_for('CREATE_COMPLETE')
    start_agent(lab, fleet)
    fleet.hold('update', 'wide?')
    stack.update(templates.layered('b'))
    hold(fleet, 'update', stack)
    stopped = fleet.engines[max(fleet.engines, key=lambda name: list(
        fleet.working_on().values()).count(fleet.engines[name].engine_id))]
    stopped.program.freeze()
    wait_until(lambda: fleet.members().get(stopped.engine_id, {}).get('state') == 'dead',
               JUDGE_SECONDS, 'The verdict on the stopped engine')
    fleet.release('update')
    stopped.program.thaw()
    wait_until(lambda: stopped.engine_id not in fleet.members(), JUDGE_SECONDS,
               'The withdrawal of the verdict')
    stack.wait_for('UPDATE_COMPLETE')
    verdict.assert_at_rest(fleet, stack)
    stack.update(templates.layered('c'))
    stack.wait_for('UPDATE_COMPLETE')


@pytest.mark.long
def test_an_engine_that_beats_is_never_judged(lab: Lab, fleet: Fleet) -> None:
    start_agent(lab, fleet)
    fleet.hold('create', 'wide?')
    stack = fleet.create('c', templates.layered())
    hold(fleet, 'create', stack)
    until = time.monotonic() + 3 * float(LIVENESS['observed_down_time'])  # type: ignore[arg-type]
    while time.monotonic() < until:
        assert not {engine.engine_id for engine in fleet.engines.values()} & set(fleet.members())
        time.sleep(1)
    fleet.release('create')
    stack.wait_for('CREATE_COMPLETE')
    assert max(fleet.creates.values()) == 1
