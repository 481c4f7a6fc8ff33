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

"""The port behind which lies the work that a dead engine leaves behind.

A driver is found by entry point (group ``heat_liveness.work``) and made from a
:class:`Context`.  It decides each claim by a compare-and-swap of its own, committed before it
returns, and makes the work go on; :mod:`heat_liveness.takeover` says when.

A driver that can be used only in some places has a function ``check``, which is called with the
configuration before anything is started, and raises :class:`~errors.ConfigError` elsewhere.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Protocol

from heat_liveness import clock as clocks
from heat_liveness import conf, fence
from heat_liveness import engine as engines
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members, ServiceRow


class Observer(Protocol):
    """Watches the engines of one binary and topic; see :mod:`heat_liveness.detection`."""

    def scan(self) -> object:
        """Look once, and declare whom there is evidence against; at each scan, or it sees gaps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a driver is given."""

    identity: engines.Identity
    settings: conf.Settings
    database: Database
    members: Members
    gate: fence.Gate
    clock: clocks.Clock
    configuration: Any = None
    """Where the options come from, for a driver that has options of its own."""
    observer: Callable[[tuple[str, str]], Observer] | None = None
    """Makes an observer of another binary and topic, for a driver whose work they share."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one attempt to take work over has brought."""

    pieces: int
    more: bool
    """Whether there is more that may be had soon, so that the next look should ask again."""


class WorkStore(Protocol):
    """Where work is kept, and how it goes on."""

    @property
    def doubts(self) -> bool:
        """Whether an outcome was unclear, so that this engine may own what it does not run."""

    def claim(self, owner: ServiceRow) -> Claim:
        """Take over some of an ended engine's work, no more than there is room for, and run it.

        :raises DatabaseError: perhaps some; ``doubts`` says so then
        """

    def reclaim(self) -> int:
        """Claim from itself what this engine owns but neither runs nor is just claiming."""

    def search(self) -> None:
        """Look, where it is time to, for work that hangs though no engine that ended owns it.

        Called at each scan.

        :raises DatabaseError: the next scan looks again
        """

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that own work still, so that their rows must stay."""

    def drain(self) -> None:
        """Take no new work, and return when the running work has ended."""
