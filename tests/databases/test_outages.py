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

"""A server that is frozen, killed or restarted: every wait ends, and everything heals."""

import time
from collections.abc import Callable, Iterator
from concurrent import futures

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import migration, models
from tests.bed.server import Server
from tests.bed.waiting import wait_until
from tests.databases.conftest import Bed

READ_SECONDS = 1.0
# A ping, a connect and a read, each in vain; and as much again for a machine that is busy.
DEADLINE_SECONDS = 30.0


@pytest.fixture
def bed(database_server: Server) -> Iterator[Bed]:
    """The tables, on a server that may be harmed, and connections that were used before."""
    url = database_server.create_database()
    first = Bed(url)
    migration.sync(first.database)
    first.database.close()
    found = Bed(url, connect_timeout=1, read_timeout=READ_SECONDS)
    found.engine('e1')
    found.members.beat('e1')
    found.locks.search()
    yield found
    # A call that hangs, where it must not, goes on then, and lets go of its connection.
    database_server.heal()
    found.members.hang_up()
    found.database.close()


CALLS: dict[str, Callable[[Bed], object]] = {
    'beat': lambda bed: bed.members.beat('e1'),
    'read': lambda bed: bed.members.read('e1'),
    'look': lambda bed: bed.members.look(bed.identity('e1'), 6, None),
    'write': lambda bed: bed.members.drain('e1'),
    'acquire': lambda bed: bed.locks.acquire('x', 'task', None, 'e1'),
    'transaction': lambda bed: bed.locks.reclaim(bed.locks.search(), 'e1'),
}


def raised(call: Callable[[Bed], object], bed: Bed) -> BaseException | None:
    """Make a call on a thread of its own, so that one that hangs is seen to."""
    pool = futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(call, bed).exception(DEADLINE_SECONDS)
    finally:
        pool.shutdown(wait=False)


def beats_again(bed: Bed) -> bool:
    try:
        return bed.members.beat('e1')
    except errors.DatabaseError:
        return False


@pytest.mark.parametrize('call', CALLS)
def test_no_wait_for_a_frozen_server_is_without_bound(
        bed: Bed, database_server: Server, call: str) -> None:
    database_server.freeze()
    for _ in range(2):
        started = time.monotonic()
        assert isinstance(raised(CALLS[call], bed), errors.DatabaseError)
        assert time.monotonic() - started >= READ_SECONDS / 2, 'it has not waited at all'
    database_server.thaw()
    wait_until(lambda: beats_again(bed), 60, 'A beat after the thaw')
    assert CALLS[call](bed) is not None


def test_a_statement_sent_to_a_frozen_server_may_land_later(
        bed: Bed, database_server: Server) -> None:
    """I16: that is why its outcome is unclear."""
    before = bed.row('e1').report_count
    database_server.freeze()
    assert isinstance(raised(CALLS['beat'], bed), errors.UnclearOutcome)
    database_server.thaw()
    wait_until(lambda: beats_again(bed), 60, 'A beat after the thaw')
    assert bed.row('e1').report_count in {before + 1, before + 2}


@pytest.mark.parametrize('harm', ['kill', 'restart', 'freeze and kill'])
def test_every_call_heals_after_a_restart(
        bed: Bed, database_server: Server, harm: str) -> None:
    if harm == 'freeze and kill':
        database_server.freeze()
    if harm == 'restart':
        database_server.restart()
    else:
        database_server.kill()
        assert isinstance(raised(CALLS['beat'], bed), errors.UnclearOutcome)
        error = raised(CALLS['beat'], bed)
        assert type(error) is errors.DatabaseError, 'nothing can have been sent'
        database_server.start()
    wait_until(lambda: beats_again(bed), 60, 'A beat after the restart')
    for call in CALLS.values():
        assert call(bed) is not None


def test_a_transaction_that_freezes_before_its_commit_is_unclear_and_lets_go(
        bed: Bed, database_server: Server) -> None:
    """I16."""
    def freeze_amid(bed: Bed) -> None:
        with bed.database.transaction() as connection:
            connection.execute(sa.update(models.service).values(host='x'))
            database_server.freeze()

    assert isinstance(raised(freeze_amid, bed), errors.UnclearOutcome)
    database_server.thaw()
    wait_until(lambda: beats_again(bed), 60, 'A beat after the thaw')
    assert bed.row('e1').host in {'host', 'x'}


@pytest.mark.parametrize('lend', ['autocommit', 'transaction', 'fresh'])
def test_a_server_that_goes_when_all_is_done_leaves_the_outcome_as_it_was(
        bed: Bed, database_server: Server, lend: str) -> None:
    with getattr(bed.database, lend)() as connection:
        assert connection.scalar(sa.select(sa.literal(1))) == 1
        if lend == 'transaction':
            connection.commit()
        database_server.kill()
    database_server.start()
    with bed.database.autocommit() as connection:
        assert connection.scalar(sa.select(sa.literal(1))) == 1
