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

"""The demo as a user sees it: processes, an exit status, and nothing left behind."""

import contextlib
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import pytest
import sqlalchemy as sa

from heat_liveness.cmd import demo
from heat_liveness.cmd.demo import run
from heat_liveness.db import models
from tests.bed import processes, server
from tests.bed.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

ROOT = pathlib.Path(__file__).parents[2]
RUN_SECONDS = 200


class Demo:
    """A running demo."""

    def __init__(self, directory: pathlib.Path, *arguments: str) -> None:
        self.log = directory / 'output'
        # What the demo keeps for later, it keeps where the test can see it.
        paths = os.pathsep.join([str(directory), str(ROOT)])
        environment = {**os.environ, 'TMPDIR': str(directory), 'PYTHONPATH': paths}
        with self.log.open('wb') as log:
            self.process = processes.spawn(
                [sys.executable, '-m', 'heat_liveness.cmd.demo', *arguments], cwd=ROOT,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def engines(self) -> list[int]:
        return processes.descendants(self.process.pid)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, RUN_SECONDS,
                   f'{text!r} in the output')
        assert text in self.output

    def wait(self) -> int:
        return self.process.wait(RUN_SECONDS)


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Callable[..., Demo]:
    """Start a demo, which is ended with the test, and so are its engines."""
    return lambda *arguments: Demo(tmp_path, *arguments)


def ended(pids: Sequence[int]) -> bool:
    return not any(processes.is_alive(pid) for pid in pids)


def test_the_survivors_finish_what_the_dead_have_begun(
        play: Callable[..., Demo], database_url: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / 'demo.conf'
    file.write_text(f'[database]\nconnection = {database_url}\n')
    running = play('--template', 'webshop', '--seed', '5', '--config-file', str(file))
    engines = wait_until(lambda: len(running.engines) == 4 and running.engines, 30, 'The start')
    for pid in engines:
        for name in ('cmdline', 'environ'):
            assert server.PASSWORD.encode() not in pathlib.Path(f'/proc/{pid}/{name}').read_bytes()
    assert running.wait() == 0, running.output
    output = running.output
    assert len(re.findall(r'is killed \(kill -9\)', output)) == 1
    assert len(re.findall(r'is stopped \(SIGSTOP\)', output)) == 1
    assert len(re.findall(r'declares engine-\d dead, [\d.]+ s after it was hit', output)) == 2
    assert re.search(r'resources done +│ +22 │ +22 ', output)
    assert re.search(r'steps applied by the cloud +│ +88 │ +88 ', output)
    assert 'Verdict: ok ' in output.splitlines()[-1]
    assert server.PASSWORD not in output
    # The killed one stays away, the stopped one is replaced.
    assert re.search(r'The supervisor of engine-\d starts engine-5\.', output)
    assert 'engine-6' not in output
    assert not list(running.log.parent.glob('heat-liveness-demo-*'))
    assert_nothing_is_left(database_url)


def assert_nothing_is_left(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        for table in (*models.metadata.tables, 'liveness_demo_resource', 'liveness_demo_call'):
            count = connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table)))
            assert count == 0, table
    engine.dispose()


@pytest.mark.sqlite
def test_an_engine_that_no_timer_ends_ends_itself_when_it_is_continued(
        play: Callable[..., Demo], tmp_path: pathlib.Path) -> None:
    (tmp_path / 'sitecustomize.py').write_text(
        'from heat_liveness import fence\n'
        'fence.KernelTimer.set = lambda self, due_seconds: None\n')
    running = play('--template', 'webshop', '--seed', '5', '--kill', '0')
    # Not the verdict: without its timer an engine may wake up between the gate and a call.
    running.wait()
    stopped = re.search(r'(engine-\d) is stopped', running.output)
    assert stopped, running.output
    assert f'declares {stopped[1]} dead' in running.output
    assert 'its beats stayed away' in running.output
    assert f'{stopped[1]} is continued (SIGCONT).' in running.output
    assert f'{stopped[1]} has learnt that it was declared dead, and ended.' in running.output
    assert f'The supervisor of {stopped[1]} starts engine-5.' in running.output


@pytest.mark.sqlite
def test_a_database_that_hangs_for_longer_than_the_fence_costs_nobody_an_engine(
        play: Callable[..., Demo], tmp_path: pathlib.Path) -> None:
    """I11: they hold, and go on."""
    database = tmp_path / 'hanging.sqlite'
    running = play('--template', 'webshop', '--kill', '0', '--stop', '0',
                   '--database', f'sqlite:///{database}')
    running.wait_for('the work begins')
    with contextlib.closing(sqlite3.connect(database, 30, isolation_level=None)) as hanging:
        hanging.execute('BEGIN IMMEDIATE')
        logs = list(tmp_path.glob('heat-liveness-demo-*/engine-*.log'))
        assert len(logs) == 4
        wait_until(lambda: all('holds: no beat has reached' in log.read_text() for log in logs)
                   or ended(running.engines), 30, 'The hold of all engines')
        # Until the kernel timers would be due, and not so long that the beats give up.
        time.sleep(1.2)
        hanging.execute('ROLLBACK')
    assert running.wait() == 0, running.output
    assert 'Nobody died.' in running.output


@pytest.mark.sqlite
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_engine_behind(
        play: Callable[..., Demo], number: signal.Signals) -> None:
    running = play('--seed', '5', '--kill', '0', '--time-limit', '100')
    running.wait_for('is stopped (SIGSTOP)')
    engines = running.engines
    assert len(engines) == 4
    running.process.send_signal(number)
    assert running.wait() == demo.EXIT_INTERRUPTED
    assert ended(engines)
    assert 'Interrupted; all engines are ended.' in running.output
    assert not list(running.log.parent.glob('heat-liveness-demo-*'))
    assert 'Traceback' not in running.output


@pytest.mark.sqlite
def test_engines_whose_demo_was_killed_leave(play: Callable[..., Demo]) -> None:
    running = play('--template', 'webshop', '--kill', '0', '--stop', '0')
    running.wait_for('the work begins')
    engines = running.engines
    assert len(engines) == 4
    running.process.kill()
    wait_until(lambda: ended(engines), 60, 'The end of the engines')


@pytest.mark.sqlite
def test_a_run_that_takes_too_long_is_given_up(
        play: Callable[..., Demo], tmp_path: pathlib.Path) -> None:
    running = play('--time-limit', '10')
    running.wait_for('the work begins')
    engines = running.engines
    assert running.wait() == demo.EXIT_NOT_OK
    assert ended(engines)
    assert 'Verdict: NOT FINISHED' in running.output
    (kept,) = tmp_path.glob('heat-liveness-demo-*')
    assert f'What the engines said is kept in {kept}.' in running.output
    assert (kept / 'engine-1.log').is_file()


@pytest.mark.sqlite
def test_an_engine_that_fails_for_another_reason_ends_the_demo(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(run.engine, '__name__', 'heat_liveness.nothing')
    assert demo.main(['--no-live']) == demo.EXIT_NOT_OK
    assert re.search(r'engine-\d failed with status 1: .*No module named', capsys.readouterr().err)


def status_of(arguments: list[str]) -> object:
    try:
        return demo.main(arguments)
    except SystemExit as exit_of_argparse:
        return exit_of_argparse.code


@pytest.mark.parametrize(('arguments', 'status', 'message'), [
    (['--template', '/nowhere.yaml'], 2, 'The template /nowhere.yaml cannot be read'),
    (['--template', '/dev/null'], 2, 'it is not a mapping with heat_template_version'),
    (['--kill', '2', '--stop', '2'], 2, 'leave none of 4 engines unharmed'),
    (['--engines', '0'], 2, 'no whole number from 2 to 32'),
    (['--seed', 'x'], 2, 'invalid int value'),
    (['--database', 'oracle://u:secret@h/d'], 2, "names the database 'oracle'"),
    (['--database', 'secret'], 2, 'is not a database URL'),
    (['--database', 'mysql://u:secret@h/d'], 2, 'A command line is no place for a password'),
    (['--database', 'postgresql://h/d?password=secret'], 2, 'no place for a password'),
    (['--database', 'sqlite:///x?timeout=long'], 2, 'cannot be used'),
    (['--database', 'sqlite:///x', '--config-file', 'x'], 2, 'not allowed with'),
    (['--config-file', '/no/such'], 2, 'The configuration cannot be read'),
    (['--config-file', os.devnull], 2, 'There is no database'),
    (['--database', 'sqlite://'], 2, 'SQLite database in memory'),
    (['--database', 'mysql+pymysql://u@127.0.0.1:9/d'], 1, 'cannot be reached'),
    (['--database', 'postgresql+psycopg://u@127.0.0.1:9/d'], 1, 'cannot be reached'),
    (['--database', 'sqlite:////nowhere/at/all.sqlite'], 1, 'cannot be reached'),
])
def test_what_cannot_be_played_is_said_in_a_sentence(
        capsys: pytest.CaptureFixture[str], arguments: list[str], status: int,
        message: str) -> None:
    assert status_of(['--no-live', *arguments]) == status
    said = capsys.readouterr()
    assert message in said.err
    assert 'secret' not in said.err + said.out


def test_a_seed_decides_who_is_hit_and_when() -> None:
    def strokes(seed: int) -> list[run.Stroke]:
        return run.Plan(engines=8, kill=2, stop=3, seed=seed, time_limit=60).strokes()

    assert strokes(1) == strokes(1)
    assert strokes(1) != strokes(2)
    for seed in range(20):
        drawn = strokes(seed)
        assert [stroke.blow for stroke in drawn].count(signal.SIGKILL) == 2
        assert len({stroke.name for stroke in drawn}) == 5
        assert all(run.EARLIEST <= stroke.due <= run.LATEST for stroke in drawn)
