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

"""The cloud of the demo does each step once, and nothing for an old generation."""

from collections.abc import Iterator
from concurrent import futures

import pytest

from heat_liveness import engine as engines
from heat_liveness.db import demo, migration
from heat_liveness.db.database import Database
from heat_liveness.db.locks import Locks
from heat_liveness.db.members import Members

REQUIRES = {'net': frozenset[str](), 'port': frozenset({'net'})}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url, read_timeout=90)
    migration.sync(found)
    yield found
    found.close()


@pytest.fixture
def cloud(database: Database) -> demo.Cloud:
    """A run whose resources have names that another run has too."""
    for run in ('other', 'run'):
        found = demo.Cloud(database, run)
        found.create_tables()
        found.add(REQUIRES)
    return found


def join(database: Database, run: str) -> str:
    identity = engines.Identity.new(host='h', hostname='h', binary='b', topic=run)
    Members(database).insert(identity, 1.0, 1.0)
    return identity.engine_id


def test_the_tables_may_be_there_already(cloud: demo.Cloud) -> None:
    cloud.create_tables()


def test_a_step_is_done_once(database: Database, cloud: demo.Cloud) -> None:
    demo.Cloud(database, 'other').call('net', 1, 1, 'e1')
    assert cloud.call('net', 1, 1, 'e1') is demo.Outcome.APPLIED
    assert cloud.call('net', 1, 1, 'e1') is demo.Outcome.REPEATED
    assert cloud.call('net', 1, 2, 'e2') is demo.Outcome.REPEATED
    assert cloud.call('net', 2, 2, 'e2') is demo.Outcome.APPLIED
    assert [(call.step, call.generation, call.engine_id, call.outcome)
            for call in cloud.calls()] == [
        (1, 1, 'e1', 'applied'), (1, 1, 'e1', 'repeated'), (1, 2, 'e2', 'repeated'),
        (2, 2, 'e2', 'applied')]


def test_an_old_generation_is_refused_and_written_down(cloud: demo.Cloud) -> None:
    assert cloud.call('net', 1, 3, 'e2') is demo.Outcome.APPLIED
    assert cloud.call('net', 2, 2, 'e1') is demo.Outcome.REFUSED
    assert cloud.call('port', 1, 1, 'e1') is demo.Outcome.APPLIED
    assert [call.outcome for call in cloud.calls()] == ['applied', 'refused', 'applied']


def test_the_last_step_makes_it_done(cloud: demo.Cloud) -> None:
    for step in range(1, demo.STEPS + 1):
        assert not cloud.is_done('net')
        cloud.call('net', step, 1, 'e1')
    assert cloud.is_done('net')
    assert not cloud.is_done('port')


def test_many_at_once_do_a_step_once(cloud: demo.Cloud) -> None:
    with futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(
            lambda number: cloud.call('net', 1, 1, f'e{number}'), range(8)))
    assert sorted(outcomes) == [demo.Outcome.APPLIED] + 7 * [demo.Outcome.REPEATED]


def test_resources_are_shown_with_what_they_require_and_who_holds_them(
        database: Database, cloud: demo.Cloud) -> None:
    me = join(database, 'run')
    Locks(database).acquire(demo.lock_name('run', 'port'), 'create', {}, me)
    Locks(database).acquire(demo.lock_name('other', 'net'), 'create', {}, me)
    for step in range(1, demo.STEPS + 1):
        cloud.call('net', step, 1, me)
    assert sorted(cloud.resources(), key=lambda each: each.name) == [
        demo.Resource('net', frozenset(), True, None),
        demo.Resource('port', frozenset({'net'}), False, me)]


def test_times_of_calls_compare_with_the_present(cloud: demo.Cloud) -> None:
    before = cloud.now()
    cloud.call('net', 1, 1, 'e1')
    assert before <= cloud.calls()[0].called_at <= cloud.now()


def test_forgetting_a_run_leaves_the_others(database: Database, cloud: demo.Cloud) -> None:
    for run in ('run', 'other'):
        me = join(database, run)
        Locks(database).acquire(demo.lock_name(run, 'net'), 'create', {}, me)
        demo.Cloud(database, run).call('net', 1, 1, me)
    cloud.forget()
    assert cloud.resources() == cloud.calls() == []
    other = demo.Cloud(database, 'other')
    assert len(other.resources()) == 2
    assert len(other.calls()) == 1
    assert [row.topic for row in Members(database).all()] == ['other']
    assert [row.name for row in Locks(database).search()] == ['other/net']
