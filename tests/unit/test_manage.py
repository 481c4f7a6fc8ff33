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

"""The command refuses what it cannot use: a sentence and exit status 1 or 2, never a traceback."""

import contextlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from heat_liveness.cmd import manage
from heat_liveness.db import migration, models


def configure(folder: pathlib.Path, body: str) -> list[str]:
    file = folder / 'manage.conf'
    file.write_text(body)
    return ['--config-file', str(file)]


def database(folder: pathlib.Path) -> list[str]:
    return configure(folder, f'[database]\nconnection = sqlite:///{folder}/liveness.sqlite\n')


@pytest.mark.parametrize('arguments', [
    [], ['service'], ['nonsense'], ['service', 'nonsense'], ['service', 'list', '-f', 'xml'],
    ['lock', 'show'], ['lock', 'fail', 'x'], ['lock', 'list', '--limit', '0'],
    ['lock', 'list', '--status', 'odd'], ['takeover', 'list', '--kind', 'odd'],
    ['takeover', 'show', 'x'],
    ['takeover', 'show', str(2**63)], ['--bogus', 'db', 'check'],
])
def test_wrong_usage_is_status_2(
        arguments: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        manage.main([*database(tmp_path), *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert 'usage: heat-liveness-manage' in said.err
    assert said.out == ''


@pytest.mark.parametrize('arguments', [
    ['--help'], ['db', '--help'], ['service', 'list', '--help'], ['lock', 'fail', '--help']])
def test_help_needs_no_database(
        arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        manage.main(['--config-file', os.devnull, *arguments])
    assert ended.value.code == 0
    assert 'usage: heat-liveness-manage' in capsys.readouterr().out


@pytest.mark.parametrize(('body', 'words'), [
    ('', 'There is no database: set [database] connection'),
    ('[database]\nconnection = here\n', 'is not a database URL'),
    ('[database]\nconnection = oracle://u:geheim@h/d\n', "names the database 'oracle'"),
    ('[database]\nconnection = mysql://u:geheim@h:port/d\n', 'is not a database URL'),
    ('[database]\nconnection = mysql://u:x@geheim@h/d\n', 'write one in a password as %40'),
    ('[database]\nconnection = mysql://u:geheim@h/d?no_such=1\n', 'no_such'),
    ('[database]\nconnection = mysql://u:geheim@127.0.0.1:1/d\n', 'cannot be reached'),
    ('[database]\nconnection = postgresql://u:geheim@127.0.0.1:1/d\n', 'cannot be reached'),
    ('[database]\nconnection = sqlite:////no/such/place\n', 'cannot be reached'),
    ('[database]\nconnection = $nothing\n', 'nothing'),
    ('[database\n', 'The configuration cannot be read'),
    ('[liveness]\nfence_time = soon\n', 'fence_time'),
    ('[liveness]\nfence_time = 29.5\n', 'set service_down_time to'),
])
def test_a_bad_configuration_is_one_sentence(
        body: str, words: str, tmp_path: pathlib.Path,
        capfd: pytest.CaptureFixture[str]) -> None:
    assert manage.main([*configure(tmp_path, body), 'service', 'list']) == 1
    said = capfd.readouterr()
    assert said.out == ''
    assert said.err.startswith('heat-liveness-manage: ')
    assert said.err.count('\n') == 1
    assert words in said.err
    assert 'geheim' not in said.err


@pytest.mark.parametrize('file', ['no/such/file', '.', 'bytes'])
def test_a_file_that_cannot_be_read_is_one_sentence(
        file: str, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe')
    assert manage.main(['--config-file', str(tmp_path / file), 'db', 'check']) == 1
    assert capfd.readouterr().err.startswith(
        'heat-liveness-manage: The configuration cannot be read')


@pytest.mark.parametrize('arguments', [
    ['service', 'list'], ['lock', 'list'], ['takeover', 'list'], ['db', 'version'],
    ['db', 'check']])
def test_missing_tables_are_told_with_the_command_that_makes_them(
        arguments: list[str], tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert manage.main([*database(tmp_path), *arguments]) == 1
    said = capfd.readouterr()
    assert said.out == ''
    assert 'The tables are missing in sqlite' in said.err
    assert 'run "heat-liveness-manage db sync".' in said.err


def test_a_file_that_may_only_be_read_is_one_sentence(
        tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / 'liveness.sqlite')) as connection:
        connection.execute('PRAGMA journal_mode = WAL')
    arguments = configure(tmp_path, '[database]\nconnection = '
                          f'sqlite:///file:{tmp_path}/liveness.sqlite?mode=ro&uri=true\n')
    assert manage.main([*arguments, 'db', 'sync']) == 1
    said = capfd.readouterr()
    assert said.out == ''
    assert 'refused: attempt to write a readonly database.' in said.err
    assert said.err.count('\n') == 1


def test_the_quick_question_knows_the_newest_revision() -> None:
    assert migration.head() == models.VERSION


def program(*arguments: str, stdout: int = subprocess.PIPE) -> 'subprocess.Popen[str]':
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-m', 'heat_liveness.cmd.manage', *arguments],
        stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_as_a_process_it_says_what_it_does(tmp_path: pathlib.Path) -> None:
    sync = program(*database(tmp_path), 'db', 'sync')
    said, complaint = sync.communicate(timeout=60)
    assert (sync.returncode, complaint) == (0, '')
    assert said == (f'The tables are made in sqlite+pysqlite:///{tmp_path}/liveness.sqlite, '
                    f'version {models.VERSION}.\n')
    show = program(*database(tmp_path), 'service', 'show', 'nobody')
    said, complaint = show.communicate(timeout=60)
    assert (show.returncode, said) == (1, '')
    assert complaint == ('heat-liveness-manage: There is no engine nobody; see '
                         '"service list --all".\n')


def test_as_a_process_it_shows_nothing_of_what_libraries_log(tmp_path: pathlib.Path) -> None:
    failing = program(*configure(
        tmp_path, '[database]\nconnection = postgresql://u:geheim@127.0.0.1:1/d?no_such=1\n'),
        'lock', 'list')
    said, complaint = failing.communicate(timeout=60)
    assert (failing.returncode, said) == (1, '')
    assert complaint.startswith('heat-liveness-manage: The database ')
    assert complaint.count('\n') == 1


def test_a_reader_that_has_read_enough_is_no_error(tmp_path: pathlib.Path) -> None:
    assert manage.main([*database(tmp_path), 'db', 'sync']) == 0
    reader, writer = os.pipe()
    os.close(reader)
    listing = program(*database(tmp_path), 'service', 'list', stdout=writer)
    os.close(writer)
    _, complaint = listing.communicate(timeout=60)
    assert complaint == ''
    assert listing.returncode == 0


def test_an_interrupt_ends_it_without_a_traceback(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(manage, '_run', interrupt)
    assert manage.main([*database(tmp_path), 'service', 'list']) == 1


def test_neither_alembic_nor_the_table_is_loaded_where_it_is_not_used(
        tmp_path: pathlib.Path) -> None:
    assert manage.main([*database(tmp_path), 'db', 'sync']) == 0
    code = ('import sys; from heat_liveness.cmd import manage; '
            f"assert manage.main({[*database(tmp_path), 'service', 'list']!r}) == 0; "
            "print([name for name in ('alembic', 'prettytable', 'oslo_service') "
            'if name in sys.modules])')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True,
                          text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == '[]'


@pytest.fixture
def sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_recover_leaves_when_it_is_told_to_end(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, sigterm: None) -> None:
    from stevedore import driver

    left = []

    def recover(*arguments: object, **options: object) -> str:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            left.append(options['only'])
        return 'not reached'

    def manager(*arguments: object) -> Any:
        return types.SimpleNamespace(driver=recover)

    monkeypatch.setattr(driver, 'DriverManager', manager)
    assert manage.main([*database(tmp_path), 'db', 'sync']) == 0
    assert manage.main([*database(tmp_path), 'recover', '--once', '--stack', 's1']) == 1
    assert left == ['s1']
