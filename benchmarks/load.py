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

"""Load: a large fleet on one database, watched by whole engines while some of it is killed.

The fleet is rows, and beats by the product's own statement: each engine when it is due, over
connections that many engines share, as no machine has room for so many processes.  An engine
that is killed stops beating; of ten kills one takes a whole machine.  The observers are
:class:`agent.Liveness` with nothing left out: own beats, gate, kernel timer, looks, takeovers.

**Whether a death is false** is judged by the beaters: they know who was killed, and how long
the others were silent.  One that was declared dead though its beats came within ``fence_time``
of each other was robbed, and ends the measurement.  One that was silent for longer would have
held: there the bed was too busy to beat in time, which is no fault of the protocol and is
counted apart.

**How soon a death is declared** is told by the database's clock alone, from the last beat
to the declaration, which is no shorter than from the death.  The plain way beside it is the
bound: a ratio above 1 is within it.  The breaker's deaths wait longer and are counted apart.
"""

import array
import collections
import dataclasses
import heapq
import logging
import math
import os
import pathlib
import random
import re
import statistics
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from multiprocessing import synchronize
from typing import Any

import sqlalchemy as sa
from pymysql.constants import COMMAND

from benchmarks import beats, beds, figures, looks
from heat_liveness import agent, conf, errors
from heat_liveness import clock as clocks
from heat_liveness import engine as engines
from heat_liveness.db import models, times
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members
from heat_liveness.work.native import NativeWork
from tests.bed import waiting

DUE, OURS, EVERYTHING = 'as due', 'Members.beat', 'all statements'
BOUND, OBSERVED = 'the bound', 'declared'
BEATERS = 4
CONNECTIONS_PER_BEATER = 8
WATCHERS = 4
PROBES = 20
KILLS_PER_MACHINE_KILLED = 10

_t = models.service
_SEED = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """How large a fleet, and for how long."""

    engines: int = 10_000
    observers: int = 20
    seconds: float = 600.0
    kill_seconds: float = 3.0
    """One kill in so many seconds."""
    turn_seconds: float = 10.0
    settings: conf.Settings = dataclasses.field(default_factory=conf.Settings)

    @property
    def turns(self) -> int:
        """How often is measured."""
        return max(1, int(self.seconds / self.turn_seconds))

    @property
    def longest_seconds(self) -> float:
        """When it ends, whatever has happened."""
        return self.seconds + 10 * (self.settings.declaration_bound + self.settings.breaker_delay)


@dataclasses.dataclass(kw_only=True)
class Beats:
    """What beaters have seen of their engines."""

    late: 'array.array[float]' = dataclasses.field(default_factory=lambda: array.array('f'))
    """Of each beat, seconds from when it was due to when it was sent: the bed's fault."""
    took: 'array.array[float]' = dataclasses.field(default_factory=lambda: array.array('f'))
    """Of each beat, seconds from when it was sent to its reply."""
    turns: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """How many went through in each turn."""
    silent: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds from the start of an engine's last good beat to the next, refused, or the end."""
    killed: set[str] = dataclasses.field(default_factory=set)
    holds: int = 0
    """Good beats that came so late that a real engine would have held meanwhile."""
    failed: int = 0
    busy_seconds: float = 0.0

    def add(self, other: 'Beats') -> None:
        """Add what another beater has seen, of other engines."""
        self.late.extend(other.late)
        self.took.extend(other.took)
        self.turns.update(other.turns)
        self.silent |= other.silent
        self.killed |= other.killed
        self.holds += other.holds
        self.failed += other.failed
        self.busy_seconds += other.busy_seconds


@dataclasses.dataclass(frozen=True)
class Death:
    """One declaration, as the service row tells of it."""

    engine_id: str
    silent_seconds: float
    """From the last beat to the declaration."""
    mass: bool


@dataclasses.dataclass(frozen=True)
class _Watch:
    """What one process of observers has to say."""

    failures: int
    good: Sequence[float]
    """Of each observer, the share of the time in which its view was good."""
    busy_seconds: float


@dataclasses.dataclass(frozen=True)
class _Signals:
    """What the processes wait for."""

    begin: synchronize.Barrier
    """Broken as soon as one of them has ended, so that nobody waits for one that has failed."""
    stop: synchronize.Event

    def check(self) -> None:
        """Raise BrokenBarrierError if one of them has ended."""
        if self.begin.broken:
            raise threading.BrokenBarrierError


_signals: list[_Signals] = []


def measure(bed: beds.Bed, load: Load) -> list[figures.Figure]:
    """Let a fleet beat, kill some of it, and have it watched.

    Raises
    ------
    AssertionError
        An engine was declared dead that beat in time, or one that was killed was not declared,
        or the journal tells of other deaths than the service rows.
    BrokenProcessPool
        The machine was too busy for an observer: its kernel timer has ended its process.
    """
    plan = deaths(load)
    with beds.connected(bed.url) as database:
        looks.populate(database, load.engines, load.settings)
        bed.rest()
        ids = [row.engine_id for row in Members(database).all()]
        signals = _Signals(beds.PROCESSES.Barrier(BEATERS + WATCHERS + 1),
                           beds.PROCESSES.Event())
        with futures.ProcessPoolExecutor(
                BEATERS + WATCHERS, mp_context=beds.PROCESSES, initializer=_listen,
                initargs=(signals,)) as pool:
            beaters = [pool.submit(_beat_all, bed.url, load, ids[number::BEATERS], plan)
                       for number in range(BEATERS)]
            shares = [len(range(number, load.observers, WATCHERS)) for number in range(WATCHERS)]
            watchers = [pool.submit(_watch, bed.url, load, share) for share in shares]
            for each in (*beaters, *watchers):
                each.add_done_callback(lambda _: signals.begin.abort())
            try:
                run = _run(bed, load, database, signals, set(plan))
            except threading.BrokenBarrierError:
                failures = [each.exception() for each in (*beaters, *watchers)]
                raise next(failure for failure in failures if failure is not None and not
                           isinstance(failure, threading.BrokenBarrierError)) from None
            finally:
                signals.stop.set()
            seen = Beats()
            for beater in beaters:
                seen.add(beater.result())
            watches = [watcher.result() for watcher in watchers]
        declared = _declared(database)
    late = judge(declared, seen, load.settings.fence_time)
    return _figures(bed, load, run, seen, watches, declared, late)


def deaths(load: Load) -> dict[str, float]:
    """Return who is killed, and when, in seconds from the beginning."""
    chance = random.Random(_SEED)
    settings = load.settings
    machines = list(range(load.engines // looks.ENGINES_PER_MACHINE))
    chance.shuffle(machines)
    plan: dict[str, float] = {}
    # When the observers have joined and settled: what comes before is not within the bound.
    at = 2 * settings.settle + settings.report_interval
    for number, machine in enumerate(machines, 1):
        if at >= load.seconds:
            break
        crew = range(looks.ENGINES_PER_MACHINE)
        for place in crew if number % KILLS_PER_MACHINE_KILLED == 0 else [chance.choice(crew)]:
            plan[looks.engine_id(machine * looks.ENGINES_PER_MACHINE + place)] = at
        at += load.kill_seconds
    return plan


def judge(declared: Sequence[Death], seen: Beats, fence_time: float) -> list[Death]:
    """Return the deaths of engines that were not killed, but beat too late.

    Raises
    ------
    AssertionError
        One of them beat in time, or one that was killed was not declared.
    """
    late = [death for death in declared if death.engine_id not in seen.killed]
    robbed = [death for death in late if seen.silent[death.engine_id] < fence_time]
    assert not robbed, f'Declared dead though they beat in time: {robbed}'
    missing = seen.killed - {death.engine_id for death in declared}
    assert not missing, f'Killed, and not declared dead: {sorted(missing)}'
    return late


# ---- the processes -------------------------------------------------------------------------


def _listen(signals: _Signals) -> None:
    _signals.append(signals)


def _database(url: str, settings: conf.Settings) -> Database:
    return Database(url, connect_timeout=settings.connect_timeout,
                    read_timeout=settings.read_timeout)


def _beat_all(url: str, load: Load, ids: Sequence[str], plan: Mapping[str, float]) -> Beats:
    """Let these engines beat until told to stop; a process of its own."""
    (signals,) = _signals
    stop = threading.Event()
    database = _database(url, load.settings)
    connections = min(CONNECTIONS_PER_BEATER, len(ids))
    beaters = [_Beater(database, load, ids[number::connections], plan, stop)
               for number in range(connections)]
    signals.begin.wait(beds.TIMEOUT_SECONDS)
    computed = time.process_time()
    seen = Beats()
    with futures.ThreadPoolExecutor(connections) as threads:
        running = [threads.submit(beater.run) for beater in beaters]
        signals.stop.wait(load.longest_seconds)
        stop.set()
        for each in running:
            seen.add(each.result())
    seen.busy_seconds = time.process_time() - computed
    database.close()
    return seen


class _Sender:
    """Sends the product's own statement over one connection.

    To MariaDB as the packets of its protocol: what SQLAlchemy and PyMySQL do for a beat in Python
    each engine does on a machine of its own, and ten thousand would do it on the server's.
    """

    def __init__(self, database: Database) -> None:
        self._members = Members(database)
        self._members.beat('nobody')
        # PyMySQL's, where the database is such.
        self._socket: Any = None
        if database.backend == 'mysql':
            kept: Any = self._members._kept
            self._socket = kept.connection.driver_connection._sock
            self._before, self._after = (part.encode() for part in re.split(
                r'%(?:\(me\))?s', self._members._beat))

    def send(self, engine_id: str) -> bool:
        """Beat once, and return whether a live row was there.

        Raises
        ------
        DatabaseError
            The server has refused it, or did not answer.
        """
        if self._socket is None:
            return self._members.beat(engine_id)
        text = b"%s'%s'%s" % (self._before, engine_id.encode(), self._after)
        try:
            self._socket.sendall(struct.pack('<iB', len(text) + 1, COMMAND.COM_QUERY) + text)
            reply = self._socket.recv(4096)
        except OSError as error:
            # The product's own way opens another.
            self._socket = None
            self.hang_up()
            raise errors.DatabaseError(f'A beat had no reply: {error}') from error
        # Three bytes of length and a number, then 0 for OK, and how many rows it was.
        assert len(reply) == 4 + int.from_bytes(reply[:3], 'little'), reply
        if reply[4]:
            raise errors.DatabaseError(f'The server has refused a beat: {reply!r}')
        return reply[5] == 1

    def hang_up(self) -> None:
        """Close the connection."""
        self._members.hang_up()


class _Beater:
    """Beats for some engines over one connection; for one thread."""

    def __init__(self, database: Database, load: Load, ids: Sequence[str],
                 plan: Mapping[str, float], stop: threading.Event) -> None:
        # To connect is work that would delay the first beats of all.
        self._sender = _Sender(database)
        self._load = load
        self._ids = ids
        self._plan = plan
        self._stop = stop
        self._clock = clocks.BootClock()
        self._chance = random.Random()
        self._began = 0.0
        self._due: list[tuple[float, str]] = []
        self._last: dict[str, float] = {}
        self._seen = Beats()

    def run(self) -> Beats:
        """Beat until told to stop."""
        self._began = self._clock.now()
        self._last = dict.fromkeys(self._ids, self._began)
        self._due = [(self._began + self._chance.uniform(0, self._load.settings.report_interval),
                      engine_id) for engine_id in self._ids]
        heapq.heapify(self._due)
        while self._due and not self._clock.wait(self._stop, self._due[0][0] - self._clock.now()):
            self._step(*heapq.heappop(self._due))
        ended = self._clock.now()
        for engine_id in self._last:
            self._seen.silent.setdefault(engine_id, ended - self._last[engine_id])
        self._sender.hang_up()
        return self._seen

    def _step(self, due: float, engine_id: str) -> None:
        if due - self._began >= self._plan.get(engine_id, math.inf):
            self._seen.killed.add(engine_id)
            return
        started = self._clock.now()
        try:
            good = self._sender.send(engine_id)
        except errors.LivenessError:
            self._seen.failed += 1
            heapq.heappush(self._due, (started + self._load.settings.beat_retry, engine_id))
            return
        returned = self._clock.now()
        silent = started - self._last[engine_id]
        if not good:
            # A real engine ends itself now.
            self._seen.silent[engine_id] = silent
            return
        settings = self._load.settings
        self._seen.late.append(started - due)
        self._seen.took.append(returned - started)
        self._seen.turns[int((returned - self._began) / self._load.turn_seconds)] += 1
        self._seen.holds += returned - self._last[engine_id] > settings.fence_time
        self._last[engine_id] = started
        pause = settings.report_interval * self._chance.uniform(2 - conf.JITTER, conf.JITTER)
        heapq.heappush(self._due, (returned + pause, engine_id))


def _watch(url: str, load: Load, observers: int) -> _Watch:
    """Be so many engines until told to stop; a process of its own."""
    (signals,) = _signals
    # Each death is a WARNING of each observer that finds it; an ERROR would be news.
    logging.getLogger('heat_liveness').setLevel(logging.ERROR)
    watching = [
        agent.Liveness(
            engines.Identity.new(host='watch', hostname='watch', binary=looks.KIND,
                                 topic=looks.KIND),
            load.settings, _database(url, load.settings),
            lambda context: NativeWork(context, {}))
        for _ in range(observers)]
    signals.begin.wait(beds.TIMEOUT_SECONDS)
    clock = clocks.BootClock()
    computed, began = time.process_time(), clock.now()
    for each in watching:
        each.join()
        each.start()
    signals.stop.wait(load.longest_seconds)
    busy_seconds, ended = time.process_time() - computed, clock.now()
    good = [each.observer._view.at(ended) / (ended - began) for each in watching]
    for each in watching:
        each.stop()
    return _Watch(sum(each.membership.pulse.failures for each in watching), good, busy_seconds)


# ---- the run, and what came of it ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Run:
    """What was measured from outside."""

    probes: Mapping[str, Sequence[float]]
    """Beats in a second of each way, turn by turn, beside the load."""
    statements: Sequence[float]
    """Statements in a second, turn by turn."""
    seconds: float
    server_seconds: float
    machine_seconds: float
    """How long all processors have computed, for whomever."""
    own_seconds: float
    load_averages: Sequence[float]


def _run(bed: beds.Bed, load: Load, database: Database, signals: _Signals,
         doomed: set[str]) -> _Run:
    """Begin, measure turn by turn, and wait until everyone who was killed is declared dead."""
    clock = clocks.BootClock()
    # Of a kind that nobody watches: it beats only now and then.
    me = engines.Identity.new(host='probe', hostname='probe', binary='probe', topic='probe')
    rates: dict[str, list[float]] = {beats.RAW: [], beats.OURS: []}
    statements, averages = [], [os.getloadavg()[0]]
    with beats.each_way(bed.url, me) as ways:
        # What the fleet has waited for the processes is not its silence.
        with database.autocommit() as connection:
            connection.execute(_t.update().values(updated_at=times.now()))
        signals.begin.wait(beds.TIMEOUT_SECONDS)
        began = clock.now()
        before = (bed.busy_seconds(), _machine_seconds(), time.process_time())
        counted, at = bed.statements(), began
        for turn in range(1, load.turns + 1):
            for way, rate in _probe({way: ways[way] for way in rates}).items():
                rates[way].append(rate)
            clock.wait(threading.Event(), began + turn * load.turn_seconds - clock.now())
            averages.append(os.getloadavg()[0])
            signals.check()
            now, counted_now = clock.now(), bed.statements()
            statements.append((counted_now - counted) / (now - at))
            counted, at = counted_now, now

        def all_declared() -> bool:
            signals.check()
            return doomed <= {death.engine_id for death in _declared(database)}

        waiting.wait_until(all_declared, load.longest_seconds - load.seconds,
                           'The declaration of all who were killed')
        after = (bed.busy_seconds(), _machine_seconds(), time.process_time())
    server, machine, own = (now - then for now, then in zip(after, before, strict=True))
    return _Run(rates, statements, clock.now() - began, server, machine, own, averages)


def _probe(ways: Mapping[str, beats.Beat]) -> dict[str, float]:
    """Let each way beat, one after the other; return how many it made in its own time."""
    spent = dict.fromkeys(ways, 0.0)
    for _ in range(PROBES):
        for way, beat in ways.items():
            started = time.perf_counter()
            beat()
            spent[way] += time.perf_counter() - started
    return {way: PROBES / seconds for way, seconds in spent.items()}


def _machine_seconds() -> float:
    """How long all processors have computed, or were taken away, since the boot."""
    user, nice, system, _, _, irq, soft_irq, steal = map(
        int, pathlib.Path('/proc/stat').read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf('SC_CLK_TCK')


def _declared(database: Database) -> list[Death]:
    """Return all deaths.

    Raises
    ------
    AssertionError
        The journal tells of others.
    """
    journal = models.takeover
    with database.transaction() as connection:
        rows = connection.execute(
            sa.select(_t.c.engine_id, _t.c.declared_at, _t.c.updated_at, _t.c.mass)
            .where(_t.c.state == 'dead')).all()
        journalled = connection.scalars(
            sa.select(journal.c.engine_id).where(journal.c.kind == 'death')).all()
    found = [Death(row.engine_id, (row.declared_at - row.updated_at).total_seconds(),
                   bool(row.mass)) for row in rows]
    # A death may be declared between the two statements.
    assert {death.engine_id for death in found} <= set(journalled)
    assert len(journalled) == len(set(journalled)), 'A death is in the journal twice.'
    return found


def _figures(bed: beds.Bed, load: Load, run: _Run, seen: Beats, watches: Sequence[_Watch],
             declared: Sequence[Death], late: Sequence[Death]) -> list[figures.Figure]:
    rates = {
        DUE: [(load.engines - sum(at < turn * load.turn_seconds for at in deaths(load).values()))
              / load.settings.report_interval for turn in range(load.turns)],
        OURS: [seen.turns[turn] / load.turn_seconds for turn in range(load.turns)],
        EVERYTHING: run.statements}
    killed = [death for death in declared if death.engine_id in seen.killed]
    patient = [death for death in killed if death.mass]
    soon = [death.silent_seconds for death in killed if not death.mass or killed == patient]
    bound = load.settings.declaration_bound
    good = [share for watch in watches for share in watch.good]
    watchers = sum(watch.busy_seconds for watch in watches)
    known = run.server_seconds + seen.busy_seconds + watchers + run.own_seconds
    processors = run.seconds * (os.cpu_count() or 1) / 100
    notes: dict[str, dict[str, Any]] = {
        OURS: {
            'beats': len(seen.late), 'failed': seen.failed,
            'sent late, ms, median/99 %/worst': _milliseconds(seen.late),
            'took, ms, median/99 %/worst': _milliseconds(seen.took),
            'later than the fence': seen.holds},
        EVERYTHING: {
            'seconds': round(run.seconds),
            'processors, %, server/beaters/observers/others': [
                round(seconds / processors, 1) for seconds in (
                    run.server_seconds, seen.busy_seconds, watchers,
                    max(0.0, run.machine_seconds - known))],
            'load average, first/median/highest': [
                round(run.load_averages[0], 1), round(statistics.median(run.load_averages), 1),
                round(max(run.load_averages), 1)]},
    }
    told = {OBSERVED: {
        'killed': len(seen.killed), 'false': 0, 'for beats later than the fence': len(late),
        'held back by the breaker': len(patient),
        's, median/worst/bound': [round(statistics.median(soon), 2), round(max(soon), 2), bound],
        'good view of observers, %, worst/median': [
            round(100 * min(good)), round(100 * statistics.median(good))],
        'beats of observers that failed': sum(watch.failures for watch in watches)}}
    return [
        *figures.compare(f'{load.engines} engines beat', bed.name, rates, notes),
        *figures.compare('beat beside them', bed.name, run.probes, {}),
        *figures.compare(f'death among {load.engines} engines, {load.observers} observers',
                         bed.name, {BOUND: [1 / bound] * len(soon),
                                    OBSERVED: [1 / seconds for seconds in soon]}, told)]


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    """Return the median, the 99th percentile and the worst."""
    ordered = sorted(seconds)
    return [round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
            for share in (0.5, 0.99, 1)]
