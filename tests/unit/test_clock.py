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

"""Time is the machine's own since boot, and waits end early when they are told to."""

import datetime
import threading
import time

from heat_liveness import clock


def test_the_clock_counts_from_boot_a_suspend_included() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = clock.BootClock().now()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_wait_ends_at_once_when_its_event_is_set() -> None:
    event = threading.Event()
    event.set()
    assert clock.BootClock().wait(event, 3600)


def test_a_wait_for_a_time_that_has_passed_ends_at_once() -> None:
    assert not clock.BootClock().wait(threading.Event(), -5)


def test_the_wall_clock_is_told_as_openstack_writes_times() -> None:
    now = clock.wall()
    assert now.tzinfo is None
    assert abs(datetime.datetime.now(datetime.UTC) - now.replace(tzinfo=datetime.UTC)
               ) < datetime.timedelta(minutes=1)
