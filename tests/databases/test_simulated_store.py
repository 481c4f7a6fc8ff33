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

"""The store under the simulation does what the real databases do.

Each script runs on both, and has to have the same outcome, step by step.  Where transactions
meet, one runs to its end at the moment before the COMMIT of the other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from heat_liveness import errors
from heat_liveness.db.locks import HeldLock, LockRow, Locks
from heat_liveness.db.members import Members, ServiceRow
from tests.databases.conftest import Bed, skip_on_galera
from tests.simulation import rooms
from tests.simulation.scheduler import Hub
from tests.simulation.store import Blocked, Cluster, Statement, Transaction


class Direct:
    """The store without a network: a statement that would have to wait has waited in vain."""

    def __init__(self) -> None:
        self.guards = rooms.Guards()
        self.before_commit: Callable[[], object] = lambda: None
        self._node = Cluster(Hub(0), 1, lambda event: None).nodes[0]

    def autocommit(self, statement: Statement) -> Any:
        return self.transaction(lambda session: session(statement))

    def read(self, statement: Statement, *, fresh: bool = False) -> Any:
        return statement(Transaction(self._node))

    def transaction(self, body: Callable[[rooms.Session], Any]) -> Any:
        transaction = Transaction(self._node)

        def session(statement: Statement) -> Any:
            transaction.begin_statement()
            try:
                return statement(transaction)
            except Blocked:
                raise errors.DatabaseError('Lock wait timeout exceeded (1205).') from None
        try:
            result = body(session)
        except rooms.Rollback as rollback:
            transaction.rollback()
            return rollback.args[0]
        except BaseException:
            transaction.rollback()
            raise
        hook, self.before_commit = self.before_commit, lambda: None
        hook()
        transaction.commit()
        return result


class Side:
    """One of the two, and short words for what scripts do there."""

    def __init__(self, members: Members, locks: Locks) -> None:
        self.members = members
        self.locks = locks
        self.told: list[Any] = []
        """The outcome of each step."""
        self.at_commit: Callable[[Callable[[], object]], Any]

    def tell(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call and take note of its outcome."""
        try:
            result = call(*arguments)
        except errors.LivenessError as error:
            self.told.append(type(error).__name__)
            return None
        self.told.append(_plain(result))
        return result

    def join(self, *names: str) -> None:
        for name in names:
            self.members.insert(Bed.identity(name), 4, 20)

    def row(self, name: str) -> ServiceRow:
        row = self.members.read(name)
        assert row is not None
        return row

    def kill(self, name: str, *, mass: bool = False) -> ServiceRow:
        if self.members.read('judge') is None:
            self.join('judge')
        assert self.members.declare(self.row(name), 'judge', 'watched', mass, {})
        return self.row(name)

    def acquire(self, name: str, engine_id: str) -> LockRow:
        return self.locks.acquire(name, 'task', {'of': name}, engine_id)

    def all(self) -> None:
        """Take note of all that is there."""
        self.told.append(sorted(map(_plain, self.locks.search())))
        for name in ('a', 'b', 'c', 'judge'):
            self.told.append(_plain(self.members.read(name)))


def _plain(result: Any) -> Any:
    if isinstance(result, LockRow):
        return (result.name, result.task, result.arguments, result.progress, result.status,
                result.engine_id, result.generation, result.takeovers, result.history)
    if isinstance(result, HeldLock):
        return (result.name, result.task, result.arguments, result.progress, result.engine_id,
                result.generation, result.takeovers)
    if isinstance(result, ServiceRow):
        return (result.engine_id, result.state, result.report_count, result.declared_by,
                result.evidence, result.mass)
    if isinstance(result, list):
        return [_plain(each) for each in result]
    return result


@pytest.fixture
def sides(bed: Bed) -> tuple[Side, Side]:
    """The real one, and the one in memory, which waits for row locks as one server does."""
    skip_on_galera(bed.database)
    real = Side(bed.members, bed.locks)

    @contextmanager
    def real_hook(call: Callable[[], object]) -> Iterator[None]:
        calls = [call]

        def before(connection: object) -> None:
            if calls:
                calls.pop()()
        event.listen(bed.database.engine, 'commit', before)
        try:
            yield
        finally:
            event.remove(bed.database.engine, 'commit', before)
    real.at_commit = real_hook
    direct = Direct()
    simulated = Side(rooms.Members(direct), rooms.Locks(direct))  # type: ignore[arg-type]

    @contextmanager
    def simulated_hook(call: Callable[[], object]) -> Iterator[None]:
        direct.before_commit = call
        yield
    simulated.at_commit = simulated_hook
    return real, simulated


def life(side: Side) -> None:
    side.join('a')
    side.tell(side.join, 'a')
    for _ in range(2):
        side.tell(side.members.beat, 'a')
    side.tell(side.members.beat, 'nobody')
    for end in (side.members.drain, side.members.leave, side.members.beat):
        side.tell(end, 'a')
        side.tell(end, 'a')
        side.all()


def declaration(side: Side) -> None:
    side.join('a', 'b', 'c')
    stale = side.row('a')
    side.members.beat('a')
    fresh = side.row('a')
    for row, by in ((stale, 'b'), (fresh, 'nobody'), (fresh, 'b'), (fresh, 'c'),
                    (side.row('b'), 'a'), (side.row('b'), 'c')):
        side.tell(side.members.declare, row, by, 'watched', False, {})
        side.all()
    side.tell(side.members.beat, 'a')
    side.tell(side.members.drain, 'a')
    side.tell(side.members.leave, 'a')


def ownership(side: Side) -> None:
    side.join('a', 'b')
    row = side.tell(side.acquire, 'x', 'a')
    for engine in ('a', 'b', 'nobody'):
        side.tell(side.acquire, 'x', engine)
    side.tell(side.acquire, 'y', 'nobody')
    side.tell(side.locks.write, row)
    side.tell(lambda: side.locks.write(row, progress=[1]))
    side.tell(lambda: side.locks.write(row, status='complete', reason=None, engine_id=None))
    side.tell(lambda: side.locks.write(row, progress=[2]))
    side.tell(side.acquire, 'x', 'b')
    side.tell(lambda: side.locks.write(row, status='failed', reason='r', engine_id=None))
    side.tell(side.locks.owners, ['a', 'b', 'nobody'])
    side.kill('b')
    side.tell(lambda: side.locks.write(side.locks.search()[0], progress=[3]))
    side.tell(side.acquire, 'x', 'b')
    side.all()


def takeovers(side: Side) -> None:
    side.join('a', 'b', 'c')
    for name in 'vwxyz':
        side.acquire(name, 'a')
    side.tell(side.locks.take_over, side.row('a'), 'b', 9, False)
    stale = side.locks.search()
    dead = side.kill('a')
    side.tell(side.locks.take_over, dead, 'nobody', 9, False)
    side.tell(side.locks.take_over, dead, 'b', 9, True)
    for task in ('other', 'task'):
        side.tell(side.locks.owners, ['a', 'b'], [task])
    side.tell(side.locks.take_over, dead, 'b', 9, False, None, ['other'])
    side.tell(side.locks.take_over, dead, 'b', 2, False)
    side.tell(side.locks.take_over, dead, 'a', 9, False)
    side.tell(side.locks.take_over, dead, 'b', 9, False)
    side.tell(side.locks.take_over, dead, 'b', 9, False)
    side.tell(side.locks.reclaim, stale, 'b')
    side.tell(side.locks.reclaim, side.locks.search()[:2], 'b')
    dead = side.kill('b', mass=True)
    side.tell(side.locks.quarantine, dead, 'c', 2)
    side.tell(side.locks.take_over, dead, 'c', 1, True)
    side.tell(side.locks.quarantine, dead, 'nobody', 1)
    side.tell(side.locks.quarantine, dead, 'c', 1)
    side.tell(side.acquire, 'z', 'c')
    side.all()


def looks(side: Side) -> None:
    side.join('a', 'b', 'c')
    side.acquire('x', 'a')
    dead = side.kill('a')
    side.members.leave('b')
    me = Bed.identity('c')
    for age, within in ((1000, None), (1000, 1000), (-1000, 1000), (1000, -1000)):
        side.tell(lambda age=age, within=within: sorted(
            map(_plain, side.members.look(me, age, within))))
    side.tell(side.members.machines, me, 1000)
    side.tell(side.members.machines, me, -1000)
    side.tell(side.members.purgeable, me, 1000)
    side.tell(lambda: sorted(side.members.purgeable(me, -1000)))
    side.tell(side.members.purge, ['a', 'b', 'c'], 'nobody')
    side.tell(side.members.purge, ['a', 'b', 'c'], 'c')
    side.tell(side.locks.take_over, dead, 'c', 9, False)
    side.tell(side.members.purge, ['a'], None)
    side.all()


def commands(side: Side) -> None:
    side.join('a', 'b')
    row = side.acquire('x', 'a')
    side.tell(side.locks.settle, row, 'released', None)
    side.locks.write(row, status='failed', reason='r', engine_id=None)
    failed = side.locks.search()[0]
    side.tell(side.locks.settle, row, 'released', None)
    side.tell(side.locks.retry, row, Bed.identity('operator'))
    side.tell(side.members.read, 'operator')
    side.tell(side.locks.retry, failed, Bed.identity('operator'))
    side.tell(side.members.read, 'operator')
    side.tell(side.locks.settle, failed, 'failed', 'no')
    side.tell(side.locks.take_over, side.row('operator'), 'b', 9, False)
    row = side.locks.search()[0]
    side.locks.write(row, status='failed', reason='r', engine_id=None)
    side.tell(side.locks.settle, side.locks.search()[0], 'released', None)
    side.tell(side.locks.settle, side.locks.search()[0], 'failed', 'no')
    row = side.acquire('y', 'b')
    side.tell(side.locks.settle, row, 'failed', 'no')
    side.members.leave('b')
    side.tell(side.locks.settle, row, 'failed', 'no')
    side.all()


def beat_meets_declaration(side: Side) -> None:
    side.join('a', 'b')
    row = side.row('a')
    with side.at_commit(lambda: side.tell(side.members.beat, 'a')):
        side.tell(side.members.declare, row, 'b', 'watched', False, {})
    side.tell(side.members.beat, 'a')
    side.all()


def declarations_meet(side: Side) -> None:
    side.join('a', 'b', 'c')
    row = side.row('a')
    with side.at_commit(lambda: side.tell(
            side.members.declare, row, 'c', 'watched', False, {})):
        side.tell(side.members.declare, row, 'b', 'watched', False, {})
    side.all()


def what_has_not_committed_is_not_seen(side: Side) -> None:
    side.join('a', 'b', 'c')
    side.acquire('x', 'a')
    row = side.row('a')
    with side.at_commit(side.all):
        side.tell(side.members.declare, row, 'b', 'watched', False, {})
    dead = side.row('a')
    with side.at_commit(side.all):
        side.tell(side.locks.take_over, dead, 'b', 9, False)
    side.all()


def write_meets_reclaim(side: Side) -> None:
    side.join('a')
    row = side.acquire('x', 'a')
    for values in ({'progress': 1}, {'status': 'complete', 'reason': None, 'engine_id': None}):
        with side.at_commit(lambda values=values: side.tell(
                lambda: side.locks.write(side.locks.search()[0], **values))):
            side.tell(side.locks.reclaim, [side.locks.search()[0]], 'a')
        side.all()
    side.tell(lambda: side.locks.write(row, progress=2))


def takers_meet(side: Side) -> None:
    side.join('a', 'b', 'c')
    for name in 'xyz':
        side.acquire(name, 'a')
    dead = side.kill('a')
    with side.at_commit(lambda: side.tell(side.locks.take_over, dead, 'c', 9, False)):
        side.tell(side.locks.take_over, dead, 'b', 2, False)
    side.tell(side.locks.take_over, dead, 'c', 9, False)
    side.all()


ANYWHERE = (life, declaration, ownership, takeovers, looks, commands, beat_meets_declaration,
            declarations_meet, what_has_not_committed_is_not_seen, write_meets_reclaim)


@pytest.mark.parametrize('script', ANYWHERE, ids=lambda script: script.__name__)
def test_both_have_the_same_outcome(script: Callable[[Side], None],
                                    sides: tuple[Side, Side]) -> None:
    real, simulated = sides
    script(real)
    script(simulated)
    assert simulated.told == real.told


def test_takers_pass_each_other_on_both(bed: Bed, sides: tuple[Side, Side]) -> None:
    real, simulated = sides
    if bed.database.backend == 'sqlite':
        # It has one lock for all that is written; the other taker waits for it in vain.
        takers_meet(real)
        assert real.told[0] == 'DatabaseError'
        return
    takers_meet(real)
    takers_meet(simulated)
    assert simulated.told == real.told
