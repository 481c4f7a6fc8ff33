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

"""An operator uses Heat's own commands while work is taken over."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import LIVENESS
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import Stack

pytestmark = [pytest.mark.heat, pytest.mark.long, pytest.mark.timeout(900)]

SECONDS = 120.0


@contextlib.contextmanager
def again_and_again(fleet: Fleet, *commands: tuple[str, ...]) -> Iterator[None]:
    """Run some commands of heat-manage every second."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(1):
            for words in commands:
                fleet.heat_manage(*words)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lose_an_engine(fleet: Fleet, pattern: str, count: int) -> Stack:
    """Return a stack with so many resources locked when the engine died that held most of them."""
    fleet.start_engines('e1', 'e2')
    fleet.hold('create', pattern)
    stack = fleet.create('lost', templates.layered())
    held = fleet.wait_until_working_on(count)
    engine_id = max(held.values(), key=list(held.values()).count)
    next(engine for engine in fleet.engines.values()
         if engine.engine_id == engine_id).program.kill()
    return stack


def test_cleaning_and_purging_disturb_no_takeover(lab: Lab) -> None:
    with lab.fleet(LIVENESS) as fleet:
        before = lab.keystone.left_behind()
        stack = lose_an_engine(fleet, 'wide?', templates.WIDTH)
        with again_and_again(fleet, ('service', 'clean'), ('purge_deleted', '0')):
            fleet.release('create')
            stack.wait_for('CREATE_COMPLETE')
        verdict.assert_at_rest(fleet, stack)
        assert max(fleet.creates.values()) <= 2
        alive = {engine.engine_id for engine in fleet.engines.values() if engine.program.running}
        wait_until(lambda: {engine for engine, status in fleet.liveness_services().items()
                            if status == 'up'} == alive, SECONDS, 'A list of the living')
        stack.update(templates.layered('b'))
        stack.wait_for('UPDATE_COMPLETE')
        verdict.assert_serves(fleet, stack, before)


def test_a_reset_stack_is_left_to_the_operator(lab: Lab) -> None:
    with lab.fleet(LIVENESS) as fleet:
        before = lab.keystone.left_behind()
        # One without a physical id.  Heat replaces what it was at work on when the stack is reset,
        # and cannot replace a replacement.
        stack = lose_an_engine(fleet, 'wide1', 1)
        fleet.heat_manage('reset_stack_status', stack.id, answer='y\n')
        fleet.release('create')
        # The orders that were already out find a stack that is no longer in progress.
        wait_until(lambda: not fleet.sql(
            "SELECT id FROM liveness_takeover WHERE status <> 'done'"), SECONDS,
            'The end of all orders')
        assert stack.state in {'CREATE_FAILED', 'CREATE_COMPLETE'}
        stack.update(templates.layered('b'))
        stack.wait_for('UPDATE_COMPLETE')
        verdict.assert_at_rest(fleet, stack)
        verdict.assert_serves(fleet, stack, before)
