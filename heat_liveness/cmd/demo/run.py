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

"""Plays the demo: starts the engines, strikes some of them, and watches what comes of it.

It stands for the supervisor and for bad luck, and takes no part in the recovery.  An engine
that was killed with ``kill -9`` stays away, as if its machine had gone.  One that ends by
itself (by its kernel timer while it was stopped, or because it was declared dead) is replaced,
as any supervisor would, by a new engine with a new engine_id.

All that is shown comes from the database and from the kernel.  Moments are the database's
time, so that a detection is measured on one clock.
"""

import contextlib
import dataclasses
import datetime
import pathlib
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence

from heat_liveness import agent, conf, errors
from heat_liveness import clock as clocks
from heat_liveness.cmd.demo import engine, verdict, view
from heat_liveness.cmd.demo.template import Template
from heat_liveness.db import demo, migration
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Entry, Journal
from heat_liveness.db.members import Members, ServiceRow

LOOK_SECONDS = 0.2
"""How often the run is looked at, and shown."""
LEAVE_SECONDS = 20.0
"""How long the engines may take to leave in the end."""
GRACE_SECONDS = 2.0
"""How much longer than the bound a stopped engine is kept stopped, at the most."""
EARLIEST, LATEST = 0.1, 0.7
"""Between which parts of the work an engine is struck."""
PATIENT_UNTIL = 0.9
"""Up to which part of the work a stroke waits for its engine to begin something."""
LONGEST_PAUSE_SECONDS = 0.5
"""How long after that the blow falls, at the most; a resource takes longer than this."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to play."""

    engines: int
    kill: int
    stop: int
    seed: int
    time_limit: float

    def settings(self) -> conf.Settings:
        """Return times that are short, and safe where the database is one server nearby."""
        settings = conf.Settings(
            report_interval=0.5, fence_time=3.0, service_down_time=7.0, scan_interval=0.2,
            beat_retry=0.2, connect_timeout=0.5, read_timeout=0.5, database_stall_time=0.0,
            stall_time=0.5, max_tasks=3, max_takeovers=self.kill + self.stop + 1)
        assert not settings.violations()
        return settings

    def strokes(self) -> list['Stroke']:
        """Draw whom it hits, and when, from the seed."""
        chance = random.Random(self.seed)  # noqa: S311 - a run can be repeated
        hit = chance.sample(range(1, self.engines + 1), self.kill + self.stop)
        blows = [signal.SIGKILL] * self.kill + [signal.SIGSTOP] * self.stop
        return sorted((Stroke(f'engine-{number}', blow, chance.uniform(EARLIEST, LATEST),
                              chance.uniform(0, LONGEST_PAUSE_SECONDS))
                       for number, blow in zip(hit, blows, strict=True)),
                      key=lambda stroke: stroke.due)


@dataclasses.dataclass(frozen=True)
class Stroke:
    """One blow of fate.  It falls on an engine that is at work, or there were nothing to see."""

    name: str
    """Of the engine."""
    blow: signal.Signals
    due: float
    """How much of the work is done by then, from 0 to 1."""
    pause_seconds: float
    """How long after its engine has next begun something."""


@dataclasses.dataclass
class Engine:
    """One engine, as its supervisor knows it."""

    name: str
    engine_id: str
    process: subprocess.Popen[bytes]
    log: pathlib.Path
    stroke: Stroke | None = None
    struck_at: datetime.datetime | None = None
    stopped_since: float | None = None
    """On our own clock; None when it is not stopped."""
    ended: bool = False
    """Whether we have taken note that its process ended."""
    row: ServiceRow | None = None
    gave: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many locks each other engine has taken over from it."""
    took: int = 0

    @property
    def declared(self) -> bool:
        """Whether it was declared dead."""
        return self.row is not None and self.row.state == 'dead'

    @property
    def detection_seconds(self) -> float | None:
        """Seconds from the blow to the declaration."""
        if self.struck_at is None or self.row is None or self.row.declared_at is None:
            return None
        return (self.row.declared_at - self.struck_at).total_seconds()

    @property
    def settled(self) -> bool:
        """Whether nothing is to come of it: it lives, or its end is known to the others."""
        if self.ended:
            return self.row is None or not self.row.live
        return self.stroke is None and self.row is not None

    @property
    def state(self) -> str:
        """What to call its state."""
        if self.row is None:
            return 'ended' if self.ended else 'starting'
        if not self.row.live:
            return self.row.state
        if self.ended:
            return 'killed' if self.stroke and self.stroke.blow == signal.SIGKILL else 'ended'
        return 'stopped' if self.stopped_since is not None else self.row.state


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has come to."""

    finished: bool
    seconds: float
    engines: Sequence[Engine]
    done: int
    verdict: verdict.Verdict

    @property
    def ok(self) -> bool:
        """Whether all is done, nothing lost and nothing done twice."""
        return self.finished and not self.verdict.faults


class Run:
    """One run of the demo."""

    def __init__(self, url: str, plan: Plan, template: Template, shown: view.View,
                 directory: pathlib.Path) -> None:
        """Prepare; nothing is connected yet.

        :param directory: where the engines write their logs
        :raises ConfigError: the URL cannot be used
        """
        self.name = uuid.uuid4().hex[:8]
        self._url = url
        self._plan = plan
        self._template = template
        self._view = shown
        self._directory = directory
        self._settings = plan.settings()
        # As patient as db sync asks for; the engines' own waits are short.
        self._database = Database(url, connect_timeout=5.0,
                                  read_timeout=migration.LOCK_SECONDS + 30.0)
        self._cloud = demo.Cloud(self._database, self.name)
        self._members = Members(self._database)
        self._journal = Journal(self._database)
        self._clock = clocks.BootClock()
        self._began = self._clock.now()
        self._strokes = plan.strokes()
        self._engines: list[Engine] = []
        self._resources: list[demo.Resource] = []
        self._held: set[tuple[str | None, str]] = set()
        self._at_work: set[str | None] = set()
        """Which engines have begun something since the last look."""
        self._told: set[int] = set()
        """The journal's entries that were told.  Their ids need not be seen in their order."""

    def prepare(self) -> None:
        """Create the tables that are missing.

        :raises DatabaseError: the database cannot be reached, or refuses
        :raises SchemaError: its tables are newer than this release
        """
        migration.sync(self._database)
        self._cloud.create_tables()

    def play(self) -> Outcome:
        """Play until all is done and every death is known, at most for the time limit.

        :raises DatabaseError: the database is lost for good
        :raises LivenessError: an engine fails for a reason of its own
        """
        try:
            for _ in range(self._plan.engines):
                self._start_engine()
            finished = self._watch_until(self._all_are_up)
            if finished:
                self._say(f'{self._plan.engines} engines are up; the work begins.')
                self._cloud.add(self._template.requires)
                finished = self._watch_until(self._all_is_over)
            if finished:
                self._let_leave()
            else:
                self._say(f'The time limit of {self._plan.time_limit:g} s is over.', 'bad')
            return self._judge(finished)
        finally:
            self._end_engines()

    def forget(self) -> None:
        """Remove what the run has left in the database; raises as any statement."""
        self._cloud.forget()
        self._database.close()

    # What goes on

    def _seconds(self) -> float:
        return self._clock.now() - self._began

    def _say(self, text: str, style: str = '') -> None:
        self._view.say(self._seconds(), text, style)

    def _watch_until(self, over: Callable[[], bool]) -> bool:
        """Watch the run; return False when the time limit comes first."""
        while True:
            self._supervise()
            try:
                self._look()
                self._strike()
                if over():
                    return True
            except errors.UnclearOutcome as error:
                self._say(f'The database gives no answer: {error}', 'bad')
            self._view.show(self._picture())
            if self._seconds() > self._plan.time_limit:
                return False
            self._clock.wait(threading.Event(), LOOK_SECONDS)

    def _all_are_up(self) -> bool:
        return all(each.row is not None for each in self._engines)

    def _all_is_over(self) -> bool:
        """Whether all is done, and nothing that was begun is still to come."""
        return (not self._strokes and all(each.settled for each in self._engines)
                and all(each.done and each.engine_id is None for each in self._resources))

    def _picture(self) -> view.Picture:
        holds: dict[str, list[str]] = {}
        for resource in self._resources:
            if resource.engine_id is not None:
                holds.setdefault(resource.engine_id, []).append(resource.name)
        return view.Picture(
            self._seconds(), self._done(), len(self._template.requires),
            [view.EngineLine(each.name, each.process.pid, each.state,
                             each.row.age if each.row else None,
                             sorted(holds.get(each.engine_id, [])), each.took)
             for each in self._engines])

    def _done(self) -> int:
        return sum(resource.done for resource in self._resources)

    def _look(self) -> None:
        """See what the database says, and tell what is new."""
        # Before the rows, so that who is told to be dead is dead in its row as well.
        entries = self._journal.search()
        rows = {row.engine_id: row for row in self._members.all()}
        for each in self._engines:
            each.row = rows.get(each.engine_id, each.row)
        self._resources = self._cloud.resources()
        held = {(each.engine_id, each.name) for each in self._resources}
        self._at_work = {engine_id for engine_id, _ in held - self._held}
        self._held = held
        for entry in entries:
            if entry.id not in self._told and entry.engine_id in self._by_id():
                self._tell(entry)
                self._told.add(entry.id)

    def _by_id(self) -> Mapping[str | None, Engine]:
        return {each.engine_id: each for each in self._engines}

    def _tell(self, entry: Entry) -> None:
        dead, actor = self._by_id()[entry.engine_id], self._by_id()[entry.taken_by]
        if entry.kind == 'death':
            seconds = dead.detection_seconds
            after = '' if seconds is None else f', {seconds:.2f} s after it was hit'
            why = ('the kernel proves it' if entry.detail['evidence'] == 'kernel'
                   else 'its beats stayed away')
            self._say(f'{actor.name} declares {dead.name} dead{after}: {why}.')
        elif entry.kind == 'takeover':
            names = [lock.partition('/')[2] for lock, _, _ in entry.detail['locks']]
            dead.gave[actor.name] = dead.gave.get(actor.name, 0) + len(names)
            actor.took += len(names)
            self._say(f'{actor.name} takes over {", ".join(names)}.', 'good')

    # Fate, and the supervisor

    def _strike(self) -> None:
        total = len(self._template.requires)
        fraction = self._done() / total
        for stroke in list(self._strokes):
            struck = next(each for each in self._engines if each.name == stroke.name)
            if struck.ended:
                # It went before its time, and what replaced it is spared.
                self._strokes.remove(stroke)
            elif fraction >= stroke.due and (struck.engine_id in self._at_work
                                             or fraction >= PATIENT_UNTIL):
                self._strokes.remove(stroke)
                self._hit(struck, stroke)

    def _hit(self, struck: Engine, stroke: Stroke) -> None:
        self._clock.wait(threading.Event(), stroke.pause_seconds)
        struck.struck_at = self._cloud.now()
        struck.process.send_signal(stroke.blow)
        struck.stroke = stroke
        done = f'{self._done()} of {len(self._template.requires)} resources are done'
        if stroke.blow == signal.SIGSTOP:
            struck.stopped_since = self._clock.now()
            self._say(f'{struck.name} is stopped (SIGSTOP); {done}.', 'bad')
        else:
            self._say(f'{struck.name} is killed (kill -9); {done}.', 'bad')

    def _supervise(self) -> None:
        longest = self._settings.declaration_bound + GRACE_SECONDS
        for each in list(self._engines):
            if not each.ended and each.process.poll() is not None:
                each.ended = True
                self._ended(each, each.process.returncode)
            elif each.stopped_since is not None and not each.ended and (
                    each.declared or self._clock.now() - each.stopped_since > longest):
                each.process.send_signal(signal.SIGCONT)
                each.stopped_since = None
                self._say(f'{each.name} is continued (SIGCONT).')

    def _ended(self, each: Engine, status: int) -> None:
        if each.stroke is not None and each.stroke.blow == signal.SIGKILL:
            return
        if status == -signal.SIGKILL:
            how = f'{each.name} is ended by its kernel timer'
            if each.stopped_since is not None:
                how += ' while it is stopped; nothing is left to continue'
        elif status == agent.EXIT_DEAD:
            how = f'{each.name} has learnt that it was declared dead, and ended'
        else:
            raise errors.LivenessError(
                f'{each.name} failed with status {status}: {_last_line(each.log)}')
        self._say(f'{how}.')
        self._say(f'The supervisor of {each.name} starts {self._start_engine().name}.')

    def _start_engine(self) -> Engine:
        number = len(self._engines) + 1
        name = f'engine-{number}'
        orders = engine.Orders(
            url=self._url, run=self.name, engine_id=str(uuid.uuid4()), name=name,
            settings=dataclasses.asdict(self._settings))
        log = self._directory / f'{name}.log'
        with log.open('wb') as file:
            process = subprocess.Popen(
                [sys.executable, '-m', engine.__name__], stdin=subprocess.PIPE, stdout=file,
                stderr=file, start_new_session=True)
        self._engines.append(Engine(name, orders.engine_id, process, log))
        assert process.stdin is not None
        # One that has failed already is found by the next look at it.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(orders.dump())
            process.stdin.flush()
        return self._engines[-1]

    # The end

    def _let_leave(self) -> None:
        """Close the engines' standard inputs, and give them time to leave."""
        self._view.show(self._picture())
        self._say('All is done; the engines leave.')
        for each in self._engines:
            _close(each.process)
        deadline = self._clock.now() + LEAVE_SECONDS
        for each in self._engines:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(max(0.0, deadline - self._clock.now()))

    def _judge(self, finished: bool) -> Outcome:
        self._look()
        self._view.show(self._picture())
        names = {each.engine_id: each.name for each in self._engines}
        resources = [dataclasses.replace(each, engine_id=names.get(each.engine_id or ''))
                     for each in self._resources]
        calls = [dataclasses.replace(each, engine_id=names[each.engine_id])
                 for each in self._cloud.calls()]
        declared = {each.name: each.row.declared_at for each in self._engines
                    if each.row is not None and each.declared and each.row.declared_at}
        return Outcome(finished, self._seconds(), self._engines, self._done(),
                       verdict.judge(self._template.requires, resources, calls, declared))

    def _end_engines(self) -> None:
        """End what is left of the engines, stopped or not, for good."""
        for each in self._engines:
            _close(each.process)
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                each.process.kill()
        for each in self._engines:
            each.process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors='replace').strip().splitlines()
    return lines[-1] if lines else 'it has not said why.'
