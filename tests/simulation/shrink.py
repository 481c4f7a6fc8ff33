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

"""Make a run that fails smaller, as long as it fails by the same invariant.

What is tried, from the coarse to the fine: no fault of calls of one kind, less time, fewer
incidents and jobs, no oddity of the surroundings, a slot less, single faults of calls muted.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from tests.simulation.plan import OF_SLOTS, SETTINGS, Plan

T = TypeVar('T')
Fails = Callable[[Plan], list[int] | None]
"""Runs a plan; returns the calls that met a fault, or None if it does not fail as before."""


def shrink(plan: Plan, injected: list[int], fails: Fails, attempts: int = 400) -> Plan:
    """Return a smaller plan that fails.

    :param injected: the calls that met a fault in it
    :param attempts: runs at most
    """
    again = True
    while again:
        again = False
        for smaller in _smaller(plan, injected):
            if attempts <= 0:
                return plan
            attempts -= 1
            found = fails(smaller)
            if found is not None:
                plan, injected, again = smaller, found, True
                break
    return plan


def _smaller(plan: Plan, injected: list[int]) -> Iterator[Plan]:
    if len(plan.rates) > 1:
        yield dataclasses.replace(plan, rates={})
    for name in plan.rates:
        yield dataclasses.replace(plan, rates={
            other: rate for other, rate in plan.rates.items() if other != name})
    for share in (0.5, 0.8):
        if plan.duration > 20:
            duration = plan.duration * share
            yield dataclasses.replace(
                plan, duration=duration,
                incidents=tuple(each for each in plan.incidents if each.at < duration),
                jobs=tuple(each for each in plan.jobs if each.at < duration))
    for incidents in _fewer(plan.incidents):
        yield dataclasses.replace(plan, incidents=incidents)
    for jobs in _fewer(plan.jobs):
        yield dataclasses.replace(plan, jobs=jobs)
    yield from _plainer(plan)
    for happen in _fewer(tuple(injected)):
        yield dataclasses.replace(plan, muted=plan.muted | (set(injected) - set(happen)))


def _fewer(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """Yield what is left without one half, without a quarter, … without one."""
    size = (len(items) + 1) // 2
    while size:
        for first in range(0, len(items), size):
            yield items[:first] + items[first + size:]
        size = size // 2 if size > 1 else 0


def _plainer(plan: Plan) -> Iterator[Plan]:
    plain = {'preempting': 0.0, 'slow_scans': 0.0, 'stops': 0.0, 'latency': 0.005,
             'roaming': False, 'offsets': (0.0,) * plan.nodes,
             'machines': tuple(range(len(plan.machines))),
             'settings': (SETTINGS,) * len(plan.machines)}
    for name, value in plain.items():
        if getattr(plan, name) != value:
            yield dataclasses.replace(plan, **{name: value})  # type: ignore[arg-type]
    if plan.nodes > 1:
        yield dataclasses.replace(
            plan, nodes=1, roaming=False, offsets=plan.offsets[:1], incidents=tuple(
                each for each in plan.incidents
                if each.kind not in {'lag', 'down'} and (each.kind != 'step' or not each.where)))
    last = len(plan.machines) - 1
    if last > 1:
        yield dataclasses.replace(
            plan, machines=plan.machines[:-1], settings=plan.settings[:-1],
            incidents=tuple(each for each in plan.incidents
                            if each.kind not in OF_SLOTS or each.where < last),
            jobs=tuple(each for each in plan.jobs if each.slot < last))
