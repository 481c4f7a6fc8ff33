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
"""Whatever an operator types: an exit status of 0, 1 or 2, no traceback, and nobody is harmed."""

import pathlib
import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heat_liveness import errors
from heat_liveness.cmd import demo, manage
from heat_liveness.db import database as databases
from heat_liveness.db import models
from heat_liveness.db.database import Database
from heat_liveness.db.locks import Locks
from heat_liveness.db.members import Members
from tests.bed.fuzz import bounded
from tests.unit import fakes

WORDS = st.sampled_from([
    'db', 'service', 'lock', 'takeover', 'recover', 'sync', 'drop', 'version', 'check', 'list',
    'show', 'clean', 'release', 'retry', 'fail', '--all', '--long', '-f', 'json', 'csv', 'value',
    'table', '--format=json', '--dry-run', '--once', '--stack', '--driver', 'native', '--limit',
    '0', '1', '-1', '9' * 30, '--status', 'quarantined', '--engine', 'e1', '--kind', 'death',
    '--reason', 'x', 'poison', 'work', '--', '-h', '--version', '--config-dir', '/nowhere',
    '--config-file', '/dev/null', '\udcff', '\0', 'ü', '', ' ', "'", '%s', '$x', '{0}', '-'])
COMMANDS = st.one_of(
    st.tuples(st.sampled_from(['lock']), st.sampled_from(['show', 'retry', 'release']),
              WORDS | st.text(max_size=9)).map(list),
    st.tuples(st.just('service'), st.just('show'), WORDS | st.text(max_size=9)).map(list),
    st.tuples(st.just('lock'), st.just('fail'), st.just('--reason'), st.text(max_size=9),
              st.sampled_from(['poison', 'work', 'none'])).map(list),
    st.tuples(st.just('takeover'), st.just('show'), st.integers().map(str)).map(list),
    st.lists(WORDS | st.text(max_size=5), max_size=7))


def status_of(program: object, arguments: list[str]) -> object:
    try:
        return program.main(arguments)  # type: ignore[attr-defined]
    except SystemExit as ended:
        return ended.code


@pytest.fixture
def there(tmp_path: pathlib.Path) -> pathlib.Path:
    """A database in which one engine beats and works, and one lock is quarantined."""
    database = Database(f'sqlite:///{tmp_path}/liveness.sqlite')
    models.metadata.create_all(database.engine)
    with database.transaction() as connection:
        connection.exec_driver_sql(
            f'CREATE TABLE {models.VERSION_TABLE} (version_num VARCHAR(32))')
        connection.exec_driver_sql(
            f"INSERT INTO {models.VERSION_TABLE} VALUES ('{models.VERSION}')")
    members, locks = Members(database), Locks(database)
    for name in ('e1', 'e2'):
        members.insert(fakes.identity(name), 4, 20)
    locks.acquire('work', 'task', None, 'e1')
    locks.acquire('poison', 'task', None, 'e2')
    row = members.read('e2')
    assert row is not None
    assert members.declare(row, 'e1', 'watched', False, {})
    row = members.read('e2')
    assert row is not None
    assert locks.quarantine(row, 'e1', 0)
    database.close()
    (tmp_path / 'c.conf').write_text(
        f'[database]\nconnection = sqlite:///{tmp_path}/liveness.sqlite\n')
    return tmp_path


def living(there: pathlib.Path) -> list[object]:
    with sqlite3.connect(there / 'liveness.sqlite') as connection:
        return [connection.execute(statement).fetchall() for statement in (
            "SELECT * FROM liveness_service WHERE engine_id = 'e1'",
            "SELECT * FROM liveness_lock WHERE name = 'work'",
            f'SELECT * FROM {models.VERSION_TABLE}')]


@bounded(120)
@given(COMMANDS)
# What a shell passes on where the operator typed a byte that is no UTF-8.
@example(['service', 'show', '\udcff'])
@example(['lock', 'fail', 'poison', '--reason', '\udcff'])
@example(['lock', 'show', '\0'])
def check_commands(there: pathlib.Path, said: pytest.CaptureFixture[str],
                   command: list[str]) -> None:
    before = living(there)
    status = status_of(manage, ['--config-file', str(there / 'c.conf'), *command])
    complaint = said.readouterr().err
    assert status in {0, 1, 2}
    assert 'Traceback' not in complaint
    assert status != 1 or complaint.startswith('heat-liveness-manage: ')
    assert living(there) == before


def test_no_command_ends_in_a_traceback_or_touches_the_living(
        there: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_commands(there, capfd)


DEMO = st.lists(st.sampled_from([
    '--engines', '--kill', '--stop', '--seed', '--time-limit', '--database', '--config-file',
    '--no-live', '--template', 'webshop/', '0', '1', '5', '-1', 'x', '9' * 30, '', 'sqlite://',
    'sqlite:////nowhere/x', '/nowhere', '/dev/null', '\udcff', '\0', '--', '%s']), max_size=6)


@bounded(80)
@given(DEMO)
def check_demo(said: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    status = status_of(demo, [*arguments, '--template=/nowhere'])
    assert status == 2
    assert 'Traceback' not in said.readouterr().err


def test_what_the_demo_cannot_play_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    check_demo(capfd)


QUERY = st.lists(st.just('password=geheim') | st.builds('{}={}'.format, st.sampled_from([
    'client_flag', 'local_infile', 'timeout', 'ssl_ca', 'ssl', 'sslmode', 'charset', 'port', 'host',
    'plugin', 'isolation_level', 'use_unicode', 'cached_statements', 'odd', 'unix_socket',
    'read_timeout', 'check_same_thread', 'detect_types', 'uri']), st.sampled_from([
        'x', '', '1', '-1', 'true', 'a:b:c', '/nowhere', '\0', '%zz', 'ü'])),
    max_size=3).map('&'.join)
URLS = st.builds('{}://{}{}/{}?{}'.format, st.sampled_from(
    ['mysql', 'mariadb', 'postgresql', 'sqlite', 'mysql+pymysql', 'mysql+odd', 'oracle']),
    st.sampled_from(['', 'u:geheim@h', 'u:geheim@[::1]', 'h']), st.sampled_from(['', ':1', ':x']),
    st.sampled_from(['d', '', '/d', ':memory:']), QUERY)
PARTS = st.sampled_from([
    'mysql', 'postgresql', 'sqlite', 'mariadb', 'oracle', '+pymysql', '+odd', '://', ':///', '/',
    'u:geheim@', '@', 'host', '[::1]', '[', ':3306', ':port', ':99999999', '?', '&', '=', 'ssl_ca',
    'ssl=x', 'client_flag=x', 'local_infile=x', 'timeout=x', 'sslmode=odd', 'charset=odd', 'port=x',
    'host=a:b:c', 'plugin=x', 'password=geheim', '%', '%zz', '\0', '\udcff', 'ü', ' ', '#'])


@bounded(400)
@given(URLS | st.lists(PARTS, max_size=9).map(''.join),
       QUERY | st.lists(PARTS, max_size=4).map(''.join))
def test_a_url_is_taken_or_refused_without_its_password(url: str, parameters: str) -> None:
    try:
        database = Database(url, parameters=parameters)
    except errors.ConfigError as error:
        refusal = str(error)
        database = None
    if database is None:
        assert 'geheim' not in refusal
        return
    assert 'geheim' not in database.name
    assert databases.parse_url(url, parameters) == database.url
    database.close()
