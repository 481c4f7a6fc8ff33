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

"""One engine's liveness, put together: threads that beat, watch and scan.

:class:`Liveness` needs no framework.  ``heat-liveness-agent`` puts it into an oslo.service
``Service``, and the bridge into heat-engine; both run the scan as a periodic task of theirs.

Three threads.  The *heart* beats, and does nothing else, so that no slow work delays it.
The *watchdog* looks at the gate.  The *scanner* observes and takes over, where the caller
has no periodic tasks.

**Where the database is away** when an engine starts, the join is tried again until it
succeeds.  The service that it belongs to is not kept waiting: it works without a row, and
nobody judges it.

Whatever declares this engine dead ends its process at once, without unwinding: code that
is still running in other threads must not get another chance to write.
"""

import functools
import logging
import os
import random
import threading
from collections.abc import Callable
from typing import Any

from heat_liveness import clock as clocks
from heat_liveness import conf, detection, errors, fence, membership, takeover
from heat_liveness import engine as engines
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Journal
from heat_liveness.db.members import Members
from heat_liveness.work import Context, WorkStore

LOG = logging.getLogger(__name__)

_LEAVE_SECONDS = 3.0
"""How long before its end an engine leaves that is not done; less where it has little time."""

EXIT_DEAD = 75
"""Exit status of an engine that was declared dead: temporary failure, start it again."""

JOIN_RETRY_SECONDS = 5.0
"""How long an engine waits before it tries again to join."""

WorkFactory = Callable[[Context], WorkStore]


def end_process(reason: str, level: int = logging.CRITICAL) -> None:
    """End this process now, without unwinding any thread."""
    LOG.log(level, '%s', reason)
    logging.shutdown()
    os._exit(EXIT_DEAD)


class Liveness:
    """An engine that lives: it beats, watches the others, and takes over."""

    def __init__(self, identity: engines.Identity, settings: conf.Settings, database: Database,
                 work: WorkFactory, *, clock: clocks.Clock | None = None,
                 timer: membership.Timer | None = None, chance: random.Random | None = None,
                 configuration: Any = None,
                 end: Callable[..., None] = end_process) -> None:
        """Put the parts together; nothing is started and nothing written.

        :param work: makes the work store
        :param configuration: where the options come from, for the work store
        :param end: ends the process when the engine is dead
        :raises ConfigError: the kernel gives no timer on CLOCK_BOOTTIME
        """
        self.identity = identity
        self._settings = settings
        self._database = database
        self._clock = clock or clocks.BootClock()
        self._end = end
        self.gate = fence.Gate(settings.fence_time, self._clock)
        members = Members(database)
        chance = chance or random.Random()  # noqa: S311 - spreads load, hides nothing
        self.membership = membership.Membership(
            identity, settings, members, self.gate, timer or _kernel_timer(), self._clock, chance)
        observer = functools.partial(
            detection.Observer, self.membership, settings, members, self._clock)
        self.work = work(Context(identity=identity, settings=settings, database=database,
                                 members=members, gate=self.gate, clock=self._clock,
                                 configuration=configuration, observer=observer))
        self.observer = observer()
        self.takeover = takeover.Takeover(identity, settings, self.work, members,
                                          Journal(database), self.gate, self._clock, chance)
        self._stop = threading.Event()
        self._stopped = threading.Event()
        self._unfenced = threading.Event()
        """Set when the kernel timer need not be moved on any more."""
        self._threads: list[threading.Thread] = []
        self._taken: dict[str, float] = {}
        """When each thread took its last step."""
        self._blind = False

    def join(self) -> None:
        """Write the service row; raises as :meth:`Membership.join`."""
        self.membership.join()

    def begin(self, joined: Callable[[], None]) -> None:
        """Join and start the threads but the scanner: now if that can be done, else later.

        :param joined: called once, when the engine has joined, to start the scans
        """
        if not self._try_to_begin(joined, logging.ERROR):
            self._run_thread(self._begin_later, joined, name='liveness-join')

    def _try_to_begin(self, joined: Callable[[], None], level: int) -> bool:
        try:
            self.join()
        except (errors.DatabaseError, errors.SchemaError) as error:
            LOG.log(level, 'Engine %s could not join the service table, so nobody would finish '
                    'its work; it tries again every %g s. %s', self.identity.engine_id,
                    JOIN_RETRY_SECONDS, error)
            return False
        except errors.EngineDead as error:
            self._end(str(error))
            return True
        LOG.info('Engine %s has joined the service table.', self.identity.engine_id)
        if self._stop.is_set():
            # stop() waits for this thread, and leaves then.
            return True
        self.start(scanner=False)
        joined()
        return True

    @property
    def _join_retry(self) -> float:
        """Seconds to the next try; soon, while the others may see a row that does not beat."""
        return self._settings.beat_retry if self.joined else JOIN_RETRY_SECONDS

    def _begin_later(self, joined: Callable[[], None]) -> None:
        while not self._clock.wait(self._stop, self._join_retry):
            if self._try_to_begin(joined, logging.DEBUG):
                return

    @property
    def joined(self) -> bool:
        """Whether the engine has a row, or may have one, so that it must heed the gate."""
        return self.membership.state is not membership.State.NEW

    @property
    def well(self) -> bool:
        """Whether the threads of this engine take their steps; an engine that holds is well."""
        longest = self._settings.fence_time
        return all(self._clock.now() - taken < longest for taken in list(self._taken.values()))

    def start(self, *, scanner: bool = True) -> None:
        """Start the threads.

        :param scanner: whether to scan on a thread of our own; otherwise the caller calls
            :meth:`scan` again after the seconds it returns
        """
        self._run_thread(self._loop, self.membership.beat, self._stop, name='liveness-heart')
        self._run_thread(self._loop, self.membership.watch, self._unfenced,
                         name='liveness-watchdog')
        if scanner:
            self._run_thread(self._loop, self.scan, self._stop, name='liveness-scanner')

    def _run_thread(self, target: Callable[..., None], *arguments: object, name: str) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _loop(self, step: Callable[[], float], until: threading.Event) -> None:
        while not until.is_set():
            self._taken[step.__name__] = self._clock.now()
            self._clock.wait(until, self._guarded(step))

    def _guarded(self, step: Callable[[], float]) -> float:
        """Take a step; whatever goes wrong in it, another one follows, unless we are dead."""
        try:
            return step()
        except errors.EngineDead as error:
            if not self._stop.is_set():
                self._end(str(error))
            return self._settings.beat_retry
        except Exception:
            LOG.exception('Engine %s: a step failed; it is taken again.', self.identity.engine_id)
            return self._settings.beat_retry

    def scan(self) -> float:
        """Observe and take over once; return the seconds to the next time."""
        try:
            found = self.observer.scan()
            looked = self._clock.now()
            self.takeover.forget()
            self.takeover.sweep(found.ended)
            self.work.search()
        except errors.EngineHeld:
            return self._settings.scan_interval
        except (errors.DatabaseError, errors.SchemaError, errors.LockHeld) as error:
            if not self._blind:
                LOG.warning('Engine %s cannot see the others; it looks again every %g s: %s',
                            self.identity.engine_id, self._settings.scan_interval, error)
            self._blind = True
            return self._settings.scan_interval
        if self._blind:
            LOG.info('Engine %s sees the others again.', self.identity.engine_id)
        self._blind = False
        # What a takeover has lasted is time in which nobody was watched.
        return max(0.0, found.next_seconds - (self._clock.now() - looked))

    def periodic_scan(self) -> None:
        """Scan once, as a periodic task of the caller's; nothing but death gets out of it."""
        self._guarded(self.scan)

    def drain(self) -> None:
        """Tell the others, if they can be told, that this engine takes no new work."""
        if not self.joined:
            return
        try:
            self.membership.drain()
        except errors.LivenessError as error:
            LOG.debug('The others were not told that engine %s drains: %s',
                      self.identity.engine_id, error)

    def stop(self) -> None:
        """Drain and leave: beats go on until the last task has ended, the row leaves last."""
        self.drain()
        self.work.drain()
        self.membership.disarm()
        self._unfenced.set()
        self._stop.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._leave()
        self._stopped.set()
        self._database.close()

    def leave_within(self, seconds: float) -> None:
        """Leave with work unfinished, shortly before this process is ended with it.

        An engine that is ended would be found dead, and its work blamed for that.

        :param seconds: how long the engine may take to stop; 0 for as long as it likes
        """
        if seconds:
            threading.Thread(
                target=self._leave_in_time, name='liveness-leave', daemon=True,
                args=(seconds - min(_LEAVE_SECONDS, seconds / 4),)).start()

    def _leave_in_time(self, seconds: float) -> None:
        if not self._stopped.wait(seconds):
            self.give_up(f'its work takes longer than the {seconds:g} s that it has to stop')

    def give_up(self, reason: str) -> None:
        """Leave although work is left, and end this process: the others finish the work.

        It is fenced until it ends.  Where the database is away, the timer is moved on for the one
        try to say that it leaves, as for any engine that holds.

        :param reason: why, as it continues "…, because"
        """
        self._stop.set()
        self._leave()
        self._unfenced.set()
        self._end(f'Engine {self.identity.engine_id} ends with its work unfinished, because '
                  f'{reason}; the others take it over.', logging.WARNING)

    def _leave(self) -> None:
        if not self.joined:
            return
        try:
            self.membership.leave()
            LOG.info('Engine %s has left.', self.identity.engine_id)
        except errors.LivenessError as error:
            LOG.warning('Engine %s ends without having left: the others will find it dead. %s',
                        self.identity.engine_id, error)


def _kernel_timer() -> fence.KernelTimer:
    try:
        return fence.KernelTimer()
    except OSError as error:
        raise errors.ConfigError(
            f'This kernel gives no timer on CLOCK_BOOTTIME ({error}), so an engine that is '
            f'stopped could not be ended. Run the engine on a Linux host or container that '
            f'allows timer_create.') from error


def database(config: Any, settings: conf.Settings) -> Database:
    """Prepare the connections of an engine to ``[database] connection``.

    :raises ConfigError: the URL cannot be used
    """
    return Database(config.database.connection, parameters=config.database.connection_parameters,
                    connect_timeout=settings.connect_timeout,
                    read_timeout=settings.read_timeout, connections=settings.max_tasks + 4)
