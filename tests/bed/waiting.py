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

"""Waiting by condition: a test never sleeps and hopes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')

POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], T], timeout_seconds: float, what: str) -> T:
    """Call ``condition`` until what it returns is true, and return that.

    Parameters
    ----------
    condition : callable
        Called about every 20 ms, and at least twice; what it raises is not caught.
    timeout_seconds : float
        How long to go on.
    what : str
        What is waited for, as it shall read in ``<what> did not happen within 5 s``.

    Raises
    ------
    AssertionError
        The time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        late = time.monotonic() >= deadline
        if result := condition():
            return result
        if late:
            raise AssertionError(f'{what} did not happen within {timeout_seconds:g} s.')
        time.sleep(POLL_SECONDS)
