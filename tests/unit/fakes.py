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

"""Engines on a clock, a timer and a service table of our own: no sleep, no thread, no server."""

import dataclasses
import datetime
import random
import threading
from collections.abc import Collection, Mapping
from typing import Any

from heat_liveness import conf, detection, errors, fence, membership
from heat_liveness import engine as engines
from heat_liveness.db.members import ServiceRow

EPOCH = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database has it
NOBODY = 'nobody'
SETTINGS = conf.Settings(host='here')
QUICK = conf.Settings(
    report_interval=.3, fence_time=2, service_down_time=6, scan_interval=.2, beat_retry=.1,
    connect_timeout=.2, read_timeout=.3, database_stall_time=0, stall_time=.5, host='here')


class Clock:
    """A clock that stands still until it is told, but for what a look at it takes."""

    def __init__(self, time: float = 1000.0) -> None:
        self.time = time

    def now(self) -> float:
        self.time += 1e-9
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if not event.is_set():
            self.time += seconds
        return event.is_set()


class Timer:
    """A kernel timer that kills nobody."""

    def __init__(self) -> None:
        self.due: float | None = None

    def set(self, due_seconds: float) -> None:
        self.due = due_seconds

    def disarm(self) -> None:
        self.due = None


class Even(random.Random):
    """No jitter, and no shuffling."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    def shuffle(self, x: Any) -> None:
        pass


def process(boot_id: str = 'boot', pid: int = 1) -> engines.Process:
    """Describe a process on a machine that this one can prove nothing about."""
    return engines.Process(pid=pid, start_time=1, pid_namespace=1, time_namespace=1,
                           boot_id=boot_id)


def identity(name: str, machine: str | None = None) -> engines.Identity:
    host = machine or f'host-of-{name}'
    return engines.Identity(name, host, host, 'binary', 'topic', process(f'boot-of-{host}'))


def service_row(name: str, **changes: Any) -> ServiceRow:
    """Return a row as the service table would."""
    return dataclasses.replace(ServiceRow(
        engine_id=name, host='h', hostname='h', binary='binary', topic='topic',
        report_interval=4, fence_time=20, protocol=engines.PROTOCOL_VERSION, state='up',
        report_count=1, created_at=EPOCH, updated_at=EPOCH, age=0, process=process()), **changes)


class Table:
    """What ``Members`` does, in memory, with a database clock that can be stepped."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.step = 0.0
        self.rows: dict[str, ServiceRow] = {}
        self.beaten: dict[str, float] = {}
        self.declared: dict[str, float] = {}
        self.deaths: list[tuple[str, str, str, bool]] = []
        self.details: list[Mapping[str, object]] = []
        """What was journaled beside each of them."""
        self.purged_by: list[str | None] = []
        self.looks: list[tuple[str, float, float | None]] = []
        self.error: Exception | None = None
        self.slow = 0.0
        """Seconds that each statement takes."""
        self.lost_replies = 0
        """How many statements go through whose reply is lost."""

    @property
    def time(self) -> float:
        return self.clock.now() + self.step

    def _begin(self) -> None:
        self.clock.forward(self.slow)
        if self.error is not None:
            raise self.error

    def _reply(self) -> None:
        if self.lost_replies:
            self.lost_replies -= 1
            raise errors.UnclearOutcome('The reply was lost.')

    def _live(self, engine_id: str) -> bool:
        return engine_id in self.rows and self.rows[engine_id].live

    def _shown(self, row: ServiceRow) -> ServiceRow:
        return dataclasses.replace(row, age=self.time - self.beaten[row.engine_id])

    def change(self, engine_id: str, **values: Any) -> None:
        self.rows[engine_id] = dataclasses.replace(self.rows[engine_id], **values)

    def end(self, engine_id: str, state: str = 'dead', evidence: str = 'watched') -> None:
        self.change(engine_id, state=state, declared_by='another', evidence=evidence)
        self.declared[engine_id] = self.time

    def remove(self, engine_id: str) -> None:
        del self.rows[engine_id]

    def insert(self, who: engines.Identity, report_interval: float, fence_time: float,
               report_count: int = 0) -> None:
        self._begin()
        if who.engine_id in self.rows:
            raise errors.LockHeld('The row exists already.')
        self.beaten[who.engine_id] = self.time
        self.rows[who.engine_id] = service_row(
            who.engine_id, host=who.host, hostname=who.hostname, binary=who.binary,
            topic=who.topic, process=who.process, report_interval=report_interval,
            fence_time=fence_time, report_count=report_count)
        self._reply()

    def beat(self, engine_id: str) -> bool:
        self._begin()
        if not self._live(engine_id):
            return False
        self.change(engine_id, report_count=self.rows[engine_id].report_count + 1)
        self.beaten[engine_id] = self.time
        self._reply()
        return True

    def read(self, engine_id: str) -> ServiceRow | None:
        self._begin()
        row = self.rows.get(engine_id)
        return None if row is None else self._shown(row)

    def look(self, observer: engines.Identity, candidate_age: float,
             ended_within: float | None) -> list[ServiceRow]:
        self._begin()
        rows = [self._shown(row) for row in self.rows.values()]
        self.looks.append((observer.engine_id, candidate_age, ended_within))
        return [row for row in rows
                if row.live or ended_within is None
                or self.time - self.declared[row.engine_id] < ended_within]

    def machines(self, observer: engines.Identity, within: float) -> tuple[set[str], set[str]]:
        self._begin()
        lost = {row.machine for row in self.rows.values()
                if row.state == 'dead' and row.evidence == 'watched'
                and abs(self.time - self.declared[row.engine_id]) < within}
        return {row.machine for row in self.rows.values() if row.live} | lost, lost

    def declare(self, row: ServiceRow, observer_id: str, evidence: str, mass: bool,
                detail: Mapping[str, object]) -> bool:
        self._begin()
        now = self.rows[row.engine_id]
        if not (now.live and now.report_count == row.report_count and self._live(observer_id)):
            return False
        self.end(row.engine_id, evidence=evidence)
        self.deaths.append((row.engine_id, observer_id, evidence, mass))
        self.details.append(detail)
        self._reply()
        return True

    def drain(self, engine_id: str) -> bool:
        self._begin()
        self.change(engine_id, state='draining')
        return True

    def leave(self, engine_id: str) -> bool:
        self._begin()
        self.end(engine_id, 'left')
        return True

    def purgeable(self, observer: engines.Identity, after: float) -> list[str]:
        self._begin()
        return [name for name, row in self.rows.items()
                if (row.binary, row.topic) == (observer.binary, observer.topic)
                and row.ended and self.time - self.declared[name] > after]

    def purge(self, engine_ids: Collection[str], actor_id: str | None) -> list[str]:
        self._begin()
        self.purged_by.append(actor_id)
        for engine_id in engine_ids:
            self.remove(engine_id)
        return list(engine_ids)


class Engine:
    """One engine, driven step by step; it beats and scans when its own steps are due."""

    def __init__(self, name: str, table: Table, settings: conf.Settings = SETTINGS, *,
                 clock: Clock | None = None, machine: str | None = None) -> None:
        self.clock = clock or table.clock
        self.timer = Timer()
        self.gate = fence.Gate(settings.fence_time, self.clock)
        self.identity = identity(name, machine)
        self.membership = membership.Membership(
            self.identity, settings, table, self.gate,  # type: ignore[arg-type]
            self.timer, self.clock, Even())
        self.observer = detection.Observer(
            self.membership, settings, table, self.clock)  # type: ignore[arg-type]
        self.silent = False
        """Neither beats nor scans: stopped, or dead."""
        self.ended = False
        self.seen: detection.Scan | None = None
        self._beat_due = self.clock.now() + settings.report_interval
        self._scan_due = self.clock.now()
        self._retry = settings.scan_interval

    @property
    def name(self) -> str:
        return self.identity.engine_id

    def step(self) -> None:
        if self.silent or self.ended:
            return
        now = self.clock.now()
        try:
            if now >= self._beat_due:
                self._beat_due = now + self.membership.beat()
            self.membership.watch()
            if now >= self._scan_due:
                self._scan_due = now + self.scan()
        except errors.EngineDead:
            self.ended = True

    def scan(self) -> float:
        try:
            self.seen = self.observer.scan()
        except errors.DatabaseError:
            return self._retry
        return self.seen.next_seconds


class Fleet:
    """Engines that share a table and a clock."""

    def __init__(self, *names: str, settings: conf.Settings = SETTINGS) -> None:
        self.clock = Clock()
        self.table = Table(self.clock)
        self.settings = settings
        self.engines: dict[str, Engine] = {}
        for name in names:
            self.join(name)

    def join(self, name: str, settings: conf.Settings | None = None,
             machine: str | None = None) -> Engine:
        one = Engine(name, self.table, settings or self.settings, machine=machine)
        one.membership.join()
        self.engines[name] = one
        return one

    def run(self, seconds: float) -> None:
        """Let everybody take the steps that fall into so many seconds."""
        for _ in range(round(seconds * 10)):
            self.clock.forward(.1)
            for one in list(self.engines.values()):
                one.step()

    def seconds_until(self, condition: Any, at_most: float = 300) -> float:
        started = self.clock.now()
        while not condition():
            assert self.clock.now() - started < at_most
            self.run(.1)
        return self.clock.now() - started

    def dead(self) -> set[str]:
        return {name for name, row in self.table.rows.items() if row.state == 'dead'}
