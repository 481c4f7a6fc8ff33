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

"""The facts a history is made of, one class each.

``at`` is true time in seconds, for messages and the rules that have a bound; what decides
everything else is the order of the list.  A fact about the database stands where its
transaction *committed*; ``begun`` says since when the database had known the statement that
did it, where that is known.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened."""

    at: float


# Committed by the database.

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Joined(Event):
    """A service row was written; written again, where somebody had removed it."""

    engine: str
    machine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beat(Event):
    """A beat reached the row; ``count`` is what it says then."""

    engine: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Declared(Event):
    """An engine was declared dead."""

    engine: str
    by: str
    seen: int
    """The count in the WHERE."""
    count: int
    """The count in the row."""
    evidence: str = 'watched'
    """``watched``, ``kernel`` or ``operator``."""
    mass: bool = False
    begun: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drained(Event):
    """An engine said that it takes no new work."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Left(Event):
    """An engine said that it has gone."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Purged(Event):
    """A service row was removed."""

    engine: str
    by: str
    begun: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Journalled(Event):
    """The journal got the row of a death."""

    engine: str
    by: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Owned(Event):
    """A lock got an owner."""

    lock: str
    generation: int
    engine: str
    previous: str | None
    """Who owned it until then."""
    how: Literal['acquire', 'takeover', 'reclaim']
    begun: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wrote(Event):
    """A lock was written under; all but ``progress`` take its owner away."""

    lock: str
    generation: int
    """Under which it was written."""
    engine: str
    """Who wrote."""
    what: Literal['progress', 'complete', 'fail', 'release', 'quarantine']
    begun: float | None = None
    step: int | None = None
    """How far the work has come, by what was written, if the history tells."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settled(Event):
    """An operator changed a lock without a living owner; its generation rose by one."""

    lock: str
    generation: int
    to: Literal['released', 'failed']
    previous: str | None = None
    """Who owned it until then."""


# Done by processes.

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Started(Event):
    """A handler begins to run."""

    lock: str
    generation: int
    engine: str
    step: int | None = None
    """How far the work has come, by what it finds recorded, if the history tells."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recorded(Event):
    """A handler has been told that what it records is there."""

    lock: str
    generation: int
    engine: str
    step: int
    begun: float | None = None
    """When it began to record."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Called(Event):
    """A handler did something outside the database."""

    lock: str
    generation: int
    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stopped(Event):
    """A process stands still: SIGSTOP."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Continued(Event):
    """A process that stood still goes on."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Paused(Event):
    """A machine's hypervisor lets it stand still, its clocks too; told of each engine there."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resumed(Event):
    """A machine that was paused goes on, and its clocks where they stood."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Withheld(Event):
    """An engine withholds its beats, as its process is not well, from here or until here."""

    engine: str
    began: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Killed(Event):
    """A process ended."""

    engine: str
    why: Literal['crash', 'fence', 'dead', 'exit'] = 'crash'
    """From outside, by its kernel timer, because it learnt that it is dead, or done."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Held(Event):
    """The gate of an engine closed."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Opened(Event):
    """The gate of an engine opened again."""

    engine: str


# Of the world.

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outage(Event):
    """The database cannot be reached by anybody, from here or until here."""

    began: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Undone(Event):
    """The database has lost what was committed after a time: a standby that lacked it took over."""

    since: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Meddled(Event):
    """Somebody has removed the row of an engine, or given it a state that no engine gives."""

    engine: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cut(Event):
    """The database cannot be reached by one engine, from here or until here."""

    engine: str
    began: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stepped(Event):
    """The clock of a database node was stepped."""

    node: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Healed(Event):
    """All faults are over from here on."""


COMMITTED = (Joined, Beat, Declared, Drained, Left, Purged, Journalled, Owned, Wrote, Settled,
             Meddled)
"""Facts about the database, which a failover may undo."""
