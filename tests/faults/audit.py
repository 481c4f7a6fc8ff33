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

"""The history of what a database committed, written down by the database itself.

Triggers on the tables of the fleet add a row to ``audit`` in the transaction that makes the change:
what is rolled back was never there.  Whose connection it was each connection says itself
(:mod:`tests.processes.errands`); under which generation somebody *believed* to write stands in the
progress that is written.

Facts are ordered by the time at which the trigger ran, then by their number.  The row of the lock
or engine is locked from before then until the commit, so for one lock, or one engine, this is the
order of the commits, also where writers are spread over nodes of Galera; a transaction that a
node refuses at COMMIT leaves nothing.  The time is that of the database's clock, which tests step
by whole hours; a run takes minutes, so what is left after whole hours is true.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from tests.bed.clocks import HOUR_SECONDS
from tests.history import events

COLUMNS = ('at', 'source', 'op', 'actor', 'subject', 'was_with', 'is_with', 'was_number',
           'is_number', 'was_state', 'is_state', 'detail')

# Per table: the subject, an engine, a number, a state and a detail.
_WATCHED = {
    'service': ('engine_id', 'declared_by', 'report_count', 'state',
                "CASE WHEN {row}.mass THEN 'mass' ELSE {row}.evidence END"),
    'lock': ('name', 'engine_id', 'generation', 'status', '{row}.progress'),
    'takeover': ('subject', 'taken_by', 'generation', 'kind', '{row}.engine_id'),
}
_OPERATIONS = {'service': ('INSERT', 'UPDATE', 'DELETE'), 'lock': ('INSERT', 'UPDATE'),
               'takeover': ('INSERT',)}
_NOW = {
    'mysql': 'UNIX_TIMESTAMP(SYSDATE(6))',
    'postgresql': 'extract(epoch from clock_timestamp())',
    'sqlite': "((julianday('now') - 2440587.5) * 86400.0)",
}
_ACTOR = {'mysql': '@liveness_actor', 'postgresql': "current_setting('liveness.actor', true)",
          'sqlite': 'liveness_actor()'}
_TABLES = {
    'mysql': 'CREATE TABLE audit (id BIGINT AUTO_INCREMENT PRIMARY KEY, at DOUBLE, {columns}) '
             'CHARSET utf8mb4 COLLATE utf8mb4_bin',
    'postgresql': 'CREATE TABLE audit (id BIGSERIAL PRIMARY KEY, at DOUBLE PRECISION, {columns})',
    'sqlite': 'CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, at DOUBLE, {columns})',
}


def install(engine: sa.Engine) -> None:
    """Make the table and the triggers, in a database that has the tables of the fleet."""
    backend = engine.dialect.name.replace('mariadb', 'mysql')
    columns = ', '.join(
        f'{name} {"BIGINT" if name.endswith("number") else "TEXT"}' for name in COLUMNS[1:])
    with engine.begin() as connection:
        connection.exec_driver_sql(_TABLES[backend].format(columns=columns))
        for table, operations in _OPERATIONS.items():
            for operation in operations:
                for statement in _trigger(backend, table, operation):
                    # Nothing in them is a parameter.
                    connection.exec_driver_sql(statement.replace('%', '%%'))


def _trigger(backend: str, table: str, operation: str) -> Iterator[str]:
    subject, whose, number, state, detail = _WATCHED[table]

    def of(row: str, column: str) -> str:
        there = operation != ('INSERT' if row == 'OLD' else 'DELETE')
        return f'{row}.{column}' if there else 'NULL'

    last = 'OLD' if operation == 'DELETE' else 'NEW'
    if table == 'service' and operation == 'INSERT':
        detail = '{row}.boot_id'
    values = [_NOW[backend], f"'{table}'", f"'{operation}'", _ACTOR[backend], f'{last}.{subject}',
              of('OLD', whose), of('NEW', whose), of('OLD', number), of('NEW', number),
              of('OLD', state), of('NEW', state), detail.format(row=last)]
    insert = f'INSERT INTO audit ({", ".join(COLUMNS)}) VALUES ({", ".join(values)})'
    name = f'audit_{table}_{operation.lower()}'
    head = f'CREATE TRIGGER {name} AFTER {operation} ON liveness_{table}'
    if backend == 'mysql':
        yield f'{head} FOR EACH ROW {insert}'
    elif backend == 'sqlite':
        yield f'{head} BEGIN {insert}; END'
    else:
        result = 'OLD' if operation == 'DELETE' else 'NEW'
        yield (f'CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS '
               f'$$ BEGIN {insert}; RETURN {result}; END $$')
        yield f'{head} FOR EACH ROW EXECUTE FUNCTION {name}()'


def read(engine: sa.Engine) -> list[events.Event]:
    """Return what was committed so far, in its order."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            f'SELECT id, {", ".join(COLUMNS)} FROM audit').all()
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    timed = sorted(((_true(float(row.at)) - boot, row.id, row) for row in rows),
                   key=lambda each: each[:2])
    seen = {row.detail: row.is_number for row in rows
            if row.source == 'takeover' and row.is_state == 'death'}
    return [event for at, _, row in timed for event in _EVENTS[row.source](at, row, seen)]


def _true(at: float) -> float:
    """Take the whole hours off a time that a stepped clock told."""
    return at - HOUR_SECONDS * round((at - time.time()) / HOUR_SECONDS)


def _of_service(at: float, row: sa.Row[Any], seen: dict[str, int]) -> Iterator[events.Event]:
    engine = row.subject
    if row.op == 'INSERT':
        yield events.Joined(at=at, engine=engine, machine=row.detail)
    elif row.op == 'DELETE':
        yield events.Purged(at=at, engine=engine, by=row.actor)
    elif row.is_state == 'dead' and (row.was_state != 'dead' or row.was_with != row.is_with):
        yield events.Declared(
            at=at, engine=engine, by=row.is_with, seen=seen.get(engine, row.was_number),
            count=row.was_number, mass=row.detail == 'mass',
            evidence='watched' if row.detail == 'mass' else row.detail)
    elif row.is_number != row.was_number:
        yield events.Beat(at=at, engine=engine, count=row.is_number)
    elif row.is_state != row.was_state:
        kind = events.Left if row.is_state == 'left' else events.Drained
        yield kind(at=at, engine=engine)


def _of_lock(at: float, row: sa.Row[Any], seen: dict[str, int]) -> Iterator[events.Event]:
    if row.is_with is not None and (row.was_with, row.was_number) != (row.is_with, row.is_number):
        how = ('acquire' if row.was_with is None else
               'reclaim' if row.was_with == row.is_with else 'takeover')
        yield events.Owned(at=at, lock=row.subject, generation=row.is_number, engine=row.is_with,
                           previous=row.was_with, how=how)
        return
    progress = json.loads(row.detail)
    what = {'in_progress': 'progress', 'failed': 'fail', 'released': 'release',
            'quarantined': 'quarantine'}.get(row.is_state, row.is_state)
    # Who ends the work says no generation with it; and who got no reply has claimed it from himself
    # since he said which.
    foreign = what == 'progress' and progress['engine'] != row.was_with
    believed = progress['generation'] if foreign else row.was_number
    step = progress.get('step') if what == 'progress' else None
    yield events.Wrote(at=at, lock=row.subject, generation=believed, engine=row.actor, what=what,
                       step=step)


def _of_takeover(at: float, row: sa.Row[Any], seen: dict[str, int]) -> Iterator[events.Event]:
    if row.is_state == 'death':
        yield events.Journalled(at=at, engine=row.detail, by=row.is_with)


_EVENTS: dict[str, Callable[..., Iterator[events.Event]]] = {
    'service': _of_service, 'lock': _of_lock, 'takeover': _of_takeover}
