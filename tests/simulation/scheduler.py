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

"""Many processes and their threads in one thread, on a virtual clock.

A :class:`Thread` is a greenlet of one :class:`Process`.  It runs until it waits: for time,
for a reply of the database, or on one of the objects below, which stand in the product's modules
for those of :mod:`threading` and :mod:`concurrent.futures` while a simulation runs.
Everything else is the product's own code.  With ``preempting`` a thread may also be made to
wait where it takes or frees a lock.

Between two waits nothing else runs, so a process is stopped, and ends, only where one of its
threads waits; :func:`pause_point` makes another such place.
"""

import collections
import heapq
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import greenlet

from heat_liveness import agent, fence, membership
from heat_liveness.work import native


class _Timeout:
    """What a wait returns whose time is over."""


TIMEOUT = _Timeout()
LOOK_SECONDS = 1e-6
"""What a look at a clock takes."""


class Hub:
    """The virtual time, and what is to happen at which."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.preempting = 0.0
        self._queue: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = 0
        self._greenlet = greenlet.getcurrent()

    def at(self, time: float, call: Callable[..., Any], *arguments: Any) -> None:
        """Let a call be made at a time."""
        self._number += 1
        heapq.heappush(self._queue, (time, self._number, call, arguments))

    def after(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> None:
        """Let a call be made in so many seconds."""
        self.at(self.now + seconds, call, *arguments)

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Let everything happen up to a time; look every second whether that is enough."""
        next_look = self.now
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(queue)
            call(*arguments)
            if self.now >= next_look:
                if done():
                    return
                next_look = self.now + 1

    def switch(self) -> Any:
        """Let the others run."""
        return self._greenlet.switch()


class Process:
    """Threads that stop, go on and end together."""

    def __init__(self, hub: Hub, name: str, clock: 'Clock') -> None:
        self.hub = hub
        self.name = name
        self.clock = clock
        self.dead = False
        self.stopped = False
        self.threads: list[Thread] = []
        self._waiting: list[tuple[Thread, int, Any]] = []
        self.at_end: list[Callable[[], None]] = []

    def spawn(self, name: str, call: Callable[..., Any], *arguments: Any) -> 'Thread':
        """Start a thread."""
        thread = Thread(self, name, call, arguments)
        if not self.dead:
            self.threads.append(thread)
            self.hub.after(0, resume, thread, 0, None)
        return thread

    def stop(self) -> None:
        """Let no thread of it run: SIGSTOP."""
        self.stopped = True

    def go_on(self) -> None:
        """Let its threads run again: SIGCONT."""
        self.stopped = False
        self.wake()

    def wake(self) -> None:
        """Wake in any order those that would have been woken while it stood still, if it runs."""
        waiting, self._waiting = self._waiting, []
        self.hub.chance.shuffle(waiting)
        for each in waiting:
            self.hub.after(0, resume, *each)

    def defer(self, thread: 'Thread', token: int, value: object) -> None:
        """Keep what would wake a thread until the process goes on."""
        self._waiting.append((thread, token, value))

    def kill(self) -> None:
        """End it: no thread takes another step."""
        if not self.dead:
            self.dead = True
            for call in self.at_end:
                call()
            self.hub.after(0, self._bury)

    def _bury(self) -> None:
        for thread in self.threads:
            if not thread.dead:
                thread.throw(greenlet.GreenletExit)
        self.threads.clear()


class Thread(greenlet.greenlet):
    """A thread of a simulated process."""

    def __init__(self, process: Process, name: str, call: Callable[..., Any],
                 arguments: tuple[Any, ...]) -> None:
        super().__init__(self._main, process.hub._greenlet)
        self.process = process
        self.name = name
        self.token = 0
        """Rises with each wake; what was to wake an earlier wait changes nothing."""
        self.done = False
        self.locks = 0
        """How many locks it has, one within the other."""
        self._call = call
        self._arguments = arguments
        self._joiners: list[tuple[Thread, int]] = []

    def _main(self, value: object) -> None:
        try:
            self._call(*self._arguments)
        finally:
            self.done = True
            if not self.process.dead:
                self.process.threads.remove(self)
                for joiner in self._joiners:
                    self.process.hub.after(0, resume, *joiner, None)

    def wait(self, seconds: float | None = None) -> Any:
        """Let others run until woken, or so many seconds; return what it was woken with."""
        process = self.process
        if process.dead:
            raise greenlet.GreenletExit
        if seconds is not None:
            process.hub.after(seconds, _time_out, self, self.token, process.clock.stood)
        return process.hub.switch()

    def join(self) -> None:
        """Wait for the end of this thread."""
        if not self.done:
            caller = current()
            self._joiners.append((caller, caller.token))
            caller.wait()


def resume(thread: Thread, token: int, value: object) -> None:
    """Wake a thread from the wait with that token, when its process runs."""
    process = thread.process
    if token != thread.token or process.dead:
        return
    if process.stopped or process.clock.stands:
        process.defer(thread, token, value)
        return
    thread.token += 1
    thread.switch(value)


def _time_out(thread: Thread, token: int, stood: float) -> None:
    """End a wait, unless its machine was paused meanwhile: then it lasts as much longer."""
    clock = thread.process.clock
    if token == thread.token and clock.stood > stood:
        thread.process.hub.after(clock.stood - stood, _time_out, thread, token, clock.stood)
    else:
        resume(thread, token, TIMEOUT)


def current() -> Thread:
    """Return the thread that runs."""
    found = greenlet.getcurrent()
    assert isinstance(found, Thread)
    return found


def pause_point() -> None:
    """Be a place where this process may be stopped or ended, or other threads may run."""
    thread = current()
    if not thread.process.dead:
        thread.wait(0)


def _preempt(thread: Thread) -> None:
    hub = thread.process.hub
    if (hub.preempting and not thread.locks and not thread.process.dead
            and hub.chance.random() < hub.preempting):
        thread.wait(hub.chance.random() * 0.01)


class Clock:
    """The CLOCK_BOOTTIME of one machine, at its own rate, from its own start.

    It stands still while a hypervisor pauses the machine.  No two looks at it show the same time,
    as with a real one: two that are compared differ.
    """

    def __init__(self, hub: Hub, rate: float, start: float) -> None:
        self._hub = hub
        self._rate = rate
        self._start = start
        self._shown = start
        self._until = 0.0
        """When the last pause ends, or has ended."""
        self.stood = 0.0
        """Seconds of all pauses, to their ends."""

    @property
    def stands(self) -> bool:
        """Whether the machine is paused."""
        return self._hub.now < self._until

    @property
    def remaining(self) -> float:
        """Seconds to the end of the pause."""
        return max(0.0, self._until - self._hub.now)

    def pause(self, seconds: float) -> None:
        """Stand still for so long."""
        assert not self.stands
        self._until = self._hub.now + seconds
        self.stood += seconds

    def now(self) -> float:
        gone = max(self._hub.now, self._until) - self.stood
        self._shown = max(self._start + gone * self._rate, self._shown + LOOK_SECONDS)
        return self._shown

    def true(self, time: float) -> float:
        """Return the virtual time at which this clock shows a time, if it is not paused again."""
        return (time - self._start) / self._rate + self.stood

    def wait(self, event: 'Event', seconds: float) -> bool:
        return event.wait(max(0.0, seconds) / self._rate)


class Lock:
    """Nobody ever waits for it: no thread that has it lets others run."""

    def __enter__(self) -> Self:
        thread = greenlet.getcurrent()
        if isinstance(thread, Thread):
            _preempt(thread)
            thread.locks += 1
        return self

    def __exit__(self, *exception: object) -> None:
        thread = greenlet.getcurrent()
        if isinstance(thread, Thread):
            thread.locks -= 1
            _preempt(thread)


class Condition(Lock):
    """Waiting for others to tell."""

    def __init__(self) -> None:
        self._waiters: list[tuple[Thread, int]] = []

    def wait(self, timeout: float | None = None) -> bool:
        thread = current()
        self._waiters.append((thread, thread.token))
        return thread.wait(timeout) is not TIMEOUT

    def wait_for(self, predicate: Callable[[], bool]) -> bool:
        while not predicate():
            self.wait()
        return True

    def notify_all(self) -> None:
        waiters, self._waiters = self._waiters, []
        for thread, token in waiters:
            thread.process.hub.after(0, resume, thread, token, None)


class Event(Condition):
    """Something that happens once."""

    def __init__(self) -> None:
        super().__init__()
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            super().wait(timeout)
        return self._set


class Pool:
    """Runs calls on at most so many threads; the next one waits until a thread is done."""

    def __init__(self, workers: int, thread_name_prefix: str) -> None:
        self._workers = workers
        self._name = thread_name_prefix
        self._threads: list[Thread] = []
        self._calls: collections.deque[tuple[Callable[..., Any], tuple[Any, ...]]] = (
            collections.deque())

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._calls.append((call, arguments))
        self._threads = [thread for thread in self._threads if not thread.done]
        if len(self._threads) < self._workers:
            self._threads.append(current().process.spawn(self._name, self._work))

    def _work(self) -> None:
        while self._calls:
            call, arguments = self._calls.popleft()
            call(*arguments)

    def shutdown(self, *, wait: bool) -> None:
        for thread in list(self._threads):
            thread.join()


class _Started(Lock):
    """Stands for threading.Thread."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...], name: str,
                 daemon: bool) -> None:
        self._start = (name, target, *args)
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = current().process.spawn(*self._start)

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()

    def __eq__(self, other: object) -> bool:
        return self._thread is other

    __hash__ = None  # type: ignore[assignment]


class _Threading:
    """Stands for the module."""

    Condition = Condition
    Event = Event
    Lock = Lock
    Thread = _Started
    current_thread = staticmethod(current)


class _Futures:
    """Stands for the module."""

    ThreadPoolExecutor = Pool


@contextmanager
def replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Put something else into modules and classes for a while."""
    before = [(place, name, place.__dict__[name]) for place, name, _ in places]
    try:
        for place, name, value in places:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in reversed(before):
            setattr(place, name, value)


def threads_replaced() -> Any:
    """Let the product's modules find our threads instead of the system's."""
    return replaced(*((module, 'threading', _Threading)
                      for module in (agent, fence, membership, native)),
                    (native, 'futures', _Futures))
