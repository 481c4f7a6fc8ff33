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

"""The databases of the nemesis, with clocks of their own, and the table at the end of the run."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from tests.bed.galera import Cluster
from tests.bed.mariadb import MariaDB
from tests.bed.postgresql import PostgreSQL
from tests.faults.databases import Bed, Galera, OneServer, SQLite

Cells = Mapping[tuple[str, str], Mapping[str, int]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get('LONG'):
        long = [item for item in items if item.get_closest_marker('long')]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ('passed', 'failed')
               for report in terminalreporter.getreports(outcome)]
    if found := cells(reports):
        terminalreporter.section('nemesis')
        for line in table(found):
            terminalreporter.line(line)


def cells(reports: Sequence[pytest.TestReport]) -> Cells:
    """Add the figures of all runs up, by database and fault; tests may run in other processes."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for report in reports:
        for name, value in report.user_properties if report.when == 'call' else ():
            if name == 'nemesis':
                database, fault, figures = value
                found.setdefault((database, fault), Counter()).update(figures)
    return found


def table(cells: Cells) -> Iterator[str]:
    """Yield the lines of the table: a row for each database and fault."""
    names = list(next(iter(cells.values())))
    rows = [('database', 'fault', *names),
            *((*key, *(str(cell[name]) for name in names)) for key, cell in cells.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield '  '.join([*map(str.ljust, row[:2], widths[:2]),
                         *map(str.rjust, row[2:], widths[2:])])


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Add figures to a row of the table."""
    def add(database: str, fault: str, figures: Mapping[str, int]) -> None:
        record_property('nemesis', (database, fault, figures))
    return add


@pytest.fixture(scope='session')
def steppable_mariadb() -> Iterator[MariaDB]:
    server = MariaDB.create(steppable=True)
    yield server
    server.destroy()


@pytest.fixture(scope='session')
def steppable_postgresql() -> Iterator[PostgreSQL]:
    server = PostgreSQL.create(steppable=True)
    yield server
    server.destroy()


@pytest.fixture(scope='session')
def steppable_galera() -> Iterator[Cluster]:
    cluster = Cluster.create(steppable=True)
    yield cluster
    cluster.destroy()


@pytest.fixture
def open_bed(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Bed]]:
    """Open an empty database by the name of its kind; it goes with the test."""
    opened: list[Bed] = []

    def make(name: str) -> Bed:
        if name == 'sqlite':
            bed: Bed = SQLite()
        else:
            server = request.getfixturevalue(f'steppable_{name}')
            bed = Galera(server) if name == 'galera' else OneServer(name, server)
        opened.append(bed)
        return bed

    yield make
    for bed in opened:
        bed.close()
