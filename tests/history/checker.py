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

"""The judge: which invariants a history breaks.

One function a promise, by the invariant's number in the design.  Each reads the facts in their
order and yields a sentence for what it finds wrong.  I17 is about statements, and tested beside
them (``tests/databases/test_statements.py``).  I12 and I16 have none: they say that I1 to I10 hold
while takers are killed and statements fail, which is up to whoever makes the history.

What an engine had *sent* before its death may still land afterwards.  Where a fact does not say
when its statement was begun, :attr:`Rules.statement_time` bounds how long it may have been
under way; a beat is no such case, as it changes the very row that says dead.

Rules that ask what comes after (I8, I13) count from :class:`~events.Healed`, or from the cause if
that is later, and hold only where the history goes on for longer than they allow.

**A failover that loses commits** (:class:`~events.Undone`) makes two histories of one: what went
before it, and what was as if that had never been committed.  Both have to be good.  What processes
did is not undone, so four rules know of it: an engine whose last beat is lost may go on until its
own fence (I6), a generation that is given a second time may be started a second time, by another
engine (I9), what was recorded may be gone (I8), and one whose row was never there may end itself
(I11).  See ``docs/operator/databases.md``.

**What an operator does by hand** has its price: whose row was removed, or says what no engine says,
is unknown, and never dead, so nobody need find his work (I8) until he has a row again.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from tests.history.events import (
    COMMITTED,
    Beat,
    Called,
    Continued,
    Cut,
    Declared,
    Drained,
    Event,
    Healed,
    Joined,
    Journalled,
    Killed,
    Left,
    Meddled,
    Outage,
    Owned,
    Paused,
    Purged,
    Recorded,
    Resumed,
    Settled,
    Started,
    Stepped,
    Stopped,
    Undone,
    Withheld,
    Wrote,
)

_HINDRANCES = (Stopped, Paused, Cut, Withheld, Killed)
"""What keeps one engine from beating."""
ALL = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 18})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What the engines of a history were told, in seconds unless said; which rules apply."""

    fence_time: float = 20.0
    longest_fence: float = 22.0
    """From a beat to the end that an engine's kernel timer makes, by the engine's own clock."""
    service_down_time: float = 30.0
    max_takeovers: int = 3
    """Pieces of work resumed so many times after a death."""
    purge_after: float = 7 * 86400.0
    detection: float = 120.0
    """From a death, or the end of all faults, to its declaration."""
    convergence: float = 300.0
    """From the loss of an owner, or the end of all faults, to the work being run or ended."""
    statement_time: float = 60.0
    """The longest a statement may be under way."""
    numbers: frozenset[int] = ALL


@dataclasses.dataclass(frozen=True)
class Fault:
    """An invariant that a history breaks, and how."""

    invariant: int
    sentence: str

    def __str__(self) -> str:
        return f'I{self.invariant}: {self.sentence}'


Check = Callable[[Sequence[Event], Rules], Iterator[str]]
_CHECKS: list[tuple[int, bool, Check]] = []


def check(events: Sequence[Event], rules: Rules) -> list[Fault]:
    """Return what a history breaks, by invariant; nothing if it is a good one."""
    histories = [events[:place] for place, event in enumerate(events) if isinstance(event, Undone)]
    found = []
    for history in (*histories, events):
        lasting = _lasting(history)
        found += [Fault(number, sentence) for number, of_all, judge in _CHECKS
                  if number in rules.numbers
                  for sentence in judge(history if of_all else lasting, rules)]
    return list(dict.fromkeys(found))


def _lasting(events: Sequence[Event]) -> Sequence[Event]:
    """Return a history without what a failover has undone."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Undone):
            kept = [each for each in kept if not _undoes(event, each)]
        kept.append(event)
    return kept


def _undoes(failover: Undone, event: Event) -> bool:
    return isinstance(event, COMMITTED) and event.at > failover.since


def _judges(number: int, *, of_all: bool = False) -> Callable[[Check], Check]:
    """Register a rule; ``of_all``: it is to know of what a failover has undone, too."""
    def register(judge: Check) -> Check:
        _CHECKS.append((number, of_all, judge))
        return judge
    return register


def _s(event: Event) -> str:
    return f'At {event.at:.3f} s'


def _terms(events: Sequence[Event]) -> Iterator[tuple[Owned | Wrote | Settled, Owned | None]]:
    """Yield each change of a lock with the term that it found, None where nobody owned it."""
    current: dict[str, Owned] = {}
    for event in events:
        if isinstance(event, Owned):
            yield event, current.get(event.lock)
            current[event.lock] = event
        elif isinstance(event, Wrote):
            term = current.get(event.lock)
            yield event, term
            if event.what != 'progress' and term is not None:
                del current[event.lock]
        elif isinstance(event, Settled):
            yield event, current.pop(event.lock, None)


@_judges(1)
def _one_owner(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """At most one owner: whoever gets a lock gets it from the one who has it."""
    for event, term in _terms(events):
        owner = term and term.engine
        if isinstance(event, Settled) and event.previous != owner:
            yield (f'{_s(event)} an operator changed the lock {event.lock}, which '
                   f'{owner or "nobody"} owned.')
        if not isinstance(event, Owned):
            continue
        if event.previous != owner or (event.how == 'acquire') != (owner is None):
            yield (f'{_s(event)} engine {event.engine} got the lock {event.lock} by {event.how} '
                   f'from {event.previous}, while {owner or "nobody"} owned it.')


@_judges(2)
def _generations(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Generations rise, by exactly one where a lock passes from one owner to the next."""
    highest: dict[str, int] = {}
    for event in events:
        if isinstance(event, Wrote) and event.what == 'quarantine':
            highest[event.lock] = max(highest.get(event.lock, 0), event.generation + 1)
        if not isinstance(event, Owned | Settled):
            continue
        last = highest.get(event.lock, 0)
        how = event.how if isinstance(event, Owned) else 'command'
        if event.generation <= last or (how != 'acquire' and event.generation != last + 1):
            yield (f'{_s(event)} the lock {event.lock} got generation {event.generation} by '
                   f'{how} after {last}.')
        highest[event.lock] = max(last, event.generation)


@_judges(3)
def _no_stale_write(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Nothing is written under a term that is over; a quarantine ends the owner's own term."""
    for event, term in _terms(events):
        if not isinstance(event, Wrote):
            continue
        named = event.engine if event.what != 'quarantine' else term and term.engine
        if term is None or (term.generation, term.engine) != (event.generation, named):
            now = f'{term.engine} under {term.generation}' if term else 'nobody'
            yield (f'{_s(event)} engine {event.engine} wrote {event.what} to the lock '
                   f'{event.lock} under generation {event.generation}, while it belonged to {now}.')


@_judges(4)
def _observed_count(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """The count that the declarer saw is the one in the row."""
    for event in events:
        if isinstance(event, Declared) and event.seen != event.count:
            yield (f'{_s(event)} engine {event.engine} was declared dead by {event.by}, who had '
                   f'seen beat {event.seen}, at beat {event.count}.')


def _robberies(events: Sequence[Event], rules: Rules) -> Iterator[tuple[Declared, str]]:
    """Yield declarations that met an engine which lived, and why that is known."""
    reached: dict[str, float] = {}
    killed = set()
    for event in events:
        if isinstance(event, Joined | Beat):
            reached[event.engine] = event.at
        elif isinstance(event, Killed):
            killed.add(event.engine)
        elif isinstance(event, Declared) and event.engine not in killed:
            age = event.at - reached.get(event.engine, -math.inf)
            if event.evidence == 'kernel':
                yield event, 'by the kernel, although it runs'
            elif event.evidence == 'watched' and age < rules.fence_time:
                yield event, f'{age:.3f} s after a beat that reached the database'


@_judges(5)
def _no_robbery(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Whose beats reach the database in time is not declared dead."""
    for event, why in _robberies(events, rules):
        yield f'{_s(event)} engine {event.engine} was declared dead by {event.by} {why}.'


class _Fences:
    """By whose own clock the fence is not due yet, although others may call it dead.

    Its machine was paused since its last beat, and that its clocks told of less time than has
    passed no engine can know; or its last beat was undone, and that it cannot know, either.
    """

    def __init__(self, longest_fence: float) -> None:
        self._longest = longest_fence
        self._beaten: dict[str, float] = {}
        self._paused: dict[str, float] = {}
        self._lost: dict[str, float] = collections.defaultdict(float)
        """Seconds that the clocks of an engine have not told of since its last beat."""

    def note(self, event: Event) -> None:
        if isinstance(event, Joined | Beat):
            self._beaten[event.engine] = event.at
            self._lost.pop(event.engine, None)
        elif isinstance(event, Paused):
            self._paused[event.engine] = event.at
        elif isinstance(event, Resumed) and event.engine in self._paused:
            began = max(self._paused.pop(event.engine),
                        self._beaten.get(event.engine, -math.inf))
            self._lost[event.engine] += event.at - began
        elif isinstance(event, Undone):
            for engine, at in self._beaten.items():
                if at > event.since:
                    self._lost[engine] += 0.0

    def excuse(self, event: Started | Called) -> bool:
        engine = event.engine
        return engine in self._lost and (
            event.at - self._beaten[engine] - self._lost[engine] < self._longest)


@_judges(5)
def _no_relief_of_the_living(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Work is taken over only from owners whose row says dead or left at that moment."""
    ended = set()
    for event in events:
        if isinstance(event, Declared | Left):
            ended.add(event.engine)
        elif (isinstance(event, Owned) and event.how == 'takeover'
              and event.previous not in ended):
            yield (f'{_s(event)} engine {event.engine} took the lock {event.lock} over from '
                   f'{event.previous}, which had not ended.')
        elif isinstance(event, Settled) and event.previous not in ended | {None}:
            yield (f'{_s(event)} an operator gave up the lock {event.lock} of {event.previous}, '
                   f'which had not ended.')


@_judges(6, of_all=True)
def _fenced(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Whoever was called dead by observation starts nothing any more."""
    declared: dict[str, Declared] = {}
    fences = _Fences(rules.longest_fence)
    for event in events:
        fences.note(event)
        if isinstance(event, Declared) and event.evidence != 'operator':
            declared[event.engine] = event
        elif isinstance(event, Undone):
            declared = {engine: each for engine, each in declared.items()
                        if not _undoes(event, each)}
        elif (isinstance(event, Started | Called) and event.engine in declared
              and not fences.excuse(event)):
            did = 'started' if isinstance(event, Started) else 'made a call for'
            since = event.at - declared[event.engine].at
            yield (f'{_s(event)} engine {event.engine} {did} the lock {event.lock} under '
                   f'generation {event.generation}, {since:.3f} s after it was declared dead.')


@_judges(7)
def _dead_change_nothing(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """The dead do not beat, and what they had sent lands within the life of a statement."""
    ended: dict[str, float] = {}
    for event in events:
        if isinstance(event, Beat | Drained) and event.engine in ended:
            yield f'{_s(event)} engine {event.engine} did {event} although it had ended.'
        elif isinstance(event, Owned | Wrote | Declared | Purged):
            actor = event.engine if isinstance(event, Owned | Wrote) else event.by
            begun = event.at - rules.statement_time if event.begun is None else event.begun
            if begun > ended.get(actor, begun):
                yield f'{_s(event)} engine {actor} did {event} after its end at {ended[actor]:.3f}.'
        if isinstance(event, Declared | Left):
            if event.engine in ended:
                yield f'{_s(event)} engine {event.engine} ended a second time.'
            ended.setdefault(event.engine, event.at)


@dataclasses.dataclass
class _Engine:
    """How an engine stands at the end of a history."""

    running: bool = True
    joined: bool = False
    ended: bool = False
    unknown: bool = False
    """Somebody has meddled with its row."""
    since: float = 0.0
    """When it ran or ended last, whichever made it useless for its work."""

    def note(self, event: Event) -> None:
        """Take note of what happened to it."""
        if isinstance(event, Killed | Declared | Left):
            self.running = self.running and not isinstance(event, Killed)
            self.ended = self.ended or not isinstance(event, Killed)
            self.since = event.at
        elif isinstance(event, Joined | Beat):
            self.joined = True
        if isinstance(event, Joined | Beat | Declared | Left | Meddled):
            self.unknown = isinstance(event, Meddled)


@_judges(8)
def _convergence(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """When all faults are over, the dead are declared, and each piece of work runs or has ended."""
    healed = next((event.at for event in events if isinstance(event, Healed)), None)
    if healed is None:
        return
    engines: dict[str, _Engine] = collections.defaultdict(_Engine)
    terms: dict[str, Owned] = {}
    runs = set()
    for event in events:
        if isinstance(event, Killed | Declared | Left | Joined | Beat | Meddled):
            engines[event.engine].note(event)
        elif isinstance(event, Owned):
            terms[event.lock] = event
        elif isinstance(event, Settled) or (isinstance(event, Wrote) and event.what != 'progress'):
            terms.pop(event.lock, None)
        elif isinstance(event, Started):
            runs.add((event.lock, event.generation, event.engine))
    end = events[-1].at
    for name, engine in engines.items():
        waited = end - max(healed, engine.since)
        if (engine.joined and not engine.running and not engine.ended and not engine.unknown
                and waited > rules.detection):
            yield (f'Engine {name} ended at {engine.since:.3f} s and nobody has declared it dead, '
                   f'{waited:.3f} s after all faults.')
    for term in terms.values():
        engine = engines[term.engine]
        works = (engine.running and not engine.ended
                 and (term.lock, term.generation, term.engine) in runs)
        waited = end - max(healed, term.at, engine.since)
        if not works and not engine.unknown and waited > rules.convergence:
            yield (f'The lock {term.lock} lies with engine {term.engine} under generation '
                   f'{term.generation}, which does not run it, {waited:.3f} s after all faults.')


@_judges(8)
def _declared_soon(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """When all faults are over, and somebody is there to watch, the dead are declared in time."""
    healed = next((event.at for event in events if isinstance(event, Healed)), math.inf)
    ended: dict[str, float] = {}
    watching: dict[str, float] = {}
    """Since when each engine that runs has been there."""
    for event in events:
        if isinstance(event, Joined) and event.engine not in ended:
            # What it sent before its end may land after it.
            watching.setdefault(event.engine, event.at)
        elif isinstance(event, Killed):
            ended.setdefault(event.engine, event.at)
            watching.pop(event.engine, None)
        elif isinstance(event, Left):
            # An operator's command does so as soon as it has joined.
            watching.pop(event.engine, None)
        elif (isinstance(event, Declared) and event.engine in ended
              and event.evidence == 'watched'):
            first = min((at for engine, at in watching.items()), default=math.inf)
            waited = event.at - max(healed, ended[event.engine], first)
            if waited > rules.detection:
                yield (f'{_s(event)} engine {event.engine} was declared dead only '
                       f'{waited:.3f} s after its end and all faults.')


@_judges(8, of_all=True)
def _progress_stays(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """What was recorded last stands, and who goes on finds it, unless a failover has lost it."""
    recorded: dict[str, Recorded] = {}
    generations: collections.Counter[str] = collections.Counter()
    undone = -math.inf
    for event in events:
        if isinstance(event, Undone):
            undone = event.at
            recorded = {lock: last for lock, last in recorded.items() if last.at <= event.since}
        elif isinstance(event, Owned):
            generations[event.lock] = event.generation
            if event.how == 'acquire':
                recorded.pop(event.lock, None)
        elif (isinstance(event, Recorded | Started | Wrote)
              and event.generation < generations[event.lock]):
            # Who hears late of what he has recorded, or acquired, says nothing of what others have
            # recorded since then; whether he may go on at all is asked elsewhere.
            continue
        elif isinstance(event, Recorded):
            if event.begun is None or event.begun > undone:
                recorded[event.lock] = event
        elif isinstance(event, Started | Wrote) and event.step is not None:
            last = recorded.get(event.lock)
            if last is not None and event.step < last.step:
                did = 'found' if isinstance(event, Started) else 'put'
                yield (f'{_s(event)} engine {event.engine} {did} the lock {event.lock} at step '
                       f'{event.step}, although engine {last.engine} had recorded {last.step}.')


@_judges(9, of_all=True)
def _one_resume(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """A handler starts once under one generation, which belongs to its engine."""
    owned: dict[tuple[str, int, str], Owned] = {}
    undone = set()
    """Generations that may be given again, and started again by another engine."""
    started = set()
    for event in events:
        if isinstance(event, Undone):
            undone |= {key[:2] for key, term in owned.items() if _undoes(event, term)}
        elif isinstance(event, Owned):
            key = (event.lock, event.generation, event.engine)
            owned[key] = event
            started.discard(key)
        elif isinstance(event, Started):
            run = (event.lock, event.generation)
            whose = (*run, event.engine if run in undone else '')
            if whose in started:
                yield f'{_s(event)} the lock {run[0]} was started twice under generation {run[1]}.'
            if (*run, event.engine) not in owned:
                yield (f'{_s(event)} engine {event.engine} started the lock {run[0]} under '
                       f'generation {run[1]}, which it never got.')
            started |= {whose, (*run, event.engine)}


@_judges(10)
def _poison(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Work moves ``max_takeovers`` times from owners that died; only then is it set aside."""
    blamed = set()
    deaths: dict[str, int] = collections.defaultdict(int)
    for event in events:
        if isinstance(event, Declared) and not event.mass:
            blamed.add(event.engine)
        elif isinstance(event, Owned):
            if event.how == 'acquire':
                deaths[event.lock] = 0
            elif event.how == 'takeover':
                deaths[event.lock] += event.previous in blamed
            if deaths[event.lock] > rules.max_takeovers:
                yield (f'{_s(event)} the lock {event.lock} was passed on to engine {event.engine} '
                       f'after the death of {deaths[event.lock]} owners.')
        elif (isinstance(event, Wrote) and event.what == 'quarantine'
              and deaths[event.lock] < rules.max_takeovers):
            yield (f'{_s(event)} the lock {event.lock} was quarantined after only '
                   f'{deaths[event.lock]} resumptions.')


@_judges(11, of_all=True)
def _outages_kill_nobody(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """After an outage nobody is dead whom nothing else has kept from beating."""
    outage = False
    hindered: dict[str, set[type[Event]]] = collections.defaultdict(set)
    """What keeps each engine from beating now, besides an outage."""
    suspect = set()
    """Who was hindered by something else at some time since its last beat."""
    for event in events:
        if isinstance(event, Outage):
            outage = True
        elif isinstance(event, Joined | Beat):
            # A beat that was under way when its sender was killed lands all the same.
            if not hindered[event.engine]:
                suspect.discard(event.engine)
        elif isinstance(event, Continued | Resumed):
            hindered[event.engine].discard(Stopped if isinstance(event, Continued) else Paused)
        elif isinstance(event, Cut | Withheld) and not event.began:
            hindered[event.engine].discard(type(event))
        elif isinstance(event, _HINDRANCES):
            hindered[event.engine].add(type(event))
            suspect.add(event.engine)
        elif (isinstance(event, Declared) and outage and event.evidence == 'watched'
              and event.engine not in suspect):
            yield (f'{_s(event)} engine {event.engine} was declared dead by {event.by} after an '
                   f'outage, although nothing else kept it from beating.')


@_judges(11, of_all=True)
def _nobody_ends_itself(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """No engine ends itself who was not stopped or told to."""
    stopped = set()
    told = set()
    joined: dict[str, Joined] = {}
    for event in events:
        if isinstance(event, Stopped):
            stopped.add(event.engine)
        elif isinstance(event, Joined):
            joined[event.engine] = event
        elif isinstance(event, Undone):
            told |= {engine for engine, each in joined.items() if _undoes(event, each)}
        elif isinstance(event, Declared | Left | Purged | Meddled):
            told.add(event.engine)
        elif isinstance(event, Killed):
            if event.why == 'fence' and event.engine not in stopped:
                yield f'{_s(event)} engine {event.engine} ended itself although it could hold.'
            if event.why == 'dead' and event.engine not in told:
                yield f'{_s(event)} engine {event.engine} ended itself although nobody had told it.'


@_judges(13, of_all=True)
def _beats_while_it_drains(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """The row leaves last, and until then beats go on."""
    left = set()
    draining = set()
    troubled = set()
    for event in events:
        if isinstance(event, Left):
            left.add(event.engine)
            draining.discard(event.engine)
        elif isinstance(event, Drained):
            draining.add(event.engine)
        elif isinstance(event, _HINDRANCES):
            troubled.add(event.engine)
        elif isinstance(event, Outage):
            troubled |= draining
        elif isinstance(event, Started | Called) and event.engine in left:
            yield (f'{_s(event)} engine {event.engine} worked on the lock {event.lock} after it '
                   f'had left.')
        elif (isinstance(event, Declared) and event.evidence == 'watched'
              and event.engine in draining - troubled):
            yield (f'{_s(event)} engine {event.engine} was declared dead while it drained: its '
                   f'beats did not go on.')


@_judges(13)
def _leavers_are_relieved(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """What an engine that left has kept is found by the next looks of the others."""
    healed = next((event.at for event in events if isinstance(event, Healed)), None)
    left = {event.engine: event.at for event in events if isinstance(event, Left)}
    if healed is None or not left:
        return
    kept: dict[str, Owned] = {}
    for event, _ in _terms(events):
        if isinstance(event, Owned):
            kept[event.lock] = event
        elif isinstance(event, Settled) or event.what != 'progress':
            kept.pop(event.lock, None)
    for term in kept.values():
        if term.engine in left:
            waited = events[-1].at - max(healed, term.at, left[term.engine])
            if waited > rules.convergence:
                yield (f'The lock {term.lock} lies with engine {term.engine}, which has left, '
                       f'{waited:.3f} s after all faults.')


@_judges(14)
def _no_heirs(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """A new process is a new engine, and claims from itself only what is its own."""
    ended = set()
    killed: dict[str, float] = {}
    for event in events:
        if isinstance(event, Declared | Left):
            ended.add(event.engine)
        elif isinstance(event, Killed):
            killed[event.engine] = event.at
        elif isinstance(event, Joined) and (
                event.engine in ended
                or event.at - killed.get(event.engine, event.at) > rules.statement_time):
            yield f'{_s(event)} engine {event.engine} joined again after its end.'
        elif isinstance(event, Owned) and (event.how == 'reclaim') != (
                event.previous == event.engine):
            yield (f'{_s(event)} engine {event.engine} got the lock {event.lock} by {event.how} '
                   f'from {event.previous}.')


@_judges(15)
def _clocks_rob_nobody(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """A stepped clock robs nobody."""
    stepped = [event.at for event in events if isinstance(event, Stepped)]
    for event, why in _robberies(events, rules) if stepped else ():
        if event.at >= stepped[0]:
            yield (f'{_s(event)} engine {event.engine} was robbed after a step of a clock: it was '
                   f'declared dead by {event.by} {why}.')


@_judges(18)
def _journal(events: Sequence[Event], rules: Rules) -> Iterator[str]:
    """Each declared death has exactly one row in the journal, and each row a death.

    Who is set dead by hand has none.
    """
    deaths = collections.Counter(
        (event.engine, event.by) for event in events
        if isinstance(event, Declared) and event.by != 'operator')
    rows = collections.Counter(
        (event.engine, event.by) for event in events if isinstance(event, Journalled))
    for engine, by in deaths.keys() | rows.keys():
        if (deaths[engine, by], rows[engine, by]) != (1, 1):
            yield (f'Engine {engine} was declared dead by {by} {deaths[engine, by]} times, which '
                   f'the journal has {rows[engine, by]} times.')
