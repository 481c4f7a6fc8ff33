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

"""Breadth first through all states, so that a counterexample is one of the shortest."""

import dataclasses
import time

from tests.model import convergence
from tests.model.config import Config
from tests.model.world import Label, World


@dataclasses.dataclass(frozen=True)
class Result:
    """What an exploration has found."""

    states: int
    depth: int
    complete: bool
    """Whether there is no state left to visit within the configuration."""
    seconds: float
    invariant: int | None = None
    sentence: str = ''
    trace: tuple[Label, ...] = ()


def explore(config: Config, *removed: str, most_states: int = 5_000_000) -> Result:
    """Visit each state that can be reached, until one invariant does not hold.

    :param removed: the guards that the protocol is to do without
    """
    began = time.monotonic()
    world = World(config, frozenset(removed))
    ends = convergence.Convergence(world) if config.converges else None
    first = world.beginning()
    came: dict[bytes, tuple[bytes, Label] | None] = {first: None}
    level = [first]
    depth = 0

    def result(fault: tuple[int, str] | None = None, trace: tuple[Label, ...] = (),
               complete: bool = True) -> Result:
        return Result(len(came), depth, complete, time.monotonic() - began,
                      *(fault or (None, '')), trace)

    while level:
        following = []
        for state in level:
            if ends is not None and (stuck := ends.stuck(state)):
                return result((8, stuck), _trace(came, state))
            for label, after, fault in world.moves(state):
                if fault is not None:
                    return result(fault, (*_trace(came, state), label))
                if after not in came:
                    came[after] = state, label
                    following.append(after)
            if len(came) > most_states:
                return result(complete=False)
        level = following
        depth += 1
    return result()


def _trace(came: dict[bytes, tuple[bytes, Label] | None], state: bytes) -> tuple[Label, ...]:
    labels: list[Label] = []
    step = came[state]
    while step is not None:
        state, label = step
        labels.append(label)
        step = came[state]
    return tuple(reversed(labels))
