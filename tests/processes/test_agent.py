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

"""heat-liveness-agent as systemd and an operator meet it: signals, reloads, bad options."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from heat_liveness.db import migration
from heat_liveness.db.database import Database
from heat_liveness.db.locks import LockRow, Locks
from heat_liveness.db.members import Members, ServiceRow
from tests.bed import processes
from tests.bed.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.sqlite]

OPTIONS = {'report_interval': '0.3', 'fence_time': '3', 'service_down_time': '8',
           'scan_interval': '0.2', 'beat_retry': '0.1', 'connect_timeout': '0.2',
           'read_timeout': '0.3', 'database_stall_time': '0', 'stall_time': '1',
           'purge_after': '600'}

TASKS = '''
import pathlib, time

def wait(task):
    """Go on until a file appears, so that a test decides how long the work takes."""
    while not pathlib.Path(task.arguments).exists():
        time.sleep(0.05)
        task.record(task.generation)
'''


class Agent:
    """A running heat-liveness-agent over a database of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.url = f'sqlite:///{folder}/data/liveness.db'
        self.log = folder / 'agent.log'
        self.process: subprocess.Popen[bytes] | None = None
        # What an installed package would say: here are handlers.
        (folder / 'tasks-1.dist-info').mkdir()
        (folder / 'tasks-1.dist-info' / 'METADATA').write_text('Name: tasks\nVersion: 1\n')
        (folder / 'tasks-1.dist-info' / 'entry_points.txt').write_text(
            '[heat_liveness.tasks]\nwait = liveness_test_tasks:wait\n')
        (folder / 'liveness_test_tasks.py').write_text(TASKS)
        self.configure()

    def sync(self) -> None:
        (self.folder / 'data').mkdir()
        migration.sync(Database(self.url, read_timeout=90))

    def configure(self, **options: str) -> None:
        lines = [f'{name} = {value}' for name, value in {**OPTIONS, **options}.items()]
        (self.folder / 'agent.conf').write_text(
            f'[database]\nconnection = {self.url}\n[liveness]\n' + '\n'.join(lines) + '\n')

    def start(self, **environment: str) -> None:
        with self.log.open('wb') as log:
            self.process = processes.spawn(self.command, stdout=log, stderr=log, env={
                **os.environ, 'PYTHONPATH': str(self.folder), **environment})

    @property
    def command(self) -> list[str]:
        return [sys.executable, '-W', 'ignore', '-m', 'heat_liveness.cmd.agent',
                '--config-file', str(self.folder / 'agent.conf')]

    def run_to_its_end(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command, capture_output=True, text=True, timeout=60,
                              check=False)

    @property
    def rows(self) -> list[ServiceRow]:
        return Members(Database(self.url)).all()

    @property
    def up(self) -> list[ServiceRow]:
        return [row for row in self.rows if row.state == 'up']

    def wait_until_up(self, number: int) -> list[ServiceRow]:
        wait_until(lambda: len(self.up) == number, 30, f'The start of {number} engines')
        return self.up

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_for_exit(self) -> int:
        assert self.process is not None
        return self.process.wait(60)


@pytest.fixture
def agent(tmp_path: pathlib.Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    if agent.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(agent.process.pid, signal.SIGKILL)
        agent.process.wait()


def give_work(agent: Agent, engine: ServiceRow) -> pathlib.Path:
    """Let an engine own a task that lasts until the returned file exists."""
    done = agent.folder / 'done'
    locks = Locks(Database(agent.url))
    # The engine finds it as its own, as it finds whatever it owns and does not run.
    locks.acquire('long', 'wait', str(done), engine.engine_id)
    wait_until(lambda: row(agent).progress is not None, 60, 'The first progress of the task')
    return done


def row(agent: Agent) -> LockRow:
    found = Locks(Database(agent.url)).find('long')
    assert found is not None
    return found


def test_each_worker_is_an_engine_and_leaves_on_sigterm(agent: Agent) -> None:
    agent.sync()
    agent.configure(workers='2')
    agent.start()
    agent.wait_until_up(2)
    agent.signal(signal.SIGTERM)
    assert agent.wait_for_exit() == 0
    assert [row.state for row in agent.rows] == ['left', 'left']


def test_sigterm_waits_for_the_task_and_the_beats_go_on(agent: Agent) -> None:
    agent.sync()
    agent.start()
    engine, = agent.wait_until_up(1)
    done = give_work(agent, engine)
    agent.signal(signal.SIGTERM)
    wait_until(lambda: agent.rows[0].state == 'draining', 30, 'The drain')
    beats = agent.rows[0].report_count
    wait_until(lambda: agent.rows[0].report_count > beats + 2, 30, 'A beat while it drains')
    assert row(agent).engine_id == engine.engine_id
    done.touch()
    assert agent.wait_for_exit() == 0
    assert row(agent).status == 'complete'
    assert agent.rows[0].state == 'left'


def test_the_task_of_a_killed_worker_is_finished_by_the_others(agent: Agent) -> None:
    agent.sync()
    agent.configure(workers='2')
    agent.start()
    victim, _ = agent.wait_until_up(2)
    done = give_work(agent, victim)
    os.kill(victim.process.pid, signal.SIGKILL)
    wait_until(lambda: row(agent).engine_id not in {victim.engine_id, None}, 30, 'The takeover')
    done.touch()
    wait_until(lambda: row(agent).status == 'complete', 30, 'The end of the task')
    assert row(agent).takeovers == 1
    # The master has started another worker, under another name.
    assert victim.engine_id not in {engine.engine_id for engine in agent.wait_until_up(2)}
    dead = next(engine for engine in agent.rows if engine.engine_id == victim.engine_id)
    assert (dead.state, dead.evidence) == ('dead', 'kernel')


def test_who_works_still_when_its_time_to_stop_is_over_leaves_and_its_work_is_not_blamed(
        agent: Agent) -> None:
    """oslo.service ends it otherwise, and the others find it dead."""
    agent.sync()
    with (agent.folder / 'agent.conf').open('a') as file:
        file.write('[DEFAULT]\ngraceful_shutdown_timeout = 2\n')
    agent.start()
    engine, = agent.wait_until_up(1)
    done = give_work(agent, engine)
    agent.signal(signal.SIGHUP)
    wait_until(lambda: row(agent).engine_id not in {engine.engine_id, None}, 60, 'The takeover')
    old = next(each for each in agent.rows if each.engine_id == engine.engine_id)
    assert (old.state, row(agent).takeovers) == ('left', 0)
    done.touch()
    wait_until(lambda: row(agent).status == 'complete', 30, 'The end of the task')


def test_workers_leave_when_their_master_is_killed(agent: Agent) -> None:
    agent.sync()
    agent.start()
    engine, = agent.wait_until_up(1)
    agent.signal(signal.SIGKILL)
    wait_until(lambda: agent.rows[0].state == 'left', 30, 'The worker to leave')
    wait_until(lambda: not processes.is_alive(engine.process.pid), 30, 'The end of the worker')


def test_sighup_starts_new_engines_with_the_new_options(agent: Agent) -> None:
    agent.sync()
    agent.start()
    old, = agent.wait_until_up(1)
    agent.configure(report_interval='0.4')
    agent.signal(signal.SIGHUP)
    wait_until(lambda: [row.report_interval for row in agent.up] == [0.4], 30, 'The new engine')
    assert next(row for row in agent.rows if row.engine_id == old.engine_id).state == 'left'


@pytest.mark.parametrize('slip', [{'fence_time': 'soon'}, {'fence_time': '7.9'}],
                         ids=['malformed', 'unsafe'])
def test_a_slip_in_the_file_leaves_no_engine_without_heartbeat(
        agent: Agent, slip: dict[str, str]) -> None:
    agent.sync()
    agent.start()
    old, = agent.wait_until_up(1)
    agent.configure(**slip)
    agent.signal(signal.SIGHUP)
    wait_until(lambda: [row for row in agent.up if row.engine_id != old.engine_id], 30,
               'A new engine with the options of before')
    assert agent.up[-1].fence_time == 3.0
    beats = agent.up[-1].report_count
    wait_until(lambda: agent.up[-1].report_count > beats, 30, 'Another beat')
    assert 'The options of before are kept' in agent.log.read_text()


def test_without_a_database_it_waits_and_joins_when_it_is_there(agent: Agent) -> None:
    agent.start()
    wait_until(lambda: 'could not join the service table' in agent.log.read_text(), 30,
               'The sentence that it cannot join')
    agent.sync()
    agent.wait_until_up(1)
    agent.signal(signal.SIGTERM)
    assert agent.wait_for_exit() == 0


def test_systemd_hears_ready_after_the_join_and_then_the_heart(agent: Agent) -> None:
    agent.sync()
    address = str(agent.folder / 'notify')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(60)
        agent.start(NOTIFY_SOCKET=address, WATCHDOG_USEC='600000')
        heard = [systemd.recv(100)]
        while heard[-1] != b'READY=1':
            heard.append(systemd.recv(100))
        assert [row.state for row in agent.rows] == ['up']
        while heard[-1] != b'WATCHDOG=1':
            heard.append(systemd.recv(100))


@pytest.mark.parametrize(('options', 'words'), [
    ({'fence_time': '7.9'}, 'set service_down_time to'),
    ({'report_interval': 'often'}, 'report_interval'),
    ({'work': 'nowhere'}, "names the driver 'nowhere'"),
    ({}, 'heat-liveness-manage db sync'),
], ids=['unsafe', 'malformed', 'driver', 'schema'])
def test_bad_options_end_it_with_a_sentence(
        agent: Agent, options: dict[str, str], words: str) -> None:
    (agent.folder / 'data').mkdir()
    agent.configure(**options)
    ended = agent.run_to_its_end()
    assert ended.returncode == 1
    assert words in ended.stderr
    assert 'Traceback' not in ended.stderr


@pytest.mark.parametrize(('default', 'liveness', 'words'), [
    ('log_file = /no/such/place', {}, 'The log cannot be set up'),
    ('default_log_levels = a=NONSENSE', {}, 'The log cannot be set up'),
    ('use_syslog = true\nsyslog_log_facility = odd', {}, 'The log cannot be set up'),
    ('graceful_shutdown_timeout = soon', {}, 'graceful_shutdown_timeout'),
    ('', {'work': 'heat'}, 'Heat cannot be imported'),
], ids=['file', 'level', 'facility', 'timeout', 'heat'])
def test_what_others_options_say_ends_it_with_a_sentence_and_starts_no_worker(
        agent: Agent, default: str, liveness: dict[str, str], words: str) -> None:
    agent.sync()
    agent.configure(**liveness)
    file = agent.folder / 'agent.conf'
    file.write_text(f'[DEFAULT]\n{default}\n{file.read_text()}')
    ended = agent.run_to_its_end()
    assert ended.returncode == 1
    assert words in ended.stderr.splitlines()[-1]
    assert agent.rows == []
