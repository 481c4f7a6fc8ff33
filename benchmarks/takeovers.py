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

"""Takeovers: survivors that share a dead engine's locks, beside one UPDATE of them all.

The plain way is a single UPDATE that changes the same columns of the same rows under the
same guards.  It is the fastest way there is, and no protocol: one survivor gets everything,
and nobody knows which rows were won.  The survivors are processes, each with connections of
its own.
"""

import dataclasses
import json
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent import futures
from multiprocessing import synchronize
from typing import Any

import sqlalchemy as sa

from benchmarks import beds, figures
from heat_liveness import clock as clocks
from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.db import models, times
from heat_liveness.db.database import Database
from heat_liveness.db.locks import MOST_ROWS, Locks
from heat_liveness.db.members import Members, ServiceRow, alive, ended

BULK = 'one bulk UPDATE'
OWNERS = 11
DEAD = '00000000-0000-4000-8000-000000000010'
LOOK_AGAIN_SECONDS = 0.05

_t = models.lock
_ENTRY = {'engine_id': DEAD, 'state': 'dead', 'taken_by': ''}

_together: list[synchronize.Barrier] = []


@dataclasses.dataclass(frozen=True)
class _Share:
    """What one survivor got."""

    ids: list[int]
    started: float
    ended: float
    """When its last commit had returned."""
    refused: int
    """How often the database refused, so that it tried again."""
    busy_seconds: float


def measure(bed: beds.Bed, locks: int, survivors: Sequence[int],
            turns: int) -> list[figures.Figure]:
    """Take over the locks of one of eleven engines that own so many each.

    Raises
    ------
    AssertionError
        A lock was won twice, or not at all, or the winner's list and the table differ.
    """
    ways = {f'{number} survivor' + 's' * (number > 1): number for number in survivors}
    rates: dict[str, list[float]] = {way: [] for way in (BULK, *ways)}
    shares: dict[str, list[_Share]] = {way: [] for way in ways}
    busy: dict[str, list[float]] = {way: [] for way in rates}
    with beds.connected(bed.url) as database:
        _populate(database, locks)
        dead = Members(database).read(DEAD)
        assert dead is not None
        for _ in range(turns):
            for way, number in ((BULK, 0), *ways.items()):
                _give_back(database)
                bed.rest()
                before = bed.busy_seconds() + time.process_time()
                if number:
                    won, seconds = _compete(bed.url, database, dead, number)
                else:
                    won, seconds = {}, _bulk(database, locks)
                computed = bed.busy_seconds() + time.process_time() - before + sum(
                    share.busy_seconds for share in won.values())
                if number:
                    _verify(database, won, locks)
                    shares[way] += won.values()
                rates[way].append(locks / seconds)
                busy[way].append(computed)
    notes: dict[str, dict[str, Any]] = {
        way: {'CPU microseconds a lock': round(1e6 * statistics.median(each) / locks, 1)}
        for way, each in busy.items()}
    for way, each in shares.items():
        notes[way] |= {'least and most won, %': _extremes(each, locks),
                       'refused': sum(share.refused for share in each)}
    return figures.compare(f'take over {locks} of {OWNERS * locks} locks', bed.name, rates, notes)


def _extremes(shares: Sequence[_Share], locks: int) -> list[int]:
    percents = [round(100 * len(share.ids) / locks) for share in shares]
    return [min(percents), max(percents)]


def _populate(database: Database, locks: int) -> None:
    """Fill the table; the owners' locks are mixed, as time mixes them."""
    total = OWNERS * locks
    number = sa.select(sa.literal(1).label('n')).cte(recursive=True)
    number = number.union_all(sa.select(number.c.n + 1).where(number.c.n < total))
    owner = sa.literal(DEAD[:-2]) + sa.cast(10 + number.c.n % OWNERS, sa.String(2))
    arguments = json.dumps({'stack': str(uuid.UUID(int=0)), 'resource': 'server', 'try': 1})
    values: dict[str, Any] = {
        'name': sa.literal('stack/resource-') + sa.cast(number.c.n, sa.String(10)),
        'task': sa.literal('deploy'), 'arguments': sa.literal(arguments),
        'progress': sa.literal('null'), 'status': sa.literal('in_progress'), 'engine_id': owner,
        'generation': sa.literal(1), 'takeovers': sa.literal(0), 'history': sa.literal(''),
        'created_at': times.now(), 'updated_at': times.now()}
    with database.transaction() as connection:
        connection.execute(models.service.delete())
        if database.backend == 'mysql':
            connection.exec_driver_sql(f'SET SESSION max_recursive_iterations = {total}')
        connection.execute(_t.insert().from_select(list(values), sa.select(*values.values())))
    Members(database).insert(dataclasses.replace(_identity(), engine_id=DEAD), 4, 20)
    with database.autocommit() as connection:
        connection.execute(
            models.service.update().where(models.service.c.engine_id == DEAD)
            .values(state='dead', declared_at=times.now()))


def _identity() -> engines.Identity:
    return engines.Identity.new(host='bench', hostname='bench', binary='bench', topic='bench')


def _give_back(database: Database) -> None:
    """Give the dead engine its locks again."""
    with database.autocommit() as connection:
        connection.execute(
            _t.update().where(_t.c.generation > 1)
            .values(engine_id=DEAD, generation=1, takeovers=0, history=''))


def _bulk(database: Database, locks: int) -> float:
    """Move all locks by one statement; return the seconds it took."""
    me = _identity()
    Members(database).insert(me, 4, 20)
    entry = json.dumps({**_ENTRY, 'taken_by': me.engine_id}) + '\n'
    statement = (
        _t.update()
        .where(_t.c.engine_id == DEAD, _t.c.takeovers == 0, ended(DEAD), alive(me.engine_id))
        .values(engine_id=me.engine_id, generation=_t.c.generation + 1,
                takeovers=_t.c.takeovers + 1, history=_t.c.history + entry,
                updated_at=times.now()))
    with database.autocommit() as connection:
        started = time.monotonic()
        moved = connection.execute(statement).rowcount
        seconds = time.monotonic() - started
    assert moved == locks
    return seconds


def _compete(url: str, database: Database, dead: ServiceRow,
             survivors: int) -> tuple[dict[str, _Share], float]:
    """Let so many survivors take over; return each one's share, and the seconds it took."""
    me = [_identity() for _ in range(survivors)]
    for identity in me:
        Members(database).insert(identity, 4, 20)
    names = [identity.engine_id for identity in me]
    with futures.ProcessPoolExecutor(
            survivors, mp_context=beds.PROCESSES, initializer=_gather,
            initargs=(beds.PROCESSES.Barrier(survivors),)) as pool:
        shares = list(pool.map(_survive, *zip(*((url, dead, name) for name in names),
                                              strict=True)))
    seconds = max(share.ended for share in shares) - min(share.started for share in shares)
    return dict(zip(names, shares, strict=True)), seconds


def _gather(barrier: synchronize.Barrier) -> None:
    _together.append(barrier)


def _survive(url: str, dead: ServiceRow, taker_id: str) -> _Share:
    """Take over batch by batch until the dead engine owns nothing; a process of its own."""
    clock = clocks.BootClock()
    with beds.connected(url) as database:
        locks = Locks(database)
        assert locks.owners([dead.engine_id])
        # Nobody begins before all have connected, so no process can be two of them.
        _together[0].wait(beds.TIMEOUT_SECONDS)
        started = last = clock.now()
        computed = time.process_time()
        ids: list[int] = []
        refused = 0
        while clock.now() - started < beds.TIMEOUT_SECONDS:
            try:
                rows = locks.take_over(dead, taker_id, MOST_ROWS, tainted=False)
            except errors.UnclearOutcome:
                # It may have won what it does not know of, which would spoil the count.
                raise
            except errors.DatabaseError:
                refused += 1
                continue
            if rows:
                last = clock.now()
                ids += [row.id for row in rows]
            elif not locks.owners([dead.engine_id]):
                return _Share(ids, started, last, refused, time.process_time() - computed)
            else:
                clock.wait(threading.Event(), LOOK_AGAIN_SECONDS)
    raise TimeoutError(f'{taker_id} has not seen the end of it in {beds.TIMEOUT_SECONDS} s.')


def _verify(database: Database, shares: dict[str, _Share], locks: int) -> None:
    """Each lock has one winner: by the winners' own lists, and by the table."""
    won = [number for share in shares.values() for number in share.ids]
    assert len(won) == len(set(won)), 'A lock was won twice.'
    assert len(won) == locks, f'{locks - len(won)} locks were not won.'
    with database.autocommit() as connection:
        rows = connection.execute(
            sa.select(_t.c.engine_id, _t.c.id, _t.c.generation, _t.c.takeovers)
            .where(_t.c.engine_id.in_(list(shares)))).all()
    assert all((row.generation, row.takeovers) == (2, 1) for row in rows)
    assert set(_pairs(rows)) == {(name, number) for name, share in shares.items()
                                 for number in share.ids}, 'The table tells of other winners.'


def _pairs(rows: Sequence[Any]) -> Iterator[tuple[str, int]]:
    return ((row.engine_id, row.id) for row in rows)
