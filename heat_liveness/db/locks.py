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

import collections
import dataclasses
import datetime
import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.db import entries, models, stored, times
from heat_liveness.db.database import Database, again_if_contended
from heat_liveness.db.members import ServiceRow, alive, ended, joining

_t = models.lock
_FREE = ('complete', 'failed', 'released')
MOST_ROWS = 1000
"""The largest batch one transaction moves."""
MOST_CHARACTERS = 1_000_000
"""The longest arguments or progress in JSON: far below what any server takes in one packet."""
_MOST_GENERATIONS = 100
"""So many OR may stand in one statement: SQLite allows a depth of 1000."""
_MOVABLE = sa.and_(_t.c.generation < 2**62, _t.c.takeovers < 2**31 - 1)
"""That a lock's numbers can be raised.  Others were not written by an engine, and one such row
would fail the batch that it is in for ever.  (SQLite takes any text for more than any number.)"""


@dataclasses.dataclass(frozen=True)
class HeldLock:
    """One piece of work, as far as whoever owns it must know it.

    A batch may have a thousand rows, and each column costs the taker as much as it costs the
    server.  What the database keeps as JSON is decoded when it is asked for: to decode it
    would be a third of the taker's work.
    """

    id: int
    name: str
    task: str
    arguments_text: str
    progress_text: str
    engine_id: str | None
    generation: int
    takeovers: int

    @property
    def arguments(self) -> Any:
        """What the task was given."""
        return stored.value(self.arguments_text)

    @property
    def progress(self) -> Any:
        """What its owner last wrote of how far it has come; None at first."""
        return stored.value(self.progress_text)


@dataclasses.dataclass(frozen=True)
class LockRow(HeldLock):
    """One piece of work, as the database has it."""

    status: str
    reason: str | None
    history_text: str
    created_at: datetime.datetime
    updated_at: datetime.datetime

    @property
    def history(self) -> list[dict[str, Any]]:
        """Whose end moved it since it was acquired, and to whom."""
        return [stored.mapping(line, engine_id=None, state=None, taken_by=None)
                for line in self.history_text.splitlines()]

    def record(self) -> dict[str, Any]:
        """Return all it says, by the names of the columns."""
        return {column.name: getattr(self, column.name) for column in _t.c}


def _columns(kind: type[HeldLock]) -> list[sa.Column[Any]]:
    return [_t.c[field.name.removesuffix('_text')] for field in dataclasses.fields(kind)]


_HELD = _columns(HeldLock)
_ALL = _columns(LockRow)


def _encode(value: object) -> str:
    text = json.dumps(value)
    if len(text) > MOST_CHARACTERS:
        raise errors.DataRefused(
            f'Arguments or progress of {len(text)} characters in JSON are more than the '
            f'{MOST_CHARACTERS} that a lock holds: keep them elsewhere, and their name here.')
    return text


class Locks:
    """The lock table."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._apart = False
        """Whether others take over whom no row lock keeps away, so that each begins elsewhere."""

    def acquire(self, name: str, task: str, arguments: object, engine_id: str) -> LockRow:
        """Take a lock that nobody holds, with the work to do under it.

        One statement decides: an UPDATE of a row that is free, or the INSERT of a new one.
        The row is read in the same transaction: one whose generation were not that of this
        acquisition, as a node that is behind has it, would be worked on unfenced.

        :raises LockHeld: somebody holds it, or it is quarantined
        :raises EngineDead: the engine is not alive
        :raises DataRefused: the name or task ends with a space, or the arguments are too long
        """
        for what, text in (('name', name), ('task', task)):
            if text.endswith(' '):
                raise errors.DataRefused(
                    f'The {what} of the lock, {text!r}, ends with a space, and MySQL would take '
                    f'it for the same without: choose another.')
        work = {'task': task, 'arguments': _encode(arguments), 'progress': 'null',
                'status': 'in_progress', 'engine_id': engine_id, 'takeovers': 0}
        try:
            return self._acquire(name, work, engine_id)
        except errors.LockHeld:
            raise errors.LockHeld(
                f'The lock {name} is held by another task; wait until it is done.') from None

    @again_if_contended
    def _acquire(self, name: str, work: Mapping[str, object], engine_id: str) -> LockRow:
        with self._database.transaction() as connection:
            taken = connection.execute(
                _t.update()
                .where(_t.c.name == name, _t.c.engine_id.is_(None), _t.c.status.in_(_FREE),
                       alive(engine_id))
                .values(generation=_t.c.generation + 1, reason=None, history='',
                        updated_at=times.now(), **work)).rowcount
            if not taken:
                self._insert(connection, name, work, engine_id)
            return LockRow(*connection.execute(sa.select(*_ALL).where(_t.c.name == name)).one())

    @staticmethod
    def _insert(connection: sa.Connection, name: str, work: Mapping[str, object],
                engine_id: str) -> None:
        values = {'name': name, 'generation': 1, 'history': '', **work}
        columns = [*values, 'created_at', 'updated_at']
        source = sa.select(*(sa.literal(value, _t.c[key].type) for key, value in values.items()),
                           times.now(), times.now()).where(alive(engine_id))
        # Without the option psycopg's count is lost with the cursor: -1.
        statement = _t.insert().from_select(columns, source).execution_options(
            preserve_rowcount=True)
        if not connection.execute(statement).rowcount:
            raise errors.EngineDead(
                f'Engine {engine_id} is not alive, so it cannot acquire the lock {name}.')

    def write(self, row: HeldLock, **values: object) -> bool:
        """Change a lock in its owner's name; return whether it was still the owner's.

        One autocommit statement.  What ends the work clears the owner with it.
        """
        if 'progress' in values:
            values['progress'] = _encode(values['progress'])
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
                sa.select(*_ALL).where(*where).order_by(_t.c.id).limit(limit)).all()
        return (LockRow(*row) for row in rows)

    def owners(self, engine_ids: Collection[str],
               tasks: Collection[str] | None = None) -> set[str]:
        """Return those of the engines that own a lock.  One probe of the index each.

        :param tasks: a lock for one of these; for any task if None
        """
        if not engine_ids:
            return set()
        service = models.service
        wanted = sa.true() if tasks is None else _t.c.task.in_(tasks)
        with self._database.autocommit() as connection:
            return set(connection.scalars(
                sa.select(service.c.engine_id).where(
                    service.c.engine_id.in_(engine_ids),
                    sa.exists(sa.select(_t.c.id).where(
                        _t.c.engine_id == service.c.engine_id, wanted)))))

    @again_if_contended
    def take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                  tainted: bool, poison: int | None = None,
                  tasks: Collection[str] | None = None) -> list[HeldLock]:
        """Move at most ``limit`` locks of an ended engine to the taker; return those it won.

        SKIP LOCKED lets survivors pass each other where the database has it.  What decides
        is the UPDATE: owner and generation as read, owner ended, taker alive.  A batch of
        which one row does not fit is rolled back whole, and the next look finds it again.
        Three statements in one transaction, whatever the number of locks.

        :param tainted: take work whose owner has died before, instead of work whose
            owners have not
        :param poison: leave what has been taken over so often from owners that died
        :param tasks: take work for these alone; for any task if None
        """
        fits = _t.c.takeovers > 0 if tainted else _t.c.takeovers <= 0
        if poison is not None:
            fits &= _t.c.takeovers < poison
        if tasks is not None:
            fits &= _t.c.task.in_(tasks)
        try:
            return self._take_over(owner, taker_id, limit, fits)
        except errors.Contended:
            self._apart = True
            raise

    def _take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                   fits: sa.ColumnElement[bool]) -> list[HeldLock]:
        with self._database.transaction() as connection:
            rows = self._lock(connection, owner, fits, min(limit, MOST_ROWS))
            if not rows:
                return []
            if not self._move(connection, rows, owner.engine_id, taker_id,
                              ended(owner.engine_id),
                              history=_t.c.history + _entry(owner, taker_id),
                              takeovers=_t.c.takeovers + int(owner.blamed)):
                connection.rollback()
                return []
            connection.execute(_journal('takeover', f'batch:{uuid.uuid4()}', owner, taker_id,
                                        rows))
        return [dataclasses.replace(row, engine_id=taker_id, generation=row.generation + 1,
                                    takeovers=row.takeovers + int(owner.blamed)) for row in rows]

    def reclaim(self, rows: Sequence[HeldLock], engine_id: str) -> list[HeldLock]:
        """Claim from itself what an engine owns but does not run; return what it won.

        Whatever statement of its own may still be on the way under the old generation
        then changes nothing.
        """
        return [dataclasses.replace(row, generation=row.generation + 1) for row in rows
                if self._reclaim(row, engine_id)]

    @again_if_contended
    def _reclaim(self, row: HeldLock, engine_id: str) -> bool:
        with self._database.transaction() as connection:
            return self._move(connection, [row], engine_id, engine_id, _MOVABLE)

    @again_if_contended
    def quarantine(self, owner: ServiceRow, taker_id: str, max_takeovers: int) -> list[HeldLock]:
        """Set aside what has been taken over too often from owners that died.

        :return: the locks set aside by this call
        """
        with self._database.transaction() as connection:
            rows = self._lock(connection, owner, _t.c.takeovers >= max_takeovers, MOST_ROWS)
            if not rows:
                return []
            if not self._move(connection, rows, owner.engine_id, taker_id,
                              ended(owner.engine_id), engine_id=None, status='quarantined',
                              history=_t.c.history + _entry(owner, None),
                              reason=f'Its owner died {max_takeovers + 1} times in a row.'):
                connection.rollback()
                return []
            for row in rows:
                connection.execute(_journal('quarantine', f'lock:{row.name}', owner, taker_id,
                                            [row]))
        return rows

    @again_if_contended
    def settle(self, row: LockRow, status: str, reason: str | None,
               owner: ServiceRow | None = None) -> bool:
        """Change a lock that nobody owns, for an operator; return whether it was as read.

        :param owner: the ended engine that owns it still
        """
        values: dict[str, object] = {} if owner is None else {
            'history': _t.c.history + _entry(owner, 'operator')}
        with self._database.transaction() as connection:
            return self._settle(connection, row, status, reason, **values)

    @again_if_contended
    def retry(self, row: LockRow, operator: engines.Identity) -> bool:
        """Leave the work of a lock that nobody owns to the engines; return whether it was as read.

        The command leaves it as an engine does that joins, takes the lock and leaves: in one
        transaction it writes a service row that has ``left`` and makes it the owner.  So the
        work goes the way of all work left behind: the engines of that binary and topic find
        it at their next look, one wins it, and nobody is blamed.  The generation rises by one
        here and by one when it is taken over; the takeovers begin anew.

        :param operator: who leaves it: a new engine_id, and the binary and topic of the engines
            that are to find it
        """
        with self._database.transaction() as connection:
            connection.execute(joining(
                operator, report_interval=0, fence_time=0, report_count=0, state='left',
                declared_by='operator', declared_at=times.now(), evidence='operator'))
            done = self._settle(connection, row, 'in_progress', None,
                                engine_id=operator.engine_id, takeovers=0)
            if not done:
                connection.rollback()
        return done

    @staticmethod
    def _settle(connection: sa.Connection, row: LockRow, status: str, reason: str | None,
                **values: object) -> bool:
        unowned = _t.c.engine_id.is_(None) if row.engine_id is None else sa.and_(
            _t.c.engine_id == row.engine_id, ended(row.engine_id))
        done = connection.execute(
            _t.update()
            .where(_t.c.id == row.id, _t.c.status == row.status, unowned,
                   _t.c.generation == row.generation)
            .values(status=status, reason=reason, generation=row.generation + 1,
                    updated_at=times.now(), **{'engine_id': None, **values})).rowcount == 1
        if done:
            connection.execute(entries.entry(
                'operator', f'lock:{row.name}', row.generation + 1,
                values.get('engine_id', row.engine_id), 'operator',
                {'from': row.status, 'to': status, 'reason': reason}))
        return done

    def _lock(self, connection: sa.Connection, owner: ServiceRow,
              fits: sa.ColumnElement[bool], limit: int) -> list[HeldLock]:
        """Read an ended engine's locks, lowest id first, and lock their rows if that can be.

        The index on (engine_id, id) has them in that order, but PostgreSQL takes a column that
        equals a constant out of ORDER BY, and then walks the primary key past the locks of
        all others where the owner has a fair share of the table.  A range keeps the column in.
        MariaDB would sort the range.

        On Galera no survivor sees what those on other nodes have locked: where all begin with the
        lowest id, only those on one node get on.  Whoever was in vain once begins somewhere
        from then on, and goes round.
        """
        statement = sa.select(*_HELD).where(fits, _MOVABLE, ended(owner.engine_id))
        if self._database.backend == 'postgresql':
            return _held(connection, statement.where(
                _t.c.engine_id.between(owner.engine_id, owner.engine_id))
                .order_by(_t.c.engine_id, _t.c.id), limit)
        statement = statement.where(_t.c.engine_id == owner.engine_id).order_by(_t.c.id)
        if not self._apart:
            return _held(connection, statement, limit)
        start = _somewhere(connection, owner.engine_id)
        rows = _held(connection, statement.where(_t.c.id >= start), limit)
        if len(rows) < limit:
            rows += _held(connection, statement.where(_t.c.id < start), limit - len(rows))
        return rows

    @staticmethod
    def _move(connection: sa.Connection, rows: Sequence[HeldLock],
              owner_id: str, taker_id: str, condition: sa.ColumnElement[bool],
              **values: Any) -> bool:
        """Compare and swap a batch; return whether each row was as it was read.

        One statement for each hundred generations among the rows, which is one as a rule.
        """
        values = {'engine_id': taker_id, 'generation': _t.c.generation + 1,
                  'updated_at': times.now(), **values}
        as_read = _as_read(rows)
        changed = 0
        for first in range(0, len(as_read), _MOST_GENERATIONS):
            changed += connection.execute(
                _t.update()
                .where(sa.or_(*as_read[first:first + _MOST_GENERATIONS]),
                       _t.c.engine_id == owner_id, condition, alive(taker_id))
                .values(**values)).rowcount
        return changed == len(rows)


def _held(connection: sa.Connection, statement: sa.Select[Any], limit: int) -> list[HeldLock]:
    """Lock so many rows that nobody else has locked."""
    found = connection.execute(statement.limit(limit).with_for_update(skip_locked=True)).all()
    return [HeldLock(*row) for row in found]


def _somewhere(connection: sa.Connection, engine_id: str) -> int:
    """Return a random number in the range of an engine's locks.  Two probes of the index."""
    first, last = connection.execute(
        sa.select(sa.func.coalesce(sa.func.min(_t.c.id), 0), sa.func.coalesce(
            sa.func.max(_t.c.id), 0)).where(_t.c.engine_id == engine_id)).one()
    return int(first + uuid.uuid4().int % (last - first + 1))


def _as_read(rows: Sequence[HeldLock]) -> list[sa.ColumnElement[bool]]:
    """Say in SQL, one condition for each generation among them, that rows are as they were read.

    PostgreSQL would compare pairs of id and generation with each row in turn, a thousand by a
    thousand.  A thousand numbers cost it and its driver less in the text than as parameters.
    """
    ids = collections.defaultdict(list)
    for row in rows:
        ids[row.generation].append(row.id)
    return [sa.and_(_t.c.generation == generation, _t.c.id.in_(
                sa.bindparam(None, same, expanding=True, literal_execute=True)))
            for generation, same in ids.items()]


def _entry(owner: ServiceRow, taker_id: str | None) -> str:
    """Return the line of a lock's history that says whose end moved it."""
    return json.dumps({'engine_id': owner.engine_id, 'state': owner.state,
                       'taken_by': taker_id}) + '\n'


def _journal(kind: str, subject: str, owner: ServiceRow, taker_id: str,
             rows: Sequence[HeldLock]) -> sa.Insert:
    return entries.entry(
        kind, subject, rows[0].generation + 1 if len(rows) == 1 else 0, owner.engine_id, taker_id,
        {'locks': [[row.name, row.generation + 1, row.takeovers] for row in rows]}, len(rows))
