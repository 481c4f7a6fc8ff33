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

"""The operator's commands, on each database, through ``main``."""

import dataclasses
import datetime
import json
import pathlib
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness import agent, conf
from heat_liveness import clock as clocks
from heat_liveness import engine as engines
from heat_liveness.cmd import manage
from heat_liveness.db import migration, models
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Journal
from heat_liveness.db.locks import LockRow, Locks
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.work import Context
from heat_liveness.work.native import NativeWork, Task
from tests.bed.waiting import wait_until

SETTINGS = conf.Settings(
    report_interval=.3, fence_time=5, service_down_time=60, scan_interval=.2, beat_retry=.1,
    connect_timeout=1, read_timeout=1, database_stall_time=0, stall_time=1)

OPTIONS = ('report_interval', 'fence_time', 'service_down_time', 'scan_interval', 'beat_retry',
           'connect_timeout', 'read_timeout', 'database_stall_time', 'stall_time')
LANDING_SECONDS = 50 + 10 * SETTINGS.service_down_time

HEAT_LAYOUT = '%-16s %-16s %-36s %-10s %-10s %-10s %-10s'
"""A copy of what stands in heat/cmd/manage.py."""


class Bed:
    """A database with tables, and the command that looks at it."""

    def __init__(self, url: str, folder: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self.database = Database(url, read_timeout=90)
        self.members = Members(self.database)
        self.locks = Locks(self.database)
        self._capfd = capfd
        self._file = folder / 'manage.conf'
        options = ''.join(f'{name} = {getattr(SETTINGS, name)}\n' for name in OPTIONS)
        self._file.write_text(f'[database]\nconnection = {url}\n[liveness]\n{options}')

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Run a command; return its status and what it said."""
        self._capfd.readouterr()
        status = manage.main(['--config-file', str(self._file), *map(str, arguments)])
        return status, *self._capfd.readouterr()

    def ask(self, *arguments: object) -> str:
        """Run a command that must succeed, and return its answer."""
        status, said, complaint = self.run(*arguments)
        assert (status, complaint) == (0, '')
        return said

    def read(self, *arguments: object) -> Any:
        """Run a command that must succeed, and read its JSON."""
        return json.loads(self.ask(*arguments, '-f', 'json'))

    def refuse(self, *arguments: object) -> str:
        """Run a command that must be refused, and return its sentence."""
        status, said, complaint = self.run(*arguments)
        assert (status, said) == (1, '')
        assert complaint.startswith('heat-liveness-manage: ')
        assert complaint.count('\n') == 1
        return complaint

    def engine(self, **changed: str) -> str:
        """Write the row of a new engine."""
        identity = engines.Identity.new(
            **{'host': 'host-1', 'hostname': 'machine-1', 'binary': 'heat-liveness-agent',
               'topic': 'liveness', **changed})
        self.members.insert(identity, SETTINGS.report_interval, SETTINGS.fence_time)
        return identity.engine_id

    def row(self, engine_id: str) -> ServiceRow:
        row = self.members.read(engine_id)
        assert row is not None
        return row

    def die(self, engine_id: str, declarer: str, seconds_ago: float = 0) -> ServiceRow:
        """Declare an engine dead."""
        assert self.members.declare(self.row(engine_id), declarer, 'watched', False,
                                    {'watched_seconds': 24.5})
        if seconds_ago:
            self.shift('declared_at', engine_id, seconds_ago)
        return self.row(engine_id)

    def shift(self, column: str, engine_id: str, seconds: float) -> None:
        """Let a time of a row lie so many seconds earlier."""
        table = models.service
        with self.database.autocommit() as connection:
            then = connection.scalar(
                sa.select(table.c[column]).where(table.c.engine_id == engine_id))
            connection.execute(table.update().where(table.c.engine_id == engine_id).values(
                {column: then - datetime.timedelta(seconds=seconds)}))

    def lock(self, name: str) -> LockRow:
        row = self.locks.find(name)
        assert row is not None
        return row

    def quarantine(self, name: str, deaths: int = 2) -> list[str]:
        """Let the owners of a new lock die until it is quarantined; return who they were."""
        watcher = self.engine()
        owners = [self.engine()]
        self.locks.acquire(name, 'build', {'steps': 3}, owners[0])
        while len(owners) < deaths:
            taker = self.engine()
            assert self.locks.take_over(self.die(owners[-1], watcher), taker, 10,
                                        tainted=len(owners) > 1)
            owners.append(taker)
        assert self.locks.quarantine(self.die(owners[-1], watcher), watcher, deaths - 1)
        return owners


@pytest.fixture
def bed(database_url: str, tmp_path: pathlib.Path,
        capfd: pytest.CaptureFixture[str]) -> Iterator[Bed]:
    """A bed whose tables are there."""
    bed = Bed(database_url, tmp_path, capfd)
    migration.sync(bed.database)
    yield bed
    bed.database.close()


def test_the_settings_of_these_tests_are_safe() -> None:
    assert SETTINGS.violations() == []


# The tables

def test_db_makes_the_tables_and_checks_them(
        database_url: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    bed = Bed(database_url, tmp_path, capfd)
    assert 'The tables are missing' in bed.refuse('db', 'check')
    assert 'The tables are missing' in bed.refuse('service', 'list')
    assert 'The tables are made' in bed.ask('db', 'sync')
    assert 'already' in bed.ask('db', 'sync')
    assert bed.ask('db', 'version') == f'{models.VERSION}\n'
    assert 'as needed' in bed.ask('db', 'check')
    assert bed.read('service', 'list') == []
    bed.database.close()


def test_db_drop_removes_the_tables_when_nobody_beats_in_them_any_more(bed: Bed) -> None:
    engine_id = bed.engine()
    assert engine_id in bed.refuse('db', 'drop')
    assert bed.members.read(engine_id) is not None
    bed.shift('updated_at', engine_id, SETTINGS.service_down_time + 1)
    assert bed.ask('db', 'drop').startswith('The tables are removed from ')
    assert 'db sync' in bed.refuse('db', 'check')
    assert bed.ask('db', 'drop').startswith('There are no tables in ')


@pytest.mark.parametrize('arguments', [
    ['db', 'sync'], ['db', 'check'], ['service', 'list'], ['service', 'clean'], ['lock', 'list']])
def test_tables_of_a_later_release_are_refused(bed: Bed, arguments: list[str]) -> None:
    with bed.database.autocommit() as connection:
        connection.exec_driver_sql(f"UPDATE {models.VERSION_TABLE} SET version_num = '9999'")
    assert 'of version 9999, which this release does not know: upgrade heat-liveness.' in (
        bed.refuse(*arguments))


def test_tables_of_an_earlier_release_are_refused(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no earlier one yet, so this release takes itself for a later one.
    monkeypatch.setattr(models, 'VERSION', '0002')
    monkeypatch.setattr(migration, 'head', lambda: '0002')
    assert 'of version 0001, but 0002 is needed: run "heat-liveness-manage db sync".' in (
        bed.refuse('service', 'list'))


def test_the_password_is_never_shown(bed: Bed) -> None:
    password = sa.make_url(bed.url).password
    said = bed.ask('db', 'check') + bed.refuse('lock', 'show', 'nothing')
    assert not password or password not in said


# The engines

def test_service_list_has_the_layout_of_heat_manage(bed: Bed) -> None:
    engine = bed.engine(hostname='a-very-long-hostname.example', binary='heat-engine',
                        topic='engine')
    row = bed.row(engine)
    expected = [
        HEAT_LAYOUT % ('Hostname', 'Binary', 'Engine_Id', 'Host', 'Topic', 'Status',
                       'Updated At'),
        HEAT_LAYOUT % (row.hostname, row.binary, row.engine_id, row.host, row.topic, 'up',
                       row.updated_at.replace(microsecond=0))]
    assert bed.ask('service', 'list') == '\n'.join(expected) + '\n'


def test_service_list_shows_the_living_and_with_all_the_others(bed: Bed) -> None:
    living, dead, left = bed.engine(), bed.engine(), bed.engine()
    bed.die(dead, living)
    bed.members.leave(left)
    assert [row['engine_id'] for row in bed.read('service', 'list')] == [living]
    assert {row['engine_id']: row['status'] for row in bed.read('service', 'list', '--all')} == {
        living: 'up', dead: 'down', left: 'down'}


def test_an_engine_is_down_when_the_others_may_call_it_dead(bed: Bed) -> None:
    engine = bed.engine()
    bed.shift('updated_at', engine, SETTINGS.service_down_time / 2)
    assert bed.read('service', 'list')[0]['status'] == 'up'
    bed.shift('updated_at', engine, SETTINGS.service_down_time / 2 + 1)
    assert bed.read('service', 'list')[0]['status'] == 'down'


def test_an_engine_with_a_longer_fence_is_up_for_longer(bed: Bed) -> None:
    engine = bed.engine()
    with bed.database.autocommit() as connection:
        connection.execute(models.service.update().values(fence_time=100))
    bed.shift('updated_at', engine, SETTINGS.service_down_time + 10)
    assert bed.read('service', 'list')[0]['status'] == 'up'
    bed.shift('updated_at', engine, 50)
    assert bed.read('service', 'list')[0]['status'] == 'down'


def test_service_list_long_tells_who_declared_whom(bed: Bed) -> None:
    living, dead = bed.engine(), bed.engine()
    bed.die(dead, living)
    row = next(row for row in bed.read('service', 'list', '--all', '--long')
               if row['engine_id'] == dead)
    assert (row['state'], row['declared_by'], row['evidence'], row['mass']) == (
        'dead', living, 'watched', False)
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT[\d:.]+Z', row['declared_at'])
    assert 'Declared By' in bed.ask('service', 'list', '--long').splitlines()[1]


def test_service_show_tells_all_of_one(bed: Bed) -> None:
    engine = bed.engine()
    row = bed.read('service', 'show', engine)
    assert row['pid'] == bed.row(engine).process.pid
    assert row['boot_id'] == bed.row(engine).process.boot_id
    assert row['status'] == 'up'
    assert set(row) >= {field.name for field in dataclasses.fields(ServiceRow)} - {
        'age', 'process'}
    assert engine in bed.ask('service', 'show', engine)
    assert 'There is no engine nobody' in bed.refuse('service', 'show', 'nobody')


def test_clean_removes_ended_engines_of_each_kind_that_own_nothing(bed: Bed) -> None:
    living = bed.engine()
    dead, owner = bed.engine(), bed.engine()
    other = bed.engine(binary='heat-engine', topic='engine')
    bed.locks.acquire('a', 'build', None, owner)
    for engine in (dead, other, owner):
        bed.die(engine, living, LANDING_SECONDS + 1)
    said = bed.ask('service', 'clean', '--dry-run').splitlines()
    assert sorted(line.split(' on ')[0] for line in said) == sorted([
        f'Would remove engine {dead}', f'Would remove engine {other}', f'Kept engine {owner}'])
    assert len(bed.read('service', 'list', '--all')) == 4
    said = bed.ask('service', 'clean').splitlines()
    assert f'Removed engine {dead} on host-1 (heat-liveness-agent, dead).' in said
    assert f'Removed engine {other} on host-1 (heat-engine, dead).' in said
    assert (f'Kept engine {owner} on host-1 (heat-liveness-agent, dead): it owns work that is not '
            f'taken over yet.') in said
    assert {row['engine_id'] for row in bed.read('service', 'list', '--all')} == {living, owner}


def test_clean_keeps_what_may_still_gain_work(bed: Bed) -> None:
    living, dead = bed.engine(), bed.engine()
    bed.die(dead, living)
    assert 'a statement that it had sent may still gain it work' in bed.ask('service', 'clean')
    assert len(bed.read('service', 'list', '--all')) == 2
    bed.shift('declared_at', dead, LANDING_SECONDS + 1)
    assert 'Removed' in bed.ask('service', 'clean')
    assert bed.ask('service', 'clean') == 'There is no row of an ended engine.\n'


def test_clean_keeps_what_has_only_a_clock_that_was_set_forward_between_it_and_its_end(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    living, dead = bed.engine(), bed.engine()
    bed.die(dead, living, LANDING_SECONDS + 1)
    before = clocks.wall() - datetime.timedelta(seconds=LANDING_SECONDS)
    monkeypatch.setattr(clocks, 'wall', lambda: before)
    said = bed.ask('service', 'clean')
    assert ' a statement that it had sent may still gain it work.' in said
    monkeypatch.undo()
    assert 'Removed' in bed.ask('service', 'clean')


def test_clean_keeps_whose_end_was_written_by_hand_and_no_time_with_it(bed: Bed) -> None:
    """It may live, and would write its row again at its next beat."""
    engine = bed.engine()
    bed.shift('updated_at', engine, LANDING_SECONDS + 1)
    with bed.database.autocommit() as connection:
        connection.execute(models.service.update().values(state='dead'))
    assert 'nobody has written down when it ended' in bed.ask('service', 'clean')
    assert len(bed.read('service', 'list', '--all')) == 1


def test_clean_keeps_an_engine_that_holds_a_resource_of_heat(bed: Bed) -> None:
    living, holder, idle = (bed.engine(binary='heat-engine', topic='engine') for _ in range(3))
    heat = sa.MetaData()
    stack = sa.Table('stack', heat, *(sa.Column(name, sa.String(36)) for name in (
        'id', 'name', 'action', 'status', 'current_traversal', 'owner_id',
        'parent_resource_name')), sa.Column('convergence', sa.Boolean),
        sa.Column('deleted_at', sa.DateTime))
    resource = sa.Table('resource', heat, sa.Column('stack_id', sa.String(36)),
                        sa.Column('engine_id', sa.String(36)))
    heat.create_all(bed.database.engine)
    with bed.database.transaction() as connection:
        connection.execute(stack.insert().values(
            id='s', name='s', action='CREATE', status='IN_PROGRESS', convergence=True))
        connection.execute(resource.insert().values(stack_id='s', engine_id=holder))
    for engine in (holder, idle):
        bed.die(engine, living, LANDING_SECONDS + 1)
    said = bed.ask('service', 'clean')
    assert f'Kept engine {holder}' in said
    assert f'Removed engine {idle}' in said


def test_clean_does_nothing_where_nobody_can_tell_who_owns_work(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    living, dead = bed.engine(), bed.engine()
    bed.die(dead, living, LANDING_SECONDS + 1)
    monkeypatch.setattr(metadata, 'entry_points', lambda group: ())
    assert 'nobody can tell who owns work' in bed.refuse('service', 'clean')
    assert len(bed.read('service', 'list', '--all')) == 2


# The locks

def test_lock_list_chooses_by_status_and_owner(bed: Bed) -> None:
    engine, other = bed.engine(), bed.engine()
    first = bed.locks.acquire('first', 'build', None, engine)
    bed.locks.acquire('second', 'build', None, other)
    bed.locks.write(first, status='complete', engine_id=None)

    def names(*arguments: object) -> list[str]:
        return [row['name'] for row in bed.read('lock', 'list', *arguments)]

    assert names() == ['first', 'second']
    assert names('--status', 'complete') == ['first']
    assert names('--engine', other) == ['second']
    assert names('--engine', engine) == []
    status, said, complaint = bed.run('lock', 'list', '--limit', 1, '-f', 'value')
    assert (status, complaint) == (0, 'Only the oldest 1 are shown; see --limit.\n')
    shown, = said.splitlines()
    assert shown.startswith('first build complete - 1 0 ')


def test_lock_show_tells_the_history(bed: Bed) -> None:
    first, second = bed.quarantine('a')
    said = bed.ask('lock', 'show', 'a').splitlines()
    assert said[0] == 'Lock a: quarantined. Its owner died 2 times in a row.'
    assert said[1] == 'Task build, arguments {"steps": 3}, progress null.'
    assert f'  1. Engine {first} died; engine {second} took the work over.' in said
    assert f'  2. Engine {second} died; the work was quarantined.' in said
    assert said[-1].endswith(f'its owners died too often, the last of them engine {second}.')
    row = bed.read('lock', 'show', 'a')
    assert row['history'][0]['taken_by'] == second
    assert [entry['subject'] for entry in row['journal']] == ['lock:a']
    assert 'There is no lock b' in bed.refuse('lock', 'show', 'b')


def test_lock_show_tells_who_has_the_work(bed: Bed) -> None:
    engine = bed.engine()
    bed.locks.acquire('a', 'build', None, engine)
    said = bed.ask('lock', 'show', 'a').splitlines()
    assert said[0] == f'Lock a: in_progress under engine {engine}.'
    assert said[-1] == 'No owner has ended since it was acquired.'


@pytest.mark.parametrize('name', ['ÄÖ "quoted" %s \\ name', 'x' * 255])
def test_odd_names_are_quarantined_released_and_shown_too(bed: Bed, name: str) -> None:
    bed.quarantine(name)
    bed.ask('lock', 'release', name)
    assert bed.read('lock', 'show', name)['name'] == name
    assert name in bed.ask('lock', 'show', name)


def test_a_released_lock_may_be_acquired_again(bed: Bed) -> None:
    bed.quarantine('a')
    before = bed.lock('a')
    assert 'may be acquired again' in bed.ask('lock', 'release', 'a')
    after = bed.lock('a')
    assert (after.status, after.engine_id, after.generation) == (
        'released', None, before.generation + 1)
    assert bed.locks.acquire('a', 'build', None, bed.engine()).generation == after.generation + 1
    entry = Journal(bed.database).search(kind='operator')[-1]
    assert (entry.subject, entry.detail) == (
        'lock:a', {'from': 'quarantined', 'to': 'released', 'reason': None})


def test_a_failed_lock_keeps_its_reason(bed: Bed) -> None:
    bed.quarantine('a')
    assert bed.ask('lock', 'fail', 'a', '--reason', 'It kills.') == (
        'The lock a is failed: It kills.\n')
    assert (bed.lock('a').status, bed.lock('a').reason) == ('failed', 'It kills.')
    assert 'from quarantined to failed: It kills.' in bed.ask('lock', 'show', 'a')
    assert 'The lock a is failed: this can be done only with one that is quarantined.' in (
        bed.refuse('lock', 'fail', 'a', '--reason', 'Again.'))
    assert bed.lock('a').reason == 'It kills.'


@pytest.mark.parametrize('command', [['release'], ['retry'], ['fail', '--reason', 'x']])
def test_work_in_progress_is_refused(bed: Bed, command: list[str]) -> None:
    living, engine = bed.engine(), bed.engine()
    bed.locks.acquire('a', 'build', None, engine)
    before = bed.lock('a')
    assert f'in progress under engine {engine} on host-1' in bed.refuse('lock', *command, 'a')
    if command[0] != 'fail':
        bed.die(engine, living)
        assert 'which is dead: the next engine that has room' in bed.refuse('lock', *command, 'a')
    with bed.database.autocommit() as connection:
        connection.execute(models.service.delete().where(models.service.c.engine_id == engine))
    assert 'has no service row' in bed.refuse('lock', *command, 'a')
    assert bed.lock('a') == before
    assert 'There is no lock b' in bed.refuse('lock', *command, 'b')


def test_work_that_an_ended_engine_has_left_may_be_given_up(bed: Bed) -> None:
    """Else a task that no engine has a handler for any more would stand there for ever."""
    living, engine = bed.engine(), bed.engine()
    bed.locks.acquire('a', 'build', None, engine)
    before = bed.lock('a')
    dead = bed.die(engine, living)
    assert bed.ask('lock', 'fail', 'a', '--reason', 'Gone.') == 'The lock a is failed: Gone.\n'
    after = bed.lock('a')
    assert (after.status, after.engine_id, after.generation) == (
        'failed', None, before.generation + 1)
    assert bed.locks.take_over(dead, living, 9, tainted=False) == []
    entry = Journal(bed.database).search(kind='operator')[-1]
    assert (entry.subject, entry.detail) == (
        'lock:a', {'from': 'in_progress', 'to': 'failed', 'reason': 'Gone.'})
    assert f'1. Engine {engine} died; an operator gave the work up.' in bed.ask('lock', 'show', 'a')
    bed.ask('lock', 'retry', 'a')
    said = bed.ask('lock', 'show', 'a')
    assert 'left by an operator for the next engine' in said
    assert f'1. Engine {engine} died; an operator gave the work up.' in said


def test_work_that_was_given_up_is_tried_again_by_engines_of_its_owners_kind(bed: Bed) -> None:
    living, engine = bed.engine(binary='mine', topic='t'), bed.engine(binary='mine', topic='t')
    bed.locks.acquire('a', 'build', None, engine)
    bed.die(engine, living)
    bed.ask('lock', 'fail', 'a', '--reason', 'Gone.')
    assert 'by the next mine (topic t) that has room' in bed.ask('lock', 'retry', 'a')


def test_a_lock_of_an_engine_whose_state_nobody_knows_is_refused_with_what_to_do(
        bed: Bed) -> None:
    engine = bed.engine()
    bed.locks.acquire('a', 'build', None, engine)
    with bed.database.autocommit() as connection:
        connection.execute(models.service.update().values(state='resting'))
    assert "whose state 'resting' nobody knows: if its process has ended, set its row" in (
        bed.refuse('lock', 'fail', 'a', '--reason', 'Gone.'))


def test_work_that_was_taken_over_meanwhile_is_not_given_up(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """I1."""
    living, engine = bed.engine(), bed.engine()
    bed.locks.acquire('a', 'build', None, engine)
    read = bed.lock('a')
    assert not bed.locks.settle(read, 'failed', 'Gone.'), 'its owner lives'
    assert bed.locks.take_over(bed.die(engine, living), living, 9, tainted=False)
    taken = bed.lock('a')
    monkeypatch.setattr(Locks, 'find', lambda self, name: read)
    assert 'was changed by somebody else' in bed.refuse(
        'lock', 'fail', 'a', '--reason', 'Gone.')
    monkeypatch.undo()
    assert bed.lock('a') == taken


@pytest.mark.parametrize('command', ['release', 'retry'])
def test_work_that_is_done_is_refused(bed: Bed, command: str) -> None:
    row = bed.locks.acquire('a', 'build', None, bed.engine())
    bed.locks.write(row, status='complete', engine_id=None)
    said = bed.refuse('lock', command, 'a')
    assert 'is complete: this can be done only with one that is quarantined or failed.' in said
    assert bed.lock('a').status == 'complete'


@pytest.mark.parametrize('command', ['release', 'retry'])
def test_a_lock_that_somebody_else_has_changed_is_left_as_it_is(
        bed: Bed, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.quarantine('a')
    read = bed.lock('a')
    bed.locks.settle(read, 'released', None)
    monkeypatch.setattr(Locks, 'find', lambda self, name: read)
    services = len(bed.members.all())
    assert 'was changed by somebody else at the same time' in bed.refuse('lock', command, 'a')
    monkeypatch.undo()
    assert bed.lock('a').status == 'released'
    assert len(bed.members.all()) == services


def test_retry_leaves_the_work_to_engines_of_the_last_owners_kind(bed: Bed) -> None:
    watcher = bed.engine(binary='mine', topic='t')
    owner = bed.engine(binary='mine', topic='t')
    bed.locks.acquire('a', 'build', None, owner)
    assert bed.locks.quarantine(bed.die(owner, watcher), watcher, 0)
    before = bed.lock('a')
    assert 'by the next mine (topic t) that has room' in bed.ask('lock', 'retry', 'a')
    after = bed.lock('a')
    assert (after.status, after.generation, after.takeovers) == (
        'in_progress', before.generation + 1, 0)
    left = bed.row(str(after.engine_id))
    assert (left.state, left.binary, left.topic, left.declared_by) == (
        'left', 'mine', 't', 'operator')
    said = bed.ask('lock', 'show', 'a')
    assert said.startswith('Lock a: in_progress, left by an operator for the next engine that ')
    assert 'An operator had the lock a (quarantined) tried again.' in said
    # It is somebody's now, if nobody's who lives.
    assert 'which is left' in bed.refuse('lock', 'retry', 'a')


def test_retry_says_when_nobody_is_there_to_do_it(bed: Bed) -> None:
    row = bed.locks.acquire('a', 'build', None, bed.engine(binary='another'))
    bed.locks.write(row, status='failed', reason='why', engine_id=None)
    assert 'none lives at present' in bed.ask('lock', 'retry', 'a')
    # No owner of it has ended, so it is for the engines that the configuration names.
    assert bed.row(str(bed.lock('a').engine_id)).binary == 'heat-liveness-agent'


class NoTimer:
    """A kernel timer that ends nothing."""

    def set(self, due_seconds: float) -> None:
        """Do nothing."""

    def disarm(self) -> None:
        """Do nothing."""


def test_work_tried_again_is_done_by_a_living_engine(bed: Bed) -> None:
    bed.quarantine('a')
    seen: list[tuple[int, int, Any]] = []

    def build(task: Task) -> None:
        seen.append((task.generation, task.takeovers, task.arguments))

    def work(context: Context) -> NativeWork:
        return NativeWork(context, {'build': build})

    identity = engines.Identity.new(host='h', hostname='h', binary='heat-liveness-agent',
                                    topic='liveness')
    live = agent.Liveness(identity, SETTINGS, Database(bed.url), work, timer=NoTimer())
    live.join()
    live.start()
    try:
        quarantined = bed.lock('a')
        assert 'has room' in bed.ask('lock', 'retry', 'a')
        wait_until(lambda: bed.lock('a').status == 'complete', 30, 'The end of the work')
    finally:
        live.stop()
    # One by the command, one by the takeover; and nobody is blamed for it.
    assert seen == [(quarantined.generation + 2, 0, {'steps': 3})]
    assert (f'An operator had it tried again; engine {identity.engine_id} took the work over.'
            in bed.ask('lock', 'show', 'a'))


def test_work_tried_again_is_taken_by_one_engine_only(bed: Bed) -> None:
    bed.quarantine('a')
    bed.ask('lock', 'retry', 'a')
    left = bed.row(str(bed.lock('a').engine_id))
    won = [bed.locks.take_over(left, bed.engine(), 10, tainted=False) for _ in range(3)]
    assert [len(rows) for rows in won] == [1, 0, 0]
    assert bed.lock('a').takeovers == 0


# The journal

def test_takeover_list_tells_what_happened(bed: Bed) -> None:
    first, second = bed.quarantine('a')
    said = bed.ask('takeover', 'list').splitlines()
    assert f'Engine {first} on host-1 was declared dead by engine' in said[0]
    assert f'Engine {second} took over from engine {first} the lock a.' in said[1]
    assert f'Engine {second} on host-1 was declared dead' in said[2]
    assert 'The lock a was quarantined' in said[3]
    assert [row['kind'] for row in bed.read('takeover', 'list')] == [
        'death', 'takeover', 'death', 'quarantine']
    assert [row['kind'] for row in bed.read('takeover', 'list', '--kind', 'death')] == [
        'death', 'death']
    assert [row['kind'] for row in bed.read('takeover', 'list', '--engine', first)] == [
        'death', 'takeover']
    status, said_of_one, complaint = bed.run('takeover', 'list', '--limit', 1)
    assert (status, complaint) == (0, 'Only the newest 1 are shown; see --limit.\n')
    told, = said_of_one.splitlines()
    assert 'The lock a was quarantined' in told
    assert 'death' in bed.ask('takeover', 'list', '-f', 'csv')
    assert bed.ask('takeover', 'list', '--kind', 'operator') == ''


def test_takeover_show_tells_one_with_its_details(bed: Bed) -> None:
    first, second = bed.quarantine('a')
    death, taken = bed.read('takeover', 'list', '--engine', first)
    assert '  watched_seconds: 24.5' in bed.ask('takeover', 'show', death['id'])
    said = bed.ask('takeover', 'show', taken['id']).splitlines()
    assert said[-1] == '  lock a: generation 2; owners that had died with it before: 0'
    assert bed.read('takeover', 'show', taken['id'])['taken_by'] == second
    assert 'There is no entry 4711' in bed.refuse('takeover', 'show', 4711)


# Servers that refuse

@pytest.mark.parametrize('arguments', [['lock', 'list'], ['db', 'check'], ['db', 'sync']])
def test_a_server_that_is_away_is_one_sentence(
        database_server: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str],
        arguments: list[str]) -> None:
    bed = Bed(database_server.create_database(), tmp_path, capfd)
    database_server.kill()
    assert 'cannot be reached' in bed.refuse(*arguments)


def test_an_account_without_rights_is_one_sentence(
        mariadb: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    bed = Bed(mariadb.create_database(), tmp_path, capfd)
    migration.sync(bed.database)
    bed.database.close()
    name = sa.make_url(bed.url).database
    mariadb.execute("CREATE OR REPLACE USER reader@'%' IDENTIFIED BY 'geheim'")
    mariadb.execute(f"GRANT SELECT ON {name}.{models.VERSION_TABLE} TO reader@'%'")
    url = sa.make_url(bed.url).set(username='reader', password='geheim')
    bed = Bed(url.render_as_string(hide_password=False), tmp_path, capfd)
    assert 'command denied' in bed.refuse('lock', 'list')
    assert 'command denied' in bed.refuse('service', 'list')
