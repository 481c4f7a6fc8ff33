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

"""What becomes of the work of ended engines: take over, resume, quarantine; forget.

**Level-triggered.**  *Work whose owner has ended* is a question to the database, asked again
and again, never a message that could be lost with its reader.  Any engine may ask it at
any time; a taker that dies is just another dead engine, and its work is found the same way.

**One winner.**  A claim is decided by the compare-and-swap of the work store, which names
owner and generation, the owner's end and the taker's life, and counts only after COMMIT
has returned.  After an unclear outcome nothing is assumed.  The claim may land even after a
re-read, so an engine also claims *from itself* what it owns but neither runs nor is just
claiming; the generation rises, and whatever is still on the way changes nothing.

**No more than it can run.**  An engine claims what it has room for, so survivors share, and
the rest is found at the next look.  So is what is left after a ``scan_interval``: where tasks end
as fast as they are claimed, a sweep would last as long as the backlog, and nobody be watched
meanwhile.

**Poison.**  Work whose owners died ``max_takeovers`` times is quarantined.  The store takes
work whose owner has died before one piece at a time, so that bystanders do not share the
blame.

**When to ask.**  An owner that has just ended is asked about at once, and again at each look
while more may be had.  An owner with nothing more is asked about again only every
``service_down_time``: a statement of its own that was on the way when it died may still
have gained it a lock.

**Forget.**  A dead row goes when it owns nothing and has been dead for ``purge_after``,
longer than any transaction lives.  That is the database's time, and a clock may be set: so it has
to be found at two looks one after the other, ten times ``service_down_time`` apart on our own.
"""

import contextlib
import logging
import random
from collections.abc import Iterator, Sequence

from heat_liveness import clock as clocks
from heat_liveness import conf, errors, fence
from heat_liveness import engine as engines
from heat_liveness.db.journal import Journal
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.work import WorkStore

LOG = logging.getLogger(__name__)

_PURGED_AT_ONCE = 100


class Takeover:
    """One engine's share in the recovery of others.  For use by one thread."""

    def __init__(self, identity: engines.Identity, settings: conf.Settings, work: WorkStore,
                 members: Members, journal: Journal, gate: fence.Gate, clock: clocks.Clock,
                 chance: random.Random) -> None:
        self._me = identity
        self._settings = settings
        self._work = work
        self._members = members
        self._journal = journal
        self._gate = gate
        self._clock = clock
        self._chance = chance
        self._relieved: dict[str, float] = {}
        """When each ended engine was last found to have nothing more for the taking."""
        self._owing: dict[str, ServiceRow] = {}
        """Ended engines with more for the taking; an observer shows them only for a while."""
        self._looked_after_itself: float | None = None
        self._purged: float | None = None
        self._purgeable: set[str] = set()
        """What was found to have ended long ago when last looked for."""

    def sweep(self, ended: Sequence[ServiceRow]) -> int:
        """Take over what there is room for; return the number of pieces.

        :raises DatabaseError: the rest is found at the next sweep
        :raises EngineHeld: nothing is started now
        """
        taken = 0
        failures: list[errors.LivenessError] = []
        now = self._clock.now()
        shown = self._owing | {row.engine_id: row for row in ended}
        # First, so that no owner whose work cannot be had stands in its way.
        if self._due_for_itself(now):
            self._looked_after_itself = now
            with _postponed(failures):
                self._work.reclaim()
        due = [row for row in shown.values() if row.engine_id not in self._relieved]
        due += self._again(ended, now)
        # Survivors that begin with different owners contend less.
        self._chance.shuffle(due)
        until = self._clock.now() + self._settings.scan_interval
        for number, owner in enumerate(due):
            if number and self._clock.now() >= until:
                self._owe(owner)
                continue
            with _postponed(failures):
                taken += self._relieve(owner, until)
        if failures:
            raise failures[-1]
        return taken

    def _again(self, ended: Sequence[ServiceRow], now: float) -> list[ServiceRow]:
        """Return the relieved owners that have work again.  One question for all of them."""
        due = [row.engine_id for row in ended
               if now - self._relieved.get(row.engine_id, now) >= self._settings.service_down_time]
        owners = self._work.owners(due) if due else set()
        self._relieved.update(dict.fromkeys(due, now))
        # Whoever has a row is shown, and asked about, more often than that.
        self._relieved = {engine_id: at for engine_id, at in self._relieved.items()
                          if now - at < self._period}
        return [row for row in ended if row.engine_id in owners]

    def _due_for_itself(self, now: float) -> bool:
        return (self._work.doubts or self._looked_after_itself is None
                or now - self._looked_after_itself >= self._settings.service_down_time)

    def _relieve(self, owner: ServiceRow, until: float) -> int:
        """Take over an owner's work, once at least, and on while there is more, and time."""
        taken = 0
        while True:
            self._gate.check()
            claim = self._work.claim(owner)
            taken += claim.pieces
            if not claim.pieces or self._clock.now() >= until:
                break
        if claim.pieces or claim.more:
            self._owe(owner)
        else:
            self._owing.pop(owner.engine_id, None)
            self._relieved[owner.engine_id] = self._clock.now()
        if taken:
            LOG.info('Engine %s has taken over %d pieces of work of engine %s (%s).',
                     self._me.engine_id, taken, owner.engine_id, owner.state)
        return taken

    def _owe(self, owner: ServiceRow) -> None:
        """Ask about an owner again at the next sweep."""
        self._owing[owner.engine_id] = owner
        self._relieved.pop(owner.engine_id, None)

    @property
    def _period(self) -> float:
        """How often it is looked for what nobody needs any more (s)."""
        return 10 * self._settings.service_down_time

    def forget(self) -> None:
        """Remove, every ten times ``service_down_time``, what nobody needs any more.

        :raises DatabaseError: it is tried again when as much time has passed
        """
        now = self._clock.now()
        if self._purged is not None and now - self._purged < self._period:
            return
        self._purged = now
        candidates = self._members.purgeable(self._me, self._settings.purge_after)
        # The database's clock may have been set; between two looks our own has gone on.
        gone = self._purge([each for each in candidates if each in self._purgeable])
        self._purgeable = set(candidates)
        entries = self._journal.purge(self._settings.purge_after, self._me.engine_id)
        if gone or entries:
            LOG.info('Removed %d rows of engines that ended more than %g s ago, and %d entries '
                     'of the journal.', len(gone), self._settings.purge_after, entries)

    def _purge(self, engine_ids: Sequence[str]) -> list[str]:
        """Remove the first of these rows that own nothing; the rest has its turn the next time."""
        for first in range(0, len(engine_ids), _PURGED_AT_ONCE):
            batch = engine_ids[first:first + _PURGED_AT_ONCE]
            if idle := set(batch) - self._work.owners(batch):
                return self._members.purge(sorted(idle), self._me.engine_id)
        return []


@contextlib.contextmanager
def _postponed(failures: list[errors.LivenessError]) -> Iterator[None]:
    """Keep what goes wrong for later, but that this engine may do nothing more."""
    try:
        yield
    except (errors.EngineHeld, errors.EngineDead):
        raise
    except errors.LivenessError as error:
        failures.append(error)
