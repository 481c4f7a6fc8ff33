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

"""The cluster of the tests: whatever happens to its nodes, it heals, and keeps what it had."""

import os
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from tests.bed.galera import Cluster
from tests.bed.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(300)]

# The others hang or are killed as well, and take as long again.
FEW = {'a node hangs', 'two nodes are killed', 'all nodes are killed'}
HARMS: dict[str, Callable[[Cluster], None]] = {
    'a node is killed': lambda cluster: cluster.nodes[0].kill(),
    'a node leaves': lambda cluster: cluster.nodes[1].stop(),
    'a node hangs': lambda cluster: hang(cluster, 1),
    'two nodes are killed': lambda cluster: [node.kill() for node in cluster.nodes[1:]],
    'two nodes hang': lambda cluster: hang(cluster, 2),
    'all nodes are killed': lambda cluster: [node.kill() for node in cluster.nodes],
}


def hang(cluster: Cluster, number: int) -> None:
    """Freeze the last nodes until the others have noticed."""
    for node in cluster.nodes[-number:]:
        node.freeze()
    left = cluster.nodes[0]
    wait_until(lambda: left.status('cluster_size') == str(len(cluster.nodes) - number), 60,
               'The notice that nodes hang')


@pytest.fixture
def engines(galera: Cluster) -> Iterator[list[sa.Engine]]:
    """An engine on each node, on one database with one table."""
    url = galera.create_database()
    found = [sa.create_engine(each, pool_pre_ping=True) for each in galera.urls(url)]
    with found[0].begin() as connection:
        connection.execute(sa.text('CREATE TABLE t (id INTEGER PRIMARY KEY)'))
    galera.settle()
    yield found
    for engine in found:
        engine.dispose()
    galera.drop_database(url)


def write(engine: sa.Engine, number: int) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f'INSERT INTO t VALUES ({number})'))


def numbers(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.text('SELECT id FROM t ORDER BY id')))


def test_a_node_writes_what_the_others_read(galera: Cluster, engines: list[sa.Engine]) -> None:
    for number, engine in enumerate(engines):
        write(engine, number)
    galera.settle()
    assert [numbers(engine) for engine in engines] == [[0, 1, 2]] * 3


@pytest.mark.parametrize('harm', HARMS if os.environ.get('LONG') else sorted(FEW))
def test_the_cluster_heals(galera: Cluster, engines: list[sa.Engine], harm: str) -> None:
    write(engines[0], 1)
    HARMS[harm](galera)
    galera.heal()
    for number, engine in enumerate(engines, 2):
        write(engine, number)
    galera.settle()
    assert [numbers(engine) for engine in engines] == [[1, 2, 3, 4]] * 3


def test_a_node_without_the_data_gets_them_from_another(
        galera: Cluster, engines: list[sa.Engine]) -> None:
    write(engines[0], 1)
    galera.nodes[2].kill()
    (galera.nodes[2].data / 'grastate.dat').unlink()
    (galera.nodes[2].data / 'ibdata1').unlink()
    galera.heal()
    assert numbers(engines[2]) == [1]
