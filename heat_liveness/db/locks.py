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

"""Statements about the locks of the native work store.

``engine_id`` and ``generation`` stand in the WHERE of every write, so an owner that lost
its lock changes no row, whatever it believes.  Each change of owner raises the generation
by exactly one.  Whoever acts must be alive, by the same statement.
"""

import dataclasses
import datetime
import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import models, times
from heat_liveness.db.database import Database
from heat_liveness.db.members import ServiceRow, alive, ended

_t = models.lock
_FREE = ('complete', 'failed', 'released')
MOST_ROWS = 1000
"""The largest batch one transaction moves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LockRow:
    """One piece of work, as the database has it."""

    id: int
    name: str
    task: str
    arguments: Any
    progress: Any
    status: str
    reason: str | None
    engine_id: str | None
    generation: int
    takeovers: int
    history: list[dict[str, Any]]
    created_at: datetime.datetime
    updated_at: datetime.datetime


def _row(row: sa.Row[Any]) -> LockRow:
    values = dict(row._mapping)
    for name in ('arguments', 'progress'):
        values[name] = json.loads(values[name])
    values['history'] = [json.loads(line) for line in values['history'].splitlines()]
    return LockRow(**values)


class Locks:
    """The lock table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, name: str, task: str, arguments: object, engine_id: str) -> LockRow:
        """Take a lock that nobody holds, with the work to do under it.

        One autocommit statement decides: an UPDATE of a row that is free, or the INSERT of
        a new one.

        :raises LockHeld: somebody holds it, or it is quarantined
        :raises EngineDead: the engine is not alive
        """
        work = {'task': task, 'arguments': json.dumps(arguments), 'progress': 'null',
                'status': 'in_progress', 'engine_id': engine_id, 'takeovers': 0}
        with self._database.autocommit() as connection:
            taken = connection.execute(
                _t.update()
                .where(_t.c.name == name, _t.c.engine_id.is_(None), _t.c.status.in_(_FREE),
                       alive(engine_id))
                .values(generation=_t.c.generation + 1, reason=None, history='',
                        updated_at=times.now(), **work)).rowcount
        if not taken:
            self._insert(name, work, engine_id)
        row = self.find(name)
        if row is None or row.engine_id != engine_id:
            raise errors.LockLost(f'The lock {name} was lost as soon as it was acquired.')
        return row

    def _insert(self, name: str, work: dict[str, object], engine_id: str) -> None:
        values = {'name': name, 'generation': 1, 'history': '', **work}
        columns = [*values, 'created_at', 'updated_at']
        source = sa.select(*(sa.literal(value, _t.c[key].type) for key, value in values.items()),
                           times.now(), times.now()).where(alive(engine_id))
        try:
            with self._database.autocommit() as connection:
                inserted = connection.execute(_t.insert().from_select(columns, source)).rowcount
        except errors.LockHeld:
            raise errors.LockHeld(
                f'The lock {name} is held by another task; wait until it is done.') from None
        if not inserted:
            raise errors.EngineDead(
                f'Engine {engine_id} is not alive, so it cannot acquire the lock {name}.')

    def write(self, row: LockRow, **values: object) -> bool:
        """Change a lock in its owner's name; return whether it was still the owner's.

        One autocommit statement.  What ends the work clears the owner with it.
        """
        if 'progress' in values:
            values['progress'] = json.dumps(values['progress'])
        with self._database.autocommit() as connection:
            return connection.execute(
                _t.update()
                .where(_t.c.id == row.id, _t.c.engine_id == row.engine_id,
                       _t.c.generation == row.generation, alive(str(row.engine_id)))
                .values(updated_at=times.now(), **values)).rowcount == 1

    def find(self, name: str) -> LockRow | None:
        """Return the lock of that name, or None."""
        return next(self._read(_t.c.name == name), None)

    def search(self, status: str | None = None, engine_id: str | None = None,
               limit: int = MOST_ROWS) -> list[LockRow]:
        """Return locks, oldest first."""
        where: list[sa.ColumnElement[bool]] = [sa.true()]
        if status is not None:
            where.append(_t.c.status == status)
        if engine_id is not None:
            where.append(_t.c.engine_id == engine_id)
        return list(self._read(*where, limit=limit))

    def _read(self, *where: sa.ColumnElement[bool], limit: int = MOST_ROWS) -> Iterator[LockRow]:
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(_t).where(*where).order_by(_t.c.id).limit(limit)).all()
        return map(_row, rows)

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that own a lock.  One probe of the index each."""
        if not engine_ids:
            return set()
        service = models.service
        with self._database.autocommit() as connection:
            return set(connection.scalars(
                sa.select(service.c.engine_id).where(
                    service.c.engine_id.in_(engine_ids),
                    sa.exists(sa.select(_t.c.id).where(
                        _t.c.engine_id == service.c.engine_id)))))

    def take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                  tainted: bool) -> list[LockRow]:
        """Move at most ``limit`` locks of an ended engine to the taker; return those it won.

        SKIP LOCKED lets survivors pass each other where the database has it.  What decides
        is the UPDATE: owner and generation as read, owner ended, taker alive.  A batch of
        which one row does not fit is rolled back whole, and the next look finds it again.
        Three statements in one transaction, whatever the number of locks.

        :param tainted: take work whose owner has died before, instead of work whose
            owners have not
        """
        blamed = owner.state == 'dead' and not owner.mass
        where = (_t.c.engine_id == owner.engine_id,
                 _t.c.takeovers > 0 if tainted else _t.c.takeovers == 0)
        entry = {'engine_id': owner.engine_id, 'state': owner.state, 'taken_by': taker_id}
        with self._database.transaction() as connection:
            rows = [_row(row) for row in connection.execute(
                sa.select(_t).where(*where, ended(owner.engine_id)).order_by(_t.c.id)
                .limit(min(limit, MOST_ROWS)).with_for_update(skip_locked=True))]
            if not rows:
                return []
            moved = self._move(connection, rows, owner.engine_id, taker_id,
                               ended(owner.engine_id), entry,
                               takeovers=_t.c.takeovers + int(blamed))
            if moved:
                connection.execute(_journal('takeover', f'batch:{uuid.uuid4()}', owner, taker_id,
                                            rows))
            else:
                connection.rollback()
                return []
        return [dataclasses.replace(
            row, engine_id=taker_id, generation=row.generation + 1,
            takeovers=row.takeovers + int(blamed), history=[*row.history, entry])
            for row in rows]

    def reclaim(self, rows: Sequence[LockRow], engine_id: str) -> list[LockRow]:
        """Claim from itself what an engine owns but does not run; return what it won.

        Whatever statement of its own may still be on the way under the old generation
        then changes nothing.
        """
        won = []
        for row in rows:
            with self._database.transaction() as connection:
                if self._move(connection, [row], engine_id, engine_id, sa.true(), None):
                    won.append(dataclasses.replace(row, generation=row.generation + 1))
        return won

    def quarantine(self, owner: ServiceRow, taker_id: str, max_takeovers: int) -> list[LockRow]:
        """Set aside what has been taken over too often from owners that died.

        :return: the locks set aside by this call
        """
        entry = {'engine_id': owner.engine_id, 'state': owner.state, 'taken_by': None}
        with self._database.transaction() as connection:
            rows = [_row(row) for row in connection.execute(
                sa.select(_t)
                .where(_t.c.engine_id == owner.engine_id, _t.c.takeovers >= max_takeovers,
                       ended(owner.engine_id))
                .order_by(_t.c.id).limit(MOST_ROWS).with_for_update(skip_locked=True))]
            if not rows:
                return []
            if not self._move(connection, rows, owner.engine_id, taker_id,
                              ended(owner.engine_id), entry, engine_id=None,
                              status='quarantined',
                              reason=f'Its owner died {max_takeovers + 1} times in a row.'):
                connection.rollback()
                return []
            for row in rows:
                connection.execute(_journal('quarantine', f'lock:{row.name}', owner, taker_id,
                                            [row]))
        return rows

    def settle(self, row: LockRow, status: str, reason: str | None, **values: object) -> bool:
        """Change a lock that nobody owns, for an operator; return whether it was as read."""
        with self._database.transaction() as connection:
            done = connection.execute(
                _t.update()
                .where(_t.c.id == row.id, _t.c.status == row.status, _t.c.engine_id.is_(None),
                       _t.c.generation == row.generation)
                .values(status=status, reason=reason, generation=row.generation + 1,
                        updated_at=times.now(), **values)).rowcount == 1
            if done:
                connection.execute(models.takeover.insert().values(
                    kind='operator', subject=f'lock:{row.name}', generation=row.generation + 1,
                    engine_id=None, taken_by='operator', pieces=1, status='done',
                    detail=json.dumps({'from': row.status, 'to': status}),
                    created_at=times.now(), updated_at=times.now()))
        return done

    @staticmethod
    def _move(connection: sa.Connection, rows: Sequence[LockRow], owner_id: str, taker_id: str,
              condition: sa.ColumnElement[bool], entry: dict[str, Any] | None,
              **values: Any) -> bool:
        """Compare and swap a batch; return whether each row was as it was read."""
        values.setdefault('engine_id', taker_id)
        if entry is not None:
            values['history'] = _t.c.history + (json.dumps(entry) + '\n')
        changed = connection.execute(
            _t.update()
            .where(_t.c.id.in_([row.id for row in rows]),
                   sa.tuple_(_t.c.id, _t.c.generation).in_(
                       [(row.id, row.generation) for row in rows]),
                   _t.c.engine_id == owner_id, condition, alive(taker_id))
            .values(generation=_t.c.generation + 1, updated_at=times.now(), **values))
        return bool(changed.rowcount == len(rows))


def _journal(kind: str, subject: str, owner: ServiceRow, taker_id: str,
             rows: Sequence[LockRow]) -> sa.Insert:
    return models.takeover.insert().values(
        kind=kind, subject=subject, generation=rows[0].generation + 1 if len(rows) == 1 else 0,
        engine_id=owner.engine_id, taken_by=taker_id, pieces=len(rows), status='done',
        detail=json.dumps({'locks': [[row.name, row.generation + 1, row.takeovers]
                                     for row in rows]}),
        created_at=times.now(), updated_at=times.now())
