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

"""The test bed keeps its own promises; a test that stands on a bad one proves nothing."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures

import pytest
import sqlalchemy as sa

from tests.bed import mariadb, processes, server, waiting
from tests.bed.server import Server

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def database(database_server: Server) -> Iterator[sa.Engine]:
    """An engine on an empty database of each server."""
    engine = sa.create_engine(database_server.create_database(), pool_pre_ping=True)
    yield engine
    engine.dispose()


def answer(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.text('SELECT 42'))


def uid_of(pid: int) -> int:
    return pathlib.Path(f'/proc/{pid}').stat().st_uid


def name_of(pid: int) -> str:
    return pathlib.Path(f'/proc/{pid}/comm').read_text().strip()


def test_databases_are_empty_and_apart(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE t (id INTEGER PRIMARY KEY)'))
    assert sa.inspect(engine).get_table_names() == ['t']
    engine.dispose()


def test_a_second_database_knows_nothing_of_the_first(database_server: Server) -> None:
    first, second = database_server.create_database(), database_server.create_database()
    engine = sa.create_engine(first)
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE t (id INTEGER PRIMARY KEY)'))
    engine.dispose()
    engine = sa.create_engine(second)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_the_password_counts(database_server: Server) -> None:
    url = sa.make_url(database_server.create_database()).set(password='wrong')
    with pytest.raises(sa.exc.OperationalError):
        answer(sa.create_engine(url))


def test_a_database_in_use_can_be_dropped(database_server: Server) -> None:
    url = database_server.create_database()
    engine = sa.create_engine(url)
    connection = engine.connect()
    assert connection.scalar(sa.text('SELECT 42')) == 42
    database_server.drop_database(url)
    with pytest.raises(sa.exc.OperationalError):
        connection.scalar(sa.text('SELECT 42'))
    connection.invalidate()
    with pytest.raises(sa.exc.OperationalError):
        answer(engine)


def test_no_process_of_a_server_runs_as_root(database_server: Server) -> None:
    family = [database_server.pid, *processes.descendants(database_server.pid)]
    assert all(uid_of(pid) != 0 for pid in family)


def test_a_frozen_server_hangs_its_clients_until_it_thaws(
        database_server: Server, database: sa.Engine) -> None:
    assert answer(database) == 42
    with futures.ThreadPoolExecutor() as pool:
        database_server.freeze()
        late = pool.submit(answer, database)
        with pytest.raises(TimeoutError):
            late.result(timeout=0.5)
        database_server.thaw()
        assert late.result(timeout=10) == 42


def test_a_frozen_server_can_be_stopped_and_killed(database_server: Server) -> None:
    database_server.freeze()
    database_server.stop()
    assert not database_server.running
    database_server.start()
    database_server.freeze()
    database_server.kill()
    assert not database_server.running


def test_a_killed_server_keeps_its_port_and_what_it_had_committed(
        database_server: Server, database: sa.Engine) -> None:
    with database.begin() as connection:
        connection.execute(sa.text('CREATE TABLE t (id INTEGER PRIMARY KEY)'))
        connection.execute(sa.text('INSERT INTO t VALUES (7)'))
    family = [database_server.pid, *processes.descendants(database_server.pid)]
    port = database_server.port
    database_server.kill()
    assert not any(processes.is_alive(pid) for pid in family)
    with pytest.raises(sa.exc.OperationalError):
        answer(database)
    database_server.start()
    assert database_server.port == port
    with database.connect() as connection:
        assert connection.scalar(sa.text('SELECT id FROM t')) == 7


def test_a_restarted_server_answers(database_server: Server, database: sa.Engine) -> None:
    before = database_server.pid
    database_server.restart()
    assert database_server.pid != before
    assert answer(database) == 42


@pytest.mark.parametrize('harm', ['freeze', 'stop', 'kill'])
def test_healing_undoes_every_harm(
        database_server: Server, database: sa.Engine, harm: str) -> None:
    getattr(database_server, harm)()
    database_server.heal()
    assert answer(database) == 42


@pytest.mark.mariadb
def test_a_server_takes_another_port_when_its_own_is_taken(
        mariadb_server: mariadb.MariaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    free = server.free_port
    ports = [mariadb_server.port]
    monkeypatch.setattr(server, 'free_port', lambda: ports.pop() if ports else free())
    second = mariadb.MariaDB.create()
    assert second.port != mariadb_server.port
    second.destroy()
    assert not second.directory.exists()
    assert mariadb_server.answers()


def test_a_missing_server_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.shutil, 'which', lambda *args, **kwargs: None)
    with pytest.raises(server.MissingProgram, match='mariadbd is not installed; `make test`'):
        mariadb.MariaDB.create()


def test_a_server_that_cannot_start_shows_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb.MariaDB, '_prepare', lambda self: None)
    monkeypatch.setattr(
        mariadb.MariaDB, '_command', lambda self: ['sh', '-c', 'echo no disk left; exit 1'])
    with pytest.raises(server.DoesNotStart, match='no disk left'):
        mariadb.MariaDB.create()


def test_a_spawned_process_dies_with_the_tests_even_when_they_are_killed() -> None:
    program = (
        'from tests.bed import processes\n'
        "print(processes.spawn(['sleep', '300']).pid, flush=True)\n"
        'import signal; signal.pause()\n')
    with subprocess.Popen(
            [sys.executable, '-c', program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as tests:
        assert tests.stdout is not None
        child = int(tests.stdout.readline())
        waiting.wait_until(lambda: name_of(child) == 'sleep', 10, 'The start of the child')
        tests.send_signal(signal.SIGKILL)
    waiting.wait_until(lambda: not processes.is_alive(child), 10, 'The end of the child')


def test_a_spawned_process_outlives_the_thread_that_asked_for_it() -> None:
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(target=lambda: started.append(processes.spawn(['sleep', '300'])))
    thread.start()
    thread.join()
    (process,) = started
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    processes.kill(process)


def test_freezing_and_killing_reach_the_children() -> None:
    process = processes.spawn(['sh', '-c', 'setsid sleep 300 & wait'])
    (child,) = waiting.wait_until(
        lambda: processes.descendants(process.pid), 10, 'The start of a child')
    processes.freeze(process.pid)
    assert pathlib.Path(f'/proc/{child}/stat').read_text().split()[2] in 'Tt'
    processes.kill(process)
    assert not processes.is_alive(child)
    processes.kill(process)


def test_an_unprivileged_process_is_not_root() -> None:
    process = processes.spawn(['id', '-u'], stdout=subprocess.PIPE, **processes.unprivileged())
    assert int(process.communicate()[0]) == (os.geteuid() or uid_of_nobody())


def uid_of_nobody() -> int:
    return processes.unprivileged()['user']


def test_waiting_returns_what_was_waited_for() -> None:
    answers = iter([None, '', 'now'])
    assert waiting.wait_until(lambda: next(answers), 5, 'An answer') == 'now'


def test_waiting_ends_with_a_sentence() -> None:
    with pytest.raises(AssertionError, match=r'^The thaw did not happen within 0\.1 s\.$'):
        waiting.wait_until(lambda: False, 0.1, 'The thaw')
