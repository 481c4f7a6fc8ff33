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

"""One cell of the table: an action, the window in which an engine ends, and how it ends."""

import dataclasses
import datetime
import functools
import time
from collections.abc import Mapping
from concurrent import futures

from tests.heat.lab import verdict
from tests.heat.lab.actions import ACTIONS, Action
from tests.heat.lab.fleet import Engine, Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import GONE, Stack, unheard

LIVENESS = {'enabled': 'true', 'lost_message_time': 8, 'sweep_interval': 2}
BUSY = {**LIVENESS, 'lost_message_time': 20}
"""Where many stacks begin or end at a time, and wait for Keystone with nothing moving."""

GRACEFUL_SECONDS = 5
"""How long an engine waits for its tasks when it is asked to end."""

STRIKE_SECONDS = 120.0
DEATH_SECONDS = 90.0
RECOVERY_SECONDS = 180.0

LOCKED = 'locked'
WINDOWS = {'begun': 'W0', 'stored': 'W0', 'pointed': 'W0', 'leaf': 'W0', 'taken': 'W1',
           LOCKED: 'W2', 'done': 'W3', 'broken': 'W3', 'ready': 'W4', 'joined': 'W4',
           'marked': 'W5', 'failed': 'W5'}
"""Where an engine ends, as the plug-in names it that strikes there, and what that is called."""

OF_THE_STACK = ('begun', 'stored', 'pointed', 'broken', 'joined', 'marked', 'failed')
BEFORE_THE_ANSWER = ('begun', 'stored', 'pointed', 'leaf')
"""Windows in which the engine may end that has still to answer the user."""

# The traversal of a snapshot is its id: there can be no other, so it has to be taken again.
ENDS = {('snapshot', window): 'SNAPSHOT_FAILED' for window in ('stored', 'pointed')}

NTH = {'pointed': 3, 'leaf': 2}

WAYS = {
    'machine': 'all its processes are killed',
    'worker': 'its worker is killed, and its master starts another',
    'term': 'it is asked to end, and waits for its tasks as long as it may',
    'hup': 'it is asked to replace its worker, which waits as long as it may',
    'freeze': 'it is stopped, and goes on when it has been declared dead',
    'all': 'all engines are killed, and another one is started',
}


@dataclasses.dataclass(frozen=True)
class Calm:
    """What an action needs if nobody disturbs it."""

    seconds: float
    runs: Mapping[tuple[str, str], int]


class Cell:
    """A cell, and the run of it; what it measured is in ``figures``, whatever comes of it."""

    calm: dict[str, Calm] = {}  # noqa: RUF012 - one for all: an action is measured once

    def __init__(self, lab: Lab, action: str, window: str, way: str) -> None:
        self._lab = lab
        self._action: Action = ACTIONS[action]
        self._end_state = ENDS.get((action, window), self._action.end)
        self._window = window
        self._way = way
        self.figures: dict[str, object] = {
            'action': action, 'window': f'{WINDOWS[window]} {window}', 'way': way,
            'declared s': '-', 'complete s': '-', 'undisturbed s': '-', 'twice': '-', 'left': '-'}

    def run(self) -> None:
        """Have the engine end, and what it did be finished as if it had not."""
        with self._lab.fleet(LIVENESS, options={
                'graceful_shutdown_timeout': GRACEFUL_SECONDS}) as fleet:
            fleet.start_engines('e1', 'e2')
            calm, struck = (Stack(fleet, f'{fleet.name}-{name}') for name in ('calm', 'struck'))
            before = self._lab.keystone.left_behind()
            stacks = [struck] if self._action.name in self.calm else [struck, calm]
            with futures.ThreadPoolExecutor(len(stacks)) as pool:
                list(pool.map(functools.partial(self._action.prepare, fleet), stacks))
            if calm in stacks:
                self._run_calm(fleet, calm)
            self.figures['undisturbed s'] = self.calm[self._action.name].seconds
            self._action.stage(fleet, struck)
            began = fleet.now
            victim, died = self._strike(fleet, struck)
            families = [each for stack in stacks for each in stack.family]
            self._revive(fleet, victim)
            struck.wait_for(self._end_state, RECOVERY_SECONDS)
            self.figures['complete s'] = (fleet.now - died).total_seconds()
            self._judge(fleet, struck, victim[2], began, died)
            if self._action.end != GONE:
                self._action.serve(struck)
                for stack in stacks:
                    stack.delete()
                for stack in stacks:
                    stack.wait_for(GONE)
            verdict.assert_nothing_is_left(fleet, families, before)

    def _run_calm(self, fleet: Fleet, stack: Stack) -> None:
        self._action.stage(fleet, stack)
        done, began = len(fleet.runs), time.monotonic()
        self._action.begin(fleet, stack)
        stack.wait_for(self._action.end)
        seconds = time.monotonic() - began
        self.calm[self._action.name] = Calm(
            seconds, verdict.count(fleet.runs[done:], stack.family))
        verdict.assert_at_rest(fleet, stack)

    def _strike(self, fleet: Fleet, stack: Stack) -> tuple[tuple[Engine, int, str],
                                                           datetime.datetime]:
        """Begin the action, and return which engine's worker ended, and when."""
        if self._window == LOCKED:
            fleet.hold(self._action.handler, self._action.held)
            self._action.begin(fleet, stack)
            victim = self._wait_for_locks(fleet, stack)
            before = fleet.now
            self._end(fleet, victim)
            # An engine that is asked to end dies when its patience does.
            return victim, fleet.now if self._way in {'term', 'hup'} else before
        order: dict[str, object] = {
            'how': 'machine' if self._way == 'all' else self._way,
            'stack': self._action.inner or stack.name, 'nth': NTH.get(self._window, 1)}
        if self._window not in (*OF_THE_STACK, 'leaf'):
            order.update(resource=self._action.held, is_update=self._action.is_update)
        fleet.strike(self._window, **order)
        if self._window in BEFORE_THE_ANSWER:
            unheard(lambda: self._action.begin(fleet, stack))
        else:
            self._action.begin(fleet, stack)
        wait_until(lambda: fleet.struck, STRIKE_SECONDS, f'A strike when {self._window}')
        struck = fleet.struck[-1]
        engine = fleet.engine_of(struck['pid'])
        victim = engine, struck['pid'], dict(engine.workers)[struck['pid']]
        self._wait_for_death(fleet, victim)
        return victim, datetime.datetime.fromtimestamp(
            struck['time'], datetime.UTC).replace(tzinfo=None)

    def _wait_for_locks(self, fleet: Fleet, stack: Stack) -> tuple[Engine, int, str]:
        """Wait until all that can be held is, and choose who holds most for the user."""
        def locks() -> list[str]:
            family = stack.family
            found = [engine_id for (stack_id, _), engine_id in fleet.working_on().items()
                     if stack_id in family]
            return found if len(found) == self._action.width + bool(self._action.inner) else []

        held = wait_until(locks, STRIKE_SECONDS, 'The locks')
        if self._action.inner:
            # The parent's: who watches the nested stack.
            held = [engine_id for (stack_id, name), engine_id in fleet.working_on().items()
                    if stack_id == stack.id]
        engine = next(each for each in fleet.engines.values() if each.engine_id == held[0])
        return engine, engine.pid, engine.engine_id

    def _end(self, fleet: Fleet, victim: tuple[Engine, int, str]) -> None:
        engine = victim[0]
        {'machine': engine.program.kill, 'worker': engine.kill_worker, 'term': engine.terminate,
         'hup': engine.reload, 'freeze': engine.program.freeze,
         'all': engine.program.kill}[self._way]()
        self._wait_for_death(fleet, victim)

    def _wait_for_death(self, fleet: Fleet, victim: tuple[Engine, int, str]) -> None:
        if self._way == 'freeze':
            wait_until(lambda: fleet.members()[victim[2]]['state'] == 'dead', DEATH_SECONDS,
                       'The declaration of the frozen engine')
        else:
            wait_until(lambda: not verdict.is_alive(victim[1]), DEATH_SECONDS,
                       'The end of the worker')

    def _revive(self, fleet: Fleet, victim: tuple[Engine, int, str]) -> None:
        """Let go on what is held, and go on with what is left of the fleet."""
        if self._way == 'all':
            for engine in fleet.engines.values():
                engine.program.kill()
        if self._window == LOCKED:
            fleet.release(self._action.handler)
        if self._way == 'freeze':
            victim[0].program.thaw()
        if self._way == 'all':
            fleet.start_engine('e3')

    def _judge(self, fleet: Fleet, stack: Stack, engine_id: str, began: datetime.datetime,
               died: datetime.datetime) -> None:
        member = fleet.members().get(engine_id, {})
        self.figures['declared s'] = member.get('state') if not member.get('declared_at') else (
            member['declared_at'] - died).total_seconds()
        self.figures['left'] = sum(
            bool(row['replaced_by']) or row['status'] == 'FAILED' for row in stack.resources)
        dead = [pid for engine in fleet.engines.values() for pid, _ in engine.workers
                if not verdict.is_alive(pid)]
        self.figures['twice'] = verdict.assert_done_once(
            [run for run in fleet.runs if run.time >= began.replace(
                tzinfo=datetime.UTC).timestamp()],
            stack.family, self.calm[self._action.name].runs, dead)
        verdict.assert_at_rest(fleet, stack)
