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

"""The fence: an engine that cannot beat does nothing, before anyone may call it dead.

Two parts, one for a process that runs and one for a process that does not.

**The gate** is asked before each new lock, step, write and message.  It compares the
clock with the *start* of the last good beat (the reply may have taken long, and the
others count from what the database saw).  At ``fence_time`` it closes; a good beat opens
it again, so an outage of the database costs nobody an engine.  It needs no thread that
would have to run in time: whoever asks, looks at the clock himself.

**The kernel timer** ends a process in which nobody asks: one that is stopped, or whose
interpreter stands still between the gate and the write behind it.  It is a POSIX timer
on ``CLOCK_BOOTTIME`` whose signal is SIGKILL, due ``kernel_timer_lag`` after
``fence_time``.  The kernel delivers it to a stopped process too.  A good beat moves it on;
so does the watchdog of an engine that holds, since a process that can hold needs no
killing.

Neither is inherited over a fork: the child has no timer, and its gate refuses.

What stays: a hypervisor's pause stops the clocks of the whole machine.  There only the
WHERE of each write protects.
"""

import ctypes
import math
import os
import signal
import threading

from heat_liveness import clock as clocks
from heat_liveness import errors

_CLOCK_BOOTTIME = 7
_SIGEV_SIGNAL = 0
_TIMER_ABSTIME = 1
_SIGEVENT_BYTES = 64


class _Timespec(ctypes.Structure):
    _fields_ = (('seconds', ctypes.c_long), ('nanoseconds', ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (('interval', _Timespec), ('value', _Timespec))


class _Sigevent(ctypes.Structure):
    _fields_ = (('value', ctypes.c_void_p), ('signo', ctypes.c_int), ('notify', ctypes.c_int),
                ('padding', ctypes.c_char * (_SIGEVENT_BYTES - 16)))


class KernelTimer:
    """Kills this process at a time on CLOCK_BOOTTIME, unless moved on.

    :raises OSError: the kernel gives no such timer
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _Sigevent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
        self._check(self._libc.timer_create(
            _CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)))

    def set(self, due_seconds: float) -> None:
        """Let the timer fire at this time of CLOCK_BOOTTIME, and at no other."""
        seconds = int(due_seconds)
        value = _Itimerspec(value=_Timespec(seconds, int((due_seconds - seconds) * 1e9)))
        self._settime(value)

    def disarm(self) -> None:
        """Let the timer not fire."""
        self._settime(_Itimerspec())

    def _settime(self, value: _Itimerspec) -> None:
        self._check(self._libc.timer_settime(
            self._timer, _TIMER_ABSTIME, ctypes.byref(value), None))

    @staticmethod
    def _check(result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class Gate:
    """Says whether this engine may start anything now.  Safe for use by many threads."""

    def __init__(self, fence_time: float, clock: clocks.Clock) -> None:
        self._fence_time = fence_time
        self._clock = clock
        self._pid = os.getpid()
        self.last_good = -math.inf
        """When the last beat that succeeded began, on the clock."""
        self._dead: str | None = None
        self._opened = threading.Condition()

    @property
    def closes_at(self) -> float:
        """When the gate closes unless a beat succeeds, on the clock."""
        return self.last_good + self._fence_time

    @property
    def held(self) -> bool:
        """Whether the gate is closed until a beat succeeds."""
        return self._clock.now() >= self.closes_at

    def good_beat(self, started: float) -> None:
        """Open the gate for ``fence_time`` from the start of a beat that succeeded."""
        with self._opened:
            self.last_good = max(started, self.last_good)
            self._opened.notify_all()

    def shut(self, reason: str) -> None:
        """Close the gate for good: the engine is dead, or has left."""
        with self._opened:
            self._dead = self._dead or reason
            self._opened.notify_all()

    def check(self) -> None:
        """Pass, or raise.

        :raises EngineHeld: no beat has succeeded for ``fence_time``
        :raises EngineDead: the engine was declared dead, has left, or this is a forked child
        """
        if os.getpid() != self._pid:
            raise errors.EngineDead(
                'This process was forked from an engine and is none itself: let it join first.')
        if self._dead is not None:
            raise errors.EngineDead(self._dead)
        if self.held:
            raise errors.EngineHeld(
                f'No beat has reached the database for {self._fence_time:g} s, so this engine '
                f'starts nothing until one does: see whether the database can be reached.')

    def wait(self) -> None:
        """Pass, or wait until a beat succeeds and then pass.

        :raises EngineDead: as :meth:`check`
        """
        while True:
            with self._opened:
                try:
                    self.check()
                except errors.EngineHeld:
                    self._opened.wait(1.0)
                else:
                    return
