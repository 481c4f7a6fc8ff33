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

"""Who is dead: observe, prove, declare; the breaker.

**The database's time decides only who is looked at.**  A *candidate* is a live row whose
beat looks late, or lies in the future.  Clocks of database nodes differ and get stepped;
that makes candidates, never deaths.

**The observer's own eyes decide who is dead.**  A candidate has to show the same count for
a whole window W on the observer's own clock, from the *return* of the first read to the
*start* of the last: whatever a read returns is no older than its start.  W is never
shorter than the candidate's own ``fence_time`` asks (:func:`conf.window_for`), so whoever
is declared dead has held since.

**Only time of good view counts.**  A gap (an own beat or a read that failed, an own pause)
and the settle time after it add nothing, and take nothing away: all get the time to beat
first.  So a flapping database delays a verdict; it prevents one only while it is away again
each time before the settle time and a look are over.  A slow read is not a gap, nor is a
pause of the scanner alone, as when it takes over for long: own beats that go on, none of
them late, tell that process and database are there.  A count that changed, downwards too (a
failover that lost commits), starts afresh.  So outages, stepped clocks and sleeping
observers can delay a verdict and never forge one; and an observer that has just started
has seen nothing yet.

**Proof.**  On a shared machine the kernel settles it at once; see :func:`engine.prove`.

**Declaration** is one compare-and-swap on the count that was seen: see
:meth:`Members.declare`.

**The breaker.**  When more than half of the machines, and more than two, look dead or were
declared so within the last ``service_down_time`` and ``breaker_delay``, the fault is rather
with what lies between them and us.  Then a declaration waits ``breaker_delay`` longer, loudly;
a true mass death is still recovered, later, and the work is not blamed for it.  It counts
machines, as the workers of one machine die together.  Deaths proved by the kernel and engines
that left do not count.
"""

import dataclasses
import datetime
import logging
import math
from collections.abc import Sequence

from heat_liveness import clock as clocks
from heat_liveness import conf, errors
from heat_liveness import engine as engines
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.membership import Membership, Pulse

LOG = logging.getLogger(__name__)


class View:
    """How long an observer has seen well; the clock that windows are measured on."""

    def __init__(self, settings: conf.Settings) -> None:
        self._settle = settings.settle
        self._longest_pause = 2 * settings.scan_interval + settings.stall_time
        self._longest_silence = settings.longest_silence
        self._longest_read = settings.longest_read
        self._seen = 0.0
        self._started = 0.0
        self._returned: float | None = None
        self._counts_from = 0.0
        self._failures = self._late = 0

    def at(self, time: float) -> float:
        """Return the seconds of good view up to a time not before the last look began."""
        return self._seen + max(0.0, time - max(self._started, self._counts_from))

    def look(self, started: float, returned: float, pulse: Pulse) -> float:
        """Take note of a look that succeeded.

        :param pulse: the own beats so far
        :return: the seconds of good view from which a candidate first seen by it is watched
        """
        silent = started - pulse.last > self._longest_silence or pulse.late != self._late
        paused = self._returned is None or (
            started - self._returned > self._longest_pause and silent)
        if paused or pulse.failures != self._failures:
            self._counts_from = started + self._settle
        else:
            self._seen = self.at(started)
        self._started = started
        self._failures, self._late = pulse.failures, pulse.late
        # A read that lasts longer than its timeouts allow was a pause of our own.
        paused = returned - started > self._longest_read
        self._returned = None if paused else returned
        return self.at(started if paused else returned)

    def lost(self) -> None:
        """Take note of a look that failed."""
        self._returned = None


@dataclasses.dataclass
class _Candidate:
    report_count: int
    updated_at: datetime.datetime | None
    since: float
    """Seconds of good view when it was first read so."""
    warned: bool = False


@dataclasses.dataclass(frozen=True)
class Scan:
    """What one look has found."""

    ended: Sequence[ServiceRow]
    """Engines whose work may be taken over."""
    next_seconds: float
    """When to look again."""


class Observer:
    """One engine's watch over the engines of one binary and topic.  For use by one thread."""

    def __init__(self, membership: Membership, settings: conf.Settings, members: Members,
                 clock: clocks.Clock, kind: tuple[str, str] | None = None) -> None:
        """Begin with nothing seen.

        :param kind: binary and topic of those that are watched; by default the engine's own
        """
        me = membership.identity
        self._me = me if kind is None else dataclasses.replace(me, binary=kind[0], topic=kind[1])
        self._membership = membership
        self._settings = settings
        self._members = members
        self._clock = clock
        self._view = View(settings)
        self._candidates: dict[str, _Candidate] = {}
        self._tripped = False
        self._looked_at_all: float | None = None

    def scan(self) -> Scan:
        """Look once; declare whom there is evidence against.

        :raises DatabaseError: nothing could be seen; look again after ``scan_interval``
        """
        started = self._clock.now()
        everything = (self._looked_at_all is None
                      or started - self._looked_at_all >= self._settings.service_down_time)
        try:
            rows = self._members.look(
                self._me, self._settings.candidate_age,
                None if everything else 2 * self._settings.service_down_time)
        except errors.LivenessError:
            self._view.lost()
            raise
        returned = self._clock.now()
        if everything:
            self._looked_at_all = started
        seen = self._view.look(started, returned, self._membership.pulse)
        others = [row for row in rows if row.live and row.judged
                  and row.engine_id != self._me.engine_id]
        late = self._follow([row for row in others if self._is_late(row)], seen)
        proved = [row for row in others if self._prove(row)]
        watched = self._judge([row for row in late if row not in proved], self._view.at(started))
        ended = [row for row in rows if row.ended]
        ended += [dataclasses.replace(row, state='dead') for row in proved]
        ended += [dataclasses.replace(row, state='dead', mass=self._tripped) for row in watched]
        return Scan(ended, self._next(late, self._view.at(returned)))

    def _is_late(self, row: ServiceRow) -> bool:
        return row.age < 0 or row.age > self._settings.candidate_age

    def _follow(self, late: list[ServiceRow], seen: float) -> list[ServiceRow]:
        """Keep one candidate a late row; one that has beaten starts afresh."""
        known = self._candidates
        self._candidates = {}
        for row in late:
            candidate = known.get(row.engine_id)
            # A count may fall, by a failover, and rise again to where it was.
            if candidate is None or (candidate.report_count, candidate.updated_at) != (
                    row.report_count, row.updated_at):
                candidate = _Candidate(row.report_count, row.updated_at, seen)
                LOG.debug('Engine %s on %s is a candidate: its beat is %.1f s old.',
                          row.engine_id, row.host, row.age)
            self._candidates[row.engine_id] = candidate
        return late

    def _window(self, row: ServiceRow) -> float:
        return max(self._settings.window, conf.window_for(row.fence_time))

    def _watched(self, row: ServiceRow, seen: float) -> float:
        return seen - self._candidates[row.engine_id].since

    def _prove(self, row: ServiceRow) -> bool:
        if engines.prove(row.process, self._me.process) is not engines.Proof.GONE:
            return False
        return self._declare(row, 'kernel', mass=False, detail={
            'age_seconds': _rounded(row.age), 'pid': row.process.pid})

    def _judge(self, late: list[ServiceRow], seen: float) -> list[ServiceRow]:
        """Declare the candidates that were watched for long enough."""
        ripe = [row for row in late if self._watched(row, seen) >= self._window(row)]
        self._tripped = bool(ripe) and self._breaker(late, ripe)
        if self._tripped:
            delay = self._settings.breaker_delay
            ripe = [row for row in ripe if self._watched(row, seen) >= self._window(row) + delay]
        return [row for row in ripe if self._declare(row, 'watched', mass=self._tripped, detail={
            'age_seconds': _rounded(row.age),
            'watched_seconds': round(self._watched(row, seen), 3),
            'window_seconds': round(self._window(row), 3),
            'report_count': row.report_count,
            'service_down_time_seconds': self._settings.service_down_time})]

    def _breaker(self, late: list[ServiceRow], ripe: list[ServiceRow]) -> bool:
        # Those whose loss made it wait are remembered for as long as it waits.
        machines, lost = self._members.machines(
            self._me, self._settings.service_down_time + self._settings.breaker_delay)
        # A machine whose engines beat less often than ours is not suspect for that.
        suspect = lost | {row.machine for row in late if row.age < 0 or row.age > (
            conf.candidate_age_for(max(self._settings.report_interval, row.report_interval)))}
        tripped = len(suspect) > max(2, len(machines) / 2)
        for row in ripe if tripped else ():
            candidate = self._candidates[row.engine_id]
            if not candidate.warned:
                candidate.warned = True
                LOG.warning(
                    'Engine %s on %s looks dead, and so do %d of %d machines: the network or '
                    'the database may be at fault. It is declared dead only after %g s more.',
                    row.engine_id, row.host, len(suspect), len(machines),
                    self._settings.breaker_delay)
        return tripped

    def _declare(self, row: ServiceRow, evidence: str, *, mass: bool,
                 detail: dict[str, object]) -> bool:
        try:
            self._membership.gate.check()
            won = self._members.declare(row, self._me.engine_id, evidence, mass, detail)
        except (errors.DatabaseError, errors.EngineHeld, errors.LockHeld) as error:
            # The next look tells what became of it.
            LOG.debug('The declaration of engine %s did not go through: %s', row.engine_id, error)
            return False
        if won:
            LOG.warning('Engine %s on %s (pid %d) is dead, by %s: its last beat is %.1f s old. '
                        'Its work is taken over.', row.engine_id, row.host, row.process.pid,
                        'the kernel' if evidence == 'kernel' else 'observation', row.age)
        return won

    def _next(self, late: Sequence[ServiceRow], seen: float) -> float:
        """Look again after ``scan_interval``, or exactly when the next suspicion ripens."""
        ripening = [self._window(row) - self._watched(row, seen) for row in late]
        coming = [seconds for seconds in ripening if seconds > 0]
        return min([self._settings.scan_interval, *coming])


def _rounded(age: float) -> float | None:
    """Return an age for the journal; JSON knows no infinity."""
    return round(age, 3) if math.isfinite(age) else None
