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

"""The Python environments of the lab, made once and kept.

Two of them, one upon the other: *stock* holds Heat and Keystone and is built anew only when
constraints.txt changes; *liveness* sees all of that through a path file, and has the project
beside it, installed each time from a wheel of this checkout, with its dependencies resolved
under the same constraints.  So a stock Heat and one with this package differ in nothing else.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
CONSTRAINTS = CHECKOUT / 'tests' / 'heat' / 'constraints.txt'
CACHE = pathlib.Path(os.environ.get('HEAT_LAB_CACHE', CHECKOUT / '.heatlab'))
"""Where the environments are kept; the unprivileged user must be able to get there."""

SERVERS = ('openstack-heat', 'keystone', 'PyMySQL', 'python-openstackclient', 'python-heatclient')
"""What an operator would install; all else they ask for themselves."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where to find one environment's Python, and the commands and defaults of Heat."""

    python: pathlib.Path
    prefix: pathlib.Path

    def command(self, name: str) -> list[object]:
        """Run a command of Heat's or Keystone's by this environment's Python."""
        own = self.python.parent / name
        return [self.python, own if own.exists() else self.prefix / 'bin' / name]


def stock() -> Environment:
    """Return the environment of an unaltered Heat, building it where that was not yet done."""
    folder = CACHE / 'stock'
    stamp = folder / 'built-for'
    wanted = hashlib.sha256(sys.version.encode() + CONSTRAINTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _run([folder / 'bin' / 'pip', 'install', '--quiet', '-c', CONSTRAINTS, *SERVERS])
        stamp.write_text(wanted)
    return Environment(folder / 'bin' / 'python', folder)


def liveness(under: Environment) -> Environment:
    """Return an environment that has this checkout beside an unaltered Heat."""
    folder, wheels, source = (CACHE / name for name in ('liveness', 'wheels', 'source'))
    for old in (folder, wheels):
        shutil.rmtree(old, ignore_errors=True)
    _snapshot(source)
    _run([under.python, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', wheels, source])
    venv.create(folder, with_pip=True)
    packages = f'lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages'
    (folder / packages / 'stock.pth').write_text(f'{under.prefix / packages}\n')
    pip = [folder / 'bin' / 'python', '-m', 'pip']
    _run([*pip, 'install', '--quiet', '-c', CONSTRAINTS, *wheels.glob('*.whl')])
    _run([*pip, 'check'])
    return Environment(folder / 'bin' / 'python', under.prefix)


def _snapshot(target: pathlib.Path) -> None:
    """Copy what the wheel is made of: a build writes into its source, and this is the user's."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ('heat_liveness', 'migrations'):
        shutil.copytree(CHECKOUT / name, target / name,
                        ignore=shutil.ignore_patterns('__pycache__'))
    for each in CHECKOUT.iterdir():
        if each.is_file():
            shutil.copy2(each, target)


def _run(command: Sequence[object]) -> None:
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{command[0]} failed: {(done.stdout + done.stderr)[-4000:]}')
