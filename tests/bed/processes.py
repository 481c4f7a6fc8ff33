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

"""Processes that end with the tests, and that can be frozen and killed with their children."""

import os
import pathlib
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from tests.bed import waiting

# The kernel ends a child when the *thread* that started it ends, so all are started by one
# that lasts as long as the interpreter.
_starter = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix='starter')


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when this one ends, however it ends.

    It leads a session of its own: no signal to the tests' process group reaches it.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    **options
        For ``subprocess.Popen``; ``**unprivileged()`` is one set of them.
    """
    # Whoever runs the tests in the background of a shell has SIGINT ignored, and so would it.
    mortal = ['env', '--default-signal=INT', 'setpriv', '--pdeathsig', 'KILL', '--', *command]
    return _starter.submit(
        lambda: subprocess.Popen(mortal, start_new_session=True, **options)).result()


def unprivileged() -> Mapping[str, Any]:
    """Return what makes ``subprocess`` run a program as ``nobody``: no options, if not root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam('nobody')
    return {'user': nobody.pw_uid, 'group': nobody.pw_gid, 'extra_groups': []}


def give_to_unprivileged(path: pathlib.Path) -> None:
    """Hand a directory to the user whom ``unprivileged`` names."""
    options = unprivileged()
    if options:
        os.chown(path, options['user'], options['group'])


def freeze(pid: int, timeout_seconds: float = 30) -> None:
    """Stop a process and all its descendants, as a machine stops that hangs.

    Raises
    ------
    AssertionError
        One of them has not stopped within ``timeout_seconds``.
    """
    # The parent first: it cannot start another child while we look for them.
    os.kill(pid, signal.SIGSTOP)
    family = descendants(pid)
    _signal(family, signal.SIGSTOP)
    waiting.wait_until(
        lambda: all(_state(each) in 'TtZ' for each in [pid, *family]), timeout_seconds,
        f'The freeze of process {pid}')


def thaw(pid: int) -> None:
    """Let a frozen process and its descendants go on."""
    _signal([*descendants(pid), pid], signal.SIGCONT)


def kill(process: subprocess.Popen[bytes], timeout_seconds: float = 30) -> None:
    """Kill a process and all its descendants, and wait until they are gone; a dead one is fine.

    Raises
    ------
    AssertionError
        One of them is still there after ``timeout_seconds``.
    """
    if process.poll() is not None:
        return
    freeze(process.pid)
    family = descendants(process.pid)
    _signal([process.pid, *family], signal.SIGKILL)
    process.wait(timeout_seconds)
    waiting.wait_until(
        lambda: not any(is_alive(pid) for pid in family), timeout_seconds,
        f'The end of the children of {process.args!r}')


def descendants(pid: int) -> list[int]:
    """Return the ids of the living processes below one, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path('/proc').iterdir():
        if entry.name.isdigit():
            parent = _state_and_parent(int(entry.name))[1]
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, []))
    return found[1:]


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    return _state(pid) != 'Z'


def _state(pid: int) -> str:
    return _state_and_parent(pid)[0]


def _state_and_parent(pid: int) -> tuple[str, int]:
    """Return the kernel's letter for the state of a process, Z if it is gone, and its parent."""
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return 'Z', 0
    # The second field is the program's name in brackets, which may itself hold brackets.
    state, parent = stat.rpartition(')')[2].split()[:2]
    return state, int(parent)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
