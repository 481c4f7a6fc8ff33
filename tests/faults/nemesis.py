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

"""The nemesis: engines at work on a real database, and what befalls them, from a seed.

A *crew* is a few engines, each with a way of its own to the database (a proxy, where there is a
server) and a wall clock of its own; whoever ends is started again, as a supervisor does.  A *fault*
is a generator: it does harm, yields how long the harm lasts, and undoes it.  A *schedule* is drawn
from a seed: which faults begin when, and whom they hit.  When all are over, no more work is
submitted, and the crew has to come to an end of it; then the history is judged.

What each process did and what was done to it stand side by side in one list: the database's own
record (:mod:`audit`), the facts that the engines wrote down, and what the nemesis noted itself.
"""

import dataclasses
import heapq
import itertools
import json
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from heat_liveness import conf
from tests.bed import clocks
from tests.bed.proxy import LATE_SECONDS, Mode, Proxy
from tests.bed.waiting import wait_until
from tests.faults import audit
from tests.faults.databases import Bed
from tests.history import events
from tests.history.checker import Fault, Rules, check
from tests.processes.fleet import FAST, Engine, Fleet

ENGINES = 4
# The first ones share this machine, so that the kernel proves their ends; the others do not.
NEIGHBOURS = 2
RESTART_SECONDS = 0.5
CONVERGENCE_SECONDS = 90
PULSE_SECONDS = 0.1
# Engines share two cores with each other and the database, so an interpreter may stall for longer.
SETTINGS = dataclasses.replace(FAST, stall_time=3, fence_time=5, service_down_time=11)
# Shorter than the fence, and longer than it takes to be declared dead.
SHORT, LONG = 2.0, SETTINGS.service_down_time + 4


class Slot:
    """A place for an engine; whoever fills it, goes by its proxy and its clock."""

    def __init__(self, number: int, crew: 'Crew') -> None:
        self.number = number
        self.crew = crew
        self.clock = clocks.Clock(crew.folder / f'clock-{number}')
        self.proxy = Proxy(port) if (port := crew.bed.port(number)) else None
        self.engine: Engine | None = None
        self.killed: Engine | None = None
        """The last engine that was killed on purpose."""
        self.told_to_end: Engine | None = None

    def signal(self, number: signal.Signals, fact: type[events.Event] | None = None) -> None:
        """Send a signal to the engine, if there is one, and note what that means for it."""
        engine = self.engine
        if engine is None or not engine.running:
            return
        if number is signal.SIGKILL:
            self.killed = engine
        if number is signal.SIGTERM:
            self.told_to_end = engine
        if fact is not None:
            self.crew.note(fact, engine)
        engine.signal(number)

    def url(self, url: str) -> str:
        """Return the URL of a database, by way of the proxy."""
        if self.proxy is None:
            return url
        through = sa.make_url(url).set(port=self.proxy.port)
        return through.render_as_string(hide_password=False)


class Crew(Fleet):
    """Engines under the nemesis, and what is known of them."""

    def __init__(self, bed: Bed, folder: pathlib.Path, seed: int = 0, planted: str = '',
                 settings: conf.Settings = SETTINGS, engines: int = ENGINES) -> None:
        self.bed = bed
        super().__init__(bed.url, folder, settings)
        self._audit = sa.create_engine(bed.url, pool_pre_ping=True)
        audit.install(self._audit)
        bed.settle()
        self._planted = planted
        self._seed = seed
        self._supervised = True
        self._noted: list[tuple[Engine | None, type[events.Event], dict[str, Any]]] = []
        self._facts: dict[Engine, pathlib.Path] = {}
        self._starting = threading.Lock()
        self._longest_wait = 0.0
        threading.Thread(target=self._feel_the_pulse, daemon=True).start()
        self.slots = [Slot(number, self) for number in range(engines)]

    @property
    def starved(self) -> bool:
        """Whether the machine has let a process of ours wait for longer than engines are told."""
        return self._longest_wait > self.settings.stall_time / 3

    def _feel_the_pulse(self) -> None:
        while self._supervised:
            before = time.monotonic()
            time.sleep(PULSE_SECONDS)
            self._longest_wait = max(self._longest_wait, time.monotonic() - before - PULSE_SECONDS)

    def begin(self) -> None:
        """Start an engine in each place, and wait until all of them are at work."""
        for slot in self.slots:
            self.fill(slot)
        wait_until(lambda: all(self.works(slot) for slot in self.slots), 180,
                   'The beginning of the work')

    def fill(self, slot: Slot, *locks: str, **more: object) -> Engine:
        """Start an engine in a place."""
        # Two that end together are started again by two threads.
        with self._starting:
            number = len(self.engines)
            facts = self.folder / f'facts-{number}.jsonl'
            facts.touch()
            engine = self.start(
                *locks, elsewhere=slot.number >= NEIGHBOURS, before=slot.clock.command,
                url=slot.url(self.bed.url_of(slot.number)), facts=str(facts),
                planted=self._planted, seed=hash((self._seed, number)), **more)
            self._facts[engine] = facts
            slot.engine = engine
        threading.Thread(target=self._mind, args=(slot, engine), daemon=True).start()
        return engine

    def works(self, slot: Slot) -> bool:
        """Return whether the engine in a place has begun to work, and is not about to end."""
        engine = slot.engine
        return (engine is not None and engine.running and engine is not slot.told_to_end
                and any(fact['fact'] == 'Called' for fact in self._told(engine)))

    def _mind(self, slot: Slot, engine: Engine) -> None:
        """Wait for the end of an engine, note it, and start another in its place."""
        status = engine.process.wait()
        if slot.killed is not engine and not self._fell(engine):
            why = {-signal.SIGKILL: 'fence', 75: 'dead', 0: 'exit'}.get(status, 'crash')
            self.note(events.Killed, engine, why=why)
        time.sleep(RESTART_SECONDS)
        if self._supervised:
            self.fill(slot)

    def _fell(self, engine: Engine) -> bool:
        """Whether it killed itself."""
        return any(fact['fact'] == 'Killed' for fact in self._told(engine))

    def note(self, fact: type[events.Event], engine: Engine | None = None,
             **more: object) -> None:
        """Write down what happens now, to an engine or to all."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._noted.append((engine, fact, {'at': now, **more}))

    def _told(self, engine: Engine | None) -> list[dict[str, Any]]:
        if engine is None:
            return []
        # A line may be on its way.
        whole = self._facts[engine].read_text().rpartition('\n')[0]
        return [json.loads(line) for line in whole.splitlines()]

    def converge(self) -> None:
        """Wait until all work has ended and all deaths are known; then end the engines."""
        self.let_tasks_end()
        wait_until(self._settled, CONVERGENCE_SECONDS, 'The end of all work and the last verdict')
        self._supervised = False
        for engine in self.engines:
            if engine.running:
                engine.signal(signal.SIGTERM)
        for engine in self.engines:
            engine.wait_for_exit()

    def _settled(self) -> bool:
        with self._audit.connect() as connection:
            owned = connection.exec_driver_sql(
                'SELECT COUNT(*) FROM liveness_lock WHERE engine_id IS NOT NULL').scalar()
        running = {engine.pid for engine in self.engines if engine.running}
        live = [row for row in self.rows if row.live]
        return not owned and {row.process.pid for row in live} == running

    def history(self) -> list[events.Event]:
        """Return all that has happened, in its order."""
        names = {engine: told[0]['engine'] for engine in self.engines
                 if (told := self._told(engine))}
        found: list[events.Event] = audit.read(self._audit)
        for engine in self.engines:
            for told in self._told(engine):
                found += _event(dict(told))
        for engine, fact, more in self._noted:
            if engine is None:
                found.append(fact(**more))
            elif engine in names:
                found.append(fact(engine=names[engine], **more))
        # It is stable: of facts of the same time the database's stand first.
        return sorted(found, key=lambda event: event.at)

    def unclear(self) -> int:
        """Return how many outcomes were unclear to the engines."""
        return sum(told['fact'] == 'Unclear' for engine in self.engines
                   for told in self._told(engine))

    def close(self) -> None:
        self._supervised = False
        super().close()
        for slot in self.slots:
            if slot.proxy is not None:
                slot.proxy.close()
        self._audit.dispose()


def _event(told: dict[str, Any]) -> Iterator[events.Event]:
    kind = told.pop('fact')
    if kind in {'Started', 'Recorded', 'Called', 'Held', 'Opened', 'Killed'}:
        yield getattr(events, kind)(**told)


# What befalls an engine.

Harm = Iterator[float]
Doing = Callable[[Crew, Slot], Harm]


def killed(crew: Crew, slot: Slot) -> Harm:
    slot.signal(signal.SIGKILL, events.Killed)
    yield 0


def told_to_end(crew: Crew, slot: Slot) -> Harm:
    slot.signal(signal.SIGTERM)
    yield 0


def _stopped(seconds: float) -> Doing:
    def harm(crew: Crew, slot: Slot) -> Harm:
        slot.signal(signal.SIGSTOP, events.Stopped)
        yield seconds
        slot.signal(signal.SIGCONT, events.Continued)
    return harm


def _network(mode: Mode, seconds: float) -> Doing:
    def harm(crew: Crew, slot: Slot) -> Harm:
        assert slot.proxy is not None
        crew.note(events.Cut, slot.engine, began=True)
        slot.proxy.mode = mode
        yield seconds
        slot.proxy.mode = 'open'
        crew.note(events.Cut, slot.engine, began=False)
    return harm


def requests_late(crew: Crew, slot: Slot) -> Harm:
    """Carry out, again and again, what the engine has given up, when it has gone on already."""
    assert slot.proxy is not None
    crew.note(events.Cut, slot.engine, began=True)
    for _ in range(5):
        slot.proxy.mode = 'late requests'
        # For no longer than it takes to send what was under way, so that the next try passes.
        yield 0.1
        slot.proxy.mode = 'open'
        yield LATE_SECONDS
    crew.note(events.Cut, slot.engine, began=False)


def moved(crew: Crew, slot: Slot) -> Harm:
    """Let a load balancer choose another node, which may not have all that this one had."""
    for place in (slot.number + 1, slot.number):
        port = crew.bed.port(place)
        assert slot.proxy is not None
        assert port is not None
        slot.proxy.lead_to(port)
        yield SHORT


def _clock(hours: int) -> Doing:
    def harm(crew: Crew, slot: Slot) -> Harm:
        # To the checker an engine's clock is one more that robs nobody.
        crew.note(events.Stepped, node=f'engine in place {slot.number}',
                  seconds=hours * clocks.HOUR_SECONDS)
        slot.clock.step(hours * clocks.HOUR_SECONDS)
        yield LONG
        slot.clock.step(0)
    return harm


# What befalls the database.

def _database(name: str, seconds: float) -> Doing:
    def harm(crew: Crew, slot: Slot) -> Harm:
        cut = [each.engine for each in crew.slots
               if crew.bed.cuts_off(name, slot.number, each.number)]
        crew.note(events.Outage, began=True)
        for engine in cut:
            crew.note(events.Cut, engine, began=True)
        undo = crew.bed.harm(name, slot.number)
        yield seconds
        undo()
        for engine in cut:
            crew.note(events.Cut, engine, began=False)
        crew.note(events.Outage, began=False)
    return harm


def _database_clock(hours: int) -> Doing:
    def harm(crew: Crew, slot: Slot) -> Harm:
        crew.note(events.Stepped, node='database', seconds=hours * clocks.HOUR_SECONDS)
        crew.bed.step(slot.number, hours * clocks.HOUR_SECONDS)
        yield LONG
        crew.bed.step(slot.number, 0)
    return harm


_SIGNALS: dict[str, Doing] = {
    'killed': killed, 'told to end': told_to_end, 'stopped': _stopped(SHORT),
    'stopped past the limit': _stopped(LONG), 'clock an hour ahead': _clock(1),
    'clock an hour behind': _clock(-1)}
_NETWORK: dict[str, Doing] = {
    'cut': _network('cut', SHORT), 'cut past the limit': _network('cut', LONG),
    'delayed': _network('delayed', 4), 'black hole': _network('black hole', SHORT),
    'black hole past the limit': _network('black hole', LONG),
    'replies lost': _network('lost replies', 2), 'replies swallowed': _network('swallowed', 2),
    'requests late': requests_late}
_SERVER: dict[str, Doing] = {
    'database frozen': _database('frozen', LONG), 'database killed': _database('killed', 3),
    'database stopped': _database('stopped', LONG), 'database restarted': _database('stopped', 0),
    'database clock an hour ahead': _database_clock(1),
    'database clock an hour behind': _database_clock(-1)}
FAULTS: dict[str, dict[str, Doing]] = {
    'sqlite': {**_SIGNALS, 'database locked': _database('locked', LONG)},
    'mariadb': {**_SIGNALS, **_NETWORK, **_SERVER},
    'postgresql': {**_SIGNALS, **_NETWORK, **_SERVER},
    'galera': {
        **_SIGNALS, **_NETWORK, 'moved to another node': moved,
        'node frozen': _database('frozen', LONG), 'node killed': _database('killed', 3),
        'quorum lost': _database('quorum lost', LONG),
        'node clock an hour ahead': _database_clock(1),
        'node clock an hour behind': _database_clock(-1)}}


@dataclasses.dataclass(frozen=True, order=True)
class Blow:
    """One fault of a schedule."""

    at: float
    """Seconds from the beginning."""
    fault: str
    place: int


def schedule(chance: random.Random, faults: Sequence[str], seconds: float,
             engines: int = ENGINES) -> list[Blow]:
    """Draw when what befalls whom: the faults in turn, and one engine killed among them."""
    blows = [Blow(chance.uniform(seconds / 3, seconds), 'killed', chance.randrange(engines))]
    at = 0.0
    for number in range(engines * len(faults)):
        at += chance.uniform(0, 2 * seconds / (engines * len(faults)))
        if at < seconds or number < len(faults):
            blows.append(Blow(min(at, seconds), faults[number % len(faults)],
                              chance.randrange(engines)))
    return sorted(blows)


def carry_out(crew: Crew, blows: Sequence[Blow]) -> None:
    """Let all of it happen, and be healed.

    One fault at a time for the database, and for each place: a blow to an engine that has enough
    to bear hits the next one.  One for which there is no room is left out, but not the death.
    """
    began = time.monotonic()
    queue: list[tuple[float, int, Blow, object, Harm | None]] = [
        (blow.at, number, blow, None, None) for number, blow in enumerate(blows)]
    heapq.heapify(queue)
    busy: set[object] = set()
    numbers = itertools.count(len(blows))
    while queue:
        due, _, blow, target, harm = heapq.heappop(queue)
        wait_until(lambda due=due: time.monotonic() - began >= due, 60 + due, 'The next fault')
        if harm is None:
            free = [each for each in _targets(blow, crew) if each not in busy]
            if free:
                target = free[0]
                place = target if isinstance(target, int) else blow.place
                harm = FAULTS[crew.bed.name][blow.fault](crew, crew.slots[place])
                busy.add(target)
            elif blow.fault != 'killed':
                continue
            else:
                assert time.monotonic() - began < blow.at + CONVERGENCE_SECONDS, (
                    'No engine is at work, so that none can be killed at it.')
        seconds = RESTART_SECONDS if harm is None else next(harm, None)
        if seconds is None:
            busy.discard(target)
        else:
            again = time.monotonic() - began + seconds
            heapq.heappush(queue, (again, next(numbers), blow, target, harm))
    crew.bed.heal()
    crew.note(events.Healed)


def _targets(blow: Blow, crew: Crew) -> list[object]:
    """Return what a fault may hit now, the best first."""
    if blow.fault.startswith(('database', 'node', 'quorum')):
        return ['database']
    # One that has only just been started again may have no row, and one that ends anyway leaves:
    # of neither there would be a death.
    slots = [slot for slot in crew.slots if blow.fault != 'killed' or crew.works(slot)]
    return sorted((slot.number for slot in slots),
                  key=lambda number: (number - blow.place) % len(crew.slots))


def judge(crew: Crew, history: Sequence[events.Event]) -> list[Fault]:
    """Return what the history breaks.

    An engine that the machine let wait for longer than its options allow ends itself, as it must:
    where that can have been, it is no fault.
    """
    return [fault for fault in check(history, rules(crew.settings))
            if not (crew.starved and fault.invariant == 11 and 'ended itself' in fault.sentence)]


def rules(settings: conf.Settings) -> Rules:
    """Return what the judge has to know of the options."""
    return Rules(
        fence_time=settings.fence_time, service_down_time=settings.service_down_time,
        max_takeovers=settings.max_takeovers, purge_after=settings.purge_after,
        detection=CONVERGENCE_SECONDS, convergence=CONVERGENCE_SECONDS)
