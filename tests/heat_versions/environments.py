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

"""A Python environment for each release of Heat, made once and kept.

Each holds one release with the versions that OpenStack published beside it, and pytest; this
checkout is installed into it anew each time, and must find all that it needs there.
"""

import dataclasses
import hashlib
import pathlib
import shutil
import sys
import venv
from collections.abc import Iterable
from concurrent import futures

from tests.heat.lab.environments import CACHE, CONSTRAINTS, _run, _snapshot

FOLDER = CACHE / 'versions'
TOOLS = ('fixtures', 'pytest', 'pytest-timeout', 'setuptools')
"""What Heat's bench imports, and what runs it."""


@dataclasses.dataclass(frozen=True)
class Release:
    """A release of Heat, and where the versions of what it needs are written."""

    heat: str
    constraints: pathlib.Path

    @property
    def folder(self) -> pathlib.Path:
        return FOLDER / self.heat

    @property
    def python(self) -> pathlib.Path:
        return self.folder / 'bin' / 'python'


HERE = pathlib.Path(__file__).parent
RELEASES = (Release('25.0.2', HERE / 'constraints-2025.2.txt'),
            Release('26.0.2', HERE / 'constraints-2026.1.txt'),
            Release('27.0.1', CONSTRAINTS))


def build(releases: Iterable[Release]) -> None:
    """Make what is missing, all at a time, and install this checkout into each."""
    releases = list(releases)
    with futures.ThreadPoolExecutor() as pool:
        list(pool.map(_build, releases))
    wheels, source = FOLDER / 'wheels', FOLDER / 'source'
    shutil.rmtree(wheels, ignore_errors=True)
    _snapshot(source)
    _run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', wheels, source])
    for release in releases:
        pip = [release.python, '-m', 'pip']
        _run([*pip, 'install', '--quiet', '--no-deps', '--force-reinstall', '--no-compile',
              *wheels.glob('*.whl')])
        _run([*pip, 'check'])


def _build(release: Release) -> None:
    stamp = release.folder / 'built-for'
    wanted = hashlib.sha256(
        f'{sys.version} {release.heat} {TOOLS} {release.constraints.read_text()}'.encode()
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(release.folder, ignore_errors=True)
    venv.create(release.folder, with_pip=True)
    # What is imported is compiled then; most of it never is.
    pip = [release.python, '-m', 'pip', 'install', '--quiet', '--no-compile',
           '--disable-pip-version-check']
    # The list is complete (pip check tells), so there is nothing to be worked out.
    _run([*pip, '--no-deps', f'openstack-heat=={release.heat}', '-r', release.constraints])
    _run([*pip, '-c', release.constraints, *TOOLS])
    stamp.write_text(wanted)


if __name__ == '__main__':
    build(release for release in RELEASES if release.heat in sys.argv[1:] or len(sys.argv) == 1)
