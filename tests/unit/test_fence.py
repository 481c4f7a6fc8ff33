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

"""An engine that cannot beat starts nothing; one that cannot even hold is ended."""

import ctypes
import errno
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from heat_liveness import errors, fence
from heat_liveness.clock import BootClock
from tests.bed import waiting
from tests.unit import fakes


@pytest.fixture
def clock() -> fakes.Clock:
    return fakes.Clock()


@pytest.fixture
def gate(clock: fakes.Clock) -> fence.Gate:
    return fence.Gate(20, clock)


def test_a_gate_is_closed_until_the_first_beat(gate: fence.Gate) -> None:
    """I6: an engine whose join was unclear is seen by the others, and may be declared dead."""
    assert gate.held
    with pytest.raises(errors.EngineHeld, match=r'^No beat has reached the database for 20 s, so'):
        gate.check()


def test_a_gate_closes_a_fence_time_after_the_start_of_the_last_good_beat(
        gate: fence.Gate, clock: fakes.Clock) -> None:
    """I6: whoever asks looks at the clock himself; no thread has to run in time."""
    started = clock.now()
    clock.forward(5)
    gate.good_beat(started)
    clock.forward(14.999)
    gate.check()
    clock.forward(.001)
    with pytest.raises(errors.EngineHeld):
        gate.check()


def test_a_good_beat_opens_the_gate_again_after_any_time(
        gate: fence.Gate, clock: fakes.Clock) -> None:
    """I11: a long outage costs nobody an engine."""
    gate.good_beat(clock.now())
    clock.forward(86400)
    assert gate.held
    gate.good_beat(clock.now())
    gate.check()


def test_a_late_report_of_an_early_beat_does_not_close_the_gate(
        gate: fence.Gate, clock: fakes.Clock) -> None:
    gate.good_beat(clock.now())
    gate.good_beat(clock.now() - 15)
    assert gate.closes_at == pytest.approx(clock.now() + 20)


def test_a_gate_that_is_shut_stays_shut_and_says_why(gate: fence.Gate, clock: fakes.Clock) -> None:
    gate.good_beat(clock.now())
    gate.shut('It was declared dead.')
    gate.shut('It has left.')
    gate.good_beat(clock.now())
    with pytest.raises(errors.EngineDead, match=r'^It was declared dead\.$'):
        gate.check()
    with pytest.raises(errors.EngineDead):
        gate.wait()


def test_who_waits_at_the_gate_passes_when_a_beat_succeeds(
        gate: fence.Gate, clock: fakes.Clock) -> None:
    passed = threading.Event()

    def pass_through() -> None:
        gate.wait()
        passed.set()

    thread = threading.Thread(target=pass_through)
    thread.start()
    assert not passed.wait(.05)
    gate.good_beat(clock.now())
    assert passed.wait(30)
    thread.join()


def test_the_gate_refuses_a_forked_child(gate: fence.Gate, clock: fakes.Clock) -> None:
    gate.good_beat(clock.now())
    child = os.fork()
    if child == 0:
        try:
            gate.check()
        except errors.EngineDead as error:
            os._exit(0 if 'forked' in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    gate.check()


def test_a_forked_child_is_told_by_its_pid(
        gate: fence.Gate, clock: fakes.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.good_beat(clock.now())
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    with pytest.raises(errors.EngineDead, match='forked from an engine and is none itself'):
        gate.check()


@pytest.fixture
def armed() -> Iterator[subprocess.Popen[str]]:
    """A process that reads lines of Python which may move its timer."""
    program = textwrap.dedent("""\
        import sys
        from heat_liveness import clock, fence
        timer, now = fence.KernelTimer(), clock.BootClock().now
        timer.set(now() + 3600)
        for line in sys.stdin:
            exec(line)
            print('done', flush=True)
        """)
    process = subprocess.Popen([sys.executable, '-c', program], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + '\n')
    process.stdin.flush()


def wait_for(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == 'done\n'


def test_the_kernel_ends_a_process_whose_time_has_come(armed: subprocess.Popen[str]) -> None:
    tell(armed, 'timer.set(now() + .01)')
    assert armed.wait(30) == -signal.SIGKILL


def test_the_kernel_ends_a_process_while_it_is_stopped(armed: subprocess.Popen[str]) -> None:
    """I6, for pauses of any length."""
    tell(armed, 'timer.set(now() + 2)')
    wait_for(armed)
    armed.send_signal(signal.SIGSTOP)
    assert armed.wait(30) == -signal.SIGKILL


def test_a_timer_that_was_moved_on_or_disarmed_ends_nobody(armed: subprocess.Popen[str]) -> None:
    tell(armed, 'timer.set(now() + .5); timer.set(now() + 3600)')
    wait_for(armed)
    past = BootClock().now() + .6
    waiting.wait_until(lambda: BootClock().now() > past, 60, 'The first time')
    tell(armed, 'timer.set(now() + .5); timer.disarm()')
    wait_for(armed)
    past = BootClock().now() + .6
    waiting.wait_until(lambda: BootClock().now() > past, 60, 'The second time')
    tell(armed, 'pass')
    wait_for(armed)


def test_a_child_inherits_no_timer() -> None:
    program = textwrap.dedent("""\
        import os, time
        from heat_liveness import clock, fence
        timer, now = fence.KernelTimer(), clock.BootClock().now
        due = now() + 1
        timer.set(due)
        if os.fork():
            time.sleep(300)
        while now() < due + .2:
            time.sleep(.01)
        print('the child goes on')
        """)
    parent = subprocess.run([sys.executable, '-c', program], text=True, stdout=subprocess.PIPE,
                            check=False, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    assert parent.stdout == 'the child goes on\n'


@pytest.fixture
def timer() -> Iterator[fence.KernelTimer]:
    """A timer of this very process, an hour ahead."""
    found = fence.KernelTimer()
    found.set(BootClock().now() + 3600)
    yield found
    found.disarm()


def left_of(timer: fence.KernelTimer) -> tuple[float, float]:
    """Ask the kernel how many seconds are left, and after how many more it would fire again."""
    value = fence._Itimerspec()
    assert ctypes.CDLL(None).timer_gettime(timer._timer, ctypes.byref(value)) == 0
    return (value.value.seconds + value.value.nanoseconds / 1e9,
            value.interval.seconds + value.interval.nanoseconds / 1e9)


def test_the_kernel_has_the_time_that_was_set_and_no_other(timer: fence.KernelTimer) -> None:
    before = BootClock().now()
    timer.set(before + 1800.75)
    left, again = left_of(timer)
    assert 1800.75 - (BootClock().now() - before) <= left + 1e-3
    assert left <= 1800.75
    assert again == 0
    timer.disarm()
    assert left_of(timer) == (0, 0)


def test_a_child_may_have_a_timer_of_its_own(timer: fence.KernelTimer) -> None:
    child = os.fork()
    if child == 0:
        fence.KernelTimer().set(BootClock().now() + .01)
        time.sleep(60)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert left_of(timer)[0] > 0


def test_what_the_kernel_refuses_is_an_error() -> None:
    timer = fence.KernelTimer()
    timer.disarm()
    timer._timer = ctypes.c_void_p(123456)
    with pytest.raises(OSError, match='Invalid argument') as caught:
        timer.set(1)
    assert caught.value.errno == errno.EINVAL


def test_a_time_just_before_a_full_second_is_none_that_the_kernel_refuses(
        timer: fence.KernelTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[fence._Itimerspec] = []
    with monkeypatch.context() as patch:
        patch.setattr(timer, '_settime', values.append)
        timer.set(math.nextafter(6, 0))
    assert (values[0].value.seconds, values[0].value.nanoseconds) == (5, 999_999_999)
