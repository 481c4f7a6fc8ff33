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

"""I8, from any state: once all faults are over, all work ends in bounded time.

The engines then do, round by round, what the product's threads do: beat, look, declare, claim,
work.  Many states come together soon in this, and what follows is worked out once.
"""

from tests.model import state as at
from tests.model.state import Frame
from tests.model.world import World


class Convergence:
    """Answers, for one model, whether the work of a state comes to its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        c = world.config
        self._rounds = c.window + c.breaker_delay + c.settle + c.lag + 5
        self._known: set[bytes] = set()

    def stuck(self, state: bytes) -> str:
        """Return what never ends, or nothing."""
        w = self._world
        s = self._healed(state)
        passed = []
        found = ''
        for _ in range(self._rounds):
            key = bytes(s)
            if key in self._known:
                break
            passed.append(key)
            if self._ended(s):
                break
            self._round(s)
        else:
            found = '' if self._ended(s) else (
                'the faults are over, and yet this work never ends: ' + ', '.join(
                    f'lock {"xyz"[k]}, generation {s[w.at.lock[k] + at.LOCK_GENERATION]}'
                    for k in w.locks if s[w.at.lock[k] + at.STATUS] == at.IN_PROGRESS))
        w.fault = None
        if not found:
            self._known.update(passed)
        return found

    def _ended(self, s: Frame) -> bool:
        """Whether no work is left, or nobody to do it."""
        w = self._world
        return (not any(s[row + at.STATUS] == at.IN_PROGRESS for row in w.at.lock)
                or not any(s[w.at.engine[e] + at.PROCESS] and e in w.config.observers
                           for e in w.config.workers))

    def _healed(self, state: bytes) -> Frame:
        w = self._world
        s = bytearray(state)
        s[at.TICKS] = 0
        s[at.OUTAGE] = 0
        s[at.FAULTS:at.FAULTS + 1 + len(at.BUDGETS)] = bytes(1 + len(at.BUDGETS))
        for base in reversed(w.at.message):
            if s[base]:
                w.land_message(s, base)
        for e in w.engines:
            base = w.at.engine[e]
            if s[base + at.PROCESS]:
                s[base + at.PROCESS] = at.RUNNING
                s[base + at.CUT] = s[base + at.BEAT] = s[base + at.BEAT_AGE] = 0
                s[base + at.LOOK] = s[base + at.LOOK_AGE] = s[base + at.GOOD_START] = 0
        return s

    def _round(self, s: Frame) -> None:
        w = self._world
        s[at.TICKS] = 1
        w.tick(s)
        for e in w.engines:
            if s[w.at.engine[e] + at.PROCESS] != at.RUNNING:
                continue
            if s[w.at.engine[e] + at.STATE] in {at.NEW, at.JOINING}:
                self._do(s, e, {'join'})
            for kinds in ({'journal'}, {'look'}, {'declare'}, {'reclaim'},
                          {'take over', 'quarantine', 'nothing more'}, {'renew', 'lost'},
                          {'gate'}, {'call'}, {'finish'}):
                self._do(s, e, kinds)

    def _do(self, s: Frame, e: int, kinds: set[str]) -> None:
        """Let an engine do all that it can of some kinds."""
        w = self._world
        for _ in range(2 * len(w.locks) + len(w.engines)):
            for label, after in w._life(bytes(s), e):
                if label[0] in kinds:
                    s[:] = after
                    break
            else:
                return
            if not s[w.at.engine[e] + at.PROCESS]:
                return
