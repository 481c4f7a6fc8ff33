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

"""Judges a run by what the cloud has seen, whatever the engines believe.

Nothing may be *lost*: each resource is done, each of its steps was done, no lock is left.
Nothing may be done *twice*: no step was applied again, no call of an old generation was
accepted, no generation had two engines, and nobody worked on what another engine had begun
and had not died of.  The *dead stay dead*: no call bears a name that was declared dead
before.  And no resource was begun *too early*, before all it requires was done.

A call that the cloud recognised or refused is no fault: that is what it does it for.
"""

import dataclasses
import datetime
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from heat_liveness.db.demo import STEPS, Call, Outcome, Resource


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found; each fault is a sentence."""

    lost: Sequence[str]
    twice: Sequence[str]
    by_the_dead: Sequence[str]
    too_early: Sequence[str]
    outcomes: Mapping[Outcome, int]
    """How many calls had which outcome."""

    @property
    def faults(self) -> list[str]:
        """All that must not be."""
        return [*self.lost, *self.twice, *self.by_the_dead, *self.too_early]


def judge(requires: Mapping[str, Collection[str]], resources: Sequence[Resource],
          calls: Sequence[Call], declared: Mapping[str, datetime.datetime]) -> Verdict:
    """Judge a run that has ended.

    :param requires: the resources that should be done, and what each of them requires
    :param resources: as they are in the end
    :param calls: all calls, in the order in which the cloud did them
    :param declared: when each engine that was declared dead was declared so
    """
    by_resource: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_resource[call.name].append(call)
    return Verdict(
        lost=list(_lost(requires, resources, by_resource)),
        twice=[fault for name in sorted(by_resource)
               for fault in _twice(name, by_resource[name], declared)],
        by_the_dead=[
            f'{call.engine_id} called the cloud for {call.name} after it was declared dead.'
            for call in calls
            if call.engine_id in declared and call.called_at > declared[call.engine_id]],
        too_early=list(_too_early(requires, by_resource)),
        outcomes=Counter(call.outcome for call in calls))


def _lost(requires: Collection[str], resources: Sequence[Resource],
          calls: Mapping[str, Sequence[Call]]) -> Iterator[str]:
    done = {resource.name for resource in resources if resource.done}
    for name in requires:
        applied = {call.step for call in calls.get(name, ()) if call.outcome is Outcome.APPLIED}
        if name not in done:
            yield f'{name} is not done.'
        elif applied != set(range(1, STEPS + 1)):
            yield f'{name} is called done, but only its steps {sorted(applied)} were.'
    for resource in resources:
        if resource.engine_id is not None:
            yield f'The lock of {resource.name} is left with {resource.engine_id}.'


def _twice(name: str, calls: Sequence[Call],
           declared: Mapping[str, datetime.datetime]) -> Iterator[str]:
    steps = Counter(call.step for call in calls if call.outcome is Outcome.APPLIED)
    for step, times in sorted(steps.items()):
        if times > 1:
            yield f'Step {step} of {name} was applied {times} times.'
    accepted = [call for call in calls if call.outcome is not Outcome.REFUSED]
    for earlier, later in itertools.pairwise(accepted):
        if later.generation < earlier.generation:
            yield (f'A call for {name} of generation {later.generation} was accepted after one '
                   f'of generation {earlier.generation}.')
        if later.engine_id == earlier.engine_id:
            continue
        if later.generation == earlier.generation:
            yield (f'{earlier.engine_id} and {later.engine_id} both called for {name} under '
                   f'generation {later.generation}.')
        died_at = declared.get(earlier.engine_id)
        if died_at is None or died_at > later.called_at:
            yield (f'{later.engine_id} went on with {name} although {earlier.engine_id} was '
                   f'alive.')


def _too_early(requires: Mapping[str, Collection[str]],
               calls: Mapping[str, Sequence[Call]]) -> Iterator[str]:
    done_with = {name: call.id for name, sent in calls.items() for call in sent
                 if call.step == STEPS and call.outcome is Outcome.APPLIED}
    for name, sent in calls.items():
        for need in sorted(requires[name]):
            if need not in done_with or done_with[need] > sent[0].id:
                yield f'{name} was begun before {need} was done.'
