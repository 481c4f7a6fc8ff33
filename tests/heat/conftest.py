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
from collections.abc import Callable, Iterator

import pytest

from tests.heat.lab.heat import Lab

FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if figures := terminalreporter.config.stash[FIGURES]:
        terminalreporter.section('figures')
        for line in figures:
            terminalreporter.line(line)


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
