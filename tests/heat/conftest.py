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

"""The lab, booted once for all tests of Heat, and the figures that they report at the end."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from tests.heat.lab.heat import Lab

FIGURES = pytest.StashKey[list[str]]()
CELLS = pytest.StashKey[list[Mapping[str, object]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []
    config.stash[CELLS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get('LONG'):
        long = [item for item in items if item.get_closest_marker('long')]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if figures := terminalreporter.config.stash[FIGURES]:
        terminalreporter.section('figures')
        for line in figures:
            terminalreporter.line(line)
    if cells := terminalreporter.config.stash[CELLS]:
        terminalreporter.section('cells')
        for line in table(cells):
            terminalreporter.line(line)


def table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield the lines of a table with a column for each key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [names, *([_text(row.get(name, '')) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for line in texts:
        yield '  '.join(map(str.ljust, line, widths)).rstrip()


def _text(value: object) -> str:
    return f'{value:.1f}' if isinstance(value, float) else str(value)


@pytest.fixture(scope='session')
def lab() -> Iterator[Lab]:
    """Every server that Heat needs; its folder stays where ``HEAT_LAB_WORK`` names one."""
    root = os.environ.get('HEAT_LAB_WORK')
    with (tempfile.TemporaryDirectory(prefix='heat-lab-') as temporary,
          Lab(pathlib.Path(root or temporary)) as found):
        yield found


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Report a measurement below the tests' results, whether they pass or fail."""
    return request.config.stash[FIGURES].append


@pytest.fixture
def cells(request: pytest.FixtureRequest) -> Callable[[Mapping[str, object]], None]:
    """Report a row of the table below the tests' results; it is read at the end."""
    return request.config.stash[CELLS].append
