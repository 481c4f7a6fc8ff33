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

"""Statements about service rows: what an engine says of itself, and others of it.

Each statement that acts on behalf of an engine says in its own WHERE that this engine is
alive, so that one begun after its engine's death was visible changes nothing.

The table is open to others.  What cannot be read of a row is taken for what keeps everybody
safe and loses nothing: a beat at no time is an old one, so the row is watched; an end at no
time was an end; a row of which nothing can be made is passed by, and no other with it.
"""

import contextlib
import dataclasses
import datetime
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.db import entries, models, times
from heat_liveness.db.database import Database, again_if_contended

LOG = logging.getLogger(__name__)

_t = models.service
_SHOWN = (*_t.c, times.age(_t.c.updated_at).label('age'),
          times.age(_t.c.declared_at).label('ended_seconds'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceRow:
    """What the service table says of one engine."""

    engine_id: str
    host: str
    hostname: str
    binary: str
    topic: str
    report_interval: float
    fence_time: float
    protocol: int
    state: str
    report_count: int
    created_at: datetime.datetime | None
    updated_at: datetime.datetime | None
    age: float
    """Seconds since the last beat, by the database's clock; infinite if that was at no time."""
    process: engines.Process
    declared_by: str | None = None
    declared_at: datetime.datetime | None = None
    ended_seconds: float | None = None
    """Seconds since ``declared_at``, by the database's clock."""
    evidence: str | None = None
    mass: bool = False

    @property
    def live(self) -> bool:
        """Whether nobody has declared it dead and it has not left."""
        return self.state in models.LIVE

    @property
    def ended(self) -> bool:
        """Whether it is dead or has left, which is the same for every question about its work."""
        return self.state in models.ENDED

    @property
    def blamed(self) -> bool:
        """Whether its work may have killed it: it died, and not with half of the fleet."""
        return self.state == 'dead' and not self.mass

    @property
    def judged(self) -> bool:
        """Whether this version of the protocol may judge it."""
        return self.protocol == engines.PROTOCOL_VERSION

    @property
    def machine(self) -> str:
        """What the breaker counts: the boot of a machine, or the hostname where none is known."""
        return self.process.boot_id or self.hostname


@dataclasses.dataclass(frozen=True)
class Ending:
    """That an engine has ended, and how long ago, in seconds."""

    engine_id: str
    age: float
    blamed: bool
    """Whether its work may have killed it."""


def _row(row: sa.Row[Any]) -> ServiceRow:
    values = dict(row._mapping)
    # SQLite keeps any text in a column of numbers.
    for name in ('protocol', 'report_count', *_PROOF):
        values[name] = int(values[name])
    for name in ('report_interval', 'fence_time'):
        values[name] = float(values[name])
    process = engines.Process(*(values.pop(field.name)
                                for field in dataclasses.fields(engines.Process)))
    values['mass'] = bool(values['mass'])
    values['age'] = math.inf if values['age'] is None else values['age']
    return ServiceRow(process=process, **values)


_PROOF = ('pid', 'start_time', 'pid_namespace', 'time_namespace')


def _readable(rows: Iterable[sa.Row[Any]]) -> Iterator[ServiceRow]:
    """Pass by what no engine has written."""
    for row in rows:
        try:
            yield _row(row)
        except (TypeError, ValueError) as error:
            LOG.debug('The service row %s cannot be read: %s', row.engine_id, error)


def alive(engine_id: str) -> sa.ColumnElement[bool]:
    """Say in SQL that an engine is alive.

    The LIMIT keeps MySQL from merging the inner table into an UPDATE of the same table,
    which it would refuse.
    """
    actor = (sa.select(_t.c.engine_id)
             .where(_t.c.engine_id == engine_id, _t.c.state.in_(models.LIVE))
             .limit(1).subquery('actor'))
    return sa.exists(sa.select(actor.c.engine_id))


def _silent(candidate_age: float) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Say in SQL that a beat looks late or lies in the future: two ranges of an index."""
    return (_t.c.updated_at < times.ago(sa.literal(candidate_age, sa.Float())),
            _t.c.updated_at > times.now())


def ended(engine_id: str) -> sa.ColumnElement[bool]:
    """Say in SQL that an engine is dead or has left.  An engine without a row is neither."""
    return sa.exists(sa.select(_t.c.engine_id).where(
        _t.c.engine_id == engine_id, _t.c.state.in_(models.ENDED)))


def joining(identity: engines.Identity, **values: object) -> sa.Insert:
    """Return the statement that writes the row of a new engine."""
    columns = dataclasses.asdict(identity)
    columns.update(columns.pop('process'))
    return _t.insert().values(
        **columns, protocol=engines.PROTOCOL_VERSION, created_at=times.now(),
        updated_at=times.now(), mass=False, **values)


class Members:
    """The service table."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: sa.Connection | None = None
        # Said once: what SQLAlchemy does with a statement, anew at each beat, takes longer than
        # the driver.  So all but the engine stands in the text.
        live: list[sa.ColumnElement[str]] = [
            sa.literal_column(f"'{state}'") for state in models.LIVE]
        one: sa.ColumnElement[int] = sa.literal_column('1')
        beat = (
            _t.update()
            .where(_t.c.engine_id == sa.bindparam('me'), _t.c.state.in_(live))
            .values(report_count=_t.c.report_count + one, updated_at=times.now())
            .compile(database.engine))
        self._beat = str(beat)
        self._by_name = not beat.positional

    def insert(self, identity: engines.Identity, report_interval: float, fence_time: float,
               report_count: int = 0) -> None:
        """Write the row of a new engine, or again the row of one that somebody removed.

        :param report_count: so many beats it has made; an observer who sees a lower count
            than before starts its watch afresh
        :raises LockHeld: there is a row of that engine_id already
        """
        with self._database.autocommit() as connection:
            connection.execute(joining(
                identity, report_interval=report_interval, fence_time=fence_time, state='up',
                report_count=report_count))

    def introduce(self, engine_id: str, host: str, hostname: str, binary: str, topic: str,
                  report_interval: float) -> ServiceRow | None:
        """Write a row for an engine that writes none itself, unless there is one; return it.

        Its protocol is :data:`engines.OBSERVED`, so that nobody judges it by its beats.
        """
        with contextlib.suppress(errors.LockHeld), self._database.autocommit() as connection:
            connection.execute(_t.insert().values(
                engine_id=engine_id, host=host, hostname=hostname, binary=binary, topic=topic,
                report_interval=report_interval, fence_time=0, protocol=engines.OBSERVED,
                state='up', report_count=0, created_at=times.now(), updated_at=times.now(), pid=0,
                start_time=0, pid_namespace=0, time_namespace=0, boot_id='', mass=False))
        return self.read(engine_id)

    def disown(self, engine_id: str) -> bool:
        """Remove the row that was written for an engine; return whether there was one."""
        with self._database.autocommit() as connection:
            return connection.execute(_t.delete().where(
                _t.c.engine_id == engine_id, _t.c.protocol == engines.OBSERVED)).rowcount == 1

    def beat(self, engine_id: str) -> bool:
        """Raise the count and write the database's time; return whether a live row was there.

        One statement, one round trip, on a connection of its own.
        """
        if self._kept is None:
            self._kept = self._database.dedicated()
        try:
            with self._database.outcome():
                me = {'me': engine_id} if self._by_name else (engine_id,)
                return self._kept.exec_driver_sql(self._beat, me).rowcount == 1
        except BaseException:
            # Whatever it was, nobody knows what the connection is at.
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """Close the connection of the beats; the next beat opens another."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.invalidate()
            kept.close()

    def read(self, engine_id: str) -> ServiceRow | None:
        """Return a row as it stands after all that was committed before, or None."""
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(*_SHOWN).where(_t.c.engine_id == engine_id)).all()
        return next(_readable(rows), None)

    def all(self) -> list[ServiceRow]:
        """Return all rows, of each binary and topic, oldest first.  A scan of the table."""
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(*_SHOWN).order_by(_t.c.created_at, _t.c.engine_id)).all()
        return list(_readable(rows))

    def look(self, observer: engines.Identity, candidate_age: float,
             ended_within: float | None) -> list[ServiceRow]:
        """Return, in one statement, all that an observer must look at.

        These are live rows whose beat is older than ``candidate_age`` seconds or from the
        future, live rows of the observer's own machine, and rows that ended within the last
        ``ended_within`` seconds (all of them for None).  Three ranges of three indexes; a
        fleet that is well costs the observer its own machine's rows.
        """
        peers = (_t.c.binary == observer.binary, _t.c.topic == observer.topic)
        live = _t.c.state.in_(models.LIVE)
        parts = [
            *((live, silent) for silent in _silent(candidate_age)),
            (live, _t.c.boot_id == observer.process.boot_id),
            (_t.c.state.in_(models.ENDED), sa.true() if ended_within is None
             else _t.c.declared_at > times.ago(sa.literal(ended_within, sa.Float()))),
        ]
        statement = sa.union_all(*(sa.select(*_SHOWN).where(*peers, *part) for part in parts))
        with self._database.autocommit() as connection:
            rows = connection.execute(statement).all()
        return list({row.engine_id: row for row in _readable(rows)}.values())

    def silent(self, candidate_age: float) -> list[ServiceRow]:
        """Return the live rows, of each binary and topic, whose beat looks late.

        It is older than ``candidate_age`` seconds, or from the future; and this protocol may judge
        them.  Two ranges of one index, with nothing in them while all are well.
        """
        live = (_t.c.state.in_(models.LIVE), _t.c.protocol == engines.PROTOCOL_VERSION)
        statement = sa.union_all(*(sa.select(*_SHOWN).where(*live, silent)
                                   for silent in _silent(candidate_age)))
        with self._database.autocommit() as connection:
            rows = connection.execute(statement).all()
        return list(_readable(rows))

    def eldest(self, observer: engines.Identity, candidate_age: float) -> str | None:
        """Return the engine of the observer's kind that joined first, of those that beat.

        It does what one does for all.  Nothing rests on there being only one; when it dies,
        the next is the eldest as soon as its beat is older than ``candidate_age``.  A beat from
        a later future than clocks may differ by is none, and who cannot be judged, and so
        might stay the eldest for ever, is not asked.
        """
        late = times.ago(sa.literal(candidate_age, sa.Float()))
        early = times.ago(sa.literal(-candidate_age, sa.Float()))
        with self._database.autocommit() as connection:
            found: str | None = connection.scalar(
                sa.select(_t.c.engine_id).where(
                    _t.c.binary == observer.binary, _t.c.topic == observer.topic,
                    _t.c.state == 'up', _t.c.protocol == engines.PROTOCOL_VERSION,
                    _t.c.updated_at.between(late, early))
                .order_by(_t.c.created_at, _t.c.engine_id).limit(1))
        return found

    def endings(self, binary: str) -> list[Ending]:
        """Return the engines of one program that have ended, the last one first."""
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(_t.c.engine_id, times.age(_t.c.declared_at).label('age'), _t.c.state,
                          _t.c.mass)
                .where(_t.c.binary == binary, _t.c.state.in_(models.ENDED))
                .order_by(_t.c.declared_at.desc(), _t.c.engine_id)).all()
        return [Ending(row.engine_id, float(row.age), row.state == 'dead' and not row.mass)
                for row in rows if row.age is not None]

    def machines(self, observer: engines.Identity, within: float) -> tuple[set[str], set[str]]:
        """Return all machines, and those that lost an engine to a watch within ``within`` seconds.

        The breaker asks this before a declaration, not at each look: it reads all live rows.  A
        death in the future is as old as it is far: after a step of the clock all that went before
        would be recent until the clock has come there, and nobody be blamed for so long.
        """
        columns = (_t.c.boot_id, _t.c.hostname, _t.c.state)
        recent = sa.and_(_t.c.state == 'dead', _t.c.evidence == 'watched',
                         _t.c.declared_at > times.ago(sa.literal(within, sa.Float())),
                         _t.c.declared_at < times.ago(sa.literal(-within, sa.Float())))
        statement = sa.select(*columns).distinct().where(
            _t.c.binary == observer.binary, _t.c.topic == observer.topic,
            sa.or_(_t.c.state.in_(models.LIVE), recent))
        with self._database.autocommit() as connection:
            rows = connection.execute(statement).all()
        return ({row.boot_id or row.hostname for row in rows},
                {row.boot_id or row.hostname for row in rows if row.state == 'dead'})

    @again_if_contended
    def declare(self, row: ServiceRow, observer_id: str, evidence: str, mass: bool,
                detail: Mapping[str, object]) -> bool:
        """Declare an engine dead, if it has not beaten since ``row`` was read; journal it.

        The compare-and-swap on ``report_count`` is what makes it a fact: of many observers
        one wins, and none does when a beat came first.  Journal and declaration commit
        together.  Two statements in one transaction.

        :param evidence: ``kernel``, ``watched`` or ``operator``; ``observed`` of an engine that
            does not beat itself
        :param mass: the breaker had tripped; work taken over from it is not blamed
        :return: whether it is this observer who declared it
        """
        swap = (_t.update()
                .where(_t.c.engine_id == row.engine_id, _t.c.report_count == row.report_count,
                       _t.c.state.in_(models.LIVE), alive(observer_id))
                .values(state='dead', declared_by=observer_id, declared_at=times.now(),
                        evidence=evidence, mass=mass))
        entry = entries.entry(
            'death', f'engine:{row.engine_id}', row.report_count, row.engine_id, observer_id,
            {'evidence': evidence, 'host': row.host, 'mass': mass, **detail})
        with self._database.transaction() as connection:
            won = connection.execute(swap).rowcount == 1
            if won:
                connection.execute(entry)
        return won

    def drain(self, engine_id: str) -> bool:
        """Say that an engine takes no new work; it beats on.  Return whether it was alive."""
        return self._change(engine_id, _t.c.state == 'up', state='draining')

    def leave(self, engine_id: str) -> bool:
        """Say that an engine has gone by itself, whatever its state was that is no end."""
        return self._change(engine_id, _t.c.state.not_in(models.ENDED), state='left',
                            declared_by=engine_id, declared_at=times.now())

    def _change(self, engine_id: str, condition: sa.ColumnElement[bool], **values: object) -> bool:
        with self._database.autocommit() as connection:
            return connection.execute(
                _t.update().where(_t.c.engine_id == engine_id, condition)
                .values(**values)).rowcount == 1

    def purgeable(self, observer: engines.Identity, after: float) -> list[str]:
        """Return the engines of the observer's kind that ended ``after`` seconds ago."""
        past = times.ago(sa.literal(after, sa.Float()))
        with self._database.autocommit() as connection:
            return list(connection.scalars(
                sa.select(_t.c.engine_id)
                .where(_t.c.binary == observer.binary, _t.c.topic == observer.topic,
                       _t.c.state.in_(models.ENDED), sa.or_(_t.c.declared_at < past, sa.and_(
                           _t.c.declared_at.is_(None), _t.c.updated_at < past)))
                .order_by(_t.c.declared_at)))

    def purge(self, engine_ids: Collection[str], actor_id: str | None) -> list[str]:
        """Remove rows of ended engines that own no native lock; return which are gone.

        :param actor_id: the engine that purges, which must be alive; None for an operator
        """
        gone = []
        for engine_id in engine_ids:
            where = [_t.c.engine_id == engine_id, _t.c.state.in_(models.ENDED),
                     ~sa.exists(sa.select(models.lock.c.id).where(
                         models.lock.c.engine_id == engine_id))]
            if actor_id is not None:
                where.append(alive(actor_id))
            with self._database.autocommit() as connection:
                if connection.execute(_t.delete().where(*where)).rowcount:
                    gone.append(engine_id)
        return gone
