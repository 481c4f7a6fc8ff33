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

"""What must hold of a stack whose engine has ended, when all is done."""

import collections
from collections.abc import Collection, Mapping, Sequence

from tests.bed import processes
from tests.heat.lab.fleet import Fleet, Run
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import GONE, Stack

REST_SECONDS = 30.0
HANDLERS = ('create', 'update', 'delete', 'suspend', 'resume', 'check', 'snapshot')

is_alive = processes.is_alive


def count(runs: Sequence[Run], family: Collection[str]) -> Mapping[tuple[str, str], int]:
    """Return how often each handler of each resource of some stacks began."""
    return collections.Counter(
        (run.name, run.handler) for run in runs
        if run.stack in family and run.handler in HANDLERS)


def assert_at_rest(fleet: Fleet, stack: Stack) -> None:
    """Nothing of it is in progress, locked or waited for, and each resource is there once."""
    family = stack.family
    assert not [row for row in stack.resources
                if row['engine_id'] or row['status'] == 'IN_PROGRESS'], stack.describe()
    # Heat marks a stack first, and then cleans up.
    wait_until(lambda: not sync_points(fleet, family), REST_SECONDS,
               'The end of the sync points')
    wait_until(lambda: not duplicates(stack), REST_SECONDS, 'The end of all but one row of each')
    # What has failed is ended for good when its traversal is: before that, Heat drops an update.
    wait_until(lambda: not fleet.sql(
        'SELECT id FROM stack WHERE id IN %s AND status = %s AND current_traversal != %s', family,
        'FAILED', ''), REST_SECONDS, 'The end of the traversal')
    assert not fleet.sql('SELECT id FROM stack WHERE id IN %s AND status = %s', family,
                         'IN_PROGRESS')


def duplicates(stack: Stack) -> list[tuple[str, str]]:
    """Return what has more than one row that is neither replaced nor failed, by stack and name.

    What an engine had half made when it died stays as a failed row until the next update.
    """
    rows = collections.Counter(
        (row['stack_id'], row['name']) for row in stack.resources
        if not row['replaced_by'] and row['status'] != 'FAILED')
    return [key for key, number in rows.items() if number > 1]


def sync_points(fleet: Fleet, family: Collection[str]) -> list[object]:
    """Return the sync points of some stacks."""
    return list(fleet.sql('SELECT entity_id FROM sync_point WHERE stack_id IN %s', family))


WHOLE = ('check', 'suspend', 'resume')
"""Handlers that Heat runs for all of a nested stack, whatever state that is in."""


def assert_done_once(runs: Sequence[Run], family: Sequence[str],
                     calm: Mapping[tuple[str, str], int], dead: Collection[int]) -> int:
    """Only what a dead engine had begun was begun again, and once.

    But the resource of a nested stack whose engine died is run again as a whole: Heat checks,
    suspends or resumes all that is in it once more.

    Parameters
    ----------
    runs : sequence
        All that began since the action did.
    family : collection
        The stacks of which that is asked, the outermost first.
    calm : mapping
        How often each handler of each resource begins if nobody disturbs.
    dead : collection
        The processes of engines that are no more.

    Returns
    -------
    int
        How many handlers ran once more.
    """
    twice = 0
    for key, times in count(runs, family).items():
        # The names of a scaling group are made up at random.
        usual = calm.get(key, 1)
        if times > usual:
            twice += 1
            if key[1] in WHOLE and any((run.name, run.handler) == key and run.stack in family[1:]
                                       for run in runs):
                assert times <= usual + 2, (key, times)
                continue
            assert times == usual + 1, (key, times)
            assert [run for run in runs if (run.name, run.handler) == key
                    and run.stack in family and run.pid in dead], key
    return twice


def assert_nothing_is_left(fleet: Fleet, family: Collection[str],
                           before: Collection[tuple[str, str]]) -> None:
    """A deleted stack has left nothing, neither in Heat's database nor in Keystone."""
    rows = fleet.sql('SELECT id, action, status, deleted_at, user_creds_id FROM stack '
                     'WHERE id IN %s', family)
    assert {(row['action'], row['status'], bool(row['deleted_at'])) for row in rows} == {
        ('DELETE', 'COMPLETE', True)}
    assert not fleet.sql('SELECT id FROM resource WHERE stack_id IN %s', family)
    assert not sync_points(fleet, family)
    assert not [row for row in rows if row['user_creds_id'] and fleet.sql(
        'SELECT id FROM user_creds WHERE id = %s', row['user_creds_id'])]
    wait_until(lambda: fleet.lab.keystone.left_behind() <= set(before), REST_SECONDS,
               'The end of all trusts and projects')


def assert_serves(fleet: Fleet, stack: Stack, before: Collection[tuple[str, str]]) -> None:
    """A normal delete works and leaves nothing."""
    family = stack.family
    stack.delete()
    stack.wait_for(GONE)
    assert_nothing_is_left(fleet, family, before)
