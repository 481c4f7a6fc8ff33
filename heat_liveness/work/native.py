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

"""Work that a service keeps in ``liveness_lock``: acquired, run, and taken over, here.

A piece of work is a lock with a task: the name of a *handler* and its arguments in JSON.
Whoever owns the lock runs the handler; when the owner dies, the handler is run again by
the taker, with the progress that was recorded::

    def build(task):
        for step in range((task.progress or 0), task.arguments['steps']):
            cloud.apply(step, fence=task.generation)
            task.record(step + 1)

    work = NativeWork(context, {'build': build})
    work.submit('house-17', 'build', {'steps': 3})

Each write names owner and generation.  One that finds the lock in other hands raises
:class:`~errors.LockLost`, and the handler should let go at once.  A call *outside* the
database cannot be fenced by a WHERE: give it the generation, and let its receiver refuse a
lower one than it has seen.

While the engine holds (:mod:`heat_liveness.fence`), ``record`` and the end of a task wait:
an outage of the database costs time and no work.

An engine takes over the work for which it has a handler.  The rest is left to those that have
one, as while a service is upgraded engine by engine, and not failed.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent import futures
from typing import Any

from heat_liveness import errors
from heat_liveness.db.locks import MOST_ROWS, HeldLock, LockRow, Locks
from heat_liveness.db.members import ServiceRow
from heat_liveness.work import Claim, Context

LOG = logging.getLogger(__name__)

_LONGEST_REASON = 10_000

Handler = Callable[['Task'], None]


class Release(Exception):
    """Raised by a handler: give the lock back, the work is neither done nor failed."""


class Task:
    """A lock that this engine owns, and the work under it."""

    def __init__(self, row: HeldLock, work: 'NativeWork') -> None:
        self.row = row
        self.turn = threading.Lock()
        """A handler may have several threads: one of them writes at a time."""
        self._work = work

    @property
    def name(self) -> str:
        """The lock's name."""
        return self.row.name

    @property
    def task(self) -> str:
        """The handler's name."""
        return self.row.task

    @property
    def arguments(self) -> Any:
        """What the work was submitted with."""
        return self.row.arguments

    @property
    def progress(self) -> Any:
        """What was last recorded before this run, by whichever owner; None at first."""
        return self.row.progress

    @property
    def takeovers(self) -> int:
        """How many owners have died of, or with, this work."""
        return self.row.takeovers

    @property
    def generation(self) -> int:
        """The fence for calls outside the database: it rises with each change of owner.

        It rises as well when this owner has recorded something and got no reply.
        """
        return self.row.generation

    def record(self, progress: Any) -> None:
        """Keep how far the work has come, for this owner's successor.

        :raises LockLost: the lock is somebody else's by now
        :raises EngineDead: this engine was declared dead
        :raises DataRefused: it is too long, or the database cannot store it
        """
        self._work.write(self, progress=progress)

    def complete(self) -> None:
        """Say that the work is done, and release the lock; raises as :meth:`record`."""
        self._end('complete')

    def fail(self, reason: str) -> None:
        """Say why the work cannot be done, and release the lock; raises as :meth:`record`."""
        # A reason that no database can store must not keep the work from ending.
        text = reason.encode('utf-8', 'backslashreplace').decode().replace('\0', '\\0')
        self._end('failed', text[:_LONGEST_REASON])

    def release(self) -> None:
        """Give the lock back as it is; raises as :meth:`record`."""
        self._end('released')

    def _end(self, status: str, reason: str | None = None) -> None:
        self._work.end(self, status, reason)


class NativeWork:
    """The locks of one engine, and the threads that do the work under them."""

    def __init__(self, context: Context, handlers: Mapping[str, Handler] | None = None) -> None:
        self.doubts = False
        self._me = context.identity.engine_id
        self._settings = context.settings
        self._gate = context.gate
        self._clock = context.clock
        self._locks = Locks(context.database)
        self._handlers = dict(handlers or {})
        self._pool = futures.ThreadPoolExecutor(
            context.settings.max_tasks, thread_name_prefix='liveness-task')
        self._changed = threading.Condition()
        """Guards the next four, and tells of each lock let go."""
        self._held: dict[str, Task] = {}
        """What is run, or worked on by a caller of acquire(), by the lock's name."""
        self._threaded: set[Task] = set()
        """What has a thread, or waits for one; it may have ended, or lost its lock, already."""
        self._acquiring: set[str] = set()
        self._draining = False
        self._told: set[str] = set()
        """Ended engines whose work was left to others, which was said."""

    def acquire(self, name: str, task: str, arguments: Any = None) -> Task:
        """Take a lock that nobody holds; the caller does the work and ends it.

        If this engine dies, those take it over that have a handler for its task.

        :raises LockHeld: another task holds it, here or elsewhere, or there is no room
        :raises EngineHeld: this engine cannot beat at present
        :raises EngineDead: this engine was declared dead
        :raises UnclearOutcome: should the lock be ours after all, its handler will be run, or
            the lock be released if there is none
        """
        self._gate.check()
        with self._changed:
            if not self._idle(name) or self.room() < 1:
                raise errors.LockHeld(
                    f'The lock {name} cannot be acquired now: this engine runs it already, or '
                    f'has no room for more than {self._settings.max_tasks} tasks.')
            self._acquiring.add(name)
        made = None
        try:
            made = Task(self._locks.acquire(name, task, arguments, self._me), self)
        except errors.LivenessError as error:
            if not isinstance(error, errors.LockHeld | errors.EngineDead):
                self.doubts = True
            raise
        finally:
            with self._changed:
                self._acquiring.discard(name)
                if made is not None:
                    self._held[name] = made
                self._changed.notify_all()
        # Who has left or died meanwhile begins nothing; who holds will wait with its writes.
        with contextlib.suppress(errors.EngineHeld):
            self._gate.check()
        return made

    def submit(self, name: str, task: str, arguments: Any = None) -> futures.Future[None]:
        """Take a lock and run its handler on a thread of this engine; raises as :meth:`acquire`.

        :return: done when the lock is released, whatever became of the work
        :raises NotFound: no handler has that name
        """
        if task not in self._handlers:
            raise errors.NotFound(f'No handler is registered for the task {task}.')
        made = self.acquire(name, task, arguments)
        with self._changed:
            return self._give_thread(made)

    def _give_thread(self, task: Task) -> futures.Future[None]:
        self._threaded.add(task)
        try:
            return self._pool.submit(self._run, task)
        except RuntimeError:
            # There is no thread to be had.  What the pool has kept of it is not run any more.
            self._threaded.discard(task)
            self._let_go(task)
            self.doubts = True
            raise

    def room(self) -> int:
        """Return how many more tasks this engine can run."""
        with self._changed:
            if self._draining:
                return 0
            return max(0, self._settings.max_tasks - len(self._busy) - len(self._acquiring))

    @property
    def _busy(self) -> set[Task]:
        """What is worked on, by a thread of this engine or by a caller of acquire()."""
        return self._threaded.union(self._held.values())

    def _idle(self, name: str) -> bool:
        """Whether this engine neither runs nor is just acquiring that lock."""
        with self._changed:
            return name not in self._held and name not in self._acquiring

    def claim(self, owner: ServiceRow) -> Claim:
        """Take over what there is room for; work whose owners died before, one at a time."""
        room = self.room()
        if not room:
            return Claim(0, more=True)
        try:
            rows = (self._locks.take_over(owner, self._me, room, tainted=False,
                                          tasks=self._handlers)
                    or self._tainted(owner))
        except errors.UnclearOutcome:
            self.doubts = True
            raise
        return Claim(self._start(rows), more=bool(rows) or self._has_more(owner))

    def _has_more(self, owner: ServiceRow) -> bool:
        """Return whether an ended engine owns work that this one could run."""
        if self._locks.owners([owner.engine_id], self._handlers):
            return True
        if owner.engine_id not in self._told and self._locks.owners([owner.engine_id]):
            self._told.add(owner.engine_id)
            LOG.warning(
                'Engine %s has ended and owns work for which engine %s has no handler. It is left '
                'to engines that have one; see "heat-liveness-manage lock list".',
                owner.engine_id, self._me)
        return False

    def _tainted(self, owner: ServiceRow) -> list[HeldLock]:
        """Take one piece whose owners died before, unless one runs here; set poison aside.

        To look for poison is to read all the owner's locks, so it comes when the rest is gone.
        What another survivor has locked is not set aside by this one, and not taken either.
        """
        poison = self._settings.max_takeovers if owner.blamed else None
        if poison is not None:
            for row in self._locks.quarantine(owner, self._me, poison):
                LOG.warning('The lock %s is quarantined: its owners died %d times. See '
                            '"heat-liveness-manage lock show %s".', row.name,
                            row.takeovers + 1, row.name)
        if self._runs_tainted():
            return []
        return self._locks.take_over(owner, self._me, 1, tainted=True, poison=poison,
                                     tasks=self._handlers)

    def _runs_tainted(self) -> bool:
        """Whether work whose owner has died before runs here."""
        with self._changed:
            return any(task.takeovers for task in self._busy)

    def reclaim(self) -> int:
        """Claim from itself what this engine owns but neither runs nor is just claiming."""
        self.doubts = False
        try:
            # As many more as run here, or they would hide the others.
            owned = self._locks.search(engine_id=self._me, limit=MOST_ROWS + len(self._held))
            rest = [row for row in owned if row.name not in self._held]
            strays = [row for row in rest if self._idle(row.name)]
            chosen = self._together(strays)[:self.room()]
            if len(chosen) < len(rest):
                self.doubts = True
            # A task that ended between the two looks is no stray: its row has changed.
            return sum(self._reclaim(row) for row in chosen)
        except errors.LivenessError:
            self.doubts = True
            raise

    def _reclaim(self, row: HeldLock) -> int:
        """Claim a stray, and start it at once: what fails with the next must not keep it back."""
        try:
            return self._start(self._locks.reclaim([row], self._me))
        except errors.Contended as error:
            self.doubts = True
            LOG.debug('Lock %s could not be claimed again; that is tried again soon: %s',
                      row.name, error)
            return 0

    def _together(self, strays: Sequence[HeldLock]) -> list[HeldLock]:
        """Return those that may run beside what runs and beside each other, as after a takeover.

        A takeover whose reply was lost may be found when other tainted work runs already.
        """
        fresh = [row for row in strays if not row.takeovers]
        if self._runs_tainted():
            return fresh
        batch = [row for row in strays if row.takeovers == 1]
        return fresh + (batch or [row for row in strays if row.takeovers > 1][:1])

    def search(self) -> None:
        """Do nothing: what is in progress here has an owner, always."""

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that own a lock."""
        return self._locks.owners(engine_ids)

    def drain(self) -> None:
        """Take no new work, and wait until the last lock is released, a caller's own too."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._held and not self._acquiring)
        self._pool.shutdown(wait=True)

    def _start(self, rows: Collection[HeldLock]) -> int:
        with self._changed:
            if self._draining:
                # The others find them when this engine has left.
                return 0
            # What a failover has undone may be taken over again while it runs still.  It runs on,
            # once: under this generation as before, or until it finds that it has lost the lock.
            new = [Task(row, self) for row in rows if row.name not in self._held]
            for task in new:
                self._held[task.name] = task
                self._give_thread(task)
        return len(new)

    def _run(self, task: Task) -> None:
        """Run a task to its end, whatever that is; the thread goes on."""
        with self._changed:
            if task not in self._threaded:
                return
        try:
            self._handle(task)
        except errors.LockLost as error:
            LOG.warning('The task %s is given up: %s', task.name, error)
        except errors.EngineDead as error:
            LOG.warning('The task %s stops: %s', task.name, error)
        finally:
            with self._changed:
                self._threaded.discard(task)
                self._let_go(task)

    def _handle(self, task: Task) -> None:
        handler = self._handlers.get(task.task)
        if handler is None:
            LOG.error('The lock %s was acquired for the task %s, and it was not clear whether it '
                      'was. No handler has that name, so it is released.', task.name, task.task)
            task.release()
            return
        try:
            self._gate.wait()
            handler(task)
        except Release:
            task.release()
        except (errors.LockLost, errors.EngineDead):
            raise
        except Exception as error:
            LOG.exception('The task %s (%s) failed.', task.name, task.task)
            task.fail(f'{type(error).__name__}: {error}')
        else:
            task.complete()

    def _let_go(self, task: Task) -> None:
        """Forget a lock under one generation; it may be held anew under the next."""
        with self._changed:
            if self._held.get(task.name) is task:
                del self._held[task.name]
            self._changed.notify_all()

    def end(self, task: Task, status: str, reason: str | None) -> None:
        """Release a lock with the outcome of its work; see :class:`Task`."""
        try:
            self.write(task, status=status, reason=reason, engine_id=None)
        finally:
            self._let_go(task)

    def write(self, task: Task, **values: Any) -> None:
        """Write under a lock until it is certain that it was written, or cannot be.

        The write names owner and generation, so it may be sent again after any error.  A copy
        whose reply was lost may land late, over what has been recorded since: so the lock is
        first claimed from itself, under a generation that no such copy names.  What ends the
        work needs that not, as it clears the owner.

        :raises LockLost: the lock is somebody else's by now
        :raises EngineDead: this engine was declared dead
        :raises DataRefused: it cannot be written
        """
        with task.turn:
            self._write(task, values)

    def _write(self, task: Task, values: dict[str, Any]) -> None:
        uncertain = unclear = False
        while True:
            self._gate.wait()
            row = task.row
            try:
                if unclear and 'status' not in values:
                    task.row = self._renewed(task)
                    unclear = False
                    continue
                if self._locks.write(row, **values):
                    return
                now = self._locks.find(row.name)
            except errors.DataRefused:
                raise
            except errors.DatabaseError as error:
                LOG.debug('A write under the lock %s is tried again: %s', row.name, error)
                uncertain = True
                unclear = unclear or isinstance(error, errors.UnclearOutcome)
                self._clock.wait(threading.Event(), self._settings.beat_retry)
                continue
            if (uncertain and now is not None and now.generation == row.generation
                    and now.status == values.get('status')):
                return
            # A caller of acquire() need not say that he has let go of what he has lost.
            self._let_go(task)
            if now is not None and now.engine_id == self._me:
                self.doubts = True
            raise errors.LockLost(_lost(row, now))

    def _renewed(self, task: Task) -> HeldLock:
        """Claim a task's lock from itself; return it as it was if it is somebody else's by now.

        That may be another task of this engine, where a handler goes on after its lock has ended.
        A claim is refused, too, where an earlier one without a reply has landed since the look;
        then the next look shows another generation.
        """
        refused = None
        while True:
            now = self._locks.find(task.name)
            with self._changed:
                holds = self._held.get(task.name) is task
            if not holds or now is None or now.generation == refused:
                return task.row
            for won in self._locks.reclaim([now], self._me):
                return dataclasses.replace(task.row, generation=won.generation)
            refused = now.generation


def _lost(row: HeldLock, now: LockRow | None) -> str:
    """Say why nothing could be written under a lock."""
    if now is not None and (now.engine_id, now.generation) == (row.engine_id, row.generation):
        return (f'Engine {row.engine_id} is not alive any more, so nothing was written under its '
                f'lock {row.name}.')
    if now is None or now.engine_id is None:
        holder = 'nobody'
    elif now.engine_id == row.engine_id:
        holder = f'itself under another, {now.generation}'
    else:
        holder = now.engine_id
    return (f'The lock {row.name} is not held by engine {row.engine_id} under generation '
            f'{row.generation} any more, but by {holder}: nothing was written.')
