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

"""The four races of the protocol, each in every order of its statements and COMMITs.

Two actors with connections of their own, on Galera on two nodes, stop before each statement and
each COMMIT.  A schedule says whose turn it is; one that waits for a lock of the other keeps
waiting while the other goes on.  In whatever order they act, one of them has an effect, and
both know which: I1 to I4.
"""

import dataclasses
import itertools
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import event

from heat_liveness import errors
from heat_liveness.db import migration
from heat_liveness.db.locks import Locks
from tests.bed.galera import Cluster
from tests.databases.conftest import Bed

pytestmark = pytest.mark.timeout(600)

# Whoever does not come to his next statement within this waits for a lock of the other.  If he was
# only slow, the schedule is another one of those that are tried anyway.
BLOCKED_SECONDS = 1.0
DEADLINE_SECONDS = 60.0

Act = Callable[[Bed], Any]


class Actor:
    """Runs one act on a thread of its own, one step at a time."""

    def __init__(self, bed: Bed, act: Act) -> None:
        self.steps = 0
        self.result: Any = None
        self._bed = bed
        self._turns = threading.Semaphore(0)
        self._moved = threading.Condition()
        self._waits = self._ended = self._free = False
        self._stops = [(bed.database.engine, 'before_cursor_execute', self._amid),
                       (bed.database.engine, 'commit', self._before),
                       (bed.database._autocommit, 'before_cursor_execute', self._before),
                       (bed.database._dedicated, 'before_cursor_execute', self._before)]
        for stop in self._stops:
            event.listen(*stop)
        self._thread = threading.Thread(target=self._run, args=(act,))
        self._thread.start()
        self._arrives(DEADLINE_SECONDS)

    def step(self) -> None:
        """Let it take its next step; return when it is before the one after, or is blocked."""
        if self._waits:
            self._waits = False
            self.steps += 1
            self._turns.release()
            self._arrives(BLOCKED_SECONDS)

    def go(self) -> None:
        """Let it go on to its end."""
        self._free = True
        self._turns.release()

    def end(self) -> Any:
        """Wait for its end; return what the act returned or raised."""
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        for stop in self._stops:
            event.remove(*stop)
        return self.result

    @property
    def ended(self) -> bool:
        return self._ended

    def _arrives(self, seconds: float) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._waits or self._ended, seconds)

    def _amid(self, connection: object, cursor: object, statement: str, *unused: object) -> None:
        # SQLite lets nobody else in between BEGIN and COMMIT.
        if self._bed.database.backend != 'sqlite' or statement.startswith('BEGIN'):
            self._before()

    def _before(self, *unused: object) -> None:
        if threading.current_thread() is not self._thread or self._free:
            return
        with self._moved:
            self._waits = True
            self._moved.notify_all()
        assert self._turns.acquire(timeout=DEADLINE_SECONDS)

    def _run(self, act: Act) -> None:
        try:
            self.result = act(self._bed)
        except errors.DatabaseError as error:
            self.result = error
        with self._moved:
            self._ended = True
            self._moved.notify_all()


@pytest.fixture(params=[
    pytest.param('sqlite', marks=pytest.mark.sqlite),
    pytest.param('mariadb', marks=pytest.mark.mariadb),
    pytest.param('postgresql', marks=pytest.mark.postgresql),
    pytest.param('galera', marks=pytest.mark.galera),
])
def beds(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[list[Bed]]:
    """A bed for each actor and one for the test: one database, on Galera on three nodes."""
    found = None if request.param == 'sqlite' else request.getfixturevalue(request.param)
    if found is None:
        urls = [f'sqlite:///{tmp_path}/liveness.sqlite'] * 3
    else:
        url = found.create_database()
        urls = found.urls(url) if isinstance(found, Cluster) else [url] * 3
    beds = [Bed(url) for url in urls]
    migration.sync(beds[0].database)
    if isinstance(found, Cluster):
        found.settle()
    yield beds
    for bed in beds:
        bed.members.hang_up()
        bed.database.close()
    if found is not None:
        found.drop_database(urls[0])


def play(beds: Sequence[Bed], acts: Sequence[Act], schedule: Sequence[int]) -> list[Any]:
    """Let two actors act in the order of a schedule; return how each has ended."""
    for bed in beds:
        # One that was contended before would take more steps.
        bed.locks = Locks(bed.database)
    actors = [Actor(bed, act) for bed, act in zip(beds, acts, strict=False)]
    for number in schedule:
        if not actors[number].ended:
            actors[number].step()
    for actor in actors:
        actor.go()
    return [actor.end() for actor in actors]


def steps(bed: Bed, act: Act) -> int:
    """Count the steps of an act that is alone."""
    actor = Actor(bed, act)
    while not actor.ended:
        actor.step()
    actor.end()
    return actor.steps


class Scene:
    """Fresh engines and locks for each schedule: names that nobody else has."""

    def __init__(self, bed: Bed, number: int, locks: int = 1) -> None:
        self.owner, self.judge, self.taker, self.rival = (
            bed.engine(f'{name}-{number}') for name in ('owner', 'judge', 'taker', 'rival'))
        self.names = [f'lock-{number}-{each}' for each in range(locks)]
        self.locks = [bed.locks.acquire(name, 'task', None, self.owner) for name in self.names]
        self.seen = bed.row(self.owner)
        self.dead = dataclasses.replace(self.seen, state='dead')

    def declare(self, bed: Bed) -> bool:
        return bed.members.declare(self.seen, self.judge, 'watched', False, {})

    def beat(self, bed: Bed) -> bool:
        return bed.members.beat(self.owner)

    def end(self, status: str) -> Act:
        return lambda bed: bed.locks.write(self.locks[0], status=status, engine_id=None)

    def take(self, taker: str) -> Act:
        return lambda bed: {row.name for row in bed.locks.take_over(
            self.dead, taker, 2, tainted=False)}

    def declare_and_take(self, bed: Bed) -> tuple[bool, set[str]]:
        return self.declare(bed), self.take(self.taker)(bed)


def schedules(bed: Bed, *acts: Act) -> Iterator[Sequence[int]]:
    """Yield each order in which two acts can interleave."""
    first, second = (steps(bed, act) for act in acts)
    for places in itertools.combinations(range(first + second), first):
        yield [0 if place in places else 1 for place in range(first + second)]


def test_a_beat_against_a_declaration(beds: list[Bed]) -> None:
    alone = Scene(beds[2], 0), Scene(beds[2], 1)
    tried = list(schedules(beds[0], alone[0].beat, alone[1].declare))
    for number, schedule in enumerate(tried, 2):
        scene = Scene(beds[2], number)
        beat, declared = play(beds, [scene.beat, scene.declare], schedule)
        now = beds[2].row(scene.owner)
        deaths = [entry.generation for entry in beds[2].journal.search(scene.owner, 'death')]
        if declared is True:
            assert (beat, now.state, now.report_count) == (False, 'dead', 0), schedule
            assert deaths == [0], schedule
        else:
            assert (beat, declared, now.state, now.report_count) == (
                True, False, 'up', 1), schedule
            assert deaths == [], schedule
    assert len(tried) >= 3


@pytest.mark.parametrize('status', ['complete', 'released'])
def test_the_end_of_the_work_against_its_takeover(beds: list[Bed], status: str) -> None:
    alone = Scene(beds[2], 0), Scene(beds[2], 1)
    tried = list(schedules(beds[0], alone[0].end(status), alone[1].declare_and_take))
    for number, schedule in enumerate(tried, 2):
        scene = Scene(beds[2], number)
        ended, (declared, taken) = play(
            beds, [scene.end(status), scene.declare_and_take], schedule)
        now = beds[2].locks.find(scene.names[0])
        assert now is not None
        assert declared is True, schedule
        if ended is True:
            assert taken == set(), schedule
            assert (now.status, now.engine_id, now.generation) == (status, None, 1), schedule
        else:
            assert ended is False, schedule
            assert taken == {scene.names[0]}, schedule
            assert (now.status, now.engine_id, now.generation) == (
                'in_progress', scene.taker, 2), schedule
    assert len(tried) >= 5


def test_a_takeover_against_a_takeover(beds: list[Bed]) -> None:
    alone = Scene(beds[2], 0), Scene(beds[2], 1)
    for scene in alone:
        assert scene.declare(beds[2])
    tried = list(schedules(beds[0], alone[0].take(alone[0].taker), alone[1].take(alone[1].rival)))
    for number, schedule in enumerate(tried, 2):
        scene = Scene(beds[2], number, locks=3)
        assert scene.declare(beds[2])
        results = play(beds, [scene.take(scene.taker), scene.take(scene.rival)], schedule)
        won: dict[str, str] = {}
        for taker, names in zip((scene.taker, scene.rival), results, strict=True):
            if beds[2].database.backend == 'sqlite' and type(names) is errors.DatabaseError:
                continue  # the disk was so slow that its turn did not come
            assert isinstance(names, set), (schedule, names)
            assert not names & won.keys(), schedule
            won |= dict.fromkeys(names, taker)
        assert won, schedule
        for name in scene.names:
            now = beds[2].locks.find(name)
            assert now is not None
            expected = (won[name], 2, 1) if name in won else (scene.owner, 1, 0)
            assert (now.engine_id, now.generation, now.takeovers) == expected, schedule
        pieces = [(entry.taken_by, entry.pieces)
                  for entry in beds[2].journal.search(scene.owner, 'takeover')]
        assert sum(each for _, each in pieces) == len(won), schedule
    assert len(tried) >= (6 if beds[0].database.backend == 'sqlite' else 70)
