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

"""What is explored: who there is, which faults may come, and for how long."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One configuration.  Times are in ticks; an engine that is well beats once in each."""

    engines: int = 3
    locks: int = 1
    ticks: int = 6
    faults: int = 2
    """So many faults at most, of all kinds together."""
    budgets: dict[str, int] = dataclasses.field(default_factory=dict)
    """And so many of each kind that there may be."""
    victims: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Whom a kind of fault may befall, where that is not everyone; of outages, which kind: 1 is
    a whole one, and in 2 the database can still be read."""
    order: tuple[str, ...] = ()
    """The faults in the only order in which they may come, where not in any order."""
    when: tuple[int, ...] = ()
    """How many ticks are left when each of them may come, where not at any time."""
    fence: int = 2
    lag: int = 1
    window: int = 4
    """More than fence + lag: the discrete form of the inequality that `conf` checks."""
    settle: int = 1
    longest_read: int = 2
    longest_silence: int = 2
    """From a good beat to the start of the next, for an engine that is well."""
    purge_after: int = 3
    """Longer than a statement may be on its way: see :attr:`transaction`."""
    looks_apart: int = 0
    """How long after the first a second look at who ended long ago comes, longer than a statement
    may be on its way; 0 for a single look."""
    transaction: int = 2
    room: int = 2
    max_takeovers: int = 2
    breaker_delay: int = 2
    long_fence: tuple[int, ...] = ()
    """Engines whose own ``fence_time`` is three ticks longer than that of the others."""
    beaten: int = 8
    """How often each engine has beaten at first."""
    skew: int = 0
    """How far the clock of the node that wrote a row is behind that of the node that reads it."""
    foreign: tuple[int, ...] = ()
    """Engines of an unknown version: they do not beat."""
    unjoined: tuple[int, ...] = ()
    """Engines that have yet to join."""
    observers: tuple[int, ...] = (1, 2)
    observed: tuple[int, ...] = (0,)
    machines: tuple[int, ...] = (0, 1, 2, 3, 4)
    """The machine of each engine; the kernel proves deaths on its own."""
    kinds: tuple[int, ...] = (0, 0, 0, 0, 0)
    """The binary and topic of each engine; a handler of that name does other work in another."""
    handlers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Engines that have a handler for the work."""
    owners: tuple[int, ...] = (0,)
    """Who holds each lock and runs its work at first; -1 for nobody."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Engines that acquire, take over and run work."""
    poison: tuple[int, ...] = ()
    """Locks whose work ends whoever does it."""
    again: bool = False
    """Whether a lock may be acquired again once its work is done."""
    progress: bool = True
    """Whether work writes its progress."""
    steps: int = 0
    """How many steps of progress there are, where they are told apart."""
    acquires: bool = False
    purges: bool = False
    mass: bool = False
    """Whether all deaths by observation are taken for a mass death."""
    converges: bool = False
    """Whether from each state all work must end once the faults are over: I8."""

    def __post_init__(self) -> None:
        assert self.window > self.fence + self.lag, 'the inequality of safety'
        assert not self.order or len(self.order) == self.faults
        assert not self.when or len(self.when) == self.faults
