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

"""The statements of :mod:`heat_liveness.db` about members, locks and journal, on our store.

The same classes with the same methods, statement by statement and transaction by transaction; each
WHERE is written out here as Python.  That both do the same is what
``tests/databases/test_simulated_store.py`` demands, on each real database in turn.

:class:`Guards` are the conditions that safety rests on: a test takes one away, and the
simulation has to notice.
"""

import dataclasses
import datetime
import functools
import json
import math
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.db import models
from heat_liveness.db.database import again_if_contended
from heat_liveness.db.locks import HeldLock, LockRow
from heat_liveness.db.locks import _entry as history_entry
from heat_liveness.db.members import ServiceRow
from tests.history.events import (
    Beat,
    Declared,
    Drained,
    Joined,
    Journalled,
    Left,
    Meddled,
    Owned,
    Purged,
    Settled,
    Wrote,
)
from tests.simulation.store import Fact, Statement, Transaction, changed

_EPOCH = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database has it
_FREE = ('complete', 'failed', 'released')
_LIVE = models.LIVE
_ENDED = models.ENDED


@dataclasses.dataclass
class Guards:
    """The conditions in the statements; all of them, unless a test takes one away."""

    owner: bool = True
    generation: bool = True
    alive: bool = True
    ended: bool = True
    count: bool = True
    not_dead: bool = True
    one_journal_row: bool = True
    owns_nothing: bool = True


class Database(Protocol):
    """How statements reach the store; see :class:`tests.simulation.network.Connections`."""

    guards: Guards

    def autocommit(self, statement: Statement) -> Any:
        """Run a statement in a transaction of its own."""

    def read(self, statement: Statement, *, fresh: bool = False) -> Any:
        """Run a statement that changes nothing."""

    def transaction(self, body: Callable[['Session'], Any]) -> Any:
        """Run the statements of a body, then COMMIT; roll back if it raises :class:`Rollback`."""


class Session(Protocol):
    """An open transaction."""

    def __call__(self, statement: Statement) -> Any:
        """Run a statement in it."""


class Rollback(Exception):
    """Raised in the body of a transaction, with what it is to return."""


class Service:
    """A row of the service table."""

    __slots__ = ('count', 'created', 'declared_at', 'declared_by', 'evidence', 'fence_time',
                 'identity', 'mass', 'report_interval', 'state', 'updated')

    def __init__(self, identity: engines.Identity, report_interval: float, fence_time: float,
                 count: int, now: float) -> None:
        self.identity = identity
        self.report_interval = report_interval
        self.fence_time = fence_time
        self.count = count
        self.created = self.updated = now
        self.state = 'up'
        self.declared_by: str | None = None
        self.declared_at: float | None = None
        self.evidence: str | None = None
        self.mass = False

    def shown(self, now: float) -> ServiceRow:
        """Return the row as the product reads it."""
        it = self.identity
        return ServiceRow(
            engine_id=it.engine_id, host=it.host, hostname=it.hostname, binary=it.binary,
            topic=it.topic, report_interval=self.report_interval, fence_time=self.fence_time,
            protocol=engines.PROTOCOL_VERSION, state=self.state, report_count=self.count,
            created_at=_EPOCH, updated_at=_EPOCH, age=now - self.updated, process=it.process,
            declared_by=self.declared_by, evidence=self.evidence, mass=self.mass)

    def is_peer(self, other: engines.Identity) -> bool:
        return self.identity.binary == other.binary and self.identity.topic == other.topic


def _alive(tx: Transaction, engine_id: str) -> bool:
    def ask() -> bool:
        row = tx.get('service', engine_id)
        return row is not None and row.state in _LIVE
    return bool(tx.once(('alive', engine_id), ask))


def _ended(tx: Transaction, engine_id: str) -> bool:
    def ask() -> bool:
        row = tx.get('service', engine_id)
        return row is not None and row.state in _ENDED
    return bool(tx.once(('ended', engine_id), ask))


class Members:
    """The service table."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guards = database.guards

    def _update(self, tx: Transaction, engine_id: str, fits: Callable[[Service], bool],
                fact: Any, **values: Any) -> bool:
        row = tx.get('service', engine_id)
        if row is None or not fits(row):
            return False
        tx.lock('service', engine_id)
        tx.put('service', engine_id, changed(row, **values), fact)
        return True

    def insert(self, identity: engines.Identity, report_interval: float, fence_time: float,
               report_count: int = 0) -> None:
        name = identity.engine_id

        def statement(tx: Transaction) -> None:
            tx.lock('service', name)
            if tx.get('service', name) is not None:
                raise errors.LockHeld('The row exists already.')
            tx.put('service', name, Service(identity, report_interval, fence_time, report_count,
                                            tx.time()),
                   lambda at: Joined(at=at, engine=name, machine=identity.process.boot_id))
        self._database.autocommit(statement)

    def beat(self, engine_id: str) -> bool:
        def statement(tx: Transaction) -> bool:
            row = tx.get('service', engine_id)
            count = 1 if row is None else row.count + 1
            return self._update(
                tx, engine_id,
                lambda row: row.state in _LIVE or not self._guards.not_dead,
                lambda at: Beat(at=at, engine=engine_id, count=count),
                count=count, updated=tx.time())
        return bool(self._database.autocommit(statement))

    def read(self, engine_id: str) -> ServiceRow | None:
        def statement(tx: Transaction) -> ServiceRow | None:
            row = tx.get('service', engine_id)
            return None if row is None else row.shown(tx.time())
        found: ServiceRow | None = self._database.read(statement, fresh=True)
        return found

    def look(self, observer: engines.Identity, candidate_age: float,
             ended_within: float | None) -> list[ServiceRow]:
        machine = observer.process.boot_id

        def statement(tx: Transaction) -> list[ServiceRow]:
            now = tx.time()
            oldest = now - candidate_age
            found = []
            for row in tx.all('service'):
                if row.state in _LIVE:
                    if not (row.updated < oldest or row.updated > now
                            or row.identity.process.boot_id == machine):
                        continue
                elif row.state not in _ENDED or (ended_within is not None and (
                        row.declared_at is None or row.declared_at <= now - ended_within)):
                    continue
                if row.is_peer(observer):
                    found.append(row.shown(now))
            return found
        rows: list[ServiceRow] = self._database.read(statement)
        return rows

    def machines(self, observer: engines.Identity, within: float) -> tuple[set[str], set[str]]:
        def statement(tx: Transaction) -> tuple[set[str], set[str]]:
            lost = set()
            every = set()
            for row in tx.all('service'):
                recent = (row.state == 'dead' and row.evidence == 'watched'
                          and row.declared_at is not None
                          and abs(row.declared_at - tx.time()) < within)
                if row.is_peer(observer) and (row.state in _LIVE or recent):
                    machine = row.identity.process.boot_id or row.identity.hostname
                    every.add(machine)
                    if recent:
                        lost.add(machine)
            return every, lost
        found: tuple[set[str], set[str]] = self._database.read(statement)
        return found

    @again_if_contended
    def declare(self, row: ServiceRow, observer_id: str, evidence: str, mass: bool,
                detail: Mapping[str, object]) -> bool:
        name, guards = row.engine_id, self._guards

        def swap(tx: Transaction) -> bool:
            now, begun = tx.get('service', name), tx.begun
            return now is not None and self._update(
                tx, name,
                lambda it: ((it.count == row.report_count or not guards.count)
                            and it.state in _LIVE
                            and (not guards.alive or _alive(tx, observer_id))),
                lambda at: Declared(at=at, engine=name, by=observer_id, seen=row.report_count,
                                    count=now.count, evidence=evidence, mass=mass, begun=begun),
                state='dead', declared_by=observer_id, declared_at=tx.time(), evidence=evidence,
                mass=mass)

        def entry(tx: Transaction) -> None:
            _journal(tx, 'death', f'engine:{name}', row.report_count, name, observer_id)
            tx.facts.append(lambda at: Journalled(at=at, engine=name, by=observer_id))

        def body(session: Session) -> bool:
            won = bool(session(swap))
            if won and guards.one_journal_row:
                session(entry)
            return won
        return bool(self._database.transaction(body))

    def drain(self, engine_id: str) -> bool:
        return bool(self._database.autocommit(lambda tx: self._update(
            tx, engine_id, lambda row: row.state == 'up',
            lambda at: Drained(at=at, engine=engine_id), state='draining')))

    def leave(self, engine_id: str) -> bool:
        return bool(self._database.autocommit(lambda tx: self._update(
            tx, engine_id, lambda row: row.state not in _ENDED,
            lambda at: Left(at=at, engine=engine_id), state='left', declared_by=engine_id,
            declared_at=tx.time())))

    def take_away(self, engine_id: str) -> bool:
        """Remove a row by hand, whatever it says; return whether its engine lived."""
        def statement(tx: Transaction) -> bool:
            row = tx.get('service', engine_id)
            if row is None or row.state not in _LIVE:
                return False
            tx.lock('service', engine_id)
            tx.put('service', engine_id, None, lambda at: Purged(
                at=at, engine=engine_id, by='operator'))
            tx.facts.append(lambda at: Meddled(at=at, engine=engine_id))
            return True
        return bool(self._database.autocommit(statement))

    def set_state(self, engine_id: str, state: str) -> bool:
        """Set a state by hand, and nothing with it; return whether its engine lived."""
        def statement(tx: Transaction) -> bool:
            row = tx.get('service', engine_id)
            count = 0 if row is None else row.count
            fact: Fact = (lambda at: Declared(
                at=at, engine=engine_id, by='operator', seen=count, count=count,
                evidence='operator')) if state == 'dead' else (
                    lambda at: Meddled(at=at, engine=engine_id))
            return self._update(tx, engine_id, lambda row: row.state in _LIVE, fact, state=state)
        return bool(self._database.autocommit(statement))

    def purgeable(self, observer: engines.Identity, after: float,
                  now: float = math.inf) -> list[str]:
        """Return who has ended so long ago; a second clock wants to know when that was."""
        def statement(tx: Transaction) -> list[str]:
            rows = [row for row in tx.all('service')
                    if row.is_peer(observer) and row.state in _ENDED
                    and (now == math.inf or row.declared_at is not None)
                    and (row.updated if row.declared_at is None
                         else row.declared_at) < min(tx.time(), now) - after]
            rows.sort(key=lambda row: row.declared_at or 0.0)
            return [row.identity.engine_id for row in rows]
        found: list[str] = self._database.read(statement)
        return found

    def purge(self, engine_ids: Collection[str], actor_id: str | None) -> list[str]:
        def delete(engine_id: str) -> Statement:
            def statement(tx: Transaction) -> bool:
                row = tx.get('service', engine_id)
                if (row is None or row.state not in _ENDED
                        or (self._guards.owns_nothing and tx.once('owns', lambda: any(
                            lock.engine_id == engine_id for lock in tx.all('lock'))))
                        or not (actor_id is None or _alive(tx, actor_id))):
                    return False
                begun = tx.begun
                tx.lock('service', engine_id)
                tx.put('service', engine_id, None, lambda at: Purged(
                    at=at, engine=engine_id, by=actor_id or 'operator', begun=begun))
                return True
            return statement
        return [engine_id for engine_id in engine_ids
                if self._database.autocommit(delete(engine_id))]


class Locks:
    """The lock table."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guards = database.guards

    @again_if_contended
    def acquire(self, name: str, task: str, arguments: object, engine_id: str) -> LockRow:
        work: dict[str, Any] = {
            'task': task, 'arguments_text': json.dumps(arguments), 'progress_text': 'null',
            'status': 'in_progress', 'engine_id': engine_id, 'takeovers': 0}

        def update(tx: Transaction) -> bool:
            row = tx.get('lock', name)
            if (row is None or row.engine_id is not None or row.status not in _FREE
                    or (self._guards.alive and not _alive(tx, engine_id))):
                return False
            tx.lock('lock', name)
            _own(tx, row, 'acquire', reason=None, history_text='', **work)
            return True

        def insert(tx: Transaction) -> bool:
            if self._guards.alive and not _alive(tx, engine_id):
                return False
            tx.lock('lock', name)
            if tx.get('lock', name) is not None:
                raise errors.LockHeld(
                    f'The lock {name} is held by another task; wait until it is done.')
            _own(tx, LockRow(
                id=tx.cluster.next_id(), name=name, generation=0, reason=None, history_text='',
                created_at=_EPOCH, updated_at=_EPOCH, **{**work, 'engine_id': None}), 'acquire',
                engine_id=engine_id)
            return True

        def body(session: Session) -> LockRow:
            if not session(update) and not session(insert):
                raise errors.EngineDead(
                    f'Engine {engine_id} is not alive, so it cannot acquire the lock {name}.')
            row: LockRow = session(lambda tx: tx.get('lock', name))
            return row
        taken: LockRow = self._database.transaction(body)
        return taken

    def write(self, row: LockRow, **values: Any) -> bool:
        name, me = row.name, str(row.engine_id)
        what: Any = {'complete': 'complete', 'failed': 'fail', 'released': 'release'}.get(
            values.get('status', ''), 'progress')
        if 'progress' in values:
            values['progress_text'] = json.dumps(values.pop('progress'))

        def statement(tx: Transaction) -> bool:
            now = tx.get('lock', name)
            if (now is None or (self._guards.owner and now.engine_id != row.engine_id)
                    or (self._guards.generation and now.generation != row.generation)
                    or (self._guards.alive and not _alive(tx, me))):
                return False
            tx.lock('lock', name)
            begun = tx.begun
            tx.put('lock', name, dataclasses.replace(now, **values), lambda at: Wrote(
                at=at, lock=name, generation=row.generation, engine=me, what=what, begun=begun))
            return True
        return bool(self._database.autocommit(statement))

    def find(self, name: str) -> LockRow | None:
        found: LockRow | None = self._database.read(lambda tx: tx.get('lock', name))
        return found

    def search(self, status: str | None = None, engine_id: str | None = None,
               limit: int = 1000) -> list[LockRow]:
        def statement(tx: Transaction) -> list[LockRow]:
            return sorted((row for row in tx.all('lock')
                           if status in {None, row.status} and engine_id in {None, row.engine_id}),
                          key=lambda row: row.id)
        found: list[LockRow] = self._database.read(statement)
        return found[:limit]

    def owners(self, engine_ids: Collection[str],
               tasks: Collection[str] | None = None) -> set[str]:
        if not engine_ids:
            return set()

        def statement(tx: Transaction) -> set[str]:
            owning = {row.engine_id for row in tx.all('lock')
                      if tasks is None or row.task in tasks}
            return {engine_id for engine_id in engine_ids
                    if engine_id in owning and tx.get('service', engine_id) is not None}
        found: set[str] = self._database.read(statement)
        return found

    @again_if_contended
    def take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                  tainted: bool, poison: int | None = None,
                  tasks: Collection[str] | None = None) -> list[HeldLock]:
        entry = history_entry(owner, taker_id)

        def fits(row: LockRow) -> bool:
            return ((row.takeovers > 0) is tainted and (poison is None or row.takeovers < poison)
                    and (tasks is None or row.task in tasks))

        def body(session: Session) -> list[LockRow]:
            rows: list[LockRow] = session(self._lock(owner, fits, limit))
            if not rows:
                return []
            moved = session(self._move(
                rows, owner.engine_id, taker_id, owner.engine_id, 'takeover',
                lambda row: {'engine_id': taker_id, 'history_text': row.history_text + entry,
                             'takeovers': row.takeovers + int(owner.blamed)}))
            if moved is None:
                raise Rollback([])
            session(lambda tx: _journal(
                tx, 'takeover', f'batch:{uuid.UUID(int=tx.cluster.next_id())}', 0,
                owner.engine_id, taker_id))
            taken: list[LockRow] = moved
            return taken
        return _held(self._database.transaction(body))

    def reclaim(self, rows: Sequence[LockRow], engine_id: str) -> list[LockRow]:
        return [won for row in rows for won in self._reclaim(row, engine_id)]

    @again_if_contended
    def _reclaim(self, row: LockRow, engine_id: str) -> list[LockRow]:
        move = self._move([row], engine_id, engine_id, None, 'reclaim', lambda row: {})
        moved: list[LockRow] = self._database.transaction(functools.partial(_moved, move))
        return moved

    @again_if_contended
    def quarantine(self, owner: ServiceRow, taker_id: str, max_takeovers: int) -> list[HeldLock]:
        entry = history_entry(owner, None)

        def body(session: Session) -> list[LockRow]:
            rows: list[LockRow] = session(self._lock(
                owner, lambda row: row.takeovers >= max_takeovers, 1000))
            if not rows:
                return []
            if session(self._move(
                    rows, owner.engine_id, taker_id, owner.engine_id, 'quarantine',
                    lambda row: {'engine_id': None, 'status': 'quarantined',
                                 'history_text': row.history_text + entry,
                                 'reason': f'Its owner died {max_takeovers + 1} times in a row.'}
                    )) is None:
                raise Rollback([])
            for row in rows:
                session(functools.partial(
                    _journal, kind='quarantine', subject=f'lock:{row.name}',
                    generation=row.generation + 1, engine_id=owner.engine_id, by=taker_id))
            return rows
        return _held(self._database.transaction(body))

    @again_if_contended
    def settle(self, row: LockRow, status: Any, reason: str | None) -> bool:
        done = self._settle(row, lambda at: Settled(
            at=at, lock=row.name, generation=row.generation + 1, to=status,
            previous=row.engine_id), status=status, reason=reason)
        return bool(self._database.transaction(lambda session: session(done)))

    @again_if_contended
    def retry(self, row: LockRow, operator: engines.Identity) -> bool:
        name = operator.engine_id

        def join(tx: Transaction) -> None:
            tx.lock('service', name)
            tx.put('service', name, changed(
                Service(operator, 0, 0, 0, tx.time()), state='left', declared_by='operator',
                declared_at=tx.time(), evidence='operator'), lambda at: Joined(
                    at=at, engine=name, machine=operator.process.boot_id))

        def body(session: Session) -> bool:
            session(join)
            if not session(self._settle(row, lambda at: Owned(
                    at=at, lock=row.name, generation=row.generation + 1, engine=name,
                    previous=None, how='acquire'), status='in_progress', reason=None,
                    engine_id=name, takeovers=0)):
                raise Rollback(False)
            session(lambda tx: tx.facts.append(lambda at: Left(at=at, engine=name)))
            return True
        return bool(self._database.transaction(body))

    def _settle(self, row: LockRow, fact: Fact, **values: Any) -> Statement:
        def statement(tx: Transaction) -> bool:
            now = tx.get('lock', row.name)
            if (now is None or now.status != row.status or now.engine_id != row.engine_id
                    or now.generation != row.generation
                    or (row.engine_id is not None and not _ended(tx, row.engine_id))):
                return False
            tx.lock('lock', row.name)
            tx.put('lock', row.name, dataclasses.replace(
                now, generation=now.generation + 1, **{'engine_id': None, **values}), fact)
            _journal(tx, 'operator', f'lock:{row.name}', row.generation + 1,
                     str(values.get('engine_id')), 'operator')
            return True
        return statement

    def _lock(self, owner: ServiceRow, fits: Callable[[LockRow], bool], limit: int) -> Statement:
        def statement(tx: Transaction) -> list[LockRow]:
            if self._guards.ended and not _ended(tx, owner.engine_id):
                return []
            rows = [row for row in tx.all('lock')
                    if row.engine_id == owner.engine_id and fits(row)
                    and not tx.locked_elsewhere('lock', row.name)]
            rows = sorted(rows, key=lambda row: row.id)[:limit]
            for row in rows:
                tx.lock('lock', row.name)
            return rows
        return statement

    def _move(self, rows: Sequence[LockRow], owner_id: str, taker_id: str, ended: str | None,
              how: Any, values: Callable[[LockRow], dict[str, Any]]) -> Statement:
        """Compare and swap a batch; the rows as they are then, or None if one was not as read."""
        guards = self._guards

        def statement(tx: Transaction) -> list[LockRow] | None:
            if ((guards.alive and not _alive(tx, taker_id))
                    or (guards.ended and ended is not None and not _ended(tx, ended))):
                return None
            moved = []
            begun = tx.begun
            for row in rows:
                now = tx.get('lock', row.name)
                if (now is None or (guards.owner and now.engine_id != owner_id)
                        or (guards.generation and now.generation != row.generation)):
                    return None
                tx.lock('lock', row.name)
            for row in rows:
                now = tx.get('lock', row.name)
                if how == 'quarantine':
                    new = dataclasses.replace(now, generation=now.generation + 1, **values(row))
                    tx.put('lock', row.name, new, _set_aside(row, taker_id, begun))
                    moved.append(new)
                else:
                    moved.append(_own(tx, now, how, **values(row)))
            return moved
        return statement


def _held(rows: Sequence[LockRow]) -> list[HeldLock]:
    """Return what whoever moves locks reads of them."""
    return [HeldLock(*(getattr(row, field.name) for field in dataclasses.fields(HeldLock)))
            for row in rows]


def _moved(move: Statement, session: Session) -> list[LockRow]:
    return session(move) or []


def _set_aside(row: LockRow, taker_id: str, begun: float | None) -> Fact:
    return lambda at: Wrote(at=at, lock=row.name, generation=row.generation, engine=taker_id,
                            what='quarantine', begun=begun)


def _own(tx: Transaction, row: LockRow, how: Any, **values: Any) -> LockRow:
    """Write a lock's new term."""
    new = dataclasses.replace(row, generation=row.generation + 1, **values)
    begun = tx.begun
    tx.put('lock', row.name, new, lambda at: Owned(
        at=at, lock=row.name, generation=new.generation, engine=str(new.engine_id),
        previous=row.engine_id, how=how, begun=begun))
    return new


def _journal(tx: Transaction, kind: str, subject: str, generation: int, engine_id: str,
             by: str) -> None:
    key = (subject, generation)
    tx.lock('journal', key)
    if tx.get('journal', key) is not None:
        raise errors.LockHeld('The row exists already.')
    tx.put('journal', key, (kind, engine_id, by, tx.time()))


class Journal:
    """The journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge(self, after: float, actor_id: str) -> int:
        def statement(tx: Transaction) -> int:
            if not _alive(tx, actor_id):
                return 0
            old = [key for key, row in tx.node.rows['journal'].items()
                   if row[3] < tx.time() - after]
            for key in old:
                tx.lock('journal', key)
                tx.put('journal', key, None)
            return len(old)
        purged: int = self._database.autocommit(statement)
        return purged
