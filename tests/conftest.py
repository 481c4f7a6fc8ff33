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

"""The fixtures that every test may use.

A server is started when the first test asks for it, and killed when the session ends; under
pytest-xdist each worker has its own.  Where a server is not installed the test fails: a skipped
test proves nothing.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import TypeVar

import pytest

from tests.bed import galera as galera_bed
from tests.bed import haproxy, server
from tests.bed import mariadb as mariadb_bed
from tests.bed import postgresql as postgresql_bed

S = TypeVar('S', server.Server, galera_bed.Cluster)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for one server with its name."""
    for item in items:
        for name in ('mariadb', 'postgresql', 'galera'):
            if name in getattr(item, 'fixturenames', ()):
                item.add_marker(name)


@pytest.fixture(scope='session')
def mariadb_server() -> Iterator[mariadb_bed.MariaDB]:
    """A MariaDB server for the whole session; a test that disturbs it takes ``mariadb``."""
    yield from _served(mariadb_bed.MariaDB)


@pytest.fixture(scope='session')
def postgresql_server() -> Iterator[postgresql_bed.PostgreSQL]:
    """A PostgreSQL server for the whole session; a test that disturbs it takes ``postgresql``."""
    yield from _served(postgresql_bed.PostgreSQL)


@pytest.fixture(scope='session')
def galera_cluster() -> Iterator[galera_bed.Cluster]:
    """Three nodes for the whole session; a test takes ``galera``."""
    yield from _served(galera_bed.Cluster)


@pytest.fixture(scope='session')
def galera_proxy(galera_cluster: galera_bed.Cluster) -> Iterator[haproxy.HAProxy]:
    """A proxy that sends each connection to another node of the cluster, in turn."""
    proxy = haproxy.HAProxy(galera_cluster.nodes, single_writer=False)
    yield proxy
    proxy.close()


@pytest.fixture
def mariadb(mariadb_server: mariadb_bed.MariaDB) -> Iterator[mariadb_bed.MariaDB]:
    """The MariaDB server, healed after the test."""
    yield mariadb_server
    mariadb_server.heal()


@pytest.fixture
def postgresql(
        postgresql_server: postgresql_bed.PostgreSQL) -> Iterator[postgresql_bed.PostgreSQL]:
    """The PostgreSQL server, healed after the test."""
    yield postgresql_server
    postgresql_server.heal()


@pytest.fixture
def galera(galera_cluster: galera_bed.Cluster) -> Iterator[galera_bed.Cluster]:
    """The cluster of three nodes, healed after the test."""
    yield galera_cluster
    galera_cluster.heal()


@pytest.fixture(params=[
    pytest.param('mariadb', marks=pytest.mark.mariadb),
    pytest.param('postgresql', marks=pytest.mark.postgresql),
])
def database_server(request: pytest.FixtureRequest) -> server.Server:
    """Each server in turn, healed after the test."""
    found: server.Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=[
    pytest.param('sqlite', marks=pytest.mark.sqlite),
    pytest.param('mariadb', marks=pytest.mark.mariadb),
    pytest.param('postgresql', marks=pytest.mark.postgresql),
    # As long again as all others together; what is different there has tests of its own.
    *([pytest.param('galera', marks=pytest.mark.galera)] if os.environ.get('LONG') else []),
])
def database_url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database, on each kind of database in turn."""
    if request.param == 'sqlite':
        yield f'sqlite:///{tmp_path}/liveness.sqlite'
        return
    if request.param == 'galera':
        proxy: haproxy.HAProxy = request.getfixturevalue('galera_proxy')
        cluster: galera_bed.Cluster = request.getfixturevalue('galera_cluster')
        url = cluster.create_database()
        yield proxy.url(url)
        cluster.drop_database(url)
        return
    found: server.Server = request.getfixturevalue(request.param)
    url = found.create_database()
    yield url
    found.heal()
    found.drop_database(url)


def _served(kind: type[S]) -> Iterator[S]:
    try:
        running = kind.create()
    except server.MissingProgram as missing:
        pytest.fail(str(missing), pytrace=False)
    yield running
    running.destroy()
