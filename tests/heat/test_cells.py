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

"""The table: each action, each window in which an engine can end, each way in which it can.

Whatever ends where, the stack ends as it would have, and is as good as any other afterwards.
Some cells run always, among them all actions at one blow; ``LONG=1`` runs them all.
"""

import os
from collections.abc import Callable, Mapping

import pytest

from tests.heat.lab import blow
from tests.heat.lab.actions import ACTIONS
from tests.heat.lab.cell import LOCKED, WAYS, WINDOWS, Cell
from tests.heat.lab.heat import Lab

pytestmark = [pytest.mark.heat, pytest.mark.timeout(900)]

SHORT = [
    ('create', 'leaf', 'machine'),
    ('delete', 'stored', 'machine'),
    ('rollback', LOCKED, 'worker'),
    ('suspend', 'done', 'machine'),
    ('resume', 'joined', 'worker'),
    ('check', 'ready', 'machine'),
    ('snapshot', LOCKED, 'term'),
    ('group-create', 'taken', 'machine'),
]


def all_cells() -> list[tuple[str, str, str]]:
    """Return the short ones, each window of each action, and each way of some actions."""
    found = [*SHORT]
    for action in ACTIONS:
        found += [(action, window, 'machine') for window in WINDOWS if can_be_lost(action, window)]
    for action in ('create', 'update', 'delete', 'group-create'):
        found += [(action, LOCKED, way) for way in WAYS]
        found += [(action, 'taken', way) for way in WAYS]
    return list(dict.fromkeys(found))


def can_be_lost(action: str, window: str) -> bool:
    """Whether a window of an action is of interest."""
    if window == 'begun':
        # Later, a wish is lost of which nobody has been told that it is fulfilled.
        return action == 'create'
    if window in {'broken', 'failed'}:
        return action == 'rollback'
    if action.startswith('scaling'):
        # To Heat a nested stack is a nested stack.
        return window in {LOCKED, 'taken'}
    # The members of a group wait for nothing: none becomes ready when another is done.
    return not (action.startswith('group') and window == 'ready')


@pytest.mark.parametrize(('action', 'window', 'way'),
                         all_cells() if os.environ.get('LONG') else SHORT)
def test_the_stack_ends_as_if_nobody_had_died(
    lab: Lab, cells: Callable[[Mapping[str, object]], None], action: str, window: str, way: str,
) -> None:
    cell = Cell(lab, action, window, way)
    cells(cell.figures)
    cell.run()
    cell.figures['result'] = 'right'


@pytest.mark.parametrize('way', [pytest.param('machine', marks=pytest.mark.long), 'all'])
def test_all_actions_at_one_blow(
    lab: Lab, cells: Callable[[Mapping[str, object]], None], way: str,
) -> None:
    blow.strike(lab, way, cells)
