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

"""Wall clocks that a test can step, one for each process that is started with it.

``libfaketime`` shifts what a process is told of the time of day by what a file says, read anew at
each question.  It leaves the clocks alone that nobody can step in life: durations are true.
"""

import pathlib
from typing import Final

HOUR_SECONDS: Final = 3600
_DIRECTORIES = ('/usr/lib/x86_64-linux-gnu/faketime', '/usr/lib/aarch64-linux-gnu/faketime',
                '/usr/lib64/faketime', '/usr/lib/faketime')


class Clock:
    """A wall clock; right until it is stepped."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file
        self.step(0)

    @property
    def command(self) -> list[str]:
        """What stands before the command of a process that is to go by this clock.

        Raises
        ------
        FileNotFoundError
            libfaketime is not installed.
        """
        return ['env', f'LD_PRELOAD={_library()}', f'FAKETIME_TIMESTAMP_FILE={self._file}',
                'FAKETIME_NO_CACHE=1', 'FAKETIME_DONT_FAKE_MONOTONIC=1']

    def step(self, seconds: int) -> None:
        """Let the clock be so many seconds ahead of the true time, or behind it."""
        # In one go: a process that reads an empty file goes back to the true time.
        fresh = self._file.with_suffix('.new')
        fresh.write_text(f'{seconds:+d}s\n')
        fresh.rename(self._file)


def _library() -> pathlib.Path:
    for directory in _DIRECTORIES:
        found = pathlib.Path(directory) / 'libfaketime.so.1'
        if found.exists():
            return found
    raise FileNotFoundError('faketime is not installed; `make test-faults` installs it.')
