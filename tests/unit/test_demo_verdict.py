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

"""The judge of the demo finds every fault there is; a judge that cannot is worth nothing."""

import dataclasses
import datetime

import pytest

from heat_liveness.cmd.demo import verdict
from heat_liveness.db.demo import STEPS, Call, Outcome, Resource

START = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - the database's times have no zone
REQUIRES = {'a': frozenset[str](), 'b': frozenset({'a'})}


def at(second: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=second)


def history() -> list[Call]:
    """Return all calls of a faultless run: e1 makes ``a`` and then ``b``, one step a second."""
    return [Call(number, name, (number - 1) % STEPS + 1, 1, 'e1', Outcome.APPLIED, at(number))
            for number, name in enumerate('a' * STEPS + 'b' * STEPS, 1)]


def resources() -> list[Resource]:
    return [Resource(name, needs, True, None) for name, needs in REQUIRES.items()]


def judge(calls: list[Call], ended: list[Resource] | None = None,
          **declared: datetime.datetime) -> verdict.Verdict:
    return verdict.judge(REQUIRES, resources() if ended is None else ended, calls, declared)


def changed(number: int, **changes: object) -> list[Call]:
    """Return the calls of a faultless run, but one of them is different."""
    return [dataclasses.replace(call, **changes) if call.id == number else call
            for call in history()]


def test_a_faultless_run_has_no_faults() -> None:
    found = judge(history())
    assert found.faults == []
    assert found.outcomes == {Outcome.APPLIED: 2 * STEPS}


def test_a_takeover_after_a_death_is_no_fault() -> None:
    calls = [dataclasses.replace(call, engine_id='e2', generation=2) if call.id > 6 else call
             for call in history()]
    again = dataclasses.replace(calls[5], engine_id='e2', generation=2, called_at=at(6.5),
                                outcome=Outcome.REPEATED)
    calls.insert(6, again)
    assert judge(calls, e1=at(6.2)).faults == []


def test_a_resource_that_is_not_done_is_lost() -> None:
    ended = [resources()[0], Resource('b', REQUIRES['b'], False, None)]
    assert judge(history(), ended).lost == ['b is not done.']
    assert judge(history(), ended[:1]).lost == ['b is not done.']


@pytest.mark.parametrize('change', [None, {'outcome': Outcome.REFUSED}, {'step': 1}])
def test_a_step_that_was_not_done_is_lost(change: dict[str, object] | None) -> None:
    calls = history()[:-1] if change is None else changed(2 * STEPS, **change)
    assert judge(calls).lost == ['b is called done, but only its steps [1, 2, 3] were.']


def test_a_lock_that_is_left_is_lost() -> None:
    ended = [resources()[0], Resource('b', REQUIRES['b'], True, 'e1')]
    assert judge(history(), ended).lost == ['The lock of b is left with e1.']


def test_a_step_applied_again_is_done_twice() -> None:
    calls = [*history(), dataclasses.replace(history()[-1], id=99)]
    assert judge(calls).twice == [f'Step {STEPS} of b was applied 2 times.']


def test_an_old_generation_that_was_accepted_is_done_twice() -> None:
    calls = changed(6, generation=2)
    assert judge(calls).twice == [
        'A call for b of generation 1 was accepted after one of generation 2.']


def test_an_old_generation_that_was_refused_is_no_fault() -> None:
    calls = [*changed(2 * STEPS, generation=2),
             Call(99, 'b', 2, 1, 'e1', Outcome.REFUSED, at(99))]
    assert judge(calls).faults == []


def test_two_engines_under_one_generation_are_a_fault() -> None:
    calls = changed(2 * STEPS, engine_id='e2')
    assert judge(calls, e1=at(7.5)).twice == ['e1 and e2 both called for b under generation 1.']


@pytest.mark.parametrize('declared', [{}, {'e1': at(8.5)}])
def test_work_taken_from_the_living_is_done_twice(
        declared: dict[str, datetime.datetime]) -> None:
    calls = changed(2 * STEPS, engine_id='e2', generation=2)
    assert judge(calls, **declared).twice == ['e2 went on with b although e1 was alive.']


@pytest.mark.parametrize('outcome', list(Outcome))
def test_any_call_in_the_name_of_the_dead_is_a_fault(outcome: Outcome) -> None:
    calls = [*history(), Call(99, 'b', 1, 1, 'e1', outcome, at(99))]
    found = judge(calls, e1=at(98))
    assert found.by_the_dead == ['e1 called the cloud for b after it was declared dead.']
    assert judge(calls, e1=at(99)).by_the_dead == []


def test_a_resource_begun_before_its_requirement_was_done_is_a_fault() -> None:
    early = Call(4, 'b', 1, 1, 'e1', Outcome.APPLIED, at(4))
    calls = [*history()[:3], early, dataclasses.replace(history()[3], id=5), *history()[5:]]
    assert judge(calls).too_early == ['b was begun before a was done.']
    assert judge(history()[STEPS:]).too_early == ['b was begun before a was done.']
