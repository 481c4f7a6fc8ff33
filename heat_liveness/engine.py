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

"""Who an engine is, and what the kernel can prove about it.

An engine is one incarnation of one worker process.  Its ``engine_id`` is fresh at each
start, so a restart never inherits anything.  Beside it stands what identifies the
*process* to the kernel: pid, start time, the pid and time namespaces in which these
numbers mean something, and the boot id of the machine's present run.

An observer that shares boot id and both namespaces with an engine may ask the kernel
about it, and the kernel's answer settles a death at once.  It is asked with care:

* ``kill(pid, 0)`` says ESRCH when there is no such process.  A missing entry under
  ``/proc`` says nothing: with ``hidepid`` it is missing for any process of another user.
* A process of that pid with another start time is another process.
* A process in state Z is gone only with its last thread: the leader may have exited
  while the others go on.
* The same questions are first asked about the observer itself, whose answers are known.
  Where they come out wrong (a foreign /proc, an emulated kernel) nothing is proved.
* Another boot id proves nothing: two machines cloned from one image may share what looks
  unique, and an equal machine id is not an equal boot.
"""

import dataclasses
import enum
import os
import pathlib
import uuid

PROTOCOL_VERSION = 1

OBSERVED = 0
"""The protocol of an engine that knows none of ours: others have written its row."""


@dataclasses.dataclass(frozen=True)
class Process:
    """What identifies a process to the kernel of one boot."""

    pid: int
    start_time: int
    """Clock ticks from boot to the start of the process."""
    pid_namespace: int
    time_namespace: int
    boot_id: str
    """Empty where the kernel gives none; then nothing can be proved."""

    @classmethod
    def current(cls) -> 'Process':
        """Describe the calling process."""
        pid = os.getpid()
        stat = _stat(pid)
        try:
            with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as file:
                # A /proc of another namespace tells of other processes under these numbers.
                here = pathlib.Path('/proc/self').readlink() == pathlib.Path(str(pid))
                boot_id = file.read().strip() if here else ''
            pid_namespace = os.stat('/proc/self/ns/pid').st_ino
            time_namespace = os.stat('/proc/self/ns/time').st_ino
        except OSError:
            boot_id, pid_namespace, time_namespace = '', 0, 0
        return cls(pid, stat.start_time if stat else 0, pid_namespace, time_namespace, boot_id)


@dataclasses.dataclass(frozen=True)
class Identity:
    """An engine's name and address, and the process it is."""

    engine_id: str
    host: str
    hostname: str
    binary: str
    topic: str
    process: Process

    @classmethod
    def new(cls, *, host: str, hostname: str, binary: str, topic: str,
            engine_id: str | None = None) -> 'Identity':
        """Describe the calling process as a new engine.

        :param engine_id: the name that the service gave it; by default a fresh UUID
        """
        return cls(engine_id or str(uuid.uuid4()), host, hostname, binary, topic,
                   Process.current())


class Proof(enum.Enum):
    """What the kernel says about an engine's process."""

    RUNNING = 'running'
    GONE = 'gone'
    NONE = 'none'


def prove(other: Process, observer: Process) -> Proof:
    """Ask the kernel whether ``other`` still runs, if ``observer`` may judge that."""
    shared = (other.pid > 0 and other.start_time > 0
              and other.boot_id == observer.boot_id != ''
              and other.pid_namespace == observer.pid_namespace
              and other.time_namespace == observer.time_namespace)
    if not shared or Process.current() != observer or _ask(observer) is not Proof.RUNNING:
        return Proof.NONE
    return _ask(other)


def _ask(process: Process) -> Proof:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return Proof.GONE
    except PermissionError:
        pass
    except OverflowError:
        # No process has such a number: its row was not written by an engine.
        return Proof.NONE
    stat = _stat(process.pid)
    if stat is None:
        return Proof.NONE
    if stat.start_time != process.start_time:
        return Proof.GONE
    if stat.state in 'ZX' and stat.threads <= 1:
        return Proof.GONE
    return Proof.RUNNING


@dataclasses.dataclass(frozen=True)
class _Stat:
    state: str
    threads: int
    start_time: int


def _stat(pid: int) -> _Stat | None:
    """Read /proc/PID/stat; None when it cannot be read, which proves nothing."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8', errors='replace') as file:
            # The second field is the program's name in parentheses, which may itself hold
            # spaces and parentheses: the rest begins behind the last one.
            fields = file.read().rpartition(')')[2].split()
    except OSError:
        return None
    return _Stat(fields[0], int(fields[17]), int(fields[19]))
