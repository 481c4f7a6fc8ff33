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

"""An engine's place among the others: join, beat, drain, leave.

**Join.**  The row of a new engine is written before any work can reach it, with its own
``fence_time``, so that every observer's window fits this engine, whatever the observer's
own options say.  While it is unknown whether the row is there, the gate is shut: the others may
see an engine that does not beat.  A row that is there already is its own if it names its process;
otherwise the engine ends, and touches nothing.

**Beat.**  One statement raises a count and writes the database's time.  It changes a row
only while that row is alive, so a beat can never raise the dead.  What its outcome means:

=========================  ===========================================================
one row changed            the engine is alive; the gate opens for ``fence_time``, counted
                           from the *start* of the beat
an error                   nothing is known and nobody is dead: tried again after
                           ``beat_retry``; one WARNING for the first, one INFO for the end
no row, and it says dead   the engine ends itself at once; where it says what nobody can have
                           said, it leaves before that, as nobody would take its work over
no row at all              somebody removed it.  While the last good beat is younger than
                           ``fence_time`` nobody can have called it dead, so it is written
                           again, with a count that nobody has seen, since one that was seen
                           would be no sign of life; when it is older, that is not certain, and
                           the engine ends
=========================  ===========================================================

Beats go on while the engine drains, until its last lock is released.  The row leaves
last, as ``left``: the others then relieve it of what it may have kept, without waiting.

**Health.**  A service may register checks of its own process (workers that no longer
move).  While one fails, beats are withheld, and the others finish the work.  What lies
outside the process (a message queue) is no reason: all engines would die of it at once.

**Fence.**  See :mod:`heat_liveness.fence`.  The watchdog notices when the gate has closed,
and from then on keeps the kernel timer away from a process that evidently runs and holds.

Nothing here sleeps or starts a thread: each step does its work and returns the seconds to
the next, so that a simulation can drive many engines on a clock of its own.
"""

import dataclasses
import enum
import logging
import math
import random
import threading
from collections.abc import Callable
from typing import NoReturn, Protocol

from heat_liveness import clock as clocks
from heat_liveness import conf, errors, fence
from heat_liveness import engine as engines
from heat_liveness.db.members import Members, ServiceRow

LOG = logging.getLogger(__name__)

HealthCheck = Callable[[], str | None]
"""Returns None when all is well, else a sentence saying what is not."""


def _complaint(check: HealthCheck) -> str | None:
    """Return what a health check says; one that raises has failed."""
    try:
        return check()
    except Exception as error:
        LOG.debug('A health check raised.', exc_info=True)
        return f'a health check raised {type(error).__name__}: {error}'


class Timer(Protocol):
    """What ends a process that cannot even hold; see :class:`fence.KernelTimer`."""

    def set(self, due_seconds: float) -> None:
        """End the process at this time of the clock."""

    def disarm(self) -> None:
        """Do not end it."""


class State(enum.Enum):
    """How far an engine has come."""

    NEW = 'new'
    JOINING = 'joining'
    """The row may be there: until that is known, the gate is shut."""
    JOINED = 'joined'
    DRAINING = 'draining'
    LEFT = 'left'


@dataclasses.dataclass(frozen=True)
class Pulse:
    """What an engine's own beats say of the database: whether it was there all the time."""

    last: float
    """When the last one that succeeded began, on the clock."""
    failures: int
    """How many did not reach the database."""
    late: int
    """How many came later after the one before than they do unless something is amiss."""


class Membership:
    """One engine's own row.  ``beat`` and ``watch`` may run on different threads."""

    def __init__(self, identity: engines.Identity, settings: conf.Settings, members: Members,
                 gate: fence.Gate, timer: Timer, clock: clocks.Clock,
                 chance: random.Random) -> None:
        self.identity = identity
        self.gate = gate
        self.checks: list[HealthCheck] = []
        self.state = State.NEW
        self._settings = settings
        self._members = members
        self._timer = timer
        self._clock = clock
        self._chance = chance
        self._failures = self._late = 0
        self._count = 0
        """Beats begun, so never fewer than the row has had."""
        self._failing = False
        self._withheld: str | None = None
        self._holding = False
        self._armed = True
        self._over: str | None = None
        """Why this engine is about to leave, and must not beat any more."""
        # Between "is the gate closed?" and "move the timer" no beat may come, or the timer
        # would be left nearer than that beat allows.
        self._fencing = threading.Lock()

    @property
    def pulse(self) -> Pulse:
        """What the own beats have shown so far; for other threads."""
        # In this order: a late beat that comes meanwhile counts as late, or has not come.
        last = self.gate.last_good
        return Pulse(last, self._failures, self._late)

    def join(self) -> None:
        """Write the row; from then on the engine may work.

        :raises DatabaseError: the row may or may not be there; join again
        :raises EngineDead: somebody has declared this engine dead already, or another process has
            joined under its engine_id; begin a new one
        """
        started = self._clock.now()
        # From the INSERT on the others may judge this engine, so the kernel must be able to.
        self._set_timer(started)
        if self.state is State.JOINING:
            # The row may have been there, and been removed; its beats may have been seen.
            self._count += 1
        there = False
        try:
            self._members.insert(self.identity, self._settings.report_interval,
                                 self._settings.asked_fence_time, self._count)
        except errors.LockHeld:
            there = True
        except errors.UnclearOutcome:
            self.state = State.JOINING
            raise
        except BaseException:
            self._disarm_if_new()
            raise
        if there:
            self._rejoin()
        else:
            self._good(started)
        self.state = State.JOINED

    def _disarm_if_new(self) -> None:
        if self.state is State.NEW:
            self._timer.disarm()

    def _rejoin(self) -> None:
        """Join by the row that is there: an earlier try went through, though its reply was lost."""
        try:
            row = self._members.read(self.identity.engine_id)
        except BaseException:
            self._disarm_if_new()
            raise
        self._obey(row)
        self.state = State.JOINING
        if not self._beat_once():
            raise errors.DatabaseError(
                f'The database has a row of engine {self.identity.engine_id}, and yet no beat '
                f'finds it: a node of it is behind, or somebody removes rows.')

    def beat(self) -> float:
        """Beat once; return the seconds to the next beat.

        :raises EngineDead: the engine must end now
        """
        reason = next(filter(None, map(_complaint, self.checks)), None)
        if reason is None and self._withheld is not None:
            LOG.info('Engine %s is well again and beats.', self.identity.engine_id)
            self._withheld = None
        try:
            if reason is not None:
                self._withhold(reason)
                return self._settings.beat_retry
            if not self._beat_once():
                self._missing()
        except errors.EngineDead:
            raise
        except errors.LivenessError as error:
            self._failed(error)
            return self._settings.beat_retry
        except Exception:
            self._failures += 1
            raise
        if self._failing:
            self._failing = False
            LOG.info('The beats of engine %s reach the database again.', self.identity.engine_id)
        return self._settings.report_interval * self._chance.uniform(2 - conf.JITTER, conf.JITTER)

    def _beat_once(self) -> bool:
        if self._over is not None:
            self._leave_for_good(self._over)
        started = self._clock.now()
        # One whose reply is lost counts too: others may have seen it.
        self._count += 1
        if not self._members.beat(self.identity.engine_id):
            return False
        self._good(started)
        return True

    def _good(self, started: float) -> None:
        if -math.inf < self.gate.last_good < started - self._settings.longest_silence:
            self._late += 1
        with self._fencing:
            self.gate.good_beat(started)
            if self.gate.held:
                # The beat took so long that what it allows is over: the hold goes on, and a
                # timer set by it would be due at once.
                return
            self._set_timer(started)
            held, self._holding = self._holding, False
        if held:
            LOG.info('Engine %s works again: its beats reach the database.',
                     self.identity.engine_id)

    def _set_timer(self, started: float) -> None:
        """Let the kernel end this process, unless a beat succeeds after the one begun then."""
        self._arm(started + self._settings.fence_time + self._settings.kernel_timer_lag)

    def _arm(self, due_seconds: float) -> None:
        if self._armed:
            self._timer.set(due_seconds)

    def _missing(self) -> None:
        row = self._members.read(self.identity.engine_id)
        self._obey(row)
        if row is not None:
            return
        if self.gate.held:
            self._end('has no row, and has not beaten for so long that it may be called dead')
        started = self._clock.now()
        # The count of the beat that has just changed no row.
        try:
            self._members.insert(self.identity, self._settings.report_interval,
                                 self._settings.asked_fence_time, self._count)
        except errors.LockHeld:
            self._obey(self._members.read(self.identity.engine_id))
            raise
        self._good(started)
        LOG.warning('The row of engine %s was removed while it works; it is written again.',
                    self.identity.engine_id)

    def _obey(self, row: ServiceRow | None) -> None:
        if row is None:
            return
        if row.process != self.identity.process:
            # Two that beat in one row would each keep it alive for the other, and each would take
            # the other's locks for its own.  This one has no row, and must not say that it leaves.
            self.state = State.NEW
            self._end(f'finds a row under its engine_id that is not its own, but of the process '
                      f'{row.process.pid} on {row.hostname}')
        if row.live:
            return
        if row.ended:
            self._end(f'was declared {row.state} by {row.declared_by} ({row.evidence})')
        self._over = self._shut(f'has the state {row.state!r}, which no engine gives another, so '
                                f'it is not alive to anybody, nor has it ended; it leaves')
        self._leave_for_good(self._over)

    def _leave_for_good(self, reason: str) -> NoReturn:
        self._members.leave(self.identity.engine_id)
        self._die(reason)

    def _end(self, what: str) -> NoReturn:
        self._die(self._shut(what))

    def _die(self, reason: str) -> NoReturn:
        with self._fencing:
            # Nothing moves the timer on any more: should this process hang in its last words,
            # as where nobody reads its log, the kernel ends it.
            self._armed = False
        raise errors.EngineDead(reason)

    def _shut(self, what: str) -> str:
        reason = (f'Engine {self.identity.engine_id} {what}; it ends, and its supervisor '
                  f'starts a new one.')
        self.gate.shut(reason)
        return reason

    def _withhold(self, reason: str) -> None:
        if self._withheld is None:
            LOG.warning('Engine %s withholds its beats: %s', self.identity.engine_id, reason)
        self._withheld = reason
        if self.gate.held:
            # It does not beat, so only reading tells whether the others have called it dead.
            self._obey(self._members.read(self.identity.engine_id))

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if not self._failing:
            LOG.warning('A beat of engine %s failed; it is tried again every %g s: %s',
                        self.identity.engine_id, self._settings.beat_retry, error)
        self._failing = True

    def watch(self) -> float:
        """Look at the gate; return the seconds to the next look.

        While the gate is closed, each look moves the kernel timer on: a process that looks
        holds as well.
        """
        lag = self._settings.kernel_timer_lag
        with self._fencing:
            remaining = self.gate.closes_at - self._clock.now()
            if remaining > 0:
                return remaining
            self._arm(self._clock.now() + 2 * lag)
            first, self._holding = not self._holding, True
        if first:
            LOG.warning('Engine %s holds: no beat has reached the database for %g s. It starts '
                        'nothing until one does.', self.identity.engine_id,
                        self._settings.fence_time)
        return lag / 4

    def drain(self) -> None:
        """Tell the others that this engine takes no new work; it beats on.

        :raises DatabaseError: they were perhaps not told
        """
        self.state = State.DRAINING
        self._members.drain(self.identity.engine_id)

    def leave(self) -> None:
        """Close the gate for good and say that the engine has gone; its locks are released.

        :raises DatabaseError: it was perhaps not said; the others will find out
        """
        self.state = State.LEFT
        self.gate.shut(f'Engine {self.identity.engine_id} has left.')
        self._members.leave(self.identity.engine_id)

    def disarm(self) -> None:
        """Let the kernel timer not end the process any more, whatever beats are on the way.

        For an engine whose work has ended and that takes no more: there is nothing to fence, and
        it may yet have to wait for a database that is away before it can say that it leaves.
        """
        with self._fencing:
            self._armed = False
            self._timer.disarm()
