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

"""One run: engines, their machines and their database, and what befalls them.

Each engine is the product's own :class:`~heat_liveness.agent.Liveness` with its own
:class:`~heat_liveness.work.native.NativeWork`.  A supervisor starts a new one where one has
ended.  When ``duration`` is over all faults heal, and the run goes on until every piece of work
has ended and every death is declared, or it is plain that this will not be.
"""

import contextlib
import dataclasses
import logging
import random
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from heat_liveness import agent, conf, errors
from heat_liveness import engine as engines
from heat_liveness.agent import Liveness
from heat_liveness.db.locks import LockRow
from heat_liveness.work import Context, native
from tests.history import checker
from tests.history.events import (
    Called,
    Continued,
    Cut,
    Event,
    Healed,
    Killed,
    Meddled,
    Outage,
    Paused,
    Recorded,
    Resumed,
    Started,
    Stepped,
    Stopped,
    Withheld,
)
from tests.simulation import rooms, scheduler
from tests.simulation.network import LONGEST_LATE, Connections
from tests.simulation.plan import KINDS, Incident, Job, Plan, options
from tests.simulation.scheduler import Clock, Hub, Process
from tests.simulation.store import Cluster, Node


@dataclasses.dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    events: list[Event]
    faults: list[checker.Fault]
    calls: int
    """Round trips to the database."""
    injected: list[int]
    """The numbers of the calls that met a fault."""
    seconds: float
    """The virtual time it took."""


class Timer:
    """A kernel timer: it ends the process, even one that is stopped."""

    def __init__(self, hub: Hub, clock: Clock, fire: Callable[[], None]) -> None:
        self._hub = hub
        self._clock = clock
        self._fire = fire
        self._due: float | None = None
        self._looking = False

    def set(self, due_seconds: float) -> None:
        self._due = due_seconds
        if not self._looking:
            self._look_when_due()

    def disarm(self) -> None:
        self._due = None

    def _look_when_due(self) -> None:
        assert self._due is not None
        self._looking = True
        self._hub.at(max(self._hub.now, self._clock.true(self._due)), self._look)

    def _look(self) -> None:
        self._looking = False
        if self._due is None:
            return
        if self._hub.now < self._clock.true(self._due):
            self._look_when_due()
        else:
            self._fire()


class Engine(Process):
    """One engine: a process in a slot, from its start to its end."""

    def __init__(self, world: 'World', slot: int, number: int) -> None:
        plan = world.plan
        machine = plan.machines[slot]
        super().__init__(world.hub, f'e{number}', world.clocks[machine])
        self.world = world
        self.slot = slot
        self.settings = conf.Settings(**world.settings[slot])
        self.identity = engines.Identity(
            self.name, f'host-{slot}', f'machine-{machine}', 'binary', 'topic', engines.Process(
                number, 1, 1, 1, world.boots[machine]))
        self.live: Liveness | None = None
        self.unwell = 0
        """How many of its health checks fail."""
        self._gives_up = False
        self.spawn('main', self._main)

    def _main(self) -> None:
        world = self.world
        database: Any = Connections(
            world, self, self.slot, world.cluster.nodes[self.slot % len(world.cluster.nodes)],
            (self.settings.connect_timeout, self.settings.read_timeout))
        self.live = Liveness(
            self.identity, self.settings, database, self._work, clock=self.clock,  # type: ignore[arg-type]
            timer=Timer(self.hub, self.clock, self._fence),
            chance=random.Random(world.hub.chance.random()), end=self._dead)
        self.live.membership.checks.append(lambda: 'It is stuck.' if self.unwell else None)
        self.live.begin(self._joined)

    def _joined(self) -> None:
        self.spawn('scan', self._scan)

    def _work(self, context: Context) -> native.NativeWork:
        return native.NativeWork(context, {'build': self._build})

    def _scan(self) -> None:
        assert self.live is not None
        while True:
            began = self.clock.now()
            self.live.periodic_scan()
            # As oslo.service does: the next one begins when it is due, or at once.
            left = began + self.settings.scan_interval - self.clock.now()
            late = self.world.slow_scans * self.hub.chance.random() ** 4
            scheduler.current().wait(max(0.0, left) + late)

    def _fence(self) -> None:
        # Who gives up watches no more: the timer may be sooner than a database that is away.
        self.end('exit' if self._gives_up else 'fence')

    def _dead(self, reason: str, level: int = 0) -> None:
        self.end('exit' if self._gives_up else 'dead')
        scheduler.pause_point()
        scheduler.current().wait()

    def end(self, why: Any) -> None:
        """End; the supervisor starts another."""
        if not self.dead:
            self.world.tell(Killed(at=self.hub.now, engine=self.name, why=why))
            self.kill()
            self.world.ended(self)

    def do(self, job: Job) -> None:
        """Take a lock for a user."""
        if self.live is None:
            return
        arguments = {'steps': job.steps, 'pace': job.pace, 'outcome': job.outcome}
        work: Any = self.live.work
        try:
            if job.outcome == 'by_hand':
                task = work.acquire(job.lock, 'build', arguments)
                self._build(task)
                task.complete()
            else:
                work.submit(job.lock, 'build', arguments)
        except errors.LivenessError:
            return

    def _build(self, task: native.Task) -> None:
        """The handler."""
        scheduler.pause_point()
        where: dict[str, Any] = {'lock': task.name, 'engine': self.name}
        self.world.tell(Started(at=self.hub.now, generation=task.generation,
                                step=task.progress or 0, **where))
        arguments = task.arguments
        outcome = arguments['outcome']
        assert self.live is not None
        for step in range(task.progress or 0, arguments['steps']):
            calls = 2 + int(arguments['pace'] / 10)
            for _ in range(calls):
                self.live.gate.wait()
                self.world.may_stop(self)
                scheduler.pause_point()
                self.world.tell(Called(at=self.hub.now, generation=task.generation, **where))
                scheduler.current().wait(arguments['pace'] / calls)
            if outcome == 'poison':
                self.end('crash')
                scheduler.current().wait()
            begun = self.hub.now
            task.record(step + 1)
            self.world.tell(Recorded(at=self.hub.now, generation=task.generation, step=step + 1,
                                     begun=begun, **where))
        if outcome == 'fail':
            raise ValueError(outcome)
        if outcome == 'release':
            raise native.Release

    def leave(self) -> None:
        """Stop gracefully."""
        if self.live is not None:
            self.live.stop()
        self.end('exit')

    def give_up(self) -> None:
        """Leave with work unfinished."""
        if self.live is not None and self.live.joined:
            self._gives_up = True
            self.live.give_up('it is stuck')


class Operator(Process):
    """Somebody who gives commands, each a process of its own, or changes rows by hand."""

    def __init__(self, world: 'World', slot: int) -> None:
        world.operators += 1
        super().__init__(world.hub, f'operator-{world.operators}',
                         world.clocks[world.plan.machines[slot]])
        node = world.cluster.nodes[slot % len(world.cluster.nodes)]
        settings = conf.Settings(**world.settings[slot])
        database: Any = Connections(world, self, slot, node, (
            settings.connect_timeout, settings.read_timeout))
        self._settings = settings
        self._chance = world.hub.chance
        self._members = rooms.Members(database)
        self._locks = rooms.Locks(database)
        self.identity = engines.Identity(
            self.name, 'host', 'host', 'binary', 'topic', engines.Process(0, 0, 0, 0, ''))

    def end(self, why: str) -> None:
        """End with the command half done."""
        self.kill()

    def meddle(self, engine_id: str) -> None:
        """Change the row of an engine by hand."""
        with contextlib.suppress(errors.LivenessError):
            what = self._chance.choice(('removed', 'dead', 'paused'))
            if what == 'removed':
                self._members.take_away(engine_id)
            else:
                self._members.set_state(engine_id, what)

    def command(self) -> None:
        """Do what a command of heat-liveness-manage does."""
        with contextlib.suppress(errors.LivenessError):
            if self._chance.random() < 0.2:
                self._clean()
                return
            rows = self._locks.search('quarantined') + self._locks.search('failed')
            left = [row for row in self._locks.search('in_progress')
                    if self._has_ended(row.engine_id)]
            if left and self._chance.random() < 0.2:
                self._locks.settle(self._chance.choice(left), 'failed', None)
            if not rows:
                return
            row = self._chance.choice(rows)
            what = self._chance.choice(('retry', 'retry', 'released', 'failed'))
            if what == 'retry':
                self._locks.retry(row, self.identity)
            else:
                self._locks.settle(row, what, None)

    def _has_ended(self, engine_id: str | None) -> bool:
        row = None if engine_id is None else self._members.read(engine_id)
        return row is not None and row.ended

    def _clean(self) -> None:
        landing = conf.LOCK_WAIT_SECONDS + 10 * self._settings.service_down_time
        ripe = self._members.purgeable(self.identity, landing, self.hub.now)
        owners = self._locks.owners(ripe)
        self._members.purge([each for each in ripe if each not in owners], None)


class World:
    """All of it."""

    def __init__(self, plan: Plan, guards: rooms.Guards) -> None:
        self.plan = plan
        self.guards = guards
        self.hub = Hub(plan.seed)
        self.hub.preempting = plan.preempting
        self.events: list[Event] = []
        self.tell = self.events.append
        self.cluster = Cluster(self.hub, plan.nodes, self.tell)
        for node, offset in zip(self.cluster.nodes, plan.offsets, strict=True):
            node.offset = offset
            node.lag = 0.003
        machines = range(max(plan.machines) + 1)
        chance = self.hub.chance
        self.clocks = [Clock(self.hub, chance.uniform(0.9995, 1.0005), chance.uniform(0, 1e6))
                       for _ in machines]
        self.boots = [f'boot-{machine}-0' for machine in machines]
        self.settings = list(plan.settings)
        """With which an engine is started in each slot; a reload changes them."""
        self.slots: list[Engine | None] = [None] * len(plan.machines)
        self.operators = 0
        self.engines: list[Engine] = []
        self.outage = False
        self.frozen = False
        self.slow_scans = plan.slow_scans
        self.thawing: list[Callable[[], None]] = []
        self.healed: float | None = None
        self.calls = 0
        self.injected: list[int] = []
        self._cuts = [0] * len(plan.machines)
        self._away = [0] * plan.nodes
        self._quiet = LONGEST_LATE + 10 if {'late', 'late_commit'} & plan.rates.keys() else 10
        self._rates = list(plan.rates.items())
        self._total = sum(plan.rates.values())
        self._faults = random.Random(plan.seed + 1)

    # What befalls calls.

    def unreachable(self, slot: int, node: Node) -> bool:
        """Whether this slot's engine cannot reach this node now."""
        return bool(self.outage or self._cuts[slot] or self._away[node.number])

    def call_fault(self) -> str | None:
        """Draw what happens to the next call."""
        self.calls += 1
        drawn = self._faults.random()
        if drawn >= self._total or self.healed is not None or self.calls in self.plan.muted:
            return None
        self.injected.append(self.calls)
        for name, rate in self._rates:
            drawn -= rate
            if drawn < 0:
                return name
        return None

    def crash(self, slot: int) -> None:
        """End the engine of a slot from outside."""
        engine = self.slots[slot]
        if engine is not None:
            engine.end('crash')

    def crash_engine(self, engine: Any) -> None:
        """End this very engine, if it runs still."""
        engine.end('crash')

    # What befalls engines, nodes and the database.

    def boot(self, slot: int) -> None:
        """Start a new engine in a slot."""
        clock = self.clocks[self.plan.machines[slot]]
        if clock.stands:
            self.hub.after(clock.remaining, self.boot, slot)
        elif self.slots[slot] is None:
            engine = Engine(self, slot, len(self.engines) + 1)
            self.engines.append(engine)
            self.slots[slot] = engine
            self._tell_of_cut(slot, before=False)

    def ended(self, engine: Engine) -> None:
        """Let the supervisor do its duty."""
        self.slots[engine.slot] = None
        self.hub.after(self.hub.chance.random() * self.plan.restart + 0.1, self.boot, engine.slot)

    def befall(self, incident: Incident) -> None:
        """Let an incident happen."""
        getattr(self, f'_{incident.kind}')(incident)

    def _crash(self, incident: Incident) -> None:
        self.crash(incident.where)

    def _reboot(self, incident: Incident) -> None:
        machine = self.plan.machines[incident.where]
        self.boots[machine] += "'"
        for slot, of in enumerate(self.plan.machines):
            if of == machine:
                self.crash(slot)

    def _leave(self, incident: Incident) -> None:
        engine = self.slots[incident.where]
        if engine is not None:
            engine.spawn('leave', engine.leave)

    def _reload(self, incident: Incident) -> None:
        """Change the options of a slot; the engine there leaves, and another starts with them."""
        slot = incident.where
        self.settings[slot] = {**self.plan.settings[slot], **self.hub.chance.choice(KINDS)}
        self._leave(incident)

    def _give_up(self, incident: Incident) -> None:
        engine = self.slots[incident.where]
        if engine is not None:
            engine.spawn('give up', engine.give_up)

    def _unwell(self, incident: Incident) -> None:
        """Let the health check of an engine fail for a while."""
        engine = self.slots[incident.where]
        if engine is not None:
            self._ail(engine, 1)
            self.hub.after(incident.seconds, self._ail, engine, -1)

    def _ail(self, engine: Engine, more: int) -> None:
        before = bool(engine.unwell)
        engine.unwell += more
        if bool(engine.unwell) != before:
            self.tell(Withheld(at=self.hub.now, engine=engine.name, began=not before))

    def _meddle(self, incident: Incident) -> None:
        engine = self.slots[incident.where]
        if engine is not None:
            operator = Operator(self, incident.where)
            operator.spawn('meddle', operator.meddle, engine.name)

    def _command(self, incident: Incident) -> None:
        operator = Operator(self, incident.where)
        operator.spawn('command', operator.command)

    def _stop(self, incident: Incident) -> None:
        engine = self.slots[incident.where]
        if engine is not None:
            self._stop_engine(engine, incident.seconds)

    def may_stop(self, engine: Engine) -> None:
        """Stop an engine right here, if that is drawn."""
        if self.plan.stops and self.healed is None and self._faults.random() < self.plan.stops:
            self._stop_engine(engine, min(
                100 * self._faults.random(), self.plan.duration - self.hub.now))

    def _stop_engine(self, engine: Engine, seconds: float) -> None:
        if not engine.stopped:
            self.tell(Stopped(at=self.hub.now, engine=engine.name))
            engine.stop()
            self.hub.after(seconds, self._continue, engine)

    def _continue(self, engine: Engine) -> None:
        if engine.stopped and not engine.dead:
            self.tell(Continued(at=self.hub.now, engine=engine.name))
            engine.go_on()

    def _pause(self, incident: Incident) -> None:
        """Let a machine stand still with all its clocks, as a hypervisor does."""
        machine = self.plan.machines[incident.where]
        clock = self.clocks[machine]
        if clock.stands:
            return
        clock.pause(incident.seconds)
        paused = [engine for engine, of in zip(self.slots, self.plan.machines, strict=True)
                  if engine is not None and of == machine]
        for engine in paused:
            self.tell(Paused(at=self.hub.now, engine=engine.name))
        self.hub.at(self.hub.now + incident.seconds, self._resume, paused)

    def _resume(self, paused: list[Engine]) -> None:
        for engine in paused:
            self.tell(Resumed(at=self.hub.now, engine=engine.name))
            engine.wake()

    def _cut(self, incident: Incident) -> None:
        self._set_cut(incident.where, 1)
        self.hub.after(incident.seconds, self._set_cut, incident.where, -1)

    def _set_cut(self, slot: int, more: int) -> None:
        before = self._cut_off(slot)
        self._cuts[slot] += more
        self._tell_of_cut(slot, before=before)

    def _cut_off(self, slot: int) -> bool:
        """Whether the engine of a slot cannot reach its own node."""
        return bool(self._cuts[slot] or self._away[slot % self.plan.nodes])

    def _tell_of_cut(self, slot: int, *, before: bool) -> None:
        engine = self.slots[slot]
        if engine is not None and self._cut_off(slot) != before:
            self.tell(Cut(at=self.hub.now, engine=engine.name, began=not before))

    def hinder(self, engine: str) -> None:
        """Tell of an engine that may not reach the database until its next beat does."""
        for began in (True, False):
            self.tell(Cut(at=self.hub.now, engine=engine, began=began))

    def _outage(self, incident: Incident) -> None:
        if not self.outage:
            self.outage = True
            self.tell(Outage(at=self.hub.now, began=True))
            self.hub.after(incident.seconds, self._end_outage)

    def _freeze(self, incident: Incident) -> None:
        if not self.outage:
            self.frozen = True
            self._outage(incident)

    def _failover(self, incident: Incident) -> None:
        """Lose the database, and get it back as it was a while ago."""
        self.cluster.lose(self.hub.now - incident.lost)
        self._outage(incident)

    def _end_outage(self) -> None:
        self.outage = self.frozen = False
        self.tell(Outage(at=self.hub.now, began=False))
        self.hub.chance.shuffle(self.thawing)
        for call in self.thawing:
            self.hub.after(self.hub.chance.random() * 0.1, call)
        self.thawing = []

    def _step(self, incident: Incident) -> None:
        node = self.cluster.nodes[incident.where]
        node.offset += incident.seconds
        self.tell(Stepped(at=self.hub.now, node=f'node-{node.number}', seconds=incident.seconds))

    def _lag(self, incident: Incident) -> None:
        node = self.cluster.nodes[incident.where]
        node.lag = incident.seconds
        self.hub.after(incident.seconds, setattr, node, 'lag', 0.003)

    def _down(self, incident: Incident) -> None:
        self._lag(incident)
        self._set_down(incident.where, 1)
        self.hub.after(incident.seconds, self._set_down, incident.where, -1)

    def _set_down(self, number: int, more: int) -> None:
        before = [self._cut_off(slot) for slot in range(len(self.slots))]
        self._away[number] += more
        for slot, each in enumerate(before):
            self._tell_of_cut(slot, before=each)

    def submit(self, job: Job) -> None:
        """Hand work to the engine of a slot, or to the next one there."""
        engine = self.slots[job.slot]
        if engine is not None:
            engine.spawn('job', engine.do, job)
        elif self.healed is None:
            self.hub.after(5, self.submit, job)

    def heal(self) -> None:
        """End all faults."""
        self.healed = self.hub.now
        self.slow_scans = 0.0
        for engine in self.engines:
            self._continue(engine)
        self.tell(Healed(at=self.hub.now))

    def owned(self) -> Iterator[LockRow]:
        """Yield the locks with an owner, but for those of whom an operator has made a riddle."""
        rows = self.cluster.nodes[0].rows
        riddles = {event.engine for event in self.events if isinstance(event, Meddled)}
        for row in rows['lock'].values():
            owner = rows['service'].get(row.engine_id)
            known = owner is not None and owner.state in {'up', 'draining', 'dead', 'left'}
            if row.engine_id is not None and (known or row.engine_id not in riddles):
                yield row

    def settled(self) -> bool:
        """Whether nothing is left to be done."""
        if self.healed is None or self.hub.now < self.healed + self._quiet:
            return False
        rows = self.cluster.nodes[0].rows
        if any(self.owned()):
            return False
        running = {engine.name for engine in self.slots if engine is not None}
        return len(running) == len(self.slots) and running == {
            name for name, row in rows['service'].items() if row.state in {'up', 'draining'}}

    def run(self) -> None:
        """Let everything happen."""
        plan = self.plan
        for slot in range(len(plan.machines)):
            self.hub.at(self.hub.chance.random() * 3, self.boot, slot)
        for incident in plan.incidents:
            shortened = dataclasses.replace(
                incident, seconds=min(incident.seconds, plan.duration - incident.at)
            ) if incident.kind != 'step' else incident
            self.hub.at(incident.at, self.befall, shortened)
        for job in plan.jobs:
            self.hub.at(job.at, self.submit, job)
        self.hub.at(plan.duration, self.heal)
        self.hub.run(plan.duration + convergence(plan), self.settled)

    def bury(self) -> None:
        """Leave no thread behind."""
        for engine in self.engines:
            engine.dead = True
            engine._bury()


def convergence(plan: Plan) -> float:
    """Return the seconds after the end of all faults in which all work ends.

    A poison takes several deaths, one after the other, perhaps with nobody left in between.
    """
    deaths = conf.Settings(**plan.settings[0]).max_takeovers + 1
    poisons = [job for job in plan.jobs if job.outcome == 'poison']
    return 900 + sum(deaths * (plan.restart + job.pace) for job in poisons)


def detection(plan: Plan) -> float:
    """Return the seconds in which a death is declared, when all faults are over.

    What ``Settings.declaration_bound`` promises, for the most patient observer of the engine that
    asks for the most, after a gap in its view, which takes two looks more, and with the breaker's
    delay.  A look is late by its own round trips and by those of the takeovers before it.  And
    there is what is left of the faults: a statement and a lag that outlive them.

    Where round trips take so long that a takeover is a gap in the view of the one who takes over,
    nobody can say how many there will be.
    """
    settings = options(plan)
    takeover = 8 * plan.latency
    if any(takeover > 2 * each.scan_interval + each.stall_time for each in settings):
        return 300.0
    asked = max(conf.window_for(each.asked_fence_time) for each in settings)
    bound = max(each.declaration_bound + max(0.0, asked - each.window) + each.settle
                + 2 * each.scan_interval + each.breaker_delay for each in settings)
    bound += 3 * (plan.slow_scans + takeover)
    late = LONGEST_LATE if {'late', 'late_commit'} & plan.rates.keys() else 0.0
    return bound + late + (plan.longest if plan.nodes > 1 else 0.0)


def rules(plan: Plan) -> checker.Rules:
    """Return what the judge is to go by."""
    settings = options(plan)
    return checker.Rules(
        fence_time=min(each.fence_time for each in settings),
        # A clock that is slow by 0.05 %.
        longest_fence=1.001 * max(
            each.fence_time + each.kernel_timer_lag for each in settings),
        service_down_time=max(each.service_down_time for each in settings),
        max_takeovers=settings[0].max_takeovers, purge_after=settings[0].purge_after,
        detection=detection(plan), convergence=convergence(plan) - 300,
        statement_time=LONGEST_LATE + plan.longest + 10)


def run(plan: Plan, guards: rooms.Guards | None = None) -> Outcome:
    """Run a plan and judge what happened.

    An error in a thread that the product does not foresee is a fault of no invariant: number 0.
    """
    world = World(plan, guards or rooms.Guards())

    def prove(other: engines.Process, observer: engines.Process) -> engines.Proof:
        if other.boot_id != observer.boot_id:
            return engines.Proof.NONE
        gone = world.engines[other.pid - 1].dead
        return engines.Proof.GONE if gone else engines.Proof.RUNNING

    faults = []
    logging.disable()
    try:
        with scheduler.threads_replaced(), scheduler.replaced(
                (agent, 'Members', rooms.Members), (agent, 'Journal', rooms.Journal),
                (native, 'Locks', rooms.Locks), (engines, 'prove', prove)):
            try:
                world.run()
            except Exception as error:  # noqa: BLE001
                where = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(checker.Fault(0, (
                    f'A thread ended with {type(error).__name__}: {error} ({where.filename}, '
                    f'line {where.lineno}).')))
            world.bury()
    finally:
        logging.disable(logging.NOTSET)
    faults += checker.check(world.events, rules(plan))
    if world.hub.now > plan.duration + convergence(plan) - 5:
        faults += [checker.Fault(8, f'Engine {row.engine_id} still owns the lock {row.name} under '
                                    f'generation {row.generation} at the end of the run.')
                   for row in world.owned()]
    return Outcome(plan, world.events, faults, world.calls, world.injected, world.hub.now)
