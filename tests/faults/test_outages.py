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

"""The database goes away under a fleet with the options as they are shipped.

Nobody alive is robbed and nobody ends, a freshly started observer among them: I11.
"""

import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from heat_liveness import conf
from tests.bed.server import Server
from tests.processes.fleet import Fleet

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture(params=['mariadb', *(['postgresql'] if os.environ.get('LONG') else [])])
def database_server(request: pytest.FixtureRequest) -> Server:
    """The server that goes away.  Shorter outages of both are among the tests of processes."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def fleet(database_server: Server, tmp_path: pathlib.Path) -> Iterator[Fleet]:
    """Three engines at work, as if on three machines, with the default options."""
    fleet = Fleet(database_server.create_database(), tmp_path, conf.Settings())
    for name in 'abc':
        fleet.start_at_work(name, elsewhere=True)
    yield fleet
    database_server.heal()
    fleet.close()


def test_two_minutes_of_a_frozen_database(fleet: Fleet, database_server: Server) -> None:
    database_server.freeze()
    fleet.outlast(100)
    fresh = fleet.start(elsewhere=True)
    database_server.thaw()
    fleet.wait_until_up(fresh)
    # Longer than a verdict would take that the outage had forged.
    fleet.wait_for_count(fresh, fleet.row(fresh).report_count + 12)
    fleet.assert_undisturbed(*'abc')


def test_a_database_killed_and_back_after_25_seconds(
        fleet: Fleet, database_server: Server) -> None:
    database_server.kill()
    fleet.outlast(5)
    fresh = fleet.start(elsewhere=True)
    database_server.start()
    fleet.wait_until_up(fresh)
    fleet.wait_for_count(fresh, fleet.row(fresh).report_count + 12)
    fleet.assert_undisturbed(*'abc')


def test_an_engine_stopped_past_the_limit(fleet: Fleet) -> None:
    stopped, *others = fleet.engines
    stopped.signal(signal.SIGSTOP)
    assert stopped.wait_for_exit() == -signal.SIGKILL
    dead = fleet.wait_until_dead(stopped)
    assert dead.evidence == 'watched'
    fleet.wait_until_owned('a', *others)
    fleet.let_tasks_end()
    fleet.wait_until_complete(*'abc')
    assert fleet.times_begun(*'abc') == [2, 1, 1]
    assert fleet.row(stopped).report_count == dead.report_count
