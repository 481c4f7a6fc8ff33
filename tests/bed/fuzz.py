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
"""How much of what a generator can think of is tried.

The same each time, and bounded; ``LONG=1`` tries more, and something else each time.  What
failed is told in the message, so nothing is kept in a file.
"""

import os

import hypothesis

LONG = bool(os.environ.get('LONG'))


def bounded(examples: int) -> hypothesis.settings:
    """Return settings for a test that is worth so many examples, each of them a while."""
    return hypothesis.settings(
        max_examples=examples * (20 if LONG else 1), derandomize=not LONG, database=None,
        deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        # To shrink what takes a second each would take the test's whole time.
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink]
        if LONG else [hypothesis.Phase.explicit, hypothesis.Phase.generate])
