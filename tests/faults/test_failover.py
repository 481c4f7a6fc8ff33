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

"""Failover as OpenStack has it: a proxy before Galera, and a standby that has not got all.

Nobody alive is robbed, and nothing is lost or done twice: I5, I8, I11.
"""

import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from heat_liveness import conf
from tests.bed.galera import Cluster
from tests.bed.haproxy import HAProxy
from tests.bed.mariadb import MariaDB
from tests.bed.waiting import wait_until
from tests.processes.fleet import Engine, Fleet

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(600)]

LONG = bool(os.environ.get('LONG'))
# Beats for longer than a verdict would take that the failover had forged.
BEATS = 12


def through(proxy: HAProxy, galera: Cluster, folder: pathlib.Path) -> Iterator[Fleet]:
    """Three engines at work, as if on three machines, with the default options."""
    url = galera.create_database()
    fleet = Fleet(proxy.url(url), folder, conf.Settings())
    for name in 'abc':
        fleet.start_at_work(name, elsewhere=True)
    yield fleet
    galera.heal()
    fleet.close()
    proxy.close()
    galera.drop_database(url)


@pytest.fixture
def proxy(galera: Cluster, request: pytest.FixtureRequest) -> HAProxy:
    """A proxy with one writer at a time; it leaves connections alone where a test says so."""
    return HAProxy(galera.nodes, shuts_sessions=getattr(request, 'param', True))


@pytest.fixture
def fleet(proxy: HAProxy, galera: Cluster, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """A fleet behind the proxy."""
    yield from through(proxy, galera, tmp_path)


def wait_for_beats(fleet: Fleet, *engines: Engine) -> None:
    counts = {engine: fleet.row(engine).report_count + BEATS for engine in engines}
    for engine, count in counts.items():
        fleet.wait_for_count(engine, count)


@pytest.mark.parametrize(('proxy', 'harm'), [
    (True, 'kill'), (False, 'freeze'), *([(True, 'freeze'), (False, 'kill')] if LONG else [])],
    indirect=['proxy'])
def test_the_writer_goes_and_comes_back(
        fleet: Fleet, proxy: HAProxy, galera: Cluster, harm: str) -> None:
    """Where the sessions are left alone, some engines hang on the old writer for a while."""
    writer = galera.nodes[0]
    getattr(writer, harm)()
    wait_until(lambda: proxy.drops(writer), 120, 'The notice that the writer is gone')
    fleet.wait_for_beats(*fleet.engines)
    galera.heal()
    wait_until(lambda: not proxy.drops(writer), 120, 'The notice that the writer is back')
    wait_for_beats(fleet, *fleet.engines)
    fleet.assert_undisturbed(*'abc')


@pytest.mark.parametrize('proxy', [False], indirect=True)
def test_two_writers_at_once(fleet: Fleet, proxy: HAProxy, galera: Cluster) -> None:
    """Some engines keep the old writer, and the others come to the new one."""
    proxy.retire(galera.nodes[0])
    for name in 'de':
        fleet.start_at_work(name, elsewhere=True)
    victim, *others = fleet.engines
    victim.signal(signal.SIGKILL)
    assert fleet.wait_until_dead(victim).evidence == 'watched'
    fleet.wait_until_owned('a', *others)
    fleet.let_tasks_end()
    fleet.wait_until_complete(*'abcde')
    assert fleet.times_begun(*'abcde') == [2, 1, 1, 1, 1]
    assert len(fleet.deaths) == 1
    assert all(engine.running for engine in others)


@pytest.fixture
def plain(mariadb: MariaDB, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """A fleet on one MariaDB server."""
    fleet = Fleet(mariadb.create_database(), tmp_path, conf.Settings())
    yield fleet
    mariadb.heal()
    fleet.close()


def test_a_failover_that_loses_the_last_commits(plain: Fleet, mariadb: MariaDB) -> None:
    """Counts fall, a takeover is undone, an engine and its lock were never there."""
    early = [plain.start_at_work(name, elsewhere=True) for name in 'abc']
    copy = mariadb.snapshot()
    late = plain.start_at_work('d', elsewhere=True)
    before = {engine.pid: plain.row(engine).report_count + 3 for engine in early[1:]}
    early[0].signal(signal.SIGKILL)
    plain.wait_until_dead(early[0])
    alive = [*early[1:], late]
    plain.wait_until_owned('a', *alive)
    mariadb.forget_all_since(copy)
    assert any(plain.row(engine).report_count < before[engine.pid] for engine in early[1:])
    # Its row is written again, and it does not work on what nobody knows of.
    plain.wait_until_up(late)
    # The dead engine is found dead again, and what it had is taken over again.
    plain.wait_until_dead(early[0])
    plain.wait_until_owned('a', *alive)
    wait_for_beats(plain, *alive)
    assert {entry.engine_id for entry in plain.deaths} == {plain.row(early[0]).engine_id}
    assert all(engine.running for engine in alive)
    plain.let_tasks_end()
    plain.wait_until_complete(*'abc')
    assert plain.times_begun(*'abc') == [2, 1, 1]
