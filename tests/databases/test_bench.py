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

"""The measurements run, and what they claim is so; what they measure is nobody's business here."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import event

from benchmarks import __main__ as bench
from benchmarks import beds, figures, load, looks, takeovers
from heat_liveness.db import models
from heat_liveness.db.locks import Locks
from heat_liveness.db.members import Members
from tests.bed import server
from tests.databases.conftest import Bed

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('name', [pytest.param(name, marks=getattr(pytest.mark, name))
                                  for name in beds.NAMES])
def test_the_quick_measurements_run(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'figures.json'
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks', '--quick', '--on', name, '--json', str(path)],
        cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert beds.SETTINGS[name] in written['databases'][name]
    found: dict[str, dict[str, Any]] = {}
    for figure in written['figures']:
        found.setdefault(figure['measurement'], {})[figure['way']] = figure
        assert figure['per_second'] > 0
        assert figure['way'] in done.stdout
    assert [next(iter(ways.values()))['ratio'] for ways in found.values()] == [1, 1, 1, 1]
    assert found['sweep of 50 stacks']['Sweep.look']['notes'] == {'stacks': 50}
    # The observer sees its own machine, not the fleet.
    assert found['look at 500 engines']['Members.look']['notes'] == {'rows': 16}
    if name != 'sqlite':
        assert found['beat']['driver alone']['notes'] == {'round trips': 1}
        assert found['beat']['Members.beat']['notes'] == {'round trips': 1}
        assert found['beat']['ORM, get and save']['notes']['round trips'] > 2


@pytest.mark.parametrize('name', [pytest.param(name, marks=getattr(pytest.mark, name))
                                  for name in beds.NAMES if name != 'sqlite'])
def test_the_quick_load_runs(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'figures.json'
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks', '--quick', '--only', 'load', '--on', name,
         '--json', str(path)], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = {about: value for figure in json.loads(path.read_text())['figures']
            for about, value in figure['notes'].items()}
    assert told['beats'] > bench.QUICK.load.engines
    assert told['killed'] == len(load.deaths(bench.QUICK.load)) > 2
    assert told['false'] == 0


def test_one_kill_of_ten_takes_a_whole_machine() -> None:
    plan = load.deaths(load.Load(seconds=60, kill_seconds=4))
    assert len(plan) == 9 + looks.ENGINES_PER_MACHINE
    assert len(set(plan.values())) == 10
    assert min(plan.values()) > load.Load().settings.settle


def test_a_robbed_engine_is_told_from_one_that_beat_too_late() -> None:
    seen = load.Beats(killed={'killed'}, silent={'killed': 3, 'late': 21, 'robbed': 19})
    killed, late, robbed = (load.Death(name, 30, mass=False) for name in seen.silent)
    assert load.judge([killed, late], seen, 20) == [late]
    with pytest.raises(AssertionError, match='Declared dead though they beat in time'):
        load.judge([killed, robbed], seen, 20)
    with pytest.raises(AssertionError, match=r"not declared dead: \['killed'\]"):
        load.judge([late], seen, 20)


def test_a_lock_won_twice_is_noticed(sqlite_bed: Bed) -> None:
    share = takeovers._Share([1, 2], 0, 1, 0, 0)
    with pytest.raises(AssertionError, match='won twice'):
        takeovers._verify(sqlite_bed.database, {'a': share, 'b': share}, 4)


def test_a_lock_that_the_table_gives_to_another_is_noticed(sqlite_bed: Bed) -> None:
    dead = _dead_with_locks(sqlite_bed, 10)
    sqlite_bed.engine('a')
    sqlite_bed.engine('b')
    ids = [row.id for row in sqlite_bed.locks.take_over(dead, 'a', 100, tainted=False)]
    takeovers._verify(sqlite_bed.database, {'a': _share(ids)}, 10)
    with pytest.raises(AssertionError, match='other winners'):
        takeovers._verify(sqlite_bed.database, {'a': _share(ids[1:]), 'b': _share(ids[:1])}, 10)
    with pytest.raises(AssertionError, match='1 locks were not won'):
        takeovers._verify(sqlite_bed.database, {'a': _share(ids[1:])}, 10)


def _share(ids: list[int]) -> takeovers._Share:
    return takeovers._Share(ids, 0, 1, 0, 0)


def _dead_with_locks(bed: Bed, locks: int) -> Any:
    takeovers._populate(bed.database, locks)
    return Members(bed.database).read(takeovers.DEAD)


def test_ratios_are_taken_turn_by_turn() -> None:
    plain, ours = figures.compare(
        'm', 'd', {'plain': [100.0, 10.0, 1000.0], 'ours': [50.0, 6.0, 700.0]}, {})
    assert (plain.ratio, plain.ratios) == (1, (1, 1))
    assert (ours.ratio, ours.ratios, ours.per_second) == (0.6, (0.5, 0.7), 50)


def test_a_missing_server_ends_the_measurements_with_a_sentence(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*unused: object) -> str:
        raise server.MissingProgram('postgres is not installed; `make test` installs it.')

    monkeypatch.setattr(server, 'find_program', missing)
    assert bench.main(['--quick', '--on', 'postgresql']) == 1
    assert 'The measurements ended early: postgres is not installed' in capsys.readouterr().err


@pytest.mark.postgresql
def test_postgresql_finds_a_batch_by_the_index_of_its_owner(
        postgresql_server: server.Server) -> None:
    """An owner with a fair share of the table is where it would walk the primary key."""
    bed = Bed(postgresql_server.create_database())
    models.metadata.create_all(bed.database.engine)
    dead = _dead_with_locks(bed, 3000)
    bed.engine('a')
    with bed.database.autocommit() as connection:
        connection.exec_driver_sql('ANALYZE')
    sent: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any,
             *rest: object) -> None:
        sent.append((statement, parameters))

    event.listen(bed.database.engine, 'before_cursor_execute', note)
    assert len(Locks(bed.database).take_over(dead, 'a', 100, tainted=False)) == 100
    event.remove(bed.database.engine, 'before_cursor_execute', note)
    (statement, parameters), *_ = [each for each in sent if each[0].startswith('SELECT')]
    with bed.database.autocommit() as connection:
        plan = connection.exec_driver_sql('EXPLAIN ' + statement, parameters).scalars().all()
    assert any('Index Scan using liveness_lock_engine_id_id' in line for line in plan), plan
    bed.database.close()
