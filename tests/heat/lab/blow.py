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

"""All actions held at one time, each in a stack of its own, when an engine ends."""

import datetime
from collections.abc import Callable, Mapping
from concurrent import futures

from tests.heat.lab import verdict
from tests.heat.lab.actions import ACTIONS, Action
from tests.heat.lab.cell import BUSY, RECOVERY_SECONDS, STRIKE_SECONDS, Cell
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.heat import Lab
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import GONE, Stack

# A rollback is staged while nothing else goes on; the names in a scaling group are random.
TOGETHER = [action for name, action in ACTIONS.items()
            if name != 'rollback' and not name.startswith('scaling')]
HELD = '*[0-2]'
WIDTH = 3
AT_ONCE = 6
"""Stacks that are prepared side by side."""


def strike(lab: Lab, way: str, report: Callable[[Mapping[str, object]], None]) -> None:
    """Have one engine, or all, end in the middle of everything, and judge each stack."""
    with lab.fleet(BUSY) as fleet:
        engines = fleet.start_engines('e1', 'e2')
        before = lab.keystone.left_behind()
        work = [(action, Stack(fleet, f'{fleet.name}-{action.name}')) for action in TOGETHER]
        with futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda each: each[0].prepare(fleet, each[1]), work))
        began = fleet.now
        _hold(fleet, work)
        victim = engines[0].pid, engines[0].engine_id
        died = fleet.now
        for engine in engines if way == 'all' else engines[:1]:
            engine.program.kill()
        dead = [victim[0], *([engines[1].pid] if way == 'all' else [])]
        for handler in {action.handler for action, _ in work}:
            fleet.release(handler)
        if way == 'all':
            fleet.start_engine('e3')
        # All at one time: each is measured to its own end.
        with futures.ThreadPoolExecutor(len(work)) as pool:
            rows = list(pool.map(
                lambda each: _judge(fleet, *each, way, began, died, dead, report), work))
        assert not any(rows), '\n'.join(filter(None, rows))
        _serve(work)
        families = [each for _, stack in work for each in stack.family]
        verdict.assert_nothing_is_left(fleet, families, before)


def _hold(fleet: Fleet, work: list[tuple[Action, Stack]]) -> None:
    """Begin all actions, and wait until all that shall be locked is."""
    for handler in {action.handler for action, _ in work}:
        fleet.hold(handler, HELD)
    for action, stack in work:
        action.begin(fleet, stack)
    wanted = sum(WIDTH + bool(action.inner) for action, _ in work)
    wait_until(lambda: len(fleet.working_on()) == wanted, STRIKE_SECONDS,
               f'A lock on {wanted} resources')


def _judge(fleet: Fleet, action: Action, stack: Stack, way: str, began: datetime.datetime,
           died: datetime.datetime, dead: list[int],
           report: Callable[[Mapping[str, object]], None]) -> str:
    """Judge one stack and report its row of the table; return what is wrong with it."""
    row: dict[str, object] = {
        'action': action.name, 'window': 'W2 locked', 'way': f'{way}, with all others'}
    report(row)
    try:
        stack.wait_for(action.end, RECOVERY_SECONDS)
        row['complete s'] = (fleet.now - died).total_seconds()
        row['left'] = sum(bool(each['replaced_by']) or each['status'] == 'FAILED'
                          for each in stack.resources)
        since = began.replace(tzinfo=datetime.UTC).timestamp()
        row['twice'] = verdict.assert_done_once(
            [run for run in fleet.runs if run.time >= since], stack.family, {}, dead)
        verdict.assert_at_rest(fleet, stack)
    except AssertionError as wrong:
        return f'{action.name}: {wrong}'
    row['result'] = 'right'
    if action.name in Cell.calm:
        row['undisturbed s'] = Cell.calm[action.name].seconds
    return ''


def _serve(work: list[tuple[Action, Stack]]) -> None:
    """Have each stack take a normal update, and then a delete."""
    left = [(action, stack) for action, stack in work if action.end != GONE]
    with futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda each: each[0].serve(each[1]), left))
    for _, stack in left:
        stack.delete()
    for _, stack in left:
        stack.wait_for(GONE)
