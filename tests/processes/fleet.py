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

"""Engines as processes over one database, and what a test asks about them."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from heat_liveness import conf
from heat_liveness.db import migration
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Entry, Journal
from heat_liveness.db.locks import LockRow, Locks
from heat_liveness.db.members import Members, ServiceRow
from tests.bed import processes
from tests.bed.waiting import wait_until

FAST = conf.Settings(
    report_interval=0.3, fence_time=3, service_down_time=8, scan_interval=0.2, beat_retry=0.1,
    connect_timeout=0.5, read_timeout=0.5, database_stall_time=0, stall_time=1, breaker_delay=2,
    purge_after=600)


class Engine:
    """One engine process."""

    def __init__(self, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_for_exit(self, timeout_seconds: float = 60) -> int:
        return self.process.wait(timeout_seconds)


class Fleet:
    """Engines over one database.

    Their tasks last until :meth:`let_tasks_end`; each records again and again who runs it, and who
    has begun it so far.
    """

    def __init__(self, url: str, folder: pathlib.Path, settings: conf.Settings = FAST) -> None:
        assert settings.violations() == []
        self.settings = settings
        self.folder = folder
        self.url = url
        self._database = Database(url, read_timeout=90)
        migration.sync(self._database)
        self.engines: list[Engine] = []
        # The log of an engine is its own file, and a frozen database must not hide the end.
        self._done = folder / 'done'

    def start(self, *locks: str, elsewhere: bool = False, before: Sequence[str] = (),
              **more: object) -> Engine:
        """Start an engine that works on these locks; return before it has joined.

        ``before`` stands before its command, ``more`` is what else it is told.
        """
        number = len(self.engines)
        order = self.folder / f'engine-{number}.json'
        order.write_text(json.dumps({
            'url': self.url, 'settings': dataclasses.asdict(self.settings), 'locks': locks,
            'done': str(self._done), 'elsewhere': elsewhere, **more}))
        log = self.folder / f'engine-{number}.log'
        with log.open('wb') as output:
            process = processes.spawn(
                [*before, sys.executable, '-m', 'tests.processes.engine_process', str(order)],
                stdout=output, stderr=output)
        engine = Engine(process, log)
        self.engines.append(engine)
        return engine

    def start_at_work(self, *locks: str, elsewhere: bool = False, url: str = '') -> Engine:
        """Start an engine and wait until it runs the tasks of these locks."""
        engine = self.start(*locks, elsewhere=elsewhere, url=url or self.url)
        self.wait_until_up(engine)
        wait_until(lambda: all(self.runs(name, engine) for name in locks), 60,
                   f'The work on {locks}')
        return engine

    def wait_until_up(self, *engines: Engine) -> None:
        pids = {engine.pid for engine in engines}
        wait_until(lambda: pids <= {row.process.pid for row in self.rows if row.state == 'up'},
                   60, f'The join of the engines {pids}')

    @property
    def rows(self) -> list[ServiceRow]:
        return Members(self._database).all()

    def row(self, engine: Engine) -> ServiceRow:
        """Return the row of an engine; the newest, should it have had several."""
        return [row for row in self.rows if row.process.pid == engine.pid][-1]

    def lock(self, name: str) -> LockRow:
        lock = Locks(self._database).find(name)
        assert lock is not None
        return lock

    def times_begun(self, *names: str) -> list[int]:
        """Return how often the work of each lock has been begun, by whomever.

        A generation rises more often: also where its owner got no reply to what it recorded.
        """
        return [len(self.lock(name).progress['begun']) for name in names]

    def runs(self, name: str, engine: Engine) -> bool:
        """Whether that engine owns the lock and its handler has begun."""
        lock = Locks(self._database).find(name)
        engine_id = self.row(engine).engine_id
        return (lock is not None and lock.engine_id == engine_id
                and lock.progress is not None and lock.progress['engine_id'] == engine_id)

    def wait_until_owned(self, name: str, *engines: Engine) -> Engine:
        """Wait until one of the engines runs the task; return it."""
        return wait_until(lambda: next((each for each in engines if self.runs(name, each)), None),
                          120, f'The takeover of {name}')

    def wait_until_dead(self, engine: Engine, timeout_seconds: float = 90) -> ServiceRow:
        wait_until(lambda: self.row(engine).state == 'dead', timeout_seconds,
                   f'The declaration of the engine with pid {engine.pid}')
        return self.row(engine)

    def wait_for_beats(self, *engines: Engine) -> None:
        """Wait until each of the engines has beaten twice more."""
        before = {engine.pid: self.row(engine).report_count for engine in engines}
        wait_until(lambda: all(self.row(engine).report_count > before[engine.pid] + 1
                               for engine in engines), 120, 'Another beat of each engine')

    def wait_for_count(self, engine: Engine, count: int) -> None:
        """Wait until an engine has beaten so many times."""
        wait_until(lambda: self.row(engine).report_count >= count, 120, f'Beat {count}')

    def let_tasks_end(self) -> None:
        self._done.touch()

    def wait_until_complete(self, *names: str) -> None:
        wait_until(lambda: all(self.lock(name).status == 'complete' for name in names), 120,
                   f'The end of {names}')

    @property
    def journal(self) -> list[Entry]:
        return Journal(self._database).search()

    @property
    def deaths(self) -> list[Entry]:
        return [entry for entry in self.journal if entry.kind == 'death']

    def outlast(self, seconds: float | None = None) -> None:
        """Wait until each engine holds, and then for longer than others need to declare it."""
        for engine in self.engines:
            wait_until(lambda log=engine.log: ' holds: ' in log.read_text(), 60, 'The hold')
        over = time.monotonic() + (seconds or self.settings.service_down_time)
        wait_until(lambda: time.monotonic() > over, 600, 'The end of the outage')

    def assert_undisturbed(self, *names: str) -> None:
        """Nobody was declared dead or ended, and no work changed hands or was redone: I11."""
        assert self.deaths == []
        assert all(engine.running for engine in self.engines)
        self.let_tasks_end()
        self.wait_until_complete(*names)
        assert self.times_begun(*names) == [1] * len(names)
        assert [self.lock(name).takeovers for name in names] == [0] * len(names)

    def close(self) -> None:
        for engine in self.engines:
            if engine.running:
                os.killpg(engine.pid, signal.SIGKILL)
            engine.process.wait()
        self._database.close()
