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

"""The only place that reads a clock.

Durations are measured on ``CLOCK_BOOTTIME``: it goes on while the machine sleeps,
and nobody can step it.  ``CLOCK_MONOTONIC`` stands still during a suspend, so an
engine would wake up believing that its last beat was a moment ago.  What the world calls
"now" is the database's to say; the wall clock is asked only about times that another program
has written by its own.
"""

import datetime
import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the protocol asks of time; a simulation brings its own."""

    def now(self) -> float:
        """Return the seconds since an arbitrary start, never stepped, counting a suspend."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event is set, at most so many seconds; return whether it is set."""


class BootClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(max(0.0, seconds))


def wall() -> datetime.datetime:
    """Return this machine's wall clock, in UTC and without a zone, as OpenStack writes times."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
