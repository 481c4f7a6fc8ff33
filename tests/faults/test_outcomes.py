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

"""What an error of Galera says is true: I16.

Transactions on all nodes at once change a row that they share and write one of their own; meanwhile
nodes hang, are killed, and the quorum is lost.  When all is well again, what was done is
there, what was refused for certain is not, and nothing is there by half.
"""

import collections
import itertools
import re
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db.database import Database
from tests.bed.galera import Cluster
from tests.bed.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(600)]

NUMBERS = 1_000_000


class Writer:
    """Writes through one node until it is told to stop, and notes what it was told."""

    def __init__(self, url: str, number: int) -> None:
        self.outcomes: dict[int, type[errors.LivenessError] | None] = {}
        self.codes: collections.Counter[str] = collections.Counter()
        self._database = Database(url)
        self._numbers = itertools.count(number * NUMBERS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        self._database.close()

    def written(self) -> int:
        return sum(outcome is None for outcome in list(self.outcomes.values()))

    def _run(self) -> None:
        while not self._stopped.wait(0.01):
            number = next(self._numbers)
            try:
                with self._database.transaction() as connection:
                    connection.exec_driver_sql(f'INSERT INTO written VALUES ({number})')
                    connection.exec_driver_sql('UPDATE total SET number = number + 1')
                self.outcomes[number] = None
            except errors.DatabaseError as error:
                self.outcomes[number] = type(error)
                self.codes.update(re.findall(r'\((\d{4})\)', str(error)))


@pytest.fixture
def writers(galera: Cluster) -> Iterator[list[Writer]]:
    """A writer on each node."""
    url = galera.create_database()
    database = Database(url, read_timeout=60)
    with database.transaction() as connection:
        connection.exec_driver_sql('CREATE TABLE written (id INT PRIMARY KEY)')
        connection.exec_driver_sql('CREATE TABLE total (id INT PRIMARY KEY, number INT)')
        connection.exec_driver_sql('INSERT INTO total VALUES (1, 0)')
    galera.settle()
    found = [Writer(each, number) for number, each in enumerate(galera.urls(url))]
    yield found
    for writer in found:
        writer.stop()
    galera.heal()
    with database.autocommit() as connection:
        present = set(connection.scalars(sa.text('SELECT id FROM written')))
        total = connection.scalar(sa.text('SELECT number FROM total'))
    database.close()
    galera.drop_database(url)
    assert total == len(present)
    outcomes = {number: outcome for writer in found for number, outcome in writer.outcomes.items()}
    assert {number for number, outcome in outcomes.items() if outcome is None} <= present
    refused = {number for number, outcome in outcomes.items()
               if outcome is not None and not issubclass(outcome, errors.UnclearOutcome)}
    assert not refused & present


def all_write(writers: list[Writer]) -> None:
    before = [writer.written() for writer in writers]
    wait_until(lambda: all(writer.written() > count + 2
                           for writer, count in zip(writers, before, strict=True)), 120,
               'Another transaction on each node')


def codes(writers: list[Writer]) -> set[str]:
    return {code for writer in writers for code in list(writer.codes)}


def test_nodes_that_hang_until_the_quorum_is_lost(galera: Cluster, writers: list[Writer]) -> None:
    all_write(writers)
    for node in galera.nodes[1:]:
        node.freeze()
    wait_until(lambda: {'1047', '2013'} <= codes(writers), 120, 'The loss of the quorum')
    galera.heal()
    all_write(writers)
    assert '1213' in codes(writers)


def test_nodes_that_are_killed_one_after_the_other(
        galera: Cluster, writers: list[Writer]) -> None:
    all_write(writers)
    for node in galera.nodes:
        node.kill()
        galera.heal()
        all_write(writers)
