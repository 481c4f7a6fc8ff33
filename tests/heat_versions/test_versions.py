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

"""Recovery works on each release of Heat, with the libraries of its time."""

import pytest

from tests.heat_versions.environments import RELEASES
from tests.heat_versions.run import Run

# Environments are made here; a first time takes minutes.
pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize('heat', [release.heat for release in RELEASES])
def test_recovery_on(heat: str, runs: dict[str, Run]) -> None:
    run = runs[heat]
    assert run.wait(900) == 0, run.output[-20000:]
    assert 'passed' in run.summary
