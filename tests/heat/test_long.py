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

"""Ten minutes of mixed work and of engines that end in every way; ``LONG=1`` runs it.

At the end nobody is disturbed any longer, and all must come right.
"""

import collections
import os
import random
import time
from collections.abc import Callable, Collection, Iterator
from concurrent import futures

import pytest

from tests.heat.lab import templates, verdict
from tests.heat.lab.cell import BUSY, GRACEFUL_SECONDS
from tests.heat.lab.fleet import Engine, Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import GONE, Stack

pytestmark = [pytest.mark.heat, pytest.mark.long, pytest.mark.timeout(3600)]

STACKS = 50
AT_FIRST = 40
"""How many of them are there before anybody is disturbed; the others are created meanwhile."""

ENGINES = ('e1', 'e2', 'e3')
DISTURBED_SECONDS = float(os.environ.get('LONG_SECONDS', '600'))
EACH_SECONDS = 20.0
SETTLE_SECONDS = 600.0
MAX_TAKEOVERS = 20
SEED = int(os.environ.get('SEED', '1'))
IN_FLIGHT = 12
"""How many stacks are in progress at a time: two cores do not bear more."""

SHARE_OF_NEW = 0.2
"""Of what is asked for, as long as not all stacks are there."""

HELD_SECONDS = 5.0
REST_SECONDS = 60.0
FROZEN_SECONDS = 45.0
"""Longer than an engine may be silent."""


class Chaos:
    """What disturbs the fleet, from a seed."""

    def __init__(self, fleet: Fleet, dice: random.Random) -> None:
        self._fleet = fleet
        self._dice = dice
        self._numbers = dict.fromkeys(ENGINES, 1)
        self._current = {name: fleet.engines[name] for name in ENGINES}
        self._frozen = ''
        self._thaw_at = 0.0
        self.done: collections.Counter[str] = collections.Counter()

    def strike(self) -> None:
        """Do one thing to one engine; one that is stopped goes on when its time has come."""
        if self._frozen and time.monotonic() > self._thaw_at:
            self.settle()
        host = self._dice.choice([name for name in ENGINES if name != self._frozen])
        ways = ['machine', 'worker', 'term', 'hup', *([] if self._frozen else ['freeze'])]
        what = self._dice.choice(ways)
        self.done[what] += 1
        engine = self._current[host]
        if what in {'machine', 'term'}:
            engine.program.kill() if what == 'machine' else self._terminate(engine)
            self._numbers[host] += 1
            self._current[host] = self._fleet.start_engine(
                f'{host}-{self._numbers[host]}', host=host)
        elif what == 'worker':
            # One that went on too late has been ended by the kernel a moment ago.
            if verdict.is_alive(engine.pid):
                engine.kill_worker()
        elif what == 'hup':
            engine.reload()
        else:
            engine.program.freeze()
            self._frozen, self._thaw_at = host, time.monotonic() + FROZEN_SECONDS

    def settle(self) -> None:
        """Let the engine go on that is stopped."""
        if self._frozen:
            self._current[self._frozen].program.thaw()
            self._frozen = ''

    @staticmethod
    def _terminate(engine: Engine) -> None:
        engine.terminate()
        wait_until(lambda: not engine.program.running, 60, 'The end of an engine')


class Work:
    """Stacks that go from action to action, as users would have them go."""

    def __init__(self, fleet: Fleet, dice: random.Random) -> None:
        self._fleet = fleet
        self._dice = dice
        self._new = iter(range(STACKS))
        self.stacks: list[Stack] = []
        self.asked: collections.Counter[str] = collections.Counter()
        self._pool = futures.ThreadPoolExecutor(IN_FLIGHT)
        self._asked: list[futures.Future[None]] = []
        self._open: dict[Stack, futures.Future[None]] = {}
        self._kept: dict[Stack, str] = {}

    @property
    def refused(self) -> int:
        """How many requests heat-api has not answered well; they may have been heard."""
        return sum(request.done() and request.exception() is not None for request in self._asked)

    def begin(self) -> None:
        """Create the first ones, a few at a time."""
        states: list[str] = []
        while len(states) < AT_FIRST or set(states) != {'CREATE_COMPLETE'}:
            found = self._states()
            for _ in range(min(self._free(found), AT_FIRST - len(self.stacks))):
                self._ask(*self._creation(next(self._new)))
            states = [state for _, state in found]
            time.sleep(1)

    def finish(self) -> None:
        """Wait for all answers."""
        self._pool.shutdown()

    def go_on(self) -> None:
        """Ask for as much as may be in flight.

        An engine that is stopped gets its share of the requests; these wait for a minute.
        """
        states = self._states()
        idle = [(stack, state) for stack, state in states
                if (state.endswith('_COMPLETE') and state != 'DELETE_COMPLETE')
                or state == 'SNAPSHOT_FAILED']
        self._dice.shuffle(idle)
        for _ in range(self._free(states)):
            if self._dice.random() < SHARE_OF_NEW and (
                    number := next(self._new, None)) is not None:
                self._ask(*self._creation(number))
            elif idle:
                stack, state = idle.pop()
                self._ask(stack, *self._next(stack, state))

    def _states(self) -> list[tuple[Stack, str]]:
        """Return those of the stacks whose last request has been answered."""
        answered = [stack for stack in self.stacks if self._open[stack].done()]
        states = self._fleet.states()
        return [(stack, states.get(stack.name, '')) for stack in answered]

    def _free(self, states: Collection[tuple[Stack, str]]) -> int:
        busy = sum(state.endswith('_IN_PROGRESS') for _, state in states)
        return IN_FLIGHT - busy - (len(self.stacks) - len(states))

    def _ask(self, stack: Stack, action: str, request: Callable[[], None]) -> None:
        self.asked[action] += 1
        self._open[stack] = self._pool.submit(request)
        self._asked.append(self._open[stack])

    def _creation(self, number: int) -> tuple[Stack, str, Callable[[], None]]:
        stack = Stack(self._fleet, f'{self._fleet.name}-{number}')
        self.stacks.append(stack)
        return stack, 'create', lambda: stack.create(templates.layered(seconds=HELD_SECONDS))

    def _next(self, stack: Stack, state: str) -> tuple[str, Callable[[], None]]:
        if state in {'SUSPEND_COMPLETE', 'SNAPSHOT_FAILED'}:
            action = 'resume' if state == 'SUSPEND_COMPLETE' else 'snapshot'
        else:
            action = self._dice.choice([
                'update', 'replace', 'rollback', 'suspend', 'check', 'snapshot', 'delete',
                *(['restore'] if stack in self._kept else [])])
        mark = str(self._dice.random())
        return action, {
            'resume': stack.resume, 'suspend': stack.suspend, 'check': stack.check,
            'delete': stack.delete,
            'snapshot': lambda: self._keep(stack),
            'restore': lambda: stack.restore(self._kept.pop(stack)),
            'update': lambda: stack.update(templates.layered(mark, seconds=HELD_SECONDS)),
            'replace': lambda: stack.update(
                templates.layered(identity=mark, seconds=HELD_SECONDS)),
            'rollback': lambda: stack.update(
                templates.layered(mark, last='fail', seconds=HELD_SECONDS),
                disable_rollback=False),
        }[action]

    def _keep(self, stack: Stack) -> None:
        self._kept[stack] = stack.snapshot()


def test_ten_bad_minutes(lab: Lab, figure: Callable[[str], None]) -> None:
    dice = random.Random(SEED)
    with lab.fleet({**BUSY, 'max_takeovers': MAX_TAKEOVERS},
                   options={'graceful_shutdown_timeout': GRACEFUL_SECONDS}) as fleet:
        fleet.start_engines(*ENGINES)
        before = lab.keystone.left_behind()
        chaos, work = Chaos(fleet, dice), Work(fleet, dice)
        work.begin()
        began = time.monotonic()
        end, strike = began + DISTURBED_SECONDS, began + EACH_SECONDS
        while time.monotonic() < end:
            work.go_on()
            if time.monotonic() >= strike:
                strike += EACH_SECONDS
                chaos.strike()
            time.sleep(1)
        chaos.settle()
        work.finish()
        calm = time.monotonic()
        made = [stack for stack in work.stacks if stack.name in fleet.states()]
        report(figure, work, chaos, made)
        wait_until(lambda: not [state for state in fleet.states().values()
                                if state.endswith('_IN_PROGRESS')],
                   SETTLE_SECONDS, 'The end of all that was asked for')
        figure(f'  all at rest {time.monotonic() - calm:.0f} s after the last disturbance')
        ends = collections.Counter(fleet.states().values())
        figure(f'  states: {dict(ends)}')
        # A snapshot whose traversal was never written has to be taken again.
        assert not [state for state in ends
                    if not state.endswith('_COMPLETE')
                    and state not in {'SNAPSHOT_FAILED', GONE}], ends
        for stack in made:
            verdict.assert_at_rest(fleet, stack)
        assert_serve(fleet, made, before, work.refused, figure)


def report(figure: Callable[[str], None], work: Work, chaos: Chaos, made: list[Stack]) -> None:
    figure(f'{DISTURBED_SECONDS:.0f} s of disturbance, seed {SEED}: {len(made)} stacks, '
           f'asked for {dict(work.asked)}, {work.refused} requests not taken; '
           f'engines: {dict(chaos.done)}')


def assert_serve(fleet: Fleet, stacks: list[Stack], before: set[tuple[str, str]], refused: int,
                 figure: Callable[[str], None]) -> None:
    """All that are there take a normal update and a delete, a few at a time, and leave nothing.

    But an engine that dies while it is asked for a stack may have made its trust in Keystone, and
    no row of the stack: of that nobody knows.
    """
    there = [stack for stack in stacks if stack.state != GONE]
    for stack in there:
        if stack.state == 'SUSPEND_COMPLETE':
            stack.resume()
            stack.wait_for('RESUME_COMPLETE')
    for few in chunks(there):
        for stack in few:
            stack.update(templates.layered('served'))
        for stack in few:
            stack.wait_for('UPDATE_COMPLETE')
    for few in chunks(there):
        for stack in few:
            stack.delete()
        for stack in few:
            stack.wait_for('gone')
    def orphans() -> set[tuple[str, str]]:
        return fleet.lab.keystone.left_behind() - before

    wait_until(lambda: len(orphans()) <= refused, REST_SECONDS, 'The end of most trusts')
    figure(f'  left in Keystone by requests not taken: {sorted(kind for kind, _ in orphans())}')
    verdict.assert_nothing_is_left(fleet, [stack.id for stack in stacks], before | orphans())
    assert not fleet.sql('SELECT entity_id FROM sync_point')
    assert not fleet.sql('SELECT id FROM resource')
    wait_until(lambda: {engine for engine, status in fleet.heat_services().items()
                        if status == 'up'} == set(fleet.heat_services()), 180,
               'A list of services with the living only')


def chunks(stacks: list[Stack]) -> Iterator[list[Stack]]:
    for start in range(0, len(stacks), IN_FLIGHT):
        yield stacks[start:start + IN_FLIGHT]
