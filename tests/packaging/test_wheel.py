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

"""What a user installs is whole: the wheel alone, in an environment that holds nothing else."""

import pathlib
import shutil
import sqlite3
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Dependencies are fetched here.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built from a copy: a build leaves its traces beside the sources."""
    source = tmp_path_factory.mktemp('wheel') / 'source'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        '.*', 'build', '*.egg-info', '__pycache__', 'tests', 'docs'))
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir',
        source.parent, source)
    (built,) = source.parent.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def programs(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The directory of the programs of an environment in which only the wheel is installed."""
    home = tmp_path_factory.mktemp('environment')
    venv.create(home, with_pip=True)
    run(home / 'bin/python', '-m', 'pip', 'install', '--quiet', wheel)
    return home / 'bin'


def run(*command: str | pathlib.Path, cwd: pathlib.Path | None = None) -> str:
    """Run a program that must succeed, and return what it says."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_wheel_ships_the_migrations_the_sample_and_nothing_beside_the_package(
        wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    revisions = {f'heat_liveness/migrations/versions/{path.name}'
                 for path in (ROOT / 'migrations/versions').glob('*.py')}
    assert revisions <= set(names)
    assert 'heat_liveness/migrations/script.py.mako' in names
    assert any(name.endswith('data/etc/heat_liveness/heat_liveness.conf.sample') for name in names)
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'heat_liveness'}


def test_the_environment_is_consistent(programs: pathlib.Path) -> None:
    run(programs / 'python', '-m', 'pip', 'check')


def test_the_schema_is_made_from_an_empty_directory(
        programs: pathlib.Path, tmp_path: pathlib.Path) -> None:
    database = tmp_path / 'liveness.sqlite'
    configuration = tmp_path / 'heat.conf'
    configuration.write_text(f'[database]\nconnection = sqlite:///{database}\n')
    empty = tmp_path / 'empty'
    empty.mkdir()
    command = (programs / 'heat-liveness-manage', '--config-file', configuration, 'db', 'sync')
    run(*command, cwd=empty)
    tables = {name for (name,) in sqlite3.connect(database).execute(
        "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {'liveness_service', 'liveness_lock', 'liveness_takeover'} <= tables
    run(*command, cwd=empty)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize('program', [
    'heat-liveness-manage', 'heat-liveness-agent', 'heat-liveness-demo'])
def test_each_program_explains_itself(programs: pathlib.Path, program: str) -> None:
    assert f'usage: {program}' in run(programs / program, '--help')


def test_the_drivers_are_found_by_their_entry_points(programs: pathlib.Path) -> None:
    run(programs / 'python', '-c', (
        'from importlib.metadata import entry_points\n'
        "for group in ('heat_liveness.work', 'oslo.config.opts'):\n"
        "    entries = [e for e in entry_points(group=group) if e.dist.name == 'heat-liveness']\n"
        '    assert entries, group\n'
        '    for entry in entries:\n'
        '        entry.load()\n'))
