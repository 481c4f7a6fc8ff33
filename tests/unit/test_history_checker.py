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

"""The judge of histories: a good one passes, and the least bad one for each rule does not."""

import dataclasses
from typing import Any

import pytest

from tests.history import checker
from tests.history.events import (
    Beat,
    Called,
    Continued,
    Cut,
    Declared,
    Drained,
    Event,
    Healed,
    Held,
    Joined,
    Journalled,
    Killed,
    Left,
    Meddled,
    Opened,
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

RULES = checker.Rules(fence_time=20, convergence=100, detection=50, statement_time=10)


def joined(engine: str = 'a', at: float = 0.0) -> Joined:
    return Joined(at=at, engine=engine, machine=engine)


def beat(at: float, engine: str = 'a', count: int = 1) -> Beat:
    return Beat(at=at, engine=engine, count=count)


def declared(at: float, engine: str = 'a', by: str = 'b', seen: int = 1, count: int = 1,
             **more: Any) -> Declared:
    return Declared(at=at, engine=engine, by=by, seen=seen, count=count, **more)


def journalled(at: float, engine: str = 'a', by: str = 'b') -> Journalled:
    return Journalled(at=at, engine=engine, by=by)


def acquired(at: float = 1.0, lock: str = 'x', engine: str = 'a', generation: int = 1) -> Owned:
    return Owned(at=at, lock=lock, generation=generation, engine=engine, previous=None,
                 how='acquire')


def taken(at: float, lock: str = 'x', engine: str = 'b', generation: int = 2,
          previous: str = 'a') -> Owned:
    return Owned(at=at, lock=lock, generation=generation, engine=engine, previous=previous,
                 how='takeover')


def wrote(at: float, what: Any = 'complete', engine: str = 'a', generation: int = 1,
          lock: str = 'x') -> Wrote:
    return Wrote(at=at, lock=lock, generation=generation, engine=engine, what=what)


def started(at: float, engine: str = 'a', generation: int = 1, lock: str = 'x') -> Started:
    return Started(at=at, lock=lock, generation=generation, engine=engine)


def recorded(at: float, engine: str = 'a', generation: int = 1, step: int = 2,
             begun: float | None = None) -> Recorded:
    return Recorded(at=at, lock='x', generation=generation, engine=engine, step=step, begun=begun)


def found(*events: Event, rules: checker.Rules = RULES) -> set[int]:
    return {fault.invariant for fault in checker.check(events, rules)}


DEATH = (joined('a'), joined('b'), beat(2), acquired(3), started(3), Killed(at=4, engine='a'),
         declared(40), journalled(40))

GOOD = (
    *DEATH, Held(at=41, engine='b'), Opened(at=42, engine='b'), taken(43),
    started(43, 'b', 2), Called(at=44, lock='x', generation=2, engine='b'),
    wrote(45, 'progress', 'b', 2),
    Owned(at=46, lock='x', generation=3, engine='b', previous='b', how='reclaim'),
    started(46, 'b', 3), wrote(50, 'complete', 'b', 3),
    Outage(at=60, began=True), Stepped(at=61, node='n', seconds=-9), Outage(at=90, began=False),
    Healed(at=100), Purged(at=300, engine='a', by='b'), Drained(at=310, engine='b'),
    Left(at=320, engine='b'), Killed(at=321, engine='b', why='exit'), beat(900, 'c'))


def test_a_good_history_passes() -> None:
    assert checker.check(GOOD, RULES) == []


def test_an_empty_history_passes() -> None:
    assert checker.check([], RULES) == []


BAD: dict[str, Any] = {
    'a lock is taken from one who has not got it': (1, *DEATH, taken(43, previous='c')),
    'a lock is acquired while it is owned': (1, acquired(), acquired(2, engine='b', generation=2)),
    'a generation is used again': (
        2, acquired(), wrote(2), acquired(3, engine='b', generation=1)),
    'a takeover skips a generation': (2, *DEATH, taken(43, generation=3)),
    'an old owner writes after the takeover': (3, *DEATH, taken(43), wrote(44, 'progress')),
    'an owner writes after the end of its work': (3, acquired(), wrote(2), wrote(3)),
    'a declaration overlooks a beat': (4, declared(40, seen=1, count=2), journalled(40)),
    'one who beats is declared dead': (5, beat(39), declared(40), journalled(40)),
    'the kernel is said to prove the death of one who runs': (
        5, beat(2), declared(40, evidence='kernel'), journalled(40)),
    'one who lives is relieved': (5, acquired(), taken(2)),
    'one whose death was undone is relieved': (5, *DEATH, Undone(at=42, since=39), taken(43)),
    'what is wrong is undone later': (5, acquired(), taken(2), Undone(at=3, since=1.5)),
    'one whose death was undone dies again, and works on': (
        6, *DEATH, Undone(at=42, since=39), declared(45), journalled(45), started(46)),
    'one whose last beat was undone works on when its own clock forbids it': (
        6, acquired(1), beat(9), Undone(at=10, since=8), declared(30), journalled(30),
        started(32)),
    'one who is declared dead starts work': (
        6, acquired(), declared(40), journalled(40), started(41)),
    'one who is declared dead calls elsewhere': (
        6, acquired(), started(1), declared(40), journalled(40),
        Called(at=41, lock='x', generation=1, engine='a')),
    'one whose machine was paused works on when its own clock forbids it': (
        6, acquired(), joined(), Paused(at=10, engine='a'), declared(40), journalled(40),
        Resumed(at=50, engine='a'), started(63)),
    'one whose machine was paused before its last beat works on': (
        6, acquired(), Paused(at=1, engine='a'), Resumed(at=9, engine='a'), beat(9), declared(40),
        journalled(40), started(41)),
    'the dead beat': (7, declared(40), journalled(40), beat(41)),
    'the dead acquire': (7, declared(40), journalled(40), acquired(51)),
    'the dead declare': (7, declared(40), journalled(40), declared(60, 'c', 'a'),
                         journalled(60, 'c', 'a')),
    'one is declared dead twice': (7, *DEATH, declared(60, by='c'), journalled(60, by='c')),
    'a death is overlooked': (8, joined(), Healed(at=1), Killed(at=2, engine='a'), beat(53, 'b')),
    'a death is found late': (
        8, joined(), joined('b'), Healed(at=1), Killed(at=2, engine='a'), declared(53),
        journalled(53)),
    'a death is found late by the one who could': (
        8, joined(), Killed(at=2, engine='a'), Healed(at=3), joined('b', 70), declared(121),
        journalled(121)),
    'an operator changes what is owned': (1, acquired(), Settled(
        at=2, lock='x', generation=2, to='released')),
    'an operator gives up what one who lives works on': (5, acquired(), Settled(
        at=2, lock='x', generation=2, to='failed', previous='a')),
    'a command skips a generation': (2, acquired(), wrote(2, 'fail'), Settled(
        at=3, lock='x', generation=3, to='released')),
    'what was left by an operator is overlooked': (
        8, joined('o'), acquired(1, engine='o'), Left(at=1, engine='o'), Healed(at=2),
        beat(103, 'b')),
    'a riddle is solved, and its work overlooked': (
        8, joined(), acquired(), Meddled(at=2, engine='a'), joined(at=3),
        Killed(at=4, engine='a'), declared(40), journalled(40), Healed(at=50), beat(151, 'b')),
    'a generation is started twice by one engine after it was given once': (
        9, acquired(), Undone(at=2, since=1.5), started(3), started(4)),
    'progress is lost': (
        8, acquired(), recorded(2),
        Started(at=40, lock='x', generation=2, engine='c', step=1)),
    'a failover loses more than came after it': (
        8, acquired(), recorded(2), Undone(at=9, since=5),
        Started(at=40, lock='x', generation=2, engine='c', step=1)),
    'progress is lost, of which somebody hears late that it was less before': (
        8, acquired(), taken(3), recorded(4, 'b', 2), recorded(5, step=1),
        Started(at=40, lock='x', generation=3, engine='c', step=1)),
    'progress is put back': (
        8, acquired(), recorded(2),
        Wrote(at=3, lock='x', generation=1, engine='a', what='progress', step=1)),
    'the work of the dead is overlooked': (8, *DEATH, Healed(at=50), beat(151, 'b')),
    'an owner does not run what it owns': (8, acquired(), Healed(at=50), beat(151, 'b')),
    'one generation is started twice': (9, acquired(), started(2), started(3)),
    'what one never got is started': (9, acquired(), started(2, 'b')),
    'work kills one engine more than it may': (
        10, acquired(1, engine='e1'), *(
            event for n in range(1, 5) for event in (
                declared(40 * n, f'e{n}'), journalled(40 * n, f'e{n}'),
                taken(40 * n, engine=f'e{n + 1}', previous=f'e{n}', generation=n + 1)))),
    'a bystander is quarantined': (10, *DEATH, wrote(43, 'quarantine', 'b')),
    'an outage robs': (11, beat(1), Outage(at=2, began=True), Outage(at=39, began=False),
                       declared(40), journalled(40)),
    'what hindered an engine before its last beat counts': (
        11, Stopped(at=1, engine='a'), Continued(at=2, engine='a'), beat(3),
        Outage(at=4, began=True), Outage(at=39, began=False), declared(40), journalled(40)),
    'what the dead begin changes something': (
        7, declared(40), journalled(40), dataclasses.replace(acquired(41), begun=40.5)),
    'an outage ends an engine that could hold': (
        11, Outage(at=1, began=True), Killed(at=30, engine='a', why='fence')),
    'an engine ends itself unasked': (11, joined(), Killed(at=30, engine='a', why='dead')),
    'one works on after it has left': (13, acquired(), Left(at=2, engine='a'), started(3)),
    'one who drains does not beat': (13, joined(), Drained(at=1, engine='a'), declared(40),
                                     journalled(40)),
    'what one who left has kept is overlooked': (
        13, acquired(), Left(at=2, engine='a'), Healed(at=3), beat(104, 'b')),
    'an engine comes back under its old name': (
        14, joined(), Killed(at=1, engine='a'), joined(at=12)),
    'the dead come back under their old name': (
        14, declared(40), journalled(40), joined(at=41)),
    'one claims from itself what is not its own': (
        14, *DEATH, Owned(at=43, lock='x', generation=2, engine='b', previous='a', how='reclaim')),
    'a stepped clock robs': (15, Stepped(at=1, node='n', seconds=99), beat(39), declared(40),
                             journalled(40)),
    'a death is not journalled': (18, declared(40)),
    'a death is journalled twice': (18, declared(40), journalled(40), journalled(41)),
}


@pytest.mark.parametrize('what', BAD)
def test_a_bad_history_is_found(what: str) -> None:
    number, *events = BAD[what]
    assert number in found(*events)


@pytest.mark.parametrize('what', BAD)
def test_a_rule_that_does_not_apply_is_not_asked(what: str) -> None:
    number, *events = BAD[what]
    rules = dataclasses.replace(RULES, numbers=RULES.numbers - {number})
    assert number not in found(*events, rules=rules)


def test_each_rule_has_a_bad_history() -> None:
    assert {number for number, *_ in BAD.values()} == checker.ALL


FINE: dict[str, tuple[Event, ...]] = {
    'a late completion counts before the takeover': (*DEATH, wrote(41)),
    'a statement lands soon after the death of its sender': (
        declared(40), journalled(40), acquired(45)),
    'a statement lands late that the database knew before': (
        declared(40), journalled(40), dataclasses.replace(acquired(90), begun=39)),
    'one that was stopped does not beat after an outage': (
        beat(1), Stopped(at=2, engine='a'), Outage(at=2, began=True), Outage(at=39, began=False),
        declared(40), journalled(40)),
    'who never joined is nobody to declare dead': (Healed(at=1), Killed(at=2, engine='a'),
                                                   beat(200, 'b')),
    'who joined after its own end watches nobody': (
        joined(), Killed(at=1, engine='a'), Killed(at=1, engine='b'), Healed(at=1),
        joined('b', 2), joined('c', 70), declared(100, 'a', 'c'), journalled(100, 'a', 'c'),
        declared(100, 'b', 'c'), journalled(100, 'b', 'c')),
    'the last beat of one who was killed lands late': (
        beat(1), Killed(at=2, engine='a'), beat(3), Outage(at=4, began=True),
        Outage(at=5, began=False), declared(40), journalled(40)),
    'quarantine after so many deaths': (
        acquired(1, engine='e1'), *(
            event for n in range(1, 5) for event in (
                declared(40 * n, f'e{n}'), journalled(40 * n, f'e{n}'),
                wrote(40 * n, 'quarantine', 'z', n) if n == 4 else
                taken(40 * n, engine=f'e{n + 1}', previous=f'e{n}', generation=n + 1)))),
    'a mass death blames nobody': (
        acquired(1, engine='e1'), *(
            event for n in range(1, 6) for event in (
                declared(40 * n, f'e{n}', mass=True), journalled(40 * n, f'e{n}'),
                taken(40 * n, engine=f'e{n + 1}', previous=f'e{n}', generation=n + 1)))),
    'an operator may declare anybody dead': (
        acquired(30), beat(39), declared(40, evidence='operator'), journalled(40), started(41)),
    'the kernel ends one that was stopped': (
        Stopped(at=1, engine='a'), Killed(at=22, engine='a', why='fence')),
    'a row that was purged is written again': (
        joined(), Purged(at=1, engine='a', by='operator'), joined(at=2)),
    'one who was cut off while it drained may be declared dead': (
        Drained(at=1, engine='a'), Cut(at=2, engine='a', began=True), declared(40),
        journalled(40)),
    'a row lands soon after the end of its engine': (
        Killed(at=1, engine='a'), joined(at=2)),
    'one whose machine was paused may work on until its own clock forbids it': (
        acquired(), joined(), Paused(at=10, engine='a'), declared(40), journalled(40),
        Resumed(at=50, engine='a'), started(61)),
    'one whose machine was paused does not beat after an outage': (
        beat(1), Paused(at=2, engine='a'), Outage(at=2, began=True), Outage(at=39, began=False),
        declared(40), journalled(40)),
    'one whose last beat was undone may work on until its own clock forbids it': (
        joined(), acquired(), beat(9), Undone(at=10, since=8), declared(29), journalled(29),
        started(30)),
    'who left as soon as he had joined has watched nobody': (
        joined(), Killed(at=2, engine='a'), Healed(at=3), joined('o', 4), Left(at=4, engine='o'),
        joined('b', 70), declared(110), journalled(110)),
    'a failover may lose what was recorded': (
        acquired(), recorded(2), Undone(at=3, since=1.5),
        Started(at=40, lock='x', generation=1, engine='a', step=1)),
    'a failover may lose what was recorded before it, though that is heard of after it': (
        acquired(), Undone(at=3, since=1.5), recorded(4, begun=2),
        Started(at=40, lock='x', generation=1, engine='a', step=1)),
    'who hears late of what he has recorded says nothing of what came after': (
        *DEATH, taken(43), wrote(45, 'complete', 'b', 2), acquired(46, engine='b', generation=3),
        recorded(47), Started(at=48, lock='x', generation=3, engine='b', step=0)),
    'who was robbed before he began finds what he acquired': (
        joined('a'), joined('b'), beat(2), acquired(3), Paused(at=4, engine='a'), declared(40),
        journalled(40), taken(43), recorded(44, 'b', 2), Resumed(at=45, engine='a'),
        Started(at=45, lock='x', generation=1, engine='a', step=0)),
    'who acquires a lock anew begins at the beginning': (
        acquired(), recorded(2), wrote(3),
        acquired(4, generation=2), Started(at=5, lock='x', generation=2, engine='a', step=0)),
    'a death is undone, and found again': (
        *DEATH, taken(41), Undone(at=42, since=39), declared(70), journalled(70), taken(71)),
    'a death is undone, and the dead beat on': (
        joined(), beat(1), Stopped(at=2, engine='a'), declared(40), journalled(40),
        Undone(at=41, since=39), Continued(at=42, engine='a'), beat(43)),
    'a takeover is undone, and another wins under the same generation': (
        *DEATH, taken(43), started(44, 'b', 2), Undone(at=45, since=41), taken(46, engine='c'),
        started(47, 'c', 2), wrote(48, 'complete', 'c', 2)),
    'a takeover is undone, and the same engine starts again': (
        *DEATH, taken(43), started(44, 'b', 2), Undone(at=45, since=41), taken(46),
        started(47, 'b', 2)),
    'one whose joining was undone ends itself': (
        joined(at=5), Undone(at=6, since=4), Killed(at=30, engine='a', why='dead')),
    'one who withheld its beats may be declared dead after an outage': (
        beat(1), Withheld(at=2, engine='a', began=True), Outage(at=2, began=True),
        Withheld(at=3, engine='a', began=False), Outage(at=39, began=False), declared(40),
        journalled(40)),
    'who is set dead by hand has no row in the journal': (
        beat(39), declared(40, by='operator', evidence='operator')),
    'whose row was removed is not found dead, nor its work': (
        joined(), acquired(), Meddled(at=2, engine='a'), Killed(at=3, engine='a'), Healed(at=4),
        beat(200, 'b')),
    'an operator gives up what one who has ended has left': (*DEATH, Settled(
        at=41, lock='x', generation=2, to='failed', previous='a'), Healed(at=42), beat(200, 'b')),
    'an operator changes what nobody owns': (
        acquired(), wrote(2, 'fail'), Settled(at=3, lock='x', generation=2, to='released'),
        acquired(4, generation=3), wrote(5, generation=3)),
    'an operator has quarantined work tried again': (
        acquired(1, engine='e1'), *(
            event for n in range(1, 4) for event in (
                declared(40 * n, f'e{n}'), journalled(40 * n, f'e{n}'),
                taken(40 * n, engine=f'e{n + 1}', previous=f'e{n}', generation=n + 1))),
        declared(160, 'e4'), journalled(160, 'e4'), wrote(160, 'quarantine', 'z', 4),
        Settled(at=161, lock='x', generation=6, to='released')),
    'nobody was there to find a death': (
        joined(), Killed(at=2, engine='a'), Healed(at=3), joined('b', 70), declared(119),
        journalled(119)),
    'there is time still': (*DEATH, Healed(at=50), Continued(at=150, engine='b')),
}


@pytest.mark.parametrize('what', FINE)
def test_what_looks_bad_and_is_not(what: str) -> None:
    assert not found(*FINE[what])


def test_a_fault_says_its_number() -> None:
    [fault] = checker.check([declared(40)], RULES)
    assert str(fault) == ('I18: Engine a was declared dead by b 1 times, which the journal has '
                          '0 times.')
