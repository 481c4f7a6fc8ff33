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
"""Rows that others have written: absurd, half, or of a release that is not here yet.

Real engines and real commands over tables in which such rows stand beside good ones.  Whatever
they hold: the engine goes on observing, takes over, and forgets; who lives is not touched; and a
command answers, or refuses in a sentence.
"""

import dataclasses
import json
import pathlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from heat_liveness import agent, conf, errors
from heat_liveness import engine as engines
from heat_liveness.cmd import manage
from heat_liveness.db import migration, models
from heat_liveness.heat import orders
from heat_liveness.work.native import NativeWork, Task
from tests.bed.fuzz import bounded
from tests.bed.waiting import wait_until
from tests.databases.conftest import Bed
from tests.databases.heat_tables import Heat
from tests.unit.fakes import Clock, Timer

SETTINGS = conf.Settings(
    report_interval=.3, fence_time=5, service_down_time=10, scan_interval=.4, beat_retry=.1,
    connect_timeout=1, read_timeout=1, database_stall_time=0, stall_time=1, breaker_delay=1,
    max_takeovers=2)
STEP_SECONDS = 1.5
STEPS = 20
"""So many looks are more than a window, the settle time before it and the breaker's delay."""

TIMES = st.sampled_from([
    '2026-01-01 00:00:00.000000', '0001-01-01 00:00:00', '9999-12-31 23:59:59.999999',
    '1969-12-31 23:59:59', '0000-00-00 00:00:00', '2026-02-00 00:00:00', 'infinity', '-infinity',
    '0044-03-15 00:00:00 BC', '99999-01-01 00:00:00', '', 'yesterday', '2026-01-01T00:00:00Z', '5'])
NUMBERS = st.sampled_from([
    0, 1, -1, 2, 3, 2**31 - 1, -2**31, 2**31, 2**62, 2**63 - 1, -2**63, 1.5, 'many', b'\xff', ''])
SECONDS = st.sampled_from([
    4, 0, -1, 1e308, -1e308, float('inf'), float('-inf'), float('nan'), 'soon', 5e-324])
TEXTS = st.sampled_from([
    '', ' ', 'x', '\0', 'a\0b', '\x1b[2J', 'x' * 255, '😀' * 40, "'; --", '%s %(x)s {0}', '\n\n',
    '\N{RIGHT-TO-LEFT OVERRIDE}', b'\xff\xfe', 'NULL', '/' * 90, 'lock:', 'é'])
NAMES = st.sampled_from(['ME', 'me ', 'Dead', 'dead ', 'nobody', '', ' ', 'a\0', 'dead', 'me',
                         'silent', 'x' * 36, '\N{SNOWMAN}', "o'brien", 'ghost'])
STORED = st.one_of(
    st.sampled_from([
        '', '{', 'null', 'NaN', '[]', '{}', '"\\ud800"', '[' * 100_000, '1' * 5000, 'x' * 200_000,
        '{"locks": 5}', '{"locks": [1, [], [1, 2, 3], ["a", {}, null]]}', '{"evidence": []}',
        '{"story": {"what": 1}}', '{"story": [1, {"what": "died"}, {"what": [], "at": {}}]}',
        '{"plan": {}, "mass": "no", "outcome": [], "seen": 1, "node": [1, 2, 3, 4, 5]}',
        '{"engine_id": {"a": 1}, "state": ["dead"], "taken_by": 5}',
        '{"engine_id": null}\n\n[1]\n5\n"x"\n{"engine_id": "ghost", "state": "gone"}',
        '{"resource_id": "5", "deaths": {}, "node": "x", "\\u0000": "\\u0000"}']),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
                 lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                     st.sampled_from(['locks', 'story', 'engine_id', 'state', 'what', 'at',
                                      'mass', 'evidence', 'node', 'seen']), inner, max_size=3),
                 max_leaves=8).map(json.dumps))

SERVICE = st.fixed_dictionaries({
    'engine_id': NAMES, 'state': st.sampled_from(
        ['up', 'draining', 'dead', 'left', 'UP', 'dead ', 'zombie', '', 'paused']),
    'protocol': st.sampled_from([1, 1, 1, 0, 2, -1, 2**31 - 1, 'new']),
}, optional={
    'host': TEXTS, 'hostname': TEXTS, 'report_interval': SECONDS, 'fence_time': SECONDS,
    'report_count': NUMBERS, 'created_at': TIMES, 'updated_at': TIMES,
    'pid': NUMBERS, 'start_time': NUMBERS, 'pid_namespace': NUMBERS, 'boot_id': TEXTS,
    'declared_by': st.none() | NAMES, 'declared_at': st.none() | TIMES,
    'evidence': st.none() | st.sampled_from(['', 'magic', 'kernel']), 'mass': st.booleans()})
LOCK = st.fixed_dictionaries({
    'name': st.integers(0, 999).map(lambda number: f'odd-{number}') | TEXTS,
    'engine_id': st.sampled_from(['dead', 'me', 'silent', 'nobody', 'DEAD', None, 'ghost', '']),
    'status': st.sampled_from(['in_progress', 'in_progress', 'complete', 'failed', 'released',
                               'quarantined', '', 'paused']),
}, optional={
    'task': TEXTS, 'arguments': STORED, 'progress': STORED, 'reason': st.none() | TEXTS,
    'generation': NUMBERS, 'takeovers': NUMBERS, 'history': STORED, 'created_at': TIMES,
    'updated_at': TIMES})
ENTRY = st.fixed_dictionaries({
    'kind': st.sampled_from([*manage._KINDS, 'odd', '']),
    'subject': st.sampled_from(['engine:silent', 'lock:poison', 'lock:odd-1', 'x', '', 'batch:1',
                                'resource:s1:1', 'message:s1:1:update', 'stack:s1:t']),
}, optional={
    'generation': NUMBERS, 'engine_id': st.none() | NAMES, 'taken_by': NAMES, 'pieces': NUMBERS,
    'status': st.sampled_from(['done', 'claimed', 'sent', 'used', '', 'lost']), 'detail': STORED,
    'created_at': TIMES, 'updated_at': TIMES})

NOW = '2026-01-01 00:00:00'
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    'liveness_service': {
        'host': 'h', 'hostname': 'h', 'binary': 'binary', 'topic': 'topic', 'report_interval': 4,
        'fence_time': 20, 'report_count': 3, 'created_at': NOW, 'updated_at': NOW, 'pid': 4321,
        'start_time': 1, 'pid_namespace': 1, 'time_namespace': 1, 'boot_id': 'odd', 'mass': False},
    'liveness_lock': {
        'task': 'task', 'arguments': 'null', 'progress': 'null', 'generation': 1, 'takeovers': 0,
        'history': '', 'created_at': NOW, 'updated_at': NOW},
    'liveness_takeover': {
        'generation': 7, 'taken_by': 'me', 'pieces': 1, 'status': 'done', 'detail': '{}',
        'created_at': NOW, 'updated_at': NOW}}


class Odd:
    """Writes what others would write, past all that this package checks."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.engine = sa.create_engine(
            bed.database.url, isolation_level='AUTOCOMMIT', hide_parameters=False)
        if bed.database.backend == 'mysql':
            # As a client whose server is not strict: what does not fit is cut or zeroed.
            sa.event.listen(self.engine, 'connect', lambda raw, record: raw.cursor().execute(
                "SET sql_mode = ''"))

    def write(self, table: str, **values: Any) -> bool:
        """Write a row if this database takes it."""
        row = {**DEFAULTS[table], **values}
        names = ', '.join(self.quoted(name) for name in row)
        # In SQLite, bytes as a text that is no UTF-8.
        placeholders = ', '.join(
            f'CAST(:{name} AS TEXT)' if isinstance(value, bytes)
            and self.bed.database.backend == 'sqlite' else f':{name}'
            for name, value in row.items())
        statement = f'INSERT INTO {table} ({names}) VALUES ({placeholders})'
        try:
            with self.engine.connect() as connection:
                connection.execute(sa.text(statement), row)
        except (sa.exc.SQLAlchemyError, UnicodeError, OverflowError, ValueError):
            return False
        return True

    def quoted(self, name: str) -> str:
        return self.engine.dialect.identifier_preparer.quote(name)

    def read(self, statement: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    def empty(self) -> None:
        with self.engine.connect() as connection:
            for table in DEFAULTS:
                connection.execute(sa.text(f'DELETE FROM {table}'))


@pytest.fixture
def odd(bed: Bed) -> Iterator[Odd]:
    odd = Odd(bed)
    yield odd
    odd.engine.dispose()


class Cell:
    """One engine at work, and what the others have left: a moment that each example begins with."""

    def __init__(self, odd: Odd) -> None:
        self.bed, self.odd = odd.bed, odd
        odd.empty()
        self.clock = Clock()
        # The real process, as only it may ask the kernel.
        me = dataclasses.replace(
            engines.Identity.new(host='here', hostname='here', binary='binary', topic='topic'),
            engine_id='me')
        self.live = agent.Liveness(
            me, SETTINGS, self.bed.database,
            lambda context: NativeWork(context, {'task': self.handle}), clock=self.clock,
            timer=Timer(), chance=random.Random(1), end=self.end)
        self.ended: list[str] = []
        self.live.join()
        for name in ('dead', 'silent', 'poison', 'old', 'other'):
            self.bed.engine(name)
        for name, owner in (('good-1', 'dead'), ('good-2', 'dead'), ('slow', 'silent'),
                            ('bad', 'poison'), ('theirs', 'other')):
            self.bed.locks.acquire(name, 'task', None, owner)
        with self.bed.database.transaction() as connection:
            connection.execute(models.lock.update().where(models.lock.c.name == 'bad')
                               .values(takeovers=2))
        self.bed.kill('dead')
        self.bed.kill('poison')
        self.bed.members.leave('old')
        self.bed.shift(models.service, 'declared_at', 8 * 86400, engine_id='old')
        self.bed.shift(models.service, 'updated_at', 1000, engine_id='silent')

    def handle(self, task: Task) -> None:
        json.dumps([task.arguments, task.progress])

    def end(self, reason: str, level: int = 0) -> None:
        self.ended.append(reason)

    def go_on(self) -> None:
        """Beat and look, for longer than any verdict here takes, and until it forgets."""
        for seconds in [STEP_SECONDS] * STEPS + [10 * SETTINGS.service_down_time]:
            self.clock.forward(seconds)
            # The other one beats meanwhile.
            assert self.bed.members.beat('other')
            assert self.live.membership.beat() > 0
            self.live.periodic_scan()
        wait_until(lambda: not self.live.work._held, 30, 'The end of the tasks')

    def close(self) -> None:
        self.live.work.drain()
        self.live.membership._members.hang_up()
        self.bed.members.hang_up()

    def lock(self, name: str) -> Any:
        found = self.bed.locks.find(name)
        assert found is not None
        return found.status, found.engine_id, found.generation


@bounded(5)
@given(services=st.lists(SERVICE, max_size=8, unique_by=lambda row: row['engine_id']),
       locks=st.lists(LOCK, max_size=8), entries=st.lists(ENTRY, max_size=6))
def check_engine(odd: Odd, log: pytest.LogCaptureFixture, services: list[Any],
                 locks: list[Any], entries: list[Any]) -> None:
    log.clear()
    cell = Cell(odd)
    for table, rows in (('liveness_service', services), ('liveness_lock', locks),
                        ('liveness_takeover', entries)):
        for row in rows:
            odd.write(table, **row)
    cell.go_on()
    cell.close()
    assert cell.ended == []
    assert not [record.getMessage() for record in log.records if record.exc_info], 'a traceback'
    # It sees, and takes over.
    assert not cell.live._blind
    assert cell.lock('good-1') == cell.lock('good-2') == ('complete', None, 2)
    assert cell.bed.row('silent').state == 'dead'
    assert cell.lock('slow') == ('complete', None, 2)
    assert cell.lock('bad') == ('quarantined', None, 2)
    # It forgets.
    assert cell.bed.members.read('old') is None
    # Who lives has all that it had.
    assert cell.bed.row('other').live
    assert cell.bed.row('me').live
    assert cell.lock('theirs') == ('in_progress', 'other', 1)


def test_an_engine_goes_on_whatever_stands_beside_its_rows(
        odd: Odd, caplog: pytest.LogCaptureFixture) -> None:
    check_engine(odd, caplog)


def commands(names: list[str], entries: list[int]) -> Iterator[list[str]]:
    for form in ([], ['-f', 'json'], ['-f', 'csv'], ['-f', 'value'], ['-f', 'table']):
        yield ['service', 'list', '--all', *form]
        yield ['service', 'list', '--all', '--long', *form]
        yield ['lock', 'list', *form]
        yield ['takeover', 'list', *form]
        for name in names:
            yield ['lock', 'show', *form, '--', name]
        for number in entries:
            yield ['takeover', 'show', *form, str(number)]
    yield ['service', 'clean', '--dry-run']
    for name in names:
        for action in (['release'], ['retry'], ['fail', '--reason', 'odd']):
            yield ['lock', *action, '--', name]
    yield ['service', 'clean']


@bounded(2)
@given(services=st.lists(SERVICE, max_size=6, unique_by=lambda row: row['engine_id']),
       locks=st.lists(LOCK, max_size=3), entries=st.lists(ENTRY, max_size=4))
def check_commands(odd: Odd, arguments: list[str], said: pytest.CaptureFixture[str],
                   services: list[Any], locks: list[Any], entries: list[Any]) -> None:
    cell = Cell(odd)
    cell.close()
    for table, rows in (('liveness_service', services), ('liveness_lock', locks),
                        ('liveness_takeover', entries)):
        for row in rows:
            odd.write(table, **row)
    living = "SELECT * FROM liveness_service WHERE engine_id IN ('me', 'other')"
    held = "SELECT * FROM liveness_lock WHERE name IN ('theirs', 'slow', 'good-1')"
    before = odd.read(living), odd.read(held)
    names = [row.name for row in cell.bed.locks.search() if row.name.startswith('odd')]
    for command in commands(names, [entry.id for entry in cell.bed.journal.search()][-4:]):
        said.readouterr()
        status = manage.main([*arguments, *command])
        out, complaint = said.readouterr()
        assert status in {0, 1}, command
        assert 'Traceback' not in complaint
        assert status == 0 or complaint.startswith('heat-liveness-manage: '), command
        if command[1] in {'list', 'clean'} or command[:2] == ['takeover', 'show']:
            assert status == 0, (command, complaint)
        if 'json' in command:
            json.loads(out)
    assert (odd.read(living), odd.read(held)) == before


def test_the_commands_answer_whatever_stands_in_the_tables(
        odd: Odd, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'c.conf').write_text(f'[database]\nconnection = {odd.bed.url}\n')
    check_commands(odd, ['--config-file', str(tmp_path / 'c.conf')], capfd)


@bounded(25)
@given(entries=st.lists(ENTRY, min_size=1, max_size=6))
def check_orders(heat: Heat, odd: Odd, entries: list[Any]) -> None:
    odd_rows = [{**row, 'generation': number, 'kind': row['subject'].partition(':')[0] or 'odd',
                 'subject': f'{row["subject"]}:{number}'} for number, row in enumerate(entries)]
    with heat.database.transaction() as connection:
        connection.execute(models.takeover.delete())
    for row in odd_rows:
        odd.write('liveness_takeover', **{**row, 'taken_by': 'dead'})
    stack = heat.the_stack()
    found = heat.orders.of('dead', 100)
    for order in found:
        assert isinstance(order, orders.Order)
        assert (order.attempts, order.foreign, order.story, order.seen) is not None
        heat.orders.restarts(order)
    heat.orders.by('me')
    heat.orders.known(stack)
    heat.orders.resent('s1', 't')
    heat.orders.again(1, 't', is_update=True)
    heat.rows.deaths(stack, 'r1')
    adopted = heat.orders.adopt(heat.dead, 'me', 100)
    assert len(adopted) == len(found)
    for order in adopted:
        assert heat.orders.close(order.id, 'me', 'done')


@pytest.mark.sqlite
def test_orders_are_carried_to_their_end_whatever_stands_in_them(tmp_path: pathlib.Path) -> None:
    heat = Heat(f'sqlite:///{tmp_path}/heat.sqlite')
    odd = Odd(heat)
    check_orders(heat, odd)
    odd.engine.dispose()
    heat.close()


# One by one, what was found so.

def test_who_was_set_to_dead_by_hand_is_seen_relieved_and_forgotten(bed: Bed) -> None:
    for name in ('me', 'silent'):
        bed.engine(name)
    bed.locks.acquire('work', 'task', None, 'silent')
    with bed.database.transaction() as connection:
        connection.execute(models.service.update().where(
            models.service.c.engine_id == 'silent').values(state='dead'))
    row, = [each for each in bed.members.look(bed.identity('me'), 6, None) if each.ended]
    assert [each.name for each in bed.locks.take_over(row, 'me', 9, tainted=False)] == ['work']
    bed.shift(models.service, 'updated_at', 1000, engine_id='silent')
    assert bed.members.purgeable(bed.identity('me'), 900) == ['silent']
    assert bed.members.endings('binary') == []


def test_who_was_raised_from_the_dead_by_hand_can_die_again(bed: Bed) -> None:
    """I18: each death has its entry."""
    bed.engine('silent')
    for _ in range(2):
        bed.kill('silent')
        with bed.database.transaction() as connection:
            connection.execute(models.service.update().where(
                models.service.c.engine_id == 'silent').values(state='up', declared_at=None))
    deaths = bed.journal.search(kind='death')
    assert [(each.subject, each.generation) for each in deaths] == [
        ('engine:silent', 0), ('engine:silent', 1)]


def test_a_lock_that_was_deleted_and_made_anew_is_quarantined_again(bed: Bed) -> None:
    for name in ('me', 'first', 'second'):
        bed.engine(name)
    for owner in ('first', 'second'):
        bed.locks.acquire('bad', 'task', None, owner)
        row = bed.kill(owner, by='me')
        assert bed.locks.quarantine(row, 'me', 0)
        with bed.database.transaction() as connection:
            connection.execute(models.lock.delete())
    assert len(bed.journal.search(kind='quarantine')) == 2


def test_who_beats_in_the_future_or_cannot_be_judged_is_not_the_eldest(bed: Bed) -> None:
    for name in ('future', 'unknown', 'me'):
        bed.engine(name)
        bed.shift(models.service, 'created_at', {'me': 0}.get(name, 500), engine_id=name)
    bed.shift(models.service, 'updated_at', -500, engine_id='future')
    with bed.database.transaction() as connection:
        connection.execute(models.service.update().where(
            models.service.c.engine_id == 'unknown').values(protocol=2))
    assert bed.members.eldest(bed.identity('me'), 6) == 'me'


def test_an_engine_whose_id_another_process_has_ends_and_leaves_it_alone(bed: Bed) -> None:
    """I5: neither its row nor its locks are touched."""
    bed.engine('me')
    bed.locks.acquire('work', 'task', None, 'me')
    before = dataclasses.replace(bed.row('me'), age=0)
    ended: list[str] = []
    live = agent.Liveness(
        dataclasses.replace(bed.identity('me'), process=engines.Process.current()), SETTINGS,
        bed.database, lambda context: NativeWork(context, {'task': lambda task: None}),
        clock=Clock(), timer=Timer(), end=lambda reason, *level: ended.append(reason))
    live.begin(lambda: ended.append('It has joined.'))
    live.stop()
    assert [text.partition(',')[0] for text in ended] == [
        'Engine me finds a row under its engine_id that is not its own']
    assert dataclasses.replace(bed.row('me'), age=0) == before
    lock = bed.locks.find('work')
    assert lock is not None
    assert (lock.engine_id, lock.generation) == ('me', 1)


def test_a_name_that_ends_with_a_space_is_refused_on_each_database(bed: Bed) -> None:
    bed.engine('me')
    for name, task in (('work ', 'task'), ('work', 'task ')):
        with pytest.raises(errors.DataRefused, match='ends with a space'):
            bed.locks.acquire(name, task, None, 'me')
    assert bed.locks.search() == []


def test_half_a_character_is_refused(bed: Bed) -> None:
    with pytest.raises(errors.DataRefused):
        bed.members.read('\udcff')


def test_several_versions_at_once_are_told(bed: Bed) -> None:
    with bed.database.transaction() as connection:
        connection.exec_driver_sql(f"INSERT INTO {models.VERSION_TABLE} VALUES ('0009')")
    for ask in (migration.check, migration.sync, migration.drop):
        with pytest.raises(errors.SchemaError, match=r'names several versions .0001, 0009.'):
            ask(bed.database)
