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

"""The tests in ``inside``, as they run in the environment of one release of Heat."""

import pathlib
import subprocess
import tempfile

from tests.heat_versions.environments import Release

INSIDE = pathlib.Path(__file__).parent / 'inside'


class Run:
    """One run, in a process of its own; it has begun when this is made."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self._output = tempfile.TemporaryFile('w+')  # noqa: SIM115 - open as long as it runs
        self._process = subprocess.Popen(
            # In a folder from which only Heat's own environment can be imported.
            [release.python, '-m', 'pytest', '--quiet', '--tb=short'], cwd=INSIDE,
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT)

    def wait(self, seconds: float) -> int:
        """Return the exit status."""
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End it, if it runs still."""
        self._process.kill()
        self._process.wait()

    @property
    def output(self) -> str:
        self._output.seek(0)
        return self._output.read()

    @property
    def summary(self) -> str:
        """The last line that it has said."""
        return (self.output.splitlines() or ['nothing'])[-1]
