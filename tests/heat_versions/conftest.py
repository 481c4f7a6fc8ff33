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

"""What is in ``inside`` is run in the environments of Heat, and not collected beside this."""

from collections.abc import Iterator

import pytest

from tests.heat_versions.environments import RELEASES, build
from tests.heat_versions.run import Run

collect_ignore = ['inside']
SUMMARIES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARIES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash[SUMMARIES]:
        terminalreporter.line(line)


@pytest.fixture(scope='session')
def runs(pytestconfig: pytest.Config) -> Iterator[dict[str, Run]]:
    """The tests inside, begun on all releases at a time."""
    build(RELEASES)
    found = {release.heat: Run(release) for release in RELEASES}
    yield found
    for run in found.values():
        run.stop()
        pytestconfig.stash[SUMMARIES].append(f'Heat {run.release.heat}: {run.summary}')
