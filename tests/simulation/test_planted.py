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

"""Red: each guard that is taken away is missed by the simulation, as the invariant expected.

A bug stands with the seed from which it is looked for; ``python -m tests.simulation.test_planted``
looks for such seeds anew, which is needed after a change of what :func:`plan.draw` draws.
"""

import dataclasses
import sys
from collections.abc import Collection
from typing import Any

import pytest

from heat_liveness import conf, detection, fence, membership, takeover
from heat_liveness.db.locks import HeldLock, LockRow
from heat_liveness.db.members import ServiceRow
from heat_liveness.work import Claim, native
from tests.simulation import plan as plans
from tests.simulation import rooms, scheduler, world
from tests.simulation.rooms import Guards

SEEDS = 40


@dataclasses.dataclass(frozen=True)
class Bug:
    """A guard that is not there."""

    what: str
    invariants: set[int]
    """By one of which it must be found."""
    first_seed: int = 0
    guards: Guards = dataclasses.field(default_factory=Guards)
    replaced: tuple[tuple[Any, str, Any], ...] = ()


def _no_gap(self: detection.View, started: float, returned: float, failures: int) -> float:
    self._seen = self.at(started)
    self._started = started
    return self.at(returned)


def _no_quarantine(self: native.NativeWork, owner: Any) -> Claim:
    rows = (self._locks.take_over(owner, self._me, self.room(), tainted=False)
            or self._locks.take_over(owner, self._me, self.room(), tainted=True))
    return Claim(self._start(rows), more=bool(rows))


_acquire = rooms.Locks.acquire


def _acquire_and_ask(self: rooms.Locks, name: str, task: str, arguments: object,
                     engine_id: str) -> LockRow:
    return _acquire(self, name, task, arguments, engine_id) and self.find(name)


_take_over = rooms.Locks.take_over


def _take_poison_too(self: rooms.Locks, owner: ServiceRow, taker_id: str, limit: int,
                     tainted: bool, poison: int | None = None,
                     tasks: Collection[str] | None = None) -> list[HeldLock]:
    return _take_over(self, owner, taker_id, limit, tainted, tasks=tasks)


BUGS = (
    Bug('the generation is not in the WHERE', {2, 3, 9}, 1290,
        guards=Guards(generation=False)),
    Bug('neither owner nor generation is in the WHERE', {1, 2, 3},
        guards=Guards(generation=False, owner=False)),
    Bug('no "I am alive" in the WHERE', {7}, 970,
        guards=Guards(alive=False)),
    Bug('a declaration without the count', {4}, guards=Guards(count=False)),
    Bug('a beat raises the dead', {7}, guards=Guards(not_dead=False)),
    Bug('a death is not journalled', {18}, guards=Guards(one_journal_row=False)),
    Bug('gaps count as time of good view', {5, 6, 11}, 300,
        replaced=((detection.View, 'look', _no_gap),)),
    Bug('the gate never closes', {6}, 1000,
        replaced=((fence.Gate, 'held', property(lambda self: False)),)),
    Bug('the kernel timer ends nobody', {6}, 80,
        replaced=((world.Timer, '_look', lambda self: None),)),
    Bug('nothing is claimed from itself', {8}, 30,
        replaced=((native.NativeWork, 'reclaim', lambda self: 0),)),
    Bug('nothing is quarantined', {10},
        replaced=((native.NativeWork, 'claim', _no_quarantine),)),
    Bug('what was acquired is asked for again', {8, 9}, 1000000,
        replaced=((rooms.Locks, 'acquire', _acquire_and_ask),)),
    Bug('a window does not ask how long its engine may go on', {6}, 1002360,
        replaced=((conf, 'window_for', lambda fence_time: 0.0),)),
    Bug('who had nothing when he ended is never asked about again', {8}, 1003440,
        replaced=((takeover.Takeover, '_again', lambda self, ended, now: []),)),
    Bug('poison is left by the quarantine alone', {10}, 1005620,
        replaced=((rooms.Locks, 'take_over', _take_poison_too),)),
    Bug('an engine that leaves keeps its timer armed', {11},
        replaced=((membership.Membership, 'disarm', lambda self: None),)),
)


def finds(bug: Bug, seed: int) -> set[int]:
    """Return by which of the expected invariants a seed finds a bug."""
    with scheduler.replaced(*bug.replaced):
        faults = world.run(plans.draw(seed), bug.guards).faults
    return {fault.invariant for fault in faults} & bug.invariants


@pytest.mark.parametrize('bug', BUGS, ids=lambda bug: bug.what)
def test_a_guard_that_is_taken_away_is_missed(bug: Bug) -> None:
    found = next((seed for seed in range(bug.first_seed, bug.first_seed + SEEDS)
                  if finds(bug, seed)), None)
    assert found is not None
    # It is this guard that was missed: with it the same seed breaks nothing.
    assert not world.run(plans.draw(found)).faults


def main() -> None:
    """Print the first seed that finds each bug."""
    for bug in BUGS:
        found = next((seed for seed in range(2000) if finds(bug, seed)), None)
        sys.stdout.write(f'{bug.what}: {found}\n')


if __name__ == '__main__':
    main()
