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
"""The password of the database stands in the operator's file, and nowhere else.

Programs as they are run, with debug logging, and with failures of each kind; then all that they
have said, what the kernel shows of them to everybody, and what they have written.
"""

import os
import pathlib
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa

from heat_liveness.db.database import Database
from heat_liveness.db.members import Members
from tests.bed import processes, server
from tests.bed.server import Server
from tests.bed.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

OPTIONS = """
[liveness]
report_interval = 0.5
fence_time = 5
service_down_time = 10
scan_interval = 0.5
beat_retry = 0.2
connect_timeout = 1
read_timeout = 1
database_stall_time = 0
"""


class Marked:
    """A database whose account has a password that would be known anywhere."""

    def __init__(self, found: Server, folder: pathlib.Path) -> None:
        self.mark = f'geheim{secrets.token_hex(8)}'
        self.folder = folder
        self.server = found
        account = f'account_{secrets.token_hex(4)}'
        url = sa.make_url(found.create_database())
        if found.drivername.startswith('mysql'):
            found.execute(f"CREATE USER {account}@'%' IDENTIFIED BY '{self.mark}'")
            found.execute(f"GRANT ALL ON `{url.database}`.* TO {account}@'%'")
        else:
            found.execute(f"CREATE ROLE {account} LOGIN PASSWORD '{self.mark}'")
            found.execute(f'ALTER DATABASE "{url.database}" OWNER TO {account}')
        self.url = url.set(username=account, password=self.mark)

    def configure(self, name: str = 'c.conf', url: sa.URL | None = None, more: str = '') -> str:
        file = self.folder / name
        text = (url or self.url).render_as_string(hide_password=False)
        file.write_text(f'[DEFAULT]\ndebug = true\n[database]\nconnection = {text}\n{more}'
                        f'{OPTIONS}')
        return str(file)

    def start(self, program: str, *arguments: str) -> 'subprocess.Popen[bytes]':
        with (self.folder / 'said').open('ab') as said:
            return processes.spawn(
                [sys.executable, '-W', 'ignore', '-m', f'heat_liveness.cmd.{program}', *arguments],
                stdout=said, stderr=said, stdin=subprocess.DEVNULL,
                env={**os.environ, 'TMPDIR': str(self.folder)})

    def run(self, *arguments: str) -> int:
        return self.start('manage', *arguments).wait(120)

    @property
    def said(self) -> str:
        return (self.folder / 'said').read_text(errors='replace')

    def assert_unseen(self) -> None:
        """Look at all that was said, kept and shown."""
        assert self.mark not in self.said
        for log in self.folder.rglob('*.log'):
            assert self.mark not in log.read_text(errors='replace'), log


@pytest.fixture
def marked(database_server: Server, tmp_path: pathlib.Path) -> Iterator[Marked]:
    found = Marked(database_server, tmp_path)
    yield found
    database_server.heal()


def command_lines(pid: int) -> Sequence[str]:
    """Return what the kernel shows of a process and its children to everybody."""
    found = []
    for each in (pid, *processes.descendants(pid)):
        try:
            found.append(pathlib.Path(f'/proc/{each}/cmdline').read_text(errors='replace'))
        except OSError:
            continue
    return found


def test_neither_an_agent_nor_a_command_tells_it(marked: Marked) -> None:
    file = marked.configure()
    assert marked.run('--config-file', file, 'db', 'sync') == 0
    agent = marked.start('agent', '--config-file', file)
    members = Members(Database(marked.url.render_as_string(hide_password=False)))
    wait_until(lambda: any(row.live for row in members.all()), 60, 'The engine')
    # oslo.service tells all options there are.
    wait_until(lambda: 'database.connection ' in marked.said, 60, 'The options in the log')
    seen = command_lines(agent.pid)
    assert len(seen) > 1
    assert marked.mark not in ''.join(seen)
    # The database is lost, and comes back.
    marked.server.kill()
    wait_until(lambda: 'A beat of engine' in marked.said, 60, 'The sentence of the heart')
    assert marked.run('--config-file', file, 'service', 'list') == 1
    marked.server.heal()
    wait_until(lambda: 'reach the database again' in marked.said, 60, 'The recovery')
    marked.configure(more='[liveness\n')
    agent.send_signal(signal.SIGHUP)
    wait_until(lambda: marked.said.count('has joined') > 1, 60, 'A new engine')
    marked.configure()
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(120) == 0
    marked.assert_unseen()
    # Nor what is kept in the tables.
    database = Database(marked.url.render_as_string(hide_password=False))
    with database.autocommit() as connection:
        for table in ('liveness_service', 'liveness_lock', 'liveness_takeover'):
            for row in connection.exec_driver_sql(f'SELECT * FROM {table}'):
                assert marked.mark not in str(row)
    database.close()


def test_no_failure_tells_it(marked: Marked) -> None:
    urls = {
        'refused': marked.url.set(port=server.free_port()),
        'account': marked.url.set(username='nobody'),
        'database': marked.url.set(database='none'),
        'parameter': marked.url.update_query_dict({'odd': '1'}),
        'driver': marked.url.set(drivername='oracle+odd'),
        'host': marked.url.set(host='no.such.host.invalid'),
        'tables': marked.url,
    }
    statuses = [marked.run('--config-file', marked.configure(f'{name}.conf', url), 'lock', 'list')
                for name, url in urls.items()]
    assert statuses == [1] * len(urls)
    ended = marked.start('agent', '--config-file', marked.configure(
        url=marked.url.set(drivername='oracle+odd')))
    assert ended.wait(120) == 1
    bad = marked.folder / 'bad.conf'
    bad.write_text(f'[database]\nconnection = mysql://a:{marked.mark}@b:port/c\n')
    assert marked.run('--config-file', str(bad), 'db', 'check') == 1
    bad.write_text(f'[database]\nconnection = mysql://a:x@{marked.mark}@b/c\n')
    assert marked.run('--config-file', str(bad), 'db', 'check') == 1
    assert 'Traceback' not in marked.said
    marked.assert_unseen()


def test_the_demo_gives_it_to_nobody(marked: Marked) -> None:
    demo = marked.start('demo', '--no-live', '--template', 'webshop', '--config-file',
                        marked.configure())
    wait_until(lambda: len(processes.descendants(demo.pid)) == 4, 120, 'The engines')
    wait_until(lambda: 'engines are up' in marked.said, 120, 'The work')
    seen = command_lines(demo.pid)
    assert len(seen) == 5
    assert marked.mark not in ''.join(seen)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(120) == 130
    marked.assert_unseen()
