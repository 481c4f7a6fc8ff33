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

"""The work of an engine: acquired, run, ended, taken over, set aside; and its races."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness import conf, errors, fence
from heat_liveness.clock import BootClock
from heat_liveness.db import models
from heat_liveness.db.database import Database
from heat_liveness.db.locks import MOST_ROWS, HeldLock, LockRow, Locks
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.work import Context
from heat_liveness.work.native import NativeWork, Release, Task
from tests.bed.waiting import wait_until
from tests.unit import fakes

SETTINGS = dataclasses.replace(conf.Settings(host='here'), max_tasks=8, beat_retry=.01)


class Node:
    """One engine's work, without the engine."""

    def __init__(self, database: Database, name: str,
                 handlers: dict[str, Callable[[Task], None]],
                 settings: conf.Settings = SETTINGS) -> None:
        self.name = name
        self.database = database
        self.members = Members(database)
        self.members.insert(fakes.identity(name), 4, 20)
        self.gate = fence.Gate(3600, BootClock())
        self.gate.good_beat(BootClock().now())
        self.work = NativeWork(Context(
            identity=fakes.identity(name), settings=settings, database=database,
            members=self.members, gate=self.gate, clock=BootClock()), handlers)

    def die(self, *, mass: bool = False) -> ServiceRow:
        row = self.members.read(self.name)
        assert row is not None
        self.members.insert(fakes.identity(f'judge-of-{self.name}'), 4, 20)
        assert self.members.declare(row, f'judge-of-{self.name}', 'watched', mass, {})
        return self.row()

    def row(self) -> ServiceRow:
        row = self.members.read(self.name)
        assert row is not None
        return row


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[Database]:
    found = Database(f'sqlite:///{tmp_path}/native.sqlite')
    models.metadata.create_all(found.engine)
    yield found
    found.close()


@pytest.fixture
def locks(database: Database) -> Locks:
    return Locks(database)


class Handlers(dict[str, Callable[[Task], None]]):
    """Handlers that tests look into."""

    def __init__(self) -> None:
        super().__init__(wait=self._wait, quick=lambda task: None, fail=self._fail,
                         release=self._release)
        self.go_on = threading.Event()
        self.runs: list[tuple[str, int]] = []

    def _wait(self, task: Task) -> None:
        self.runs.append((task.name, task.generation))
        assert self.go_on.wait(60)

    def _fail(self, task: Task) -> None:
        raise ZeroDivisionError('no')

    def _release(self, task: Task) -> None:
        raise Release


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    found = Handlers()
    yield found
    found.go_on.set()


@pytest.fixture
def node(database: Database, handlers: Handlers) -> Node:
    return Node(database, 'me', handlers)


def found(locks: Locks, name: str) -> LockRow:
    row = locks.find(name)
    assert row is not None
    return row


class Faults:
    """Lets a method of Locks fail as often as it is told."""

    def __init__(self, locks: Locks, method: str, error: Exception, times: int, *,
                 after: bool) -> None:
        self.times = times
        real = getattr(locks, method)

        def fail(*arguments: Any, **named: Any) -> Any:
            if self.times <= 0:
                return real(*arguments, **named)
            self.times -= 1
            if after:
                real(*arguments, **named)
            raise error

        setattr(locks, method, fail)


UNCLEAR = errors.UnclearOutcome('It gave no clear answer.')
REFUSED = errors.DatabaseError('It refused.')


def test_a_task_runs_to_its_end_and_releases_its_lock(node: Node, locks: Locks) -> None:
    seen: list[Any] = []

    def handler(task: Task) -> None:
        seen.append((task.name, task.task, task.arguments, task.progress, task.generation,
                     task.takeovers))
        task.record({'step': 1})

    node.work._handlers['build'] = handler
    node.work.submit('house', 'build', {'floors': 2}).result(60)
    assert seen == [('house', 'build', {'floors': 2}, None, 1, 0)]
    row = found(locks, 'house')
    assert (row.status, row.engine_id, row.progress) == ('complete', None, {'step': 1})


@pytest.mark.parametrize(('task', 'status', 'reason'), [
    ('quick', 'complete', None),
    ('fail', 'failed', 'ZeroDivisionError: no'),
    ('release', 'released', None)])
def test_what_becomes_of_a_task_stands_in_its_lock(
        node: Node, locks: Locks, task: str, status: str, reason: str | None) -> None:
    node.work.submit('x', task).result(60)
    row = found(locks, 'x')
    assert (row.status, row.reason, row.engine_id) == (status, reason, None)
    node.work.submit('x', 'quick').result(60)
    assert found(locks, 'x').generation == 2


@pytest.mark.parametrize(('reason', 'kept'), [
    ('nul \0', 'nul \\0'),
    ('surrogate \udcff', 'surrogate \\udcff'),
    ('long ' + 'x' * 2_000_000, 'long ' + 'x' * (10_000 - len('OSError: long '))),
], ids=['nul', 'surrogate', 'long'])
def test_no_reason_keeps_a_task_from_failing(
        node: Node, locks: Locks, caplog: pytest.LogCaptureFixture, reason: str,
        kept: str) -> None:
    # The report of a test that ran on another process cannot hold a surrogate.
    caplog.set_level(logging.CRITICAL, 'heat_liveness.work.native')

    def fail(task: Task) -> None:
        raise OSError(reason)

    other = Node(node.database, 'other', {'bad': fail})
    other.work.submit('x', 'bad').result(30)
    assert found(locks, 'x').status == 'failed'
    assert found(locks, 'x').reason == f'OSError: {kept}'


def test_progress_that_cannot_be_stored_fails_the_task(
        node: Node, locks: Locks, database: Database) -> None:
    other = Node(database, 'other', {'big': lambda task: task.record('x' * 2_000_000)})
    other.work.submit('x', 'big').result(30)
    assert found(locks, 'x').status == 'failed'
    assert 'more than the 1000000 that a lock holds' in str(found(locks, 'x').reason)


def test_a_task_without_a_handler_is_not_submitted(node: Node) -> None:
    with pytest.raises(errors.NotFound, match='No handler is registered for the task unknown'):
        node.work.submit('x', 'unknown')


@pytest.mark.parametrize('deaths', [1, 2], ids=['fresh', 'tainted'])
def test_work_without_a_handler_here_is_left_to_those_who_have_one(
        node: Node, locks: Locks, database: Database, caplog: pytest.LogCaptureFixture,
        deaths: int) -> None:
    """I8: as while a service is upgraded engine by engine."""
    knows: dict[str, Callable[[Task], None]] = {'new': lambda task: None}
    owner = Node(database, 'owner', {'new': lambda task: threading.Event().wait(60) and None})
    owner.work.acquire('x', 'new')
    owner.work.acquire('y', 'quick')
    for number in range(deaths - 1):
        dead = owner.die()
        owner = Node(database, f'owner-{number}', {})
        assert len(owner.work._locks.take_over(dead, owner.name, 9, tainted=False)) == 2
    dead = owner.die()
    claims = [node.work.claim(dead) for _ in range(2)]
    assert [(claim.pieces, claim.more) for claim in claims] == [(1, True), (0, False)]
    assert node.work.claim(dead) == claims[1]
    assert (found(locks, 'x').engine_id, found(locks, 'x').status) == (owner.name, 'in_progress')
    assert caplog.text.count('owns work for which engine me has no handler') == 1
    newer = Node(database, 'newer', knows)
    assert newer.work.claim(dead).pieces == 1
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The end')


def test_what_was_acquired_without_a_handler_and_without_an_answer_is_released(
        node: Node, locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.acquire('x', 'unknown')
    assert node.work.reclaim() == 1
    wait_until(lambda: found(locks, 'x').status == 'released', 30, 'The release')
    assert 'No handler has that name, so it is released' in caplog.text


def submit_and_complete(node: Node, handlers: Handlers) -> futures.Future[None]:
    """Let a handler end its lock x, and go on until it is told to end."""
    ended = threading.Event()

    def handler(task: Task) -> None:
        task.complete()
        ended.set()
        assert handlers.go_on.wait(60)

    node.work._handlers['long'] = handler
    done = node.work.submit('x', 'long')
    assert ended.wait(60)
    return done


def test_a_thread_that_goes_on_without_its_lock_keeps_its_room(
        node: Node, handlers: Handlers) -> None:
    """Else more would be claimed than has threads to run on, and wait while others idle."""
    done = submit_and_complete(node, handlers)
    assert node.work.room() == SETTINGS.max_tasks - 1
    assert node.work._idle('x')
    handlers.go_on.set()
    with contextlib.suppress(errors.LockLost):
        done.result(60)
    wait_until(lambda: node.work.room() == SETTINGS.max_tasks, 30, 'The room')


def test_a_takeover_that_a_failover_undoes_does_not_start_the_work_again(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I2, I9: it would run twice under one generation."""
    other = Node(database, 'other', handlers)
    other.work.acquire('x', 'wait')
    dead = other.die()
    before = found(locks, 'x')
    assert node.work.claim(dead).pieces == 1
    wait_until(lambda: handlers.runs == [('x', 2)], 30, 'The start')
    with database.transaction() as connection:
        connection.execute(models.lock.update().values(
            engine_id='other', generation=1, takeovers=0, history=''))
    assert found(locks, 'x').generation == before.generation
    claim = node.work.claim(dead)
    assert (claim.pieces, claim.more) == (0, True)
    assert node.work.reclaim() == 0
    handlers.go_on.set()
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The end')
    assert handlers.runs == [('x', 2)]


def test_what_is_won_anew_while_it_runs_under_an_older_generation_is_run_when_that_is_lost(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I8, I9: a failover has undone more than the takeover."""
    other = Node(database, 'other', handlers)
    node.work._locks.acquire('x', 'wait', None, 'other')
    dead = other.die()
    assert node.work.claim(dead).pieces == 1
    wait_until(lambda: handlers.runs == [('x', 2)], 30, 'The start')
    with database.transaction() as connection:
        connection.execute(models.lock.update().values(
            engine_id='other', generation=5, takeovers=0, history=''))
    assert node.work.claim(dead).pieces == 0
    assert found(locks, 'x').generation == 6
    handlers.go_on.set()
    wait_until(lambda: node.work.doubts, 30, 'The loss of the lock')
    assert node.work.reclaim() == 1
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The end')
    assert handlers.runs == [('x', 2), ('x', 7)]


def test_a_tainted_handler_that_goes_on_without_its_lock_stays_alone(
        node: Node, database: Database, handlers: Handlers) -> None:
    """I10: its process may die of it yet."""
    def handler(task: Task) -> None:
        task.complete()
        assert handlers.go_on.wait(60)

    node.work._handlers['long'] = handler
    owner = Node(database, 'owner', {})
    for name in 'xy':
        owner.work.acquire(name, 'long')
    heir = Node(database, 'heir', {})
    assert len(heir.work._locks.take_over(owner.die(), 'heir', 9, tainted=False)) == 2
    dead = heir.die()
    assert node.work.claim(dead).pieces == 1
    wait_until(lambda: not node.work._held, 30, 'The end of its lock')
    assert node.work.claim(dead).pieces == 0
    handlers.go_on.set()
    wait_until(lambda: node.work.room() == SETTINGS.max_tasks, 30, 'The end of its thread')
    assert node.work.claim(dead).pieces == 1


def test_a_doubt_that_comes_while_an_engine_looks_after_itself_stays(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """I9."""
    search = node.work._locks.search

    def slow(**named: Any) -> list[LockRow]:
        rows = search(**named)
        Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
        with pytest.raises(errors.UnclearOutcome):
            node.work.acquire('x', 'quick')
        return rows

    monkeypatch.setattr(node.work._locks, 'search', slow)
    assert node.work.reclaim() == 0
    assert node.work.doubts


def test_a_lock_is_held_by_one(node: Node, database: Database, handlers: Handlers) -> None:
    """I1."""
    node.work.submit('x', 'wait')
    with pytest.raises(errors.LockHeld, match='this engine runs it already'):
        node.work.submit('x', 'wait')
    other = Node(database, 'other', handlers)
    with pytest.raises(errors.LockHeld, match='is held by another task'):
        other.work.submit('x', 'wait')
    assert not other.work.doubts


def test_an_engine_takes_no_more_than_it_can_run(
        node: Node, database: Database, handlers: Handlers) -> None:
    for number in range(SETTINGS.max_tasks - 2):
        node.work.submit(f'mine-{number}', 'wait')
    other = Node(database, 'other', handlers)
    for number in range(4):
        other.work.acquire(f'theirs-{number}', 'wait')
    dead = other.die()
    claim = node.work.claim(dead)
    assert (claim.pieces, claim.more) == (2, True)
    assert node.work.room() == 0
    assert node.work.claim(dead) == (type(claim)(0, more=True))
    with pytest.raises(errors.LockHeld, match='has no room for more than 8 tasks'):
        node.work.submit('one-more', 'wait')


def test_what_is_just_being_acquired_takes_room(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire, rooms = node.work._locks.acquire, []

    def slow(*arguments: Any) -> LockRow:
        rooms.append(node.work.room())
        return acquire(*arguments)

    monkeypatch.setattr(node.work._locks, 'acquire', slow)
    node.work.acquire('x', 'quick').complete()
    assert rooms == [SETTINGS.max_tasks - 1]


def test_as_many_tasks_run_at_a_time_as_there_is_room_for(
        node: Node, handlers: Handlers) -> None:
    assert not node.work.doubts
    for number in range(SETTINGS.max_tasks):
        node.work.submit(f'x-{number}', 'wait')
    wait_until(lambda: len(handlers.runs) == SETTINGS.max_tasks, 60, 'All of them')
    assert node.work.room() == 0


def test_an_engine_that_holds_acquires_nothing(node: Node) -> None:
    """I6."""
    node.work._gate = fence.Gate(20, fakes.Clock())
    with pytest.raises(errors.EngineHeld):
        node.work.acquire('x', 'quick')
    assert node.work.room() == SETTINGS.max_tasks


def test_a_dead_engine_acquires_nothing(node: Node, locks: Locks) -> None:
    """I7: its row says so, whatever its gate believes."""
    node.die()
    with pytest.raises(errors.EngineDead, match='is not alive'):
        node.work.acquire('x', 'quick')
    assert locks.find('x') is None
    assert not node.work.doubts


def test_an_engine_that_leaves_while_it_acquires_begins_nothing(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """I13: the statement was on its way."""
    acquire = node.work._locks.acquire

    def slow(*arguments: Any) -> LockRow:
        row = acquire(*arguments)
        node.gate.shut('Engine me has left.')
        return row

    monkeypatch.setattr(node.work._locks, 'acquire', slow)
    with pytest.raises(errors.EngineDead, match='has left'):
        node.work.acquire('x', 'quick')


# A held engine waits with its writes; no work is redone.

def test_a_task_waits_with_its_writes_while_the_engine_holds(node: Node, locks: Locks) -> None:
    """I11."""
    clock = fakes.Clock()
    gate = fence.Gate(20, clock)
    gate.good_beat(clock.now())
    node.work._gate = gate
    runs: list[int] = []
    at_work = threading.Event()
    go_on = threading.Event()

    def handler(task: Task) -> None:
        runs.append(task.generation)
        at_work.set()
        assert go_on.wait(60)
        task.record('half')

    node.work._handlers['long'] = handler
    done = node.work.submit('x', 'long')
    assert at_work.wait(60)
    clock.forward(1000)
    go_on.set()
    with pytest.raises(TimeoutError):
        done.result(.05)
    assert found(locks, 'x').progress is None
    gate.good_beat(clock.now())
    done.result(60)
    row = found(locks, 'x')
    assert (row.status, row.progress, row.generation, runs) == ('complete', 'half', 1, [1])


def test_a_task_of_an_engine_that_ends_while_it_holds_writes_nothing(
        node: Node, locks: Locks, caplog: pytest.LogCaptureFixture) -> None:
    """I3, I7."""
    clock = fakes.Clock()
    gate = fence.Gate(20, clock)
    gate.good_beat(clock.now())
    node.work._gate = gate
    node.work._handlers['long'] = lambda task: clock.forward(1000)
    done = node.work.submit('x', 'long')
    wait_until(lambda: gate.held, 30, 'The hold')
    gate.shut('It was declared dead.')
    done.result(60)
    assert found(locks, 'x').status == 'in_progress'
    assert 'The task x stops: It was declared dead.' in caplog.text


@pytest.mark.parametrize('end', [
    Task.complete, Task.release, lambda task: task.fail('why'), lambda task: task.record('half')],
    ids=['complete', 'release', 'fail', 'record'])
@pytest.mark.parametrize(('error', 'after'), [(REFUSED, False), (UNCLEAR, False), (UNCLEAR, True)])
def test_a_write_is_sent_until_it_is_certain(
        node: Node, locks: Locks, end: Callable[[Task], None], error: Exception,
        after: bool) -> None:
    """I16: a lost reply neither loses the work nor does it twice."""
    task = node.work.acquire('x', 'quick')
    Faults(node.work._locks, 'write', error, 3, after=after)
    end(task)
    row = found(locks, 'x')
    recorded = row.status == 'in_progress'
    assert (row.progress == 'half') == recorded
    # None of the copies that were sent before may land over what is recorded after it.
    assert row.generation == (4 if recorded and error is UNCLEAR else 1)


@pytest.mark.parametrize('end', [
    Task.complete, Task.release, lambda task: task.fail('why'), lambda task: task.record('half')],
    ids=['complete', 'release', 'fail', 'record'])
@pytest.mark.parametrize('doubt', [0, 2])
def test_a_write_under_a_lock_that_was_taken_over_is_lost_on_every_path(
        node: Node, locks: Locks, database: Database, handlers: Handlers,
        end: Callable[[Task], None], doubt: int) -> None:
    """I2, I3."""
    task = node.work.acquire('x', 'wait')
    other = Node(database, 'other', handlers)
    assert other.work.claim(node.die()).pieces == 1
    Faults(node.work._locks, 'write', UNCLEAR, doubt, after=False)
    before = found(locks, 'x')
    assert (before.engine_id, before.generation) == ('other', 2)
    with pytest.raises(errors.LockLost, match='under generation 1 any more, but by other: '
                                              'nothing was written'):
        end(task)
    assert found(locks, 'x') == before


def test_a_write_under_a_lock_that_nobody_holds_any_more_is_lost(node: Node) -> None:
    task = node.work.acquire('x', 'quick')
    task.complete()
    for again in (Task.complete, lambda task: task.record('more')):
        with pytest.raises(errors.LockLost, match='but by nobody'):
            again(task)
    task = node.work.acquire('gone', 'quick')
    with node.database.transaction() as connection:
        connection.execute(models.lock.delete())
    with pytest.raises(errors.LockLost, match='but by nobody'):
        task.complete()


def test_a_write_of_an_engine_that_is_not_alive_says_so(node: Node) -> None:
    """I7."""
    task = node.work.acquire('x', 'quick')
    node.die()
    with pytest.raises(errors.LockLost, match='Engine me is not alive any more, so nothing was '
                                              'written under its lock x'):
        task.record('half')


def test_a_handler_whose_lock_is_lost_lets_go(
        node: Node, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def handler(task: Task) -> None:
        at_work.set()
        assert go_on.wait(60)

    node.work._handlers['long'] = handler
    done = node.work.submit('x', 'long')
    assert at_work.wait(60)
    Node(database, 'other', {'long': lambda task: None}).work.claim(node.die())
    go_on.set()
    done.result(60)
    assert 'The task x is given up: The lock x is not held by engine me' in caplog.text
    assert node.work.room() == SETTINGS.max_tasks


# Taking over.

def test_work_goes_on_from_where_its_owner_left_it(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I8, I9."""
    task = node.work.acquire('x', 'wait', {'a': 1})
    task.record('half')
    other = Node(database, 'other', handlers)
    dead = node.die()
    assert other.work.claim(dead).pieces == 1
    assert other.work.claim(dead).pieces == 0
    wait_until(lambda: handlers.runs, 30, 'The run')
    handlers.go_on.set()
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The end')
    assert handlers.runs == [('x', 2)]
    row = found(locks, 'x')
    assert (row.progress, row.takeovers) == ('half', 1)
    assert row.history == [{'engine_id': 'me', 'state': 'dead', 'taken_by': 'other'}]


def test_work_that_kills_its_owners_is_quarantined_with_its_history(
        database: Database, locks: Locks, handlers: Handlers,
        caplog: pytest.LogCaptureFixture) -> None:
    """I10: at most max_takeovers resumes."""
    victim = Node(database, 'victim-0', handlers)
    victim.work.acquire('killer', 'wait')
    for number in range(1, 10):
        following = Node(database, f'victim-{number}', handlers)
        claim = following.work.claim(victim.die())
        if not claim.pieces:
            break
        wait_until(lambda: len(handlers.runs) == number, 30, 'The run')  # noqa: B023 - at once
        victim = following
    assert len(handlers.runs) == SETTINGS.max_takeovers
    assert not claim.more
    row = found(locks, 'killer')
    assert (row.status, row.engine_id) == ('quarantined', None)
    assert [entry['engine_id'] for entry in row.history] == [
        'victim-0', 'victim-1', 'victim-2', 'victim-3']
    assert 'The lock killer is quarantined: its owners died 4 times' in caplog.text
    with pytest.raises(errors.LockHeld):
        following.work.acquire('killer', 'wait')
    assert not following.work.owners(['victim-3'])


def test_poison_that_another_has_locked_is_not_taken_instead(
        database: Database, locks: Locks, handlers: Handlers, node: Node,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """I10: SKIP LOCKED passes over it, and it may be free again a moment later."""
    victim = Node(database, 'victim', handlers)
    victim.work.acquire('killer', 'wait')
    with database.transaction() as connection:
        connection.execute(
            sa.update(models.lock).values(takeovers=SETTINGS.max_takeovers))
    dead = victim.die()
    with monkeypatch.context() as patch:
        patch.setattr(node.work._locks, 'quarantine', lambda *arguments: [])
        claim = node.work.claim(dead)
    assert (claim.pieces, claim.more) == (0, True)
    assert not node.work.claim(dead).more
    assert found(locks, 'killer').status == 'quarantined'


def test_bystanders_of_a_killer_are_not_quarantined_with_it(
        database: Database, locks: Locks) -> None:
    """I10: one killer in a batch of 64, and engines enough for whatever comes."""
    settings = dataclasses.replace(SETTINGS, max_tasks=64)
    killed = threading.Event()
    go_on = threading.Event()
    runs: list[str] = []

    def handler(task: Task) -> None:
        runs.append(task.name)
        if task.name == 'killer':
            killed.set()
            go_on.wait(60)
        task.complete()

    victim = Node(database, 'victim-0', {'work': lambda task: None}, settings)
    for number in range(63):
        victim.work.acquire(f'bystander-{number}', 'work')
    victim.work.acquire('killer', 'work')
    for generation in range(1, 200):
        row = victim.die()
        # The first survivor takes the whole batch, untainted, and dies of it at once.
        victim = Node(database, f'victim-{generation}', {'work': handler}, settings)
        if generation == 1:
            victim.work._pool.submit = lambda *a, **n: None  # type: ignore[assignment]
        killed.clear()
        while True:
            claim = victim.work.claim(row)
            if not claim.pieces and not claim.more:
                break
            if killed.wait(.01) or generation == 1:
                break
        if locks.search(status='in_progress') == []:
            break
        if generation > 1:
            assert killed.is_set()
    go_on.set()
    rows = locks.search()
    assert {row.name for row in rows if row.status == 'quarantined'} == {'killer'}
    assert {row.status for row in rows if row.name != 'killer'} == {'complete'}
    assert runs.count('killer') == SETTINGS.max_takeovers - 1


def test_tainted_work_runs_one_at_a_time(
        database: Database, handlers: Handlers, node: Node) -> None:
    """I10."""
    first, second = Node(database, 'first', handlers), Node(database, 'second', handlers)
    for number in range(4):
        first.work.acquire(f'x-{number}', 'wait')
    second.work._pool.submit = lambda *a, **n: None  # type: ignore[assignment]
    assert second.work.claim(first.die()).pieces == 4
    second.work.acquire('fresh', 'wait')
    dead = second.die()
    assert node.work.claim(dead).pieces == 1
    wait_until(lambda: handlers.runs, 30, 'The run')
    assert handlers.runs == [('fresh', 2)], 'untainted work goes first'
    assert node.work.claim(dead).pieces == 0, 'fresh work has an owner who died, by now'
    handlers.go_on.set()
    taken: list[int] = []

    def claim() -> bool:
        taken.append(node.work.claim(dead).pieces)
        return taken[-1] > 0 or not node.work.owners(['second'])

    for _ in range(4):
        wait_until(claim, 30, 'The next')
    assert max(taken) == 1
    wait_until(lambda: len(handlers.runs) == 5, 30, 'All runs')


def test_tainted_work_is_claimed_from_oneself_one_at_a_time(
        database: Database, locks: Locks, handlers: Handlers, node: Node) -> None:
    """I10: a takeover whose reply was lost is found when other tainted work runs already."""
    first, second = Node(database, 'first', handlers), Node(database, 'second', handlers)
    for name in 'xy':
        first.work.acquire(name, 'wait')
    second.work._pool.submit = lambda *a, **n: None  # type: ignore[assignment]
    assert second.work.claim(first.die()).pieces == 2
    dead = second.die()
    real = node.work._locks.take_over
    won = real(dead, node.name, 1, tainted=True)
    assert node.work.claim(dead).pieces == 1
    assert node.work.reclaim() == 0, f'{won[0].name} waits'
    assert node.work.doubts, 'and is looked for again at the next scan'
    handlers.go_on.set()
    wait_until(node.work.reclaim, 30, 'The end of the other')
    wait_until(lambda: not locks.search(status='in_progress'), 30, 'Both runs')


def test_of_strays_whose_owners_died_twice_one_is_claimed_at_a_time(
        node: Node, locks: Locks, database: Database) -> None:
    """I10: either may be the killer."""
    for name in 'xy':
        locks.acquire(name, 'wait', None, 'me')
    with database.transaction() as connection:
        connection.execute(sa.update(models.lock).values(takeovers=2))
    assert node.work.reclaim() == 1
    assert node.work.doubts


def test_work_that_its_owner_has_left_is_no_poison_however_many_died_before(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I10."""
    owner = Node(database, 'owner', handlers)
    owner.work.acquire('x', 'wait')
    with database.transaction() as connection:
        connection.execute(sa.update(models.lock).values(takeovers=SETTINGS.max_takeovers))
    owner.members.leave('owner')
    assert node.work.claim(owner.row()).pieces == 1
    assert (found(locks, 'x').status, found(locks, 'x').engine_id) == ('in_progress', 'me')


@pytest.mark.parametrize('end', ['left', 'mass'])
def test_nobody_is_blamed_when_owners_leave_or_die_in_a_mass(
        database: Database, locks: Locks, handlers: Handlers, end: str) -> None:
    """I10."""
    owner = Node(database, 'owner-0', handlers)
    owner.work.acquire('x', 'wait')
    for number in range(1, 6):
        following = Node(database, f'owner-{number}', handlers)
        if end == 'left':
            owner.members.leave(owner.name)
        else:
            owner.die(mass=True)
        assert following.work.claim(owner.row()).pieces == 1
        owner = following
    row = found(locks, 'x')
    assert (row.takeovers, row.generation, row.status) == (0, 6, 'in_progress')


# Doubts, and what an engine claims from itself.

def test_a_lock_acquired_without_a_reply_is_run_after_all(
        node: Node, locks: Locks, handlers: Handlers) -> None:
    """I8."""
    Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.submit('x', 'wait')
    assert node.work.doubts
    assert node.work.reclaim() == 1
    assert not node.work.doubts
    handlers.go_on.set()
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The run')
    assert handlers.runs == [('x', 2)]


def test_work_taken_over_without_a_reply_is_run_once(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I8, I9, I16."""
    other = Node(database, 'other', handlers)
    other.work.acquire('x', 'wait')
    dead = other.die()
    Faults(node.work._locks, 'take_over', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.claim(dead)
    assert node.work.doubts
    assert node.work.claim(dead).pieces == 0
    assert node.work.reclaim() == 1
    assert node.work.reclaim() == 0
    handlers.go_on.set()
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The run')
    assert handlers.runs == [('x', 3)]


def test_what_was_recorded_without_a_reply_does_not_land_over_what_came_later(
        node: Node, locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3, I9: the generation rises, and what a successor reads is the last that was recorded."""
    task = node.work.acquire('x', 'wait')
    write = node.work._locks.write
    late: list[Callable[[], bool]] = []

    def lose(row: HeldLock, **values: Any) -> bool:
        if len(late) < 2:
            late.append(functools.partial(write, row, **values))
            raise UNCLEAR
        return write(row, **values)

    monkeypatch.setattr(node.work._locks, 'write', lose)
    Faults(node.work._locks, 'reclaim', UNCLEAR, 1, after=True)
    task.record({'volume': None})
    assert found(locks, 'x').generation == task.generation > 1
    task.record({'volume': 'v-17'})
    assert [each() for each in late] == [False, False]
    assert found(locks, 'x').progress == {'volume': 'v-17'}
    task.complete()
    assert found(locks, 'x').status == 'complete'


def test_who_goes_on_after_his_lock_does_not_claim_it_from_who_has_it_now(
        node: Node, locks: Locks) -> None:
    """I2, I3: both are of this engine, and the reply to the late one's write was lost."""
    old = node.work.acquire('x', 'wait')
    old.complete()
    new = node.work.acquire('x', 'wait')
    Faults(node.work._locks, 'write', UNCLEAR, 1, after=False)
    with pytest.raises(errors.LockLost):
        old.record('old')
    assert found(locks, 'x').generation == new.generation
    new.record('new')
    assert found(locks, 'x').progress == 'new'


def test_what_runs_here_does_not_hide_a_stray(
        node: Node, locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8."""
    search = node.work._locks.search
    # So many fewer as there are none here.
    monkeypatch.setattr(node.work._locks, 'search', lambda limit=MOST_ROWS, **named: search(
        limit=max(0, limit - MOST_ROWS + 1), **named))
    for name in ('x', 'y'):
        node.work.acquire(name, 'wait')
    locks.acquire('z', 'wait', None, 'me')
    assert node.work.reclaim() == 1


def test_what_a_handler_found_recorded_does_not_change_while_it_runs(
        node: Node, locks: Locks) -> None:
    task = node.work.acquire('x', 'wait')
    task.record(1)
    Faults(node.work._locks, 'write', UNCLEAR, 1, after=True)
    task.record(2)
    assert task.progress is None
    assert (task.generation, locks.find('x').progress) == (2, 2)  # type: ignore[union-attr]


def test_two_threads_of_a_handler_record_one_after_the_other(node: Node, locks: Locks) -> None:
    """I9: or one takes the lock of the other for lost, which claims it from itself meanwhile."""
    task = node.work.acquire('x', 'wait')
    write = node.work._locks.write
    begun, met, claimed = threading.Event(), threading.Event(), threading.Event()

    def meet(row: HeldLock, **values: Any) -> bool:
        if values['progress'] == 'b':
            met.set()
            claimed.wait(60)
        elif not begun.is_set():
            begun.set()
            # They meet here, if both may write at once.
            met.wait(.5)
            raise UNCLEAR
        else:
            claimed.set()
        return write(row, **values)

    node.work._locks.write = meet  # type: ignore[method-assign]

    def other() -> None:
        begun.wait(60)
        task.record('b')

    with futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        task.record('a')
        done.result(60)
    assert not node.work.doubts
    lock = locks.find('x')
    assert lock is not None
    assert (lock.progress, lock.generation) == ('b', task.generation)


def test_a_claim_from_itself_that_lands_late_loses_no_lock(node: Node, locks: Locks) -> None:
    """It lands between the look at the lock and the next claim."""
    task = node.work.acquire('x', 'wait')
    Faults(node.work._locks, 'write', UNCLEAR, 1, after=False)
    reclaim = node.work._locks.reclaim
    late: list[Any] = []

    def land_late(rows: Sequence[HeldLock], engine_id: str) -> list[HeldLock]:
        if not late:
            late.append(rows)
            raise UNCLEAR
        if len(late) == 1:
            late.append(reclaim(late[0], engine_id))
        return reclaim(rows, engine_id)

    node.work._locks.reclaim = land_late  # type: ignore[method-assign]
    task.record('a')
    assert (task.generation, locks.find('x').progress) == (3, 'a')  # type: ignore[union-attr]


def test_an_engine_that_dies_while_it_claims_from_itself_is_told_so(
        node: Node, locks: Locks) -> None:
    task = node.work.acquire('x', 'wait')
    Faults(node.work._locks, 'write', UNCLEAR, 1, after=False)
    node.die()
    with pytest.raises(errors.LockLost, match='is not alive any more'):
        task.record('a')


def test_a_reclaim_without_a_reply_is_made_again(
        node: Node, locks: Locks, handlers: Handlers) -> None:
    Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
    Faults(node.work._locks, 'reclaim', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.acquire('x', 'wait')
    with pytest.raises(errors.UnclearOutcome):
        node.work.reclaim()
    assert node.work.doubts
    assert node.work.reclaim() == 1
    assert found(locks, 'x').generation == 3


def test_a_stray_that_somebody_has_locked_keeps_no_other_back(
        node: Node, locks: Locks, handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8."""
    for name in 'xyz':
        locks.acquire(name, 'wait', None, 'me')
    reclaim = Locks.reclaim

    def contend(self: Locks, rows: Sequence[HeldLock], engine_id: str) -> list[HeldLock]:
        if any(row.name == 'y' for row in rows):
            raise errors.Contended('1205')
        return reclaim(self, rows, engine_id)

    with monkeypatch.context() as patch:
        patch.setattr(Locks, 'reclaim', contend)
        assert node.work.reclaim() == 2
        assert node.work.doubts
    assert node.work.reclaim() == 1
    assert {row.generation for row in locks.search()} == {2}


def test_what_runs_is_not_reclaimed(node: Node, locks: Locks) -> None:
    """I9."""
    node.work.submit('x', 'wait')
    task = node.work.acquire('y', 'wait')
    assert node.work.reclaim() == 0
    assert {row.generation for row in locks.search()} == {1}
    task.complete()


def test_the_locks_of_others_do_not_keep_an_engine_from_its_own(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I8."""
    other = Node(database, 'other', handlers)
    for number in range(SETTINGS.max_tasks):
        other.work.acquire(f'theirs-{number}', 'wait')
    Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.acquire('stray', 'quick')
    assert node.work.reclaim() == 1
    wait_until(lambda: found(locks, 'stray').status == 'complete', 60, 'The task')
    assert found(locks, 'stray').generation == 2


def test_a_lock_acquired_anew_while_its_last_task_ends_is_not_reclaimed(
        node: Node, locks: Locks) -> None:
    """I9: the end of the one must not forget the other."""
    go_on = threading.Event()

    def handler(task: Task) -> None:
        task.complete()
        anew.append(node.work.acquire('x', 'quick'))
        raise errors.LockLost('It lets go.')

    anew: list[Task] = []
    node.work._handlers['long'] = handler
    node.work.submit('x', 'long').result(60)
    go_on.set()
    assert node.work.reclaim() == 0
    anew[0].complete()
    assert found(locks, 'x').generation == 2


def test_a_failed_acquisition_does_not_forget_what_was_taken_over_meanwhile(
        node: Node, locks: Locks, database: Database, handlers: Handlers,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """I8, I9: the lock is taken over, and run, while its acquisition is on the way."""
    other = Node(database, 'other', handlers)
    other.work.acquire('x', 'wait')
    dead = other.die()
    acquire = node.work._locks.acquire

    def slow(*arguments: Any) -> LockRow:
        assert node.work.claim(dead).pieces == 1
        return acquire(*arguments)

    monkeypatch.setattr(node.work._locks, 'acquire', slow)
    with pytest.raises(errors.LockHeld):
        node.work.acquire('x', 'wait')
    assert node.work.reclaim() == 0
    assert found(locks, 'x').generation == 2


def test_what_is_passed_by_as_it_is_being_acquired_is_looked_at_again(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: the acquisition may end in doubt."""
    find = node.work._locks.acquire

    def slow(*arguments: Any) -> LockRow:
        row = find(*arguments)
        assert node.work.reclaim() == 0
        assert node.work.doubts
        return row

    monkeypatch.setattr(node.work._locks, 'acquire', slow)
    node.work.acquire('x', 'quick').complete()
    assert node.work.reclaim() == 0
    assert not node.work.doubts


@pytest.mark.parametrize('method', ['search', 'reclaim'])
def test_a_look_after_itself_that_fails_leaves_the_doubt(node: Node, method: str) -> None:
    """I8."""
    Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.acquire('x', 'wait')
    Faults(node.work._locks, method, REFUSED, 1, after=False)
    with pytest.raises(errors.DatabaseError):
        node.work.reclaim()
    assert node.work.doubts
    assert node.work.reclaim() == 1


def test_work_that_gets_no_thread_is_run_as_soon_as_there_is_one(
        node: Node, locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: no thread can be had where the number of processes is limited."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', fail_to_start)
        with pytest.raises(RuntimeError):
            node.work.submit('x', 'quick')
    assert node.work.room() == SETTINGS.max_tasks
    assert node.work.doubts
    assert node.work.reclaim() == 1
    wait_until(lambda: found(locks, 'x').status == 'complete', 30, 'The end')
    assert found(locks, 'x').generation == 2


def fail_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_what_is_just_being_acquired_is_not_reclaimed(
        node: Node, locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """I9."""
    find = node.work._locks.find

    def slow(name: str) -> LockRow | None:
        monkeypatch.undo()
        assert node.work.reclaim() == 0
        return find(name)

    monkeypatch.setattr(node.work._locks, 'find', slow)
    node.work.acquire('x', 'quick').complete()
    assert found(locks, 'x').generation == 1


@pytest.mark.parametrize('error', [errors.UnclearOutcome('?'), REFUSED])
def test_after_a_failed_acquisition_an_engine_looks_after_itself(
        node: Node, error: Exception) -> None:
    Faults(node.work._locks, 'acquire', error, 1, after=False)
    with pytest.raises(type(error)):
        node.work.acquire('x', 'quick')
    assert node.work.doubts
    assert node.work.room() == SETTINGS.max_tasks


# Draining.

def test_a_draining_engine_finishes_its_work_and_takes_no_more(
        node: Node, locks: Locks, database: Database, handlers: Handlers) -> None:
    """I13."""
    other = Node(database, 'other', handlers)
    other.work.acquire('theirs', 'wait')
    dead = other.die()
    Faults(node.work._locks, 'acquire', UNCLEAR, 1, after=True)
    with pytest.raises(errors.UnclearOutcome):
        node.work.acquire('stray', 'wait')
    done = node.work.submit('x', 'wait')
    callers = node.work.acquire('y', 'quick')
    drain = threading.Thread(target=node.work.drain)
    drain.start()
    wait_until(lambda: node.work.room() == 0, 30, 'The drain')
    with pytest.raises(errors.LockHeld):
        node.work.submit('z', 'quick')
    assert node.work.claim(dead).pieces == 0
    assert node.work.reclaim() == 0
    handlers.go_on.set()
    done.result(60)
    drain.join(.1)
    assert drain.is_alive(), 'a caller works on y'
    callers.complete()
    drain.join(60)
    assert not drain.is_alive()
    assert {row.name for row in locks.search(engine_id='me')} == {'stray'}


def test_a_drain_waits_for_a_thread_that_goes_on_without_its_lock(
        node: Node, handlers: Handlers) -> None:
    submit_and_complete(node, handlers)
    drain = threading.Thread(target=node.work.drain)
    drain.start()
    drain.join(.1)
    assert drain.is_alive()
    handlers.go_on.set()
    drain.join(60)
    assert not drain.is_alive()


def test_what_was_won_while_the_drain_began_is_left_to_the_others(
        node: Node, locks: Locks, database: Database, handlers: Handlers,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """I8, I13."""
    other = Node(database, 'other', handlers)
    other.work.acquire('x', 'wait')
    dead = other.die()
    take_over = node.work._locks.take_over

    def drained(*arguments: Any, **named: Any) -> list[HeldLock]:
        node.work.drain()
        return take_over(*arguments, **named)

    monkeypatch.setattr(node.work._locks, 'take_over', drained)
    assert node.work.claim(dead).pieces == 0
    node.members.leave('me')
    third = Node(database, 'third', handlers)
    assert third.work.claim(node.row()).pieces == 1
    assert found(locks, 'x').takeovers == 1


def test_what_was_acquired_is_not_asked_for_again(
        node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """I9: a node that is behind would tell of an earlier generation, which is not fenced."""
    stale = node.work.acquire('x', 'quick')
    stale.complete()
    monkeypatch.setattr(node.work._locks, 'find', lambda name: stale.row)
    assert node.work.acquire('x', 'quick').generation == stale.generation + 1


def test_who_has_lost_his_own_lock_need_not_let_go_of_it(
        node: Node, database: Database, handlers: Handlers) -> None:
    """Or its room were taken for good, and the engine could not leave."""
    task = node.work.acquire('x', 'quick')
    other = Node(database, 'other', handlers)
    assert other.work._locks.reclaim([task.row], 'me')
    room = node.work.room()
    with pytest.raises(errors.LockLost, match='but by itself under another, 2: nothing was'):
        task.record('half')
    assert node.work.room() == room + 1
    assert node.work.reclaim() == 1, "it is the engine's own, and nobody runs it"
    node.work.drain()
