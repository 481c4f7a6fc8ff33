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

"""Waiting for what servers do, which takes its time to look at."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests.bed import waiting

Found = TypeVar('Found')

POLL_SECONDS = 0.25


def wait_until(condition: Callable[[], Found], timeout_seconds: float, what: str) -> Found:
    """Wait as the test bed does, but look less often: each look is a query, or reads a log."""
    def look() -> Found:
        time.sleep(POLL_SECONDS)
        return condition()

    return waiting.wait_until(look, timeout_seconds, what)
