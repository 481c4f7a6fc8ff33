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

"""Some seeds of the simulation hold all promises; more of them by ``make simulate``."""

import dataclasses
import time

import pytest

from heat_liveness import errors
from tests.history.events import Healed
from tests.simulation import plan as plans
from tests.simulation import world
from tests.simulation.__main__ import main, shrunk
from tests.simulation.rooms import Guards
from tests.simulation.scheduler import Clock, Hub, Lock, Pool, Process, current
from tests.simulation.store import Cluster, Transaction

SEEDS = 400
ENOUGH_SECONDS = 20.0
"""Of processor time; the seeds that are left belong to ``make simulate``."""


def test_the_options_of_the_plans_are_safe() -> None:
    assert not plans.check_settings()


@pytest.mark.timeout(600)
def test_the_first_seeds_keep_all_promises() -> None:
    began = time.process_time()
    for seed in range(SEEDS):
        outcome = world.run(plans.draw(seed))
        assert not outcome.faults, f'seed {seed}: {outcome.faults[0]}'
        if time.process_time() - began > ENOUGH_SECONDS:
            break
    assert seed > 10


def test_who_loses_against_another_node_is_told_so_as_by_the_product() -> None:
    first, second = (Transaction(node)
                     for node in Cluster(Hub(0), 2, lambda event: None).nodes)
    for transaction in (first, second):
        transaction.lock('lock', 'a')
        transaction.put('lock', 'a', 'row')
    first.commit()
    with pytest.raises(errors.Contended):
        second.commit()


def test_a_pool_has_so_many_threads_and_no_more() -> None:
    hub = Hub(0)
    ends: list[tuple[float, str]] = []

    def work(name: str) -> None:
        current().wait(2)
        ends.append((hub.now, name))

    def main() -> None:
        pool = Pool(2, 'worker')
        for name in 'abcde':
            pool.submit(work, name)
        pool.shutdown(wait=True)
        ends.append((hub.now, 'all'))
    Process(hub, 'process', Clock(hub, 1.0, 0.0)).spawn('main', main)
    hub.run(60, lambda: False)
    assert ends == [(2, 'a'), (2, 'b'), (4, 'c'), (4, 'd'), (6, 'e'), (6, 'all')]


def test_nobody_else_runs_while_a_thread_has_a_lock() -> None:
    hub = Hub(0)
    hub.preempting = 1.0
    outer, inner = Lock(), Lock()
    steps: list[str] = []

    def main(name: str) -> None:
        with outer:
            steps.append(name)
            with inner:
                steps.append(name)
    process = Process(hub, 'process', Clock(hub, 1.0, 0.0))
    for name in 'ab':
        process.spawn(name, main, name)
    hub.run(60, lambda: False)
    assert steps in (['a', 'a', 'b', 'b'], ['b', 'b', 'a', 'a'])


def test_a_machine_that_is_paused_waits_as_much_longer() -> None:
    hub = Hub(0)
    clock = Clock(hub, 1.0, 0.0)
    process = Process(hub, 'process', clock)
    ends: list[float] = []

    def main() -> None:
        current().wait(10)
        ends.extend([hub.now, clock.now()])
    process.spawn('main', main)
    hub.at(4, clock.pause, 20)
    hub.at(24, process.wake)
    hub.run(60, lambda: False)
    assert ends == [30, pytest.approx(10)]


def test_a_seed_gives_the_same_history_each_time() -> None:
    first, second = world.run(plans.draw(7)), world.run(plans.draw(7))
    assert first.events == second.events
    assert any(isinstance(event, Healed) for event in first.events)


def test_a_run_that_fails_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = Guards(one_journal_row=False)
    run = world.run
    monkeypatch.setattr(world, 'run', lambda plan: run(plan, blind))
    outcome = next(found for found in (world.run(plans.draw(seed)) for seed in range(20))
                   if found.faults and len(found.plan.incidents) > 3)
    smaller = shrunk(outcome, 60)
    assert smaller.faults[0].invariant == outcome.faults[0].invariant == 18
    assert len(smaller.plan.incidents) < len(outcome.plan.incidents)
    assert world.run(smaller.plan).events == smaller.events


def test_the_program_tells_of_what_fails(monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    quiet = dataclasses.replace(plans.draw(1), rates={}, incidents=(), jobs=(), duration=10.0)
    monkeypatch.setattr(plans, 'draw', lambda seed: quiet)
    assert main(['--seeds', '2']) == 0
    assert '0 failed' in capsys.readouterr().out
    run = world.run
    monkeypatch.setattr(world, 'run', lambda plan: run(
        dataclasses.replace(plan, incidents=(plans.Incident('crash', 5.0, 0, 0.0),)),
        Guards(one_journal_row=False)))
    assert main(['--seeds', '1', '--attempts', '3']) == 1
    out = capsys.readouterr().out
    assert 'Seed 0 fails: I18' in out
    assert 'not the same' not in out
    assert 'Killed engine=e' in out
