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

"""What is done with a resource whose owner has ended: every case, and why.

A lock that is only cleared makes Heat believe things.  Its next check takes a CREATE for
done, and the stack would become CREATE_COMPLETE with a resource that was never made; an
UPDATE that had reached its new template is taken for done as well.  So the state from which
Heat does the right thing by itself is written together with the lock:

* ``INIT_COMPLETE`` is made anew, in the same row;
* ``FAILED`` is replaced by Heat, and so isolates whatever the dead engine may have made; but
  a nested stack that exists is never replaced, it is updated;
* a resource IN_PROGRESS in the action that its stack is still about is simply run again.

**Nested stacks.**  The resource of a nested stack does nothing but wait for that stack, and to
run it again would interrupt a stack that others are working on.  So as long as the
nested stack is in progress nothing is done; it is recovered by itself where it needs that.  Where
it has failed in what its parent is about, the parent fails as well, as it would with a living
engine: run again, it would begin anew, and what kills engines in it be counted from nought.  It
has where it began no earlier than the parent's operation, and the resource's row is of that too.

**What is never guessed.**  What a resource was adopted from, and whether a delete was to
abandon, is nowhere in the database.  Such a stack is failed, with the reason.

Heat's own tables say only which engine holds a lock, not for which operation.  A row whose
operation was another than its stack's present one is treated as Heat does when it breaks a
lock: it is FAILED.
"""

import dataclasses
import datetime
import enum

from heat_liveness.heat import graph

ABANDONED = ('stacks may be abandoned here, and nothing tells whether this one is to be deleted or '
             'abandoned: delete it or abandon it again')
HALF_ADOPTED = ('what its resources were to be adopted from is not kept: delete or abandon the '
                'stack and adopt it again')


class Plan(enum.StrEnum):
    """What is done: with a lock, with a message that was lost, with all of a stack."""

    CREATE_AGAIN = 'create again'
    REPLACE = 'replace'
    RUN_AGAIN = 'run again'
    RELEASE = 'release'
    """Only the lock is cleared: nobody waits for this resource."""
    WAIT = 'wait'
    LEAVE_ALONE = 'leave alone'

    SEND_AGAIN = 'send again'

    FAIL = 'fail the stack'
    RESTART = 'restart'
    """Its traversal is begun anew."""
    TIME_OUT = 'time out'
    FINISH = 'finish'
    """Its end is carried through."""
    PURGE = 'purge'
    """As FINISH, but what has failed is not rolled back."""
    END_DELETE = 'end the delete'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack, as far as recovery is concerned."""

    id: str
    name: str
    action: str
    status: str
    traversal: str
    owner_id: str | None
    template_id: int
    previous_template_id: int | None
    created_at: datetime.datetime | None
    updated_at: datetime.datetime | None
    """When its present operation began; None during its first."""
    timeout_minutes: int | None

    @property
    def began(self) -> datetime.datetime | None:
        """When its present operation began; None where somebody has written what is no time."""
        return self.updated_at or self.created_at

    @property
    def operation(self) -> str:
        """Names the present operation: a restarted traversal belongs to the same."""
        return f'{self.action} {self.began.isoformat() if self.began else "at no time"}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resource:
    """A resource's row."""

    id: int
    name: str
    action: str
    status: str
    engine_id: str | None
    atomic_key: int | None
    status_reason: str | None
    physical_id: str | None
    replaces: int | None
    template_id: int | None
    updated_at: datetime.datetime | None
    stack: Stack

    @property
    def generation(self) -> int:
        """The atomic_key as a generation; Heat's first is NULL."""
        return self.atomic_key or 0


@dataclasses.dataclass(frozen=True)
class Child:
    """The nested stack of a resource."""

    id: str
    name: str
    in_progress: bool
    failure: str | None = None
    """Why it was not made or updated, if it was to be since its parent's operation began."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is done with a resource, why, and what is written into its row beside the lock."""

    plan: Plan
    reason: str
    action: str | None = None
    status: str | None = None
    physical_id: str | None = None

    @property
    def sends(self) -> bool:
        """Whether something is to be done once the lock is cleared."""
        return self.plan in {Plan.CREATE_AGAIN, Plan.REPLACE, Plan.RUN_AGAIN, Plan.FAIL}

    @property
    def clears(self) -> bool:
        """Whether the lock is cleared."""
        return self.sends or self.plan is Plan.RELEASE


_FAILED = 'FAILED'


def decide(row: Resource, node: graph.Node | None, child: Child | None, *,
           abandons: bool = False, fenced: bool = True) -> Decision:
    """Decide what is done with a resource that an ended engine holds.

    :param node: the node of the stack's graph for which the row is at work, if any is
    :param child: the nested stack of this resource, if there is one
    :param abandons: whether a DELETE may be an abandon here
    :param fenced: whether the dead engine cannot come back and write
    """
    stack = row.stack
    if stack.status != 'IN_PROGRESS':
        return Decision(Plan.RELEASE, f'its stack is {stack.action}_{stack.status}',
                        status=_failed(row))
    if child is not None and child.in_progress:
        return Decision(Plan.WAIT, f'its nested stack {child.name} ({child.id}) is in progress')
    if stack.action == 'DELETE' and abandons:
        return Decision(Plan.FAIL, ABANDONED, status=_failed(row))
    if row.action == 'ADOPT' and stack.action == 'ADOPT':
        return Decision(Plan.FAIL, HALF_ADOPTED, status=_failed(row))
    decision = _as_its_child(row, node, child) or _by_action(row, node, child)
    if node is not None and not node.is_update and decision.plan in {Plan.CREATE_AGAIN,
                                                                     Plan.REPLACE}:
        decision = dataclasses.replace(decision, plan=Plan.RUN_AGAIN,
                                       reason=f'{decision.reason}; it is not wanted any more')
    if node is None and decision.plan is not Plan.RELEASE:
        return dataclasses.replace(decision, plan=Plan.RELEASE,
                                   status=decision.status or _failed(row),
                                   reason=f'{decision.reason}; nobody waits for it now')
    if decision.plan is Plan.REPLACE and not fenced:
        return Decision(
            Plan.LEAVE_ALONE, f'{decision.reason}, but the engine that held it is not fenced: if '
            f'it comes back, there would be two')
    return decision


def _as_its_child(row: Resource, node: graph.Node | None,
                  child: Child | None) -> Decision | None:
    """Return what is done with a resource that was about to fail with its nested stack."""
    if row.status != 'IN_PROGRESS' or node is None or not node.is_update or child is None:
        return None
    reason = failed_with(row, child)
    return None if reason is None else Decision(
        Plan.FAIL, reason, status=_FAILED, physical_id=child.id)


def _by_action(row: Resource, node: graph.Node | None, child: Child | None) -> Decision:
    if row.status != 'IN_PROGRESS':
        return Decision(Plan.RUN_AGAIN, 'it was locked without having begun')
    if row.action in {'CREATE', 'ADOPT'}:
        return _create(row, child)
    # Its cleanup before another try to create it, or that of an earlier traversal.
    wanted = row.action == 'DELETE' and node is not None and node.is_update
    if row.stack.action == 'DELETE' or (row.action == 'DELETE' and not wanted):
        return Decision(Plan.RUN_AGAIN, 'what is gone already does not hinder a delete')
    if child is not None:
        return Decision(Plan.RUN_AGAIN, 'its nested stack is brought there again',
                        status=_FAILED if wanted or row.action == 'RESUME' else None)
    if wanted:
        return Decision(Plan.REPLACE, 'it was being deleted and is wanted', status=_FAILED)
    if row.action == 'UPDATE':
        return _update(row)
    if row.action != row.stack.action:
        return Decision(Plan.REPLACE, f'its {row.action} was interrupted by {row.stack.action}',
                        status=_FAILED)
    # Heat resumes only what is suspended, or failed to resume.
    return Decision(Plan.RUN_AGAIN, f'a {row.action} may be run twice',
                    status=_FAILED if row.action == 'RESUME' else None)


def _create(row: Resource, child: Child | None) -> Decision:
    if child is not None:
        return Decision(Plan.RUN_AGAIN, 'its nested stack exists and is updated',
                        action='CREATE', status=_FAILED, physical_id=child.id)
    if row.physical_id is None or row.action == 'ADOPT':
        return Decision(Plan.CREATE_AGAIN, 'nothing was made yet', action='INIT',
                        status='COMPLETE')
    return Decision(Plan.REPLACE, 'it may exist half-made', status=_FAILED)


def _update(row: Resource) -> Decision:
    stack = row.stack
    if row.template_id == stack.template_id:
        return Decision(Plan.REPLACE, 'it has its new template already, so Heat would take its '
                        'half-made update for done', status=_FAILED)
    if _began_in_this_operation(row):
        return Decision(Plan.RUN_AGAIN, 'an update in place may be run twice')
    return Decision(Plan.REPLACE, 'its update was that of an earlier operation', status=_FAILED)


def _began_in_this_operation(row: Resource) -> bool:
    """Return whether an update in progress is that of its stack's present operation.

    Its row names the template it had before, until somewhere in the update it names the new one.
    """
    stack = row.stack
    return row.template_id in {stack.template_id, stack.previous_template_id} or (
        row.updated_at is not None and stack.began is not None and row.updated_at >= stack.began)


def failed_with(row: Resource, child: Child | None) -> str | None:
    """Return why a resource has failed, if its nested stack has, in what both are about.

    When a nested stack began is not enough: an engine that is late may have it begin for an
    operation that another has overtaken, which then interrupts it, and would update it itself.
    """
    if child is None or child.failure is None or row.action not in {'CREATE', 'UPDATE'}:
        return None
    updates = (row.action, row.status) == ('UPDATE', 'IN_PROGRESS')
    if row.template_id != row.stack.template_id and not (
            updates and _began_in_this_operation(row)):
        return None
    return (f'resource {row.name} failed with its nested stack {child.name} ({child.id}): '
            f'{child.failure}')


def poisoned(row: Resource, engines: list[str]) -> Decision:
    """Return what is done with a resource that kills whoever works on it."""
    return Decision(
        Plan.FAIL, f'resource {row.name} killed the engines that worked on it, {len(engines)} of '
        f'them: {", ".join(engines)}', status=_failed(row))


def _failed(row: Resource) -> str | None:
    """Return the status of a row that goes down with its stack: what has not begun stays."""
    return _FAILED if row.status == 'IN_PROGRESS' else None
