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

"""What is done with a resource whose owner has ended, case by case, and what never is."""

import dataclasses
import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_liveness.heat import graph, plans
from heat_liveness.heat.plans import Child, Decision, Plan, Resource, Stack

BEFORE, BEGAN, AFTER = (datetime.datetime(2026, 1, day) for day in (1, 2, 3))  # noqa: DTZ001
OLD, NEW, OTHER = 1, 2, 3
"""Templates: the stack's previous one, its present one, and some other."""
UPDATE, CLEANUP = (graph.Node(7, is_update) for is_update in (True, False))
DONE_CHILD = Child('c1', 'nested', in_progress=False)
FAILED_CHILD = Child('c1', 'nested', in_progress=False, failure='Resource CREATE failed')
BUSY_CHILD = Child('c1', 'nested', in_progress=True)
ACTIONS = ('CREATE', 'ADOPT', 'UPDATE', 'DELETE', 'ROLLBACK', 'SUSPEND', 'RESUME', 'CHECK',
           'SNAPSHOT', 'RESTORE')


def stack(action: str = 'CREATE', **changes: Any) -> Stack:
    return Stack(**{
        'id': 's1', 'name': 'stack', 'action': action, 'status': 'IN_PROGRESS', 'traversal': 't1',
        'owner_id': None, 'template_id': NEW, 'previous_template_id': OLD, 'created_at': BEFORE,
        'updated_at': BEGAN, 'timeout_minutes': None, **changes})


def resource(action: str = 'CREATE', stack_action: str = 'CREATE', **changes: Any) -> Resource:
    return Resource(**{
        'id': 7, 'name': 'r', 'action': action, 'status': 'IN_PROGRESS', 'engine_id': 'dead',
        'atomic_key': 1, 'status_reason': None, 'physical_id': 'p', 'replaces': None,
        'template_id': OLD, 'updated_at': AFTER, 'stack': stack(stack_action), **changes})


def state(row: Resource, decision: Decision) -> tuple[str, str, str | None]:
    """Return what stands in the row afterwards: action, status, physical id."""
    return (decision.action or row.action, decision.status or row.status,
            decision.physical_id or row.physical_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table: what stands there, and what is expected."""

    row: Resource
    node: graph.Node | None = UPDATE
    child: Child | None = None
    abandons: bool = False
    fenced: bool = True
    plan: Plan
    state: tuple[str, str]
    physical_id: str | None = 'p'


BARE = {'physical_id': None}
CASES = {
    # Creates.
    'a create that has made nothing begins again': Case(
        row=resource(**BARE), plan=Plan.CREATE_AGAIN, state=('INIT', 'COMPLETE'),
        physical_id=None),
    'a create that may have made something is replaced': Case(
        row=resource(), plan=Plan.REPLACE, state=('CREATE', 'FAILED')),
    'a create in an update that has made nothing begins again': Case(
        row=resource(stack_action='UPDATE', **BARE), plan=Plan.CREATE_AGAIN,
        state=('INIT', 'COMPLETE'), physical_id=None),
    'a create in an update is replaced': Case(
        row=resource(stack_action='UPDATE'), plan=Plan.REPLACE, state=('CREATE', 'FAILED')),
    'a create in a rollback is replaced': Case(
        row=resource(stack_action='ROLLBACK'), plan=Plan.REPLACE, state=('CREATE', 'FAILED')),
    'a create that is to be deleted is deleted': Case(
        row=resource(stack_action='DELETE'), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('CREATE', 'FAILED')),
    'a create that has made nothing and is to be deleted is deleted': Case(
        row=resource(stack_action='DELETE', **BARE), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('INIT', 'COMPLETE'), physical_id=None),
    'a create that a rollback removes is removed': Case(
        row=resource(stack_action='ROLLBACK'), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('CREATE', 'FAILED')),
    'a nested stack that exists is updated': Case(
        row=resource(), child=DONE_CHILD, plan=Plan.RUN_AGAIN, state=('CREATE', 'FAILED'),
        physical_id='c1'),
    'a nested stack whose id was never written is given it': Case(
        row=resource(**BARE), child=DONE_CHILD, plan=Plan.RUN_AGAIN, state=('CREATE', 'FAILED'),
        physical_id='c1'),
    'what waited for a nested stack that has failed has failed too': Case(
        row=resource(template_id=NEW, **BARE), child=FAILED_CHILD, plan=Plan.FAIL,
        state=('CREATE', 'FAILED'), physical_id='c1'),
    'what updated a nested stack that has failed has failed too': Case(
        row=resource('UPDATE', 'UPDATE'), child=FAILED_CHILD, plan=Plan.FAIL,
        state=('UPDATE', 'FAILED'), physical_id='c1'),
    'and what names its new template': Case(
        row=resource('UPDATE', 'UPDATE', template_id=NEW, updated_at=BEFORE), child=FAILED_CHILD,
        plan=Plan.FAIL, state=('UPDATE', 'FAILED'), physical_id='c1'),
    'and what an earlier operation did not bring to its template': Case(
        row=resource('UPDATE', 'UPDATE', template_id=OTHER), child=FAILED_CHILD,
        plan=Plan.FAIL, state=('UPDATE', 'FAILED'), physical_id='c1'),
    'a nested stack that was interrupted for this operation is updated': Case(
        row=resource('UPDATE', 'UPDATE', template_id=OTHER, updated_at=BEFORE),
        child=FAILED_CHILD, plan=Plan.RUN_AGAIN, state=('UPDATE', 'IN_PROGRESS')),
    'and one that an earlier operation was creating': Case(
        row=resource(stack_action='UPDATE'), child=FAILED_CHILD, plan=Plan.RUN_AGAIN,
        state=('CREATE', 'FAILED'), physical_id='c1'),
    'a nested stack that has failed does not hinder its delete': Case(
        row=resource(stack_action='DELETE'), node=CLEANUP, child=FAILED_CHILD,
        plan=Plan.RUN_AGAIN, state=('CREATE', 'FAILED'), physical_id='c1'),
    'nor another action': Case(
        row=resource('CHECK', 'CHECK'), child=FAILED_CHILD, plan=Plan.RUN_AGAIN,
        state=('CHECK', 'IN_PROGRESS')),
    'a nested stack whose id was never written is deleted too': Case(
        row=resource(stack_action='DELETE', **BARE), node=CLEANUP, child=DONE_CHILD,
        plan=Plan.RUN_AGAIN, state=('CREATE', 'FAILED'), physical_id='c1'),
    # Adoptions.
    'an adoption fails': Case(
        row=resource('ADOPT', 'ADOPT'), plan=Plan.FAIL, state=('ADOPT', 'FAILED')),
    'an adoption fails before anything was adopted': Case(
        row=resource('ADOPT', 'ADOPT', **BARE), plan=Plan.FAIL, state=('ADOPT', 'FAILED'),
        physical_id=None),
    'a create in an adoption is a create': Case(
        row=resource('CREATE', 'ADOPT', **BARE), plan=Plan.CREATE_AGAIN,
        state=('INIT', 'COMPLETE'), physical_id=None),
    'what an update wants that an adoption left is made': Case(
        row=resource('ADOPT', 'UPDATE', **BARE), plan=Plan.CREATE_AGAIN,
        state=('INIT', 'COMPLETE'), physical_id=None),
    'what was adopted is not replaced by what may be half-made': Case(
        row=resource('ADOPT', 'UPDATE'), plan=Plan.CREATE_AGAIN, state=('INIT', 'COMPLETE')),
    # Updates.
    'an update in place is run again': Case(
        row=resource('UPDATE', 'UPDATE'), plan=Plan.RUN_AGAIN, state=('UPDATE', 'IN_PROGRESS')),
    'an update in place of a row that is behind is run again if it is this one': Case(
        row=resource('UPDATE', 'UPDATE', template_id=OTHER, updated_at=BEGAN),
        plan=Plan.RUN_AGAIN, state=('UPDATE', 'IN_PROGRESS')),
    'an update in place whose time is not known is run again from the previous template': Case(
        row=resource('UPDATE', 'UPDATE', updated_at=None), plan=Plan.RUN_AGAIN,
        state=('UPDATE', 'IN_PROGRESS')),
    'an update that has its new template would be taken for done': Case(
        row=resource('UPDATE', 'UPDATE', template_id=NEW), plan=Plan.REPLACE,
        state=('UPDATE', 'FAILED')),
    'an update of an earlier operation is replaced': Case(
        row=resource('UPDATE', 'UPDATE', template_id=OTHER, updated_at=BEFORE),
        plan=Plan.REPLACE, state=('UPDATE', 'FAILED')),
    'an update of an unknown time is of an earlier operation': Case(
        row=resource('UPDATE', 'UPDATE', template_id=OTHER, updated_at=None),
        plan=Plan.REPLACE, state=('UPDATE', 'FAILED')),
    'an update without a template is of an earlier operation': Case(
        row=resource('UPDATE', 'UPDATE', template_id=None, updated_at=BEFORE),
        plan=Plan.REPLACE, state=('UPDATE', 'FAILED')),
    'the operation of a stack that was only created began when it was': Case(
        row=resource('UPDATE', 'CREATE', template_id=OTHER, updated_at=BEGAN, stack=stack(
            'CREATE', updated_at=None)),
        plan=Plan.RUN_AGAIN, state=('UPDATE', 'IN_PROGRESS')),
    'an update that a rollback takes back to the previous template is run again': Case(
        row=resource('UPDATE', 'ROLLBACK'), plan=Plan.RUN_AGAIN,
        state=('UPDATE', 'IN_PROGRESS')),
    'an update that is to be deleted is deleted': Case(
        row=resource('UPDATE', 'DELETE', template_id=OTHER, updated_at=BEFORE), node=CLEANUP,
        plan=Plan.RUN_AGAIN, state=('UPDATE', 'IN_PROGRESS')),
    'an update that is cleaned up is not replaced': Case(
        row=resource('UPDATE', 'UPDATE', template_id=NEW), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('UPDATE', 'FAILED')),
    'an update of a nested stack is run again': Case(
        row=resource('UPDATE', 'UPDATE', template_id=NEW, updated_at=BEFORE), child=DONE_CHILD,
        plan=Plan.RUN_AGAIN, state=('UPDATE', 'IN_PROGRESS')),
    # Deletes.
    'a delete is run again': Case(
        row=resource('DELETE', 'DELETE'), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('DELETE', 'IN_PROGRESS')),
    'a cleanup in an update is run again': Case(
        row=resource('DELETE', 'UPDATE'), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('DELETE', 'IN_PROGRESS')),
    'a delete of a nested stack is run again': Case(
        row=resource('DELETE', 'DELETE'), node=CLEANUP, child=DONE_CHILD, plan=Plan.RUN_AGAIN,
        state=('DELETE', 'IN_PROGRESS')),
    'what was being deleted and is wanted is replaced': Case(
        row=resource('DELETE', 'CREATE'), plan=Plan.REPLACE, state=('DELETE', 'FAILED')),
    'a delete where stacks may be abandoned fails': Case(
        row=resource('DELETE', 'DELETE'), node=CLEANUP, abandons=True, plan=Plan.FAIL,
        state=('DELETE', 'FAILED')),
    'a cleanup in an update is no abandon': Case(
        row=resource('DELETE', 'UPDATE'), node=CLEANUP, abandons=True, plan=Plan.RUN_AGAIN,
        state=('DELETE', 'IN_PROGRESS')),
    # The other actions.
    'a check is run again': Case(
        row=resource('CHECK', 'CHECK'), plan=Plan.RUN_AGAIN, state=('CHECK', 'IN_PROGRESS')),
    'a snapshot is run again': Case(
        row=resource('SNAPSHOT', 'SNAPSHOT'), plan=Plan.RUN_AGAIN,
        state=('SNAPSHOT', 'IN_PROGRESS')),
    'a suspension is run again': Case(
        row=resource('SUSPEND', 'SUSPEND'), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('SUSPEND', 'IN_PROGRESS')),
    'a resumption fails, as Heat resumes only what failed to': Case(
        row=resource('RESUME', 'RESUME'), plan=Plan.RUN_AGAIN, state=('RESUME', 'FAILED')),
    'a resumption of a nested stack fails too': Case(
        row=resource('RESUME', 'RESUME'), child=DONE_CHILD, plan=Plan.RUN_AGAIN,
        state=('RESUME', 'FAILED')),
    'a suspension of a nested stack is run again': Case(
        row=resource('SUSPEND', 'SUSPEND'), node=CLEANUP, child=DONE_CHILD, plan=Plan.RUN_AGAIN,
        state=('SUSPEND', 'IN_PROGRESS')),
    'a check that an update has interrupted is replaced': Case(
        row=resource('CHECK', 'UPDATE'), plan=Plan.REPLACE, state=('CHECK', 'FAILED')),
    'a suspension that a delete has interrupted is deleted': Case(
        row=resource('SUSPEND', 'DELETE'), node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('SUSPEND', 'IN_PROGRESS')),
    'a check of a nested stack that an update has interrupted is updated': Case(
        row=resource('CHECK', 'UPDATE'), child=DONE_CHILD, plan=Plan.RUN_AGAIN,
        state=('CHECK', 'IN_PROGRESS')),
    # Locked without having begun.
    'what was locked before it began is run again': Case(
        row=resource('CREATE', 'UPDATE', status='COMPLETE'), plan=Plan.RUN_AGAIN,
        state=('CREATE', 'COMPLETE')),
    'what was locked when it had failed is run again': Case(
        row=resource('CREATE', 'UPDATE', status='FAILED'), plan=Plan.RUN_AGAIN,
        state=('CREATE', 'FAILED')),
    'what was not begun in an adoption is known to be no adoption': Case(
        row=resource('INIT', 'ADOPT', status='COMPLETE', **BARE), plan=Plan.RUN_AGAIN,
        state=('INIT', 'COMPLETE'), physical_id=None),
    'what was locked before it began does not fail with its stack': Case(
        row=resource('CREATE', 'DELETE', status='COMPLETE'), node=CLEANUP, abandons=True,
        plan=Plan.FAIL, state=('CREATE', 'COMPLETE')),
    # Nested stacks that are in progress.
    'a nested stack in progress is waited for': Case(
        row=resource(), child=BUSY_CHILD, plan=Plan.WAIT, state=('CREATE', 'IN_PROGRESS')),
    'a nested stack in progress is waited for in each action': Case(
        row=resource('DELETE', 'DELETE'), node=CLEANUP, child=BUSY_CHILD, plan=Plan.WAIT,
        state=('DELETE', 'IN_PROGRESS')),
    'a nested stack in progress is waited for though nobody waits for the resource': Case(
        row=resource(), node=None, child=BUSY_CHILD, plan=Plan.WAIT,
        state=('CREATE', 'IN_PROGRESS')),
    # Nobody waits.
    'a create that nobody waits for is released as it would be': Case(
        row=resource(), node=None, plan=Plan.RELEASE, state=('CREATE', 'FAILED')),
    'an update that nobody waits for is released': Case(
        row=resource('UPDATE', 'UPDATE', template_id=NEW), node=None, plan=Plan.RELEASE,
        state=('UPDATE', 'FAILED')),
    'what was locked without having begun is released': Case(
        row=resource('CREATE', 'UPDATE', status='COMPLETE'), node=None, plan=Plan.RELEASE,
        state=('CREATE', 'COMPLETE')),
    # Stacks that are not in progress.
    'in a stack that has failed what had begun has failed': Case(
        row=resource(stack=stack(status='FAILED'), **BARE), plan=Plan.RELEASE,
        state=('CREATE', 'FAILED'), physical_id=None),
    'in a stack that has failed what had not begun stays as it is': Case(
        row=resource(stack=stack(status='FAILED'), status='COMPLETE'), plan=Plan.RELEASE,
        state=('CREATE', 'COMPLETE')),
    'in a stack that has failed no nested stack is waited for': Case(
        row=resource(stack=stack(status='FAILED')), child=BUSY_CHILD, plan=Plan.RELEASE,
        state=('CREATE', 'FAILED')),
    'a delete that has failed has failed already': Case(
        row=resource('DELETE', stack=stack('DELETE', status='FAILED')), abandons=True,
        node=CLEANUP, plan=Plan.RELEASE, state=('DELETE', 'FAILED')),
    # Engines that may come back.
    'nothing is replaced that could come back': Case(
        row=resource(), fenced=False, plan=Plan.LEAVE_ALONE, state=('CREATE', 'IN_PROGRESS')),
    'an update is not replaced either': Case(
        row=resource('UPDATE', 'UPDATE', template_id=NEW), fenced=False, plan=Plan.LEAVE_ALONE,
        state=('UPDATE', 'IN_PROGRESS')),
    'what has made nothing is created again by whoever comes first': Case(
        row=resource(**BARE), fenced=False, plan=Plan.CREATE_AGAIN, state=('INIT', 'COMPLETE'),
        physical_id=None),
    'what may be run twice is run twice': Case(
        row=resource('UPDATE', 'UPDATE'), fenced=False, plan=Plan.RUN_AGAIN,
        state=('UPDATE', 'IN_PROGRESS')),
    'what is not wanted any more is deleted': Case(
        row=resource(stack_action='DELETE'), fenced=False, node=CLEANUP, plan=Plan.RUN_AGAIN,
        state=('CREATE', 'FAILED')),
    'what nobody waits for is released': Case(
        row=resource(), fenced=False, node=None, plan=Plan.RELEASE, state=('CREATE', 'FAILED')),
}


def test_a_resource_fails_with_the_reason_of_its_nested_stack() -> None:
    assert plans.decide(resource(template_id=NEW), UPDATE, FAILED_CHILD).reason == (
        'resource r failed with its nested stack nested (c1): Resource CREATE failed')


@pytest.mark.parametrize('case', CASES.values(), ids=CASES.keys())
def test_what_is_decided(case: Case) -> None:
    decision = plans.decide(case.row, case.node, case.child, abandons=case.abandons,
                            fenced=case.fenced)
    assert (decision.plan, state(case.row, decision)) == (
        case.plan, (*case.state, case.physical_id)), decision.reason


@pytest.mark.parametrize(('status', 'expected'), [
    ('IN_PROGRESS', 'FAILED'), ('COMPLETE', 'COMPLETE'), ('FAILED', 'FAILED')])
def test_poison_fails_its_stack_and_says_whom_it_killed(status: str, expected: str) -> None:
    row = resource(status=status)
    decision = plans.poisoned(row, ['e1', 'e2', 'e3'])
    assert decision.plan is Plan.FAIL
    assert state(row, decision) == ('CREATE', expected, 'p')
    assert decision.reason == ('resource r killed the engines that worked on it, 3 of them: '
                               'e1, e2, e3')


def test_what_a_plan_does_with_the_lock() -> None:
    done = {plan: Decision(plan, 'a reason') for plan in Plan}
    sends = {Plan.CREATE_AGAIN, Plan.REPLACE, Plan.RUN_AGAIN, Plan.FAIL}
    assert {plan for plan in Plan if done[plan].sends} == sends
    assert {plan for plan in Plan if done[plan].clears} == {*sends, Plan.RELEASE}


def test_an_operation_is_named_by_its_action_and_its_beginning() -> None:
    first, later = stack('CREATE', updated_at=None), stack('UPDATE')
    assert first.operation == f'CREATE {BEFORE.isoformat()}'
    assert later.operation == f'UPDATE {BEGAN.isoformat()}'
    assert dataclasses.replace(later, traversal='t2').operation == later.operation


def test_the_generation_of_what_was_never_locked_is_none() -> None:
    assert resource(atomic_key=None).generation == 0
    assert resource(atomic_key=5).generation == 5


_times = st.sampled_from([None, BEFORE, BEGAN, AFTER])
_templates = st.sampled_from([None, OLD, NEW, OTHER])
_statuses = st.sampled_from(['IN_PROGRESS', 'COMPLETE', 'FAILED'])
_rows = st.builds(
    resource, st.sampled_from(('INIT', *ACTIONS)), status=_statuses,
    physical_id=st.sampled_from([None, 'p']), template_id=_templates, updated_at=_times,
    stack=st.builds(stack, st.sampled_from(ACTIONS),
                    status=st.sampled_from(['IN_PROGRESS'] * 3 + ['FAILED', 'COMPLETE']),
                    previous_template_id=st.sampled_from([None, OLD]),
                    updated_at=st.sampled_from([None, BEGAN])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Situation:
    """All that a decision is made from."""

    row: Resource
    node: graph.Node | None
    child: Child | None
    abandons: bool
    fenced: bool

    @property
    def decision(self) -> Decision:
        return plans.decide(self.row, self.node, self.child, abandons=self.abandons,
                            fenced=self.fenced)


situations = st.builds(
    Situation, row=_rows, node=st.sampled_from([None, UPDATE, CLEANUP]),
    child=st.sampled_from([None, DONE_CHILD, FAILED_CHILD, BUSY_CHILD]), abandons=st.booleans(),
    fenced=st.booleans())


@settings(max_examples=1000)
@given(situations)
def test_heat_is_left_with_a_state_from_which_it_does_the_right_thing(found: Situation) -> None:
    decision = found.decision
    action, status, physical_id = state(found.row, decision)
    if decision.clears and (action in {'CREATE', 'ADOPT'}
                            or action == found.row.stack.action == 'RESUME'):
        assert status != 'IN_PROGRESS'
    if decision.plan is Plan.REPLACE:
        assert (found.node, status) == (UPDATE, 'FAILED')
    if decision.plan is Plan.CREATE_AGAIN:
        assert (found.node, action, status) == (UPDATE, 'INIT', 'COMPLETE')
        assert found.child is None
    if decision.plan is Plan.RUN_AGAIN and found.row.status == 'IN_PROGRESS' and found.child:
        assert found.row.action not in {'CREATE', 'ADOPT'} or physical_id is not None


@settings(max_examples=1000)
@given(situations)
def test_nothing_is_written_to_what_has_not_begun_or_is_left(found: Situation) -> None:
    decision = found.decision
    assert decision.reason
    assert not decision.reason.endswith('.')
    assert decision.status != 'IN_PROGRESS'
    if found.row.status != 'IN_PROGRESS' or not decision.clears:
        assert state(found.row, decision) == state(found.row, Decision(Plan.WAIT, 'nothing'))


@settings(max_examples=1000)
@given(situations)
def test_nobodys_work_is_interrupted_and_nothing_is_there_twice(found: Situation) -> None:
    plan = found.decision.plan
    if found.child is None or not found.child.in_progress:
        assert plan is not Plan.WAIT
    elif found.row.stack.status == 'IN_PROGRESS':
        assert plan in {Plan.WAIT, Plan.FAIL}
    assert plan is not (Plan.LEAVE_ALONE if found.fenced else Plan.REPLACE)


@settings(max_examples=1000)
@given(situations)
def test_only_what_somebody_waits_for_goes_on(found: Situation) -> None:
    plan = found.decision.plan
    if found.node is None:
        assert plan in {Plan.RELEASE, Plan.WAIT, Plan.FAIL}
    if found.row.stack.status != 'IN_PROGRESS':
        assert plan is Plan.RELEASE
    elif found.node is not None:
        assert plan is not Plan.RELEASE
