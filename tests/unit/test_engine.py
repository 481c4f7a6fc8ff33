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

"""What the kernel proves about a process, and what it does not."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from heat_liveness import engine
from heat_liveness.engine import Process, Proof, prove
from tests.bed import waiting

# Its first thread has exited while another goes on; the kernel calls that a zombie.
HALF_A_ZOMBIE = (
    'import ctypes, threading, time\n'
    'threading.Thread(target=time.sleep, args=(300,)).start()\n'
    'ctypes.CDLL(None).pthread_exit(None)\n')


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def described(pid: int) -> Process:
    stat = engine._stat(pid)
    assert stat is not None
    return dataclasses.replace(Process.current(), pid=pid, start_time=stat.start_time)


def state_of(pid: int) -> str:
    stat = engine._stat(pid)
    return stat.state if stat else ''


def test_each_engine_has_a_name_of_its_own() -> None:
    """I14: a restart on the same host inherits nothing."""
    one, two = (engine.Identity.new(host='h', hostname='h', binary='b', topic='t')
                for _ in range(2))
    assert one.engine_id != two.engine_id
    assert one.process == two.process == Process.current()


def test_a_service_may_name_its_engine_itself() -> None:
    named = engine.Identity.new(host='h', hostname='h', binary='b', topic='t', engine_id='mine')
    assert named.engine_id == 'mine'


def test_a_process_that_runs_is_proved_to_run(start: Callable[..., Any]) -> None:
    other = described(start('sleep', '300').pid)
    assert prove(other, Process.current()) is Proof.RUNNING


def test_a_stopped_process_runs(start: Callable[..., Any]) -> None:
    process = start('sleep', '300')
    process.send_signal(signal.SIGSTOP)
    assert prove(described(process.pid), Process.current()) is Proof.RUNNING


def test_a_process_that_has_ended_is_proved_gone(start: Callable[..., Any]) -> None:
    process = start('sleep', '300')
    other = described(process.pid)
    process.kill()
    process.wait()
    assert prove(other, Process.current()) is Proof.GONE


def test_a_zombie_is_gone(start: Callable[..., Any]) -> None:
    process = start('sleep', '300')
    other = described(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    waiting.wait_until(lambda: state_of(process.pid) == 'Z', 10, 'The end of the process')
    assert prove(other, Process.current()) is Proof.GONE


def test_a_zombie_whose_other_threads_go_on_is_not_gone(start: Callable[..., Any]) -> None:
    process = start(sys.executable, '-c', HALF_A_ZOMBIE)
    waiting.wait_until(lambda: state_of(process.pid) == 'Z', 30, 'The end of the first thread')
    assert prove(described(process.pid), Process.current()) is Proof.RUNNING


def test_another_process_with_the_same_pid_proves_the_first_gone(
        start: Callable[..., Any]) -> None:
    other = described(start('sleep', '300').pid)
    before = dataclasses.replace(other, start_time=other.start_time - 1)
    assert prove(before, Process.current()) is Proof.GONE


@pytest.mark.parametrize('change', [
    {'boot_id': 'another-boot'}, {'pid_namespace': 7}, {'time_namespace': 7},
    {'pid': 0}, {'start_time': 0}])
def test_nothing_is_proved_of_another_machine_or_container(
        start: Callable[..., Any], change: dict[str, Any]) -> None:
    process = start('sleep', '300')
    other = dataclasses.replace(described(process.pid), **change)
    process.kill()
    process.wait()
    assert prove(other, Process.current()) is Proof.NONE


def test_nothing_is_proved_where_the_kernel_names_no_boot() -> None:
    me = dataclasses.replace(Process.current(), boot_id='')
    assert prove(me, me) is Proof.NONE


def test_nothing_is_proved_for_a_fork_of_the_observer() -> None:
    parent = Process.current()
    child = os.fork()
    if child == 0:
        os._exit(0 if prove(parent, parent) is Proof.NONE else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_proved_when_the_kernel_is_wrong_about_the_observer(
        start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = described(start('sleep', '300').pid)
    gone = ProcessLookupError()

    def kill(pid: int, number: int) -> None:
        raise gone

    monkeypatch.setattr(os, 'kill', kill)
    assert prove(other, Process.current()) is Proof.NONE


def test_a_process_of_another_user_is_judged_by_what_proc_says(
        start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = described(start('sleep', '300').pid)

    def kill(pid: int, number: int) -> None:
        if pid == other.pid:
            raise PermissionError

    monkeypatch.setattr(os, 'kill', kill)
    assert prove(other, Process.current()) is Proof.RUNNING
    before = dataclasses.replace(other, start_time=other.start_time - 1)
    assert prove(before, Process.current()) is Proof.GONE


def test_a_process_that_proc_hides_is_not_gone(
        start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = described(start('sleep', '300').pid)
    seen = engine._stat
    monkeypatch.setattr(engine, '_stat', lambda pid: None if pid == other.pid else seen(pid))
    assert prove(other, Process.current()) is Proof.NONE


def test_a_kernel_that_names_no_boot_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr('builtins.open', missing)
    assert Process.current() == Process(os.getpid(), 0, 0, 0, '')


def test_a_program_may_have_any_name(start: Callable[..., Any]) -> None:
    rename = 'import ctypes,time;ctypes.CDLL(None).prctl(15,b"a) Z (9) b",0,0,0);time.sleep(300)'
    process = start(sys.executable, '-c', rename)

    def renamed() -> bool:
        with open(f'/proc/{process.pid}/comm', encoding='utf-8') as file:
            return file.read() == 'a) Z (9) b\n'

    waiting.wait_until(renamed, 30, 'The new name')
    assert prove(described(process.pid), Process.current()) is Proof.RUNNING


def test_a_number_that_no_process_has_proves_nothing() -> None:
    me = engine.Process.current()
    assert engine.prove(dataclasses.replace(me, pid=2**40), me) is engine.Proof.NONE


def test_a_proc_of_another_namespace_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of other processes under the same numbers."""
    me = Process.current()
    assert me.boot_id
    monkeypatch.setattr(pathlib.Path, 'readlink', lambda self: pathlib.Path('1'))
    assert Process.current().boot_id == ''
    assert prove(me, me) is Proof.NONE
