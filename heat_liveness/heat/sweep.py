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

"""The sweep: stacks that hang though no dead engine holds anything of theirs.

Heat acknowledges a message before it acts on it.  Whatever an engine has taken and not yet
locked, or done and not yet passed on, is lost with it, and leaves no lock; so is what the queue
loses, and what an engine drops while it stops.  The evidence is in the graph alone
(:mod:`.graph`): a node that is ready, not done, held by nobody, and *quiet*.

**Quiet** is a thing that this observer has seen with its own eyes: nothing of the stack, no
atomic_key of a resource or sync point, has moved for ``lost_message_time`` on its own clock.  What
is compared is the state, not a stream of events, so a pause or an outage in between hides
nothing.  While a live engine works on one resource for long, the others are judged all the
same, as they do not move either.

What may be quiet and is not lost: a resource that waits at a hook for its user, one that waits
for its nested stack or for another try, and a message that still stands in a long queue.  The
first three are seen; the fourth is sent twice, and whichever comes late changes nothing, but
for two things, which :mod:`.bridge` prevents: a check that finds its resource locked interrupts
the nested stack, and one that finds it replaced replaces it once more.  Where some engine has no
such bridge, a nested stack's message is not sent again, one that may have a resource replaced
only if an engine has ended since the operation began that may have lost it, and one that deletes
a resource only then, or after ten times as long.  Each ending explains
one round of lost messages of a stack, whether the stack has moved since or not: it moves when what
the dead engine held is taken over, and may have moved a moment before.

Four more ends that nobody else would bring about.  What has no message, only an engine that
is at it, may as well be slow (Keystone is asked in between), and what is failed cannot be taken
back.  So but for the timeout they are taken for lost only if an engine has ended since the
operation began, or after ten times as long:

* a traversal that was **never written out**, as its engine died in between, is restarted, under a
  new id; ``max_takeovers`` times in one operation, and then it is failed;
* a stack past its **timeout** is timed out, whoever works on it, by the database's clock and by
  this engine's: one that was stepped fails nothing;
* an **end that was not carried through** (completed and not purged, failed and not rolled
  back) is;
* what cannot be restarted safely is **failed**, with the reason.

And one that needs no guess: a resource that has **failed**, whose engine died before it had failed
the stack, fails it at once when it is quiet (:func:`failure`).

One engine sweeps for all, the eldest that beats.  Nothing rests on that: whatever is decided
is an order (:mod:`.orders`), unique by its subject.

It costs two statements a sweep, and two for each 200 stacks in progress; a stack that has been
quiet is read in full: five statements, and one for each of its resources that is due.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence

from heat_liveness import clock as clocks
from heat_liveness.db.members import Ending
from heat_liveness.heat import graph, plans
from heat_liveness.heat.plans import Child, Plan, Resource, Stack
from heat_liveness.heat.rows import HeatRows
from heat_liveness.heat.views import View

LOG = logging.getLogger(__name__)

_CLOCKS_SECONDS = 60.0
"""How much the clock of an engine, by which an operation began, may differ from the database's."""
_PATIENCE = 10
_AT_ONCE = 50
"""How many quiet stacks are read in full in one sweep; the rest have their turn in the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What a sweep goes by; times in seconds."""

    lost_message_time: float
    sweep_interval: float
    stack_timeout: float
    """How long an operation may take where its stack does not say."""
    abandons: bool = False
    """Whether a DELETE may be an abandon."""
    graphless: frozenset[str] = frozenset()
    """Actions that this Heat does without a graph, and of which nothing can be told from one."""
    retry_pause: float = 0.0
    """How long Heat may wait between two tries to create a resource."""
    preempts: bool = False
    """Whether a message sent twice could interrupt a nested stack, or replace a resource twice.

    Somebody knows no tokens.
    """


@dataclasses.dataclass(frozen=True)
class Finding:
    """A stack that hangs, why, and what is to be done; with a node, to send its message again."""

    stack: Stack
    plan: Plan
    reason: str
    node: graph.Node | None = None
    name: str = ''
    culprit: str | None = None
    """The engine that may have died of it."""
    guess: bool = False
    """Whether its message may only stand in a long queue, if nobody has ended."""


@dataclasses.dataclass
class _Seen:
    """How a stack stood, since when it has stood so, and when it was last read in full."""

    stands: tuple[Stack, object]
    since: float
    examined: float
    explained: frozenset[str]
    """The engines whose ending has explained a round of its lost messages."""


class Sweep:
    """One observer's view of all stacks.  For use by one thread."""

    def __init__(self, rows: HeatRows, clock: clocks.Clock) -> None:
        self._rows = rows
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def look(self, policy: Policy, only: Collection[str] | None = None,
             endings: Sequence[Ending] = ()) -> list[Finding]:
        """Look at all stacks once, and return what hangs.

        :param only: the stacks to look at; all for None
        :param endings: the engines that have ended, the last one first
        :raises DatabaseError: what was seen before stays
        """
        candidates = {stack.id: (stack, age) for stack, age in self._rows.candidates()
                      if (only is None or stack.id in only)
                      and stack.action not in policy.graphless}
        now = self._clock.now()
        prints = self._rows.prints(candidates)
        before = self._seen
        self._seen = {}
        for stack_id, print_ in prints.items():
            as_before = before.get(stack_id)
            stands = (candidates[stack_id][0], print_)
            self._seen[stack_id] = as_before if (
                as_before is not None and as_before.stands == stands) else _Seen(
                    stands, now, now, frozenset() if as_before is None else as_before.explained)
        found: list[Finding] = []
        for stack, age in candidates.values():
            timeout = _timeout(stack, policy)
            # An engine wrote when it began: the database's clock alone may be a step ahead.
            if (stack.status == 'IN_PROGRESS' and timeout < age < math.inf
                    and timeout < _passed(stack)):
                found.append(Finding(stack, Plan.TIME_OUT, f'its {stack.action} began '
                                     f'{age:.0f} s ago and may take {timeout:g} s'))
        late = {finding.stack.id for finding in found}
        quiet = [stack_id for stack_id, seen in self._seen.items()
                 if now - seen.examined >= policy.lost_message_time and stack_id not in late]
        for stack_id in quiet[:_AT_ONCE]:
            stack, age = candidates[stack_id]
            ended = [each for each in endings if each.age <= age + _CLOCKS_SECONDS]
            seen = self._seen[stack_id]
            hanging = self._examine(stack, age, policy, now - seen.since, ended,
                                    explained=any(each.engine_id not in seen.explained
                                                  for each in ended))
            if hanging:
                seen.explained |= {each.engine_id for each in ended}
            # It is examined again when as much time has passed.
            seen.examined = now
            found += hanging
        return found

    def _examine(self, stack: Stack, age: float, policy: Policy, quiet: float,
                 ended: Sequence[Ending], *, explained: bool) -> list[Finding]:
        """Read a stack in full, and tell what of it hangs.

        :param quiet: for how many seconds it has not moved
        :param ended: the engines that have ended since its operation began
        :param explained: whether one of them may have lost what hangs, and explains nothing yet
        """
        view = self._rows.view(stack.id)
        if view is None or view.stack != stack:
            return []
        if view.problem:
            LOG.warning('Stack %s (%s) does not move, and nothing is done about it: %s.',
                        stack.name, stack.id, view.problem)
            return []
        sure = bool(ended) or quiet >= _PATIENCE * policy.lost_message_time
        if sure and (found := _abandoned(view, age, policy)):
            return [found]
        # Who had ended before the last step of the stack had no part in the next.
        culprit = next((each.engine_id for each in ended
                        if each.blamed and each.age <= quiet + policy.sweep_interval), None)
        return [dataclasses.replace(finding, culprit=culprit)
                for finding in self._hanging(view, policy, quiet, explained=explained)
                if sure or not finding.guess]

    def _hanging(self, view: View, policy: Policy, quiet: float, *,
                 explained: bool) -> Iterator[Finding]:
        """Tell which messages of a stack that is quiet are lost."""
        stack = view.stack
        if stack.status != 'IN_PROGRESS' or not view.traversal.written:
            return
        if due := view.traversal.due():
            found = {node: list(self._lost(view, node, policy, quiet, explained=explained))
                     for node in due}
            for node in due:
                # What reports once more has Heat send the messages of those it reports to.
                if not any(found.get(other) for other in view.traversal.requires[node]):
                    yield from found[node]
        elif roots := view.traversal.roots():
            # Each node has reported.  A root that reports once more brings the end about.
            yield Finding(stack, Plan.SEND_AGAIN, 'all its resources are done and it did not end',
                          roots[0], _name(view, roots[0]))

    def _lost(self, view: View, node: graph.Node, policy: Policy, quiet: float, *,
              explained: bool) -> Iterator[Finding]:
        rows = workers(view, node)
        children = [child for child in map(view.child, rows) if child is not None]
        if self._waits(view, node, rows, children, policy, quiet):
            return
        if rows and node.is_update and (reason := failure(rows[0], view.child(rows[0]))):
            yield Finding(view.stack, Plan.FAIL, reason)
        elif view.stack.action == 'DELETE' and policy.abandons:
            yield Finding(view.stack, Plan.FAIL, plans.ABANDONED, guess=True)
        elif half_adopted(view):
            yield Finding(view.stack, Plan.FAIL, plans.HALF_ADOPTED, guess=True)
        elif policy.preempts and (
                children or (not explained and may_be_replaced(view, node))):
            LOG.warning(
                'The message of resource %s of stack %s (%s) seems lost. It is not sent again, as '
                'engines without this package would %s if it was not: update the stack.',
                _name(view, node), view.stack.name, view.stack.id,
                'interrupt its nested stack' if children else 'replace it twice')
        else:
            # Two engines that delete the same at once fail it, where neither knows of the other.
            yield Finding(view.stack, Plan.SEND_AGAIN,
                          f'nothing has moved for {policy.lost_message_time:g} s', node,
                          _name(view, node), guess=policy.preempts and not node.is_update)

    def _waits(self, view: View, node: graph.Node, rows: Sequence[Resource],
               children: Sequence[Child], policy: Policy, quiet: float) -> bool:
        """Return whether a node that does not move is worked on, or waits for something."""
        # Somebody works on it; if that is a dead engine, its lock is taken over.
        return (any(row.engine_id is not None for row in rows)
                or (quiet < policy.retry_pause and node.is_update
                    and any(map(_may_be_retried, [*rows, *_replacements(view, node)])))
                or any(child.in_progress for child in children)
                or bool(self._rows.hooked([row.id for row in rows])))


def _timeout(stack: Stack, policy: Policy) -> float:
    return (stack.timeout_minutes or 0) * 60 or policy.stack_timeout


def _passed(stack: Stack) -> float:
    """Return the seconds since a stack's operation began, by the clock by which Heat tells it."""
    return -math.inf if stack.began is None else (clocks.wall() - stack.began).total_seconds()


def _may_be_retried(row: Resource) -> bool:
    """Return whether an engine may be waiting, without a lock, to create a resource once more."""
    return row.status == 'FAILED' or (row.action, row.status) == ('DELETE', 'COMPLETE')


def half_adopted(view: View) -> bool:
    """Return whether a resource is still to be adopted; no message can say from what any more.

    Heat would create it, and a rollback would delete what was adopted before.
    """
    return view.stack.action == 'ADOPT' and any(
        row.action == 'INIT' or (row.action, row.status) == ('ADOPT', 'FAILED')
        for row in view.resources.values())


_TO_NEW_TEMPLATE = ('CREATE', 'ADOPT', 'UPDATE', 'RESTORE')
"""What stacks do towards a template that no operation had before; a rollback goes to an old one."""


def failure(row: Resource, child: Child | None) -> str | None:
    """Return why its stack has to fail, if a resource has surely failed in this very operation.

    Its engine died before it had failed the stack.  Checked once more, it would be replaced, or
    even be taken for done.

    Heat fails a resource in its own words, unlike whoever takes it from a dead engine, and by
    then the row names the operation's template.  Not sure are a CREATE and the DELETE before
    another try to create, as Heat itself may have been about to try again, but where a nested
    stack has failed; what failed before its handler ran; and what failed in a rollback.
    """
    if row.status != 'FAILED':
        return None
    if reason := plans.failed_with(row, child):
        return reason
    stack = row.stack
    sure = (row.action not in {'CREATE', 'DELETE'}
            and stack.action in _TO_NEW_TEMPLATE and row.template_id == stack.template_id
            and _heats_own(row))
    return f'Resource {row.action} failed: {row.status_reason}' if sure else None


def _heats_own(row: Resource) -> bool:
    """Return whether a reason is that of Heat's ResourceFailure: an error, if any, and a path."""
    name = re.escape(row.name)
    return re.match(rf'(\w+: )?[Rr]esources(\.{name}|\[{name}\])[:.[]',
                    row.status_reason or '') is not None


def _abandoned(view: View, age: float, policy: Policy) -> Finding | None:
    """Tell what only an engine could still be at that began it."""
    stack = view.stack
    if stack.status == 'FAILED' and age > 2 * _timeout(stack, policy):
        # It is no longer what its user waits for; he may have mended it by hand.
        return Finding(stack, Plan.PURGE, 'it failed long ago, and was not purged')
    if stack.status != 'IN_PROGRESS':
        return Finding(stack, Plan.FINISH, f'its end as {stack.action}_{stack.status} was not '
                       f'carried through')
    if not view.traversal.written:
        return _never_written(stack, policy)
    if not view.traversal.requires:
        return Finding(stack, Plan.FINISH, 'it has nothing to do and did not end')
    return None


def _never_written(stack: Stack, policy: Policy) -> Finding:
    if stack.action == 'DELETE' and policy.abandons:
        return Finding(stack, Plan.FAIL, plans.ABANDONED)
    if stack.action == 'ADOPT':
        return Finding(stack, Plan.FAIL, plans.HALF_ADOPTED)
    if stack.action == 'SNAPSHOT':
        # Its traversal is the snapshot's id, so there can be no other.
        return Finding(stack, Plan.FAIL, 'the engine that began the snapshot has died: take it '
                       'again')
    return Finding(stack, Plan.RESTART, 'its traversal was never written out')


def workers(view: View, node: graph.Node) -> list[Resource]:
    """Return the rows that may be at work for a node: its own, and that of its replacement.

    The newest first.  A row that is a node itself works for itself.
    """
    if node.kind != graph.RESOURCE or not isinstance(node.id, int):
        return []
    own = [view.resources[node.id]] if node.id in view.resources else []
    return [row for row in _replacements(view, node)
            if (row.action, row.status) != ('DELETE', 'COMPLETE')] + own


def _replacements(view: View, node: graph.Node) -> list[Resource]:
    """Return the rows that were made to replace a node's own, the newest first."""
    if node.kind != graph.RESOURCE or not node.is_update:
        return []
    return sorted((row for row in view.resources.values()
                   if node.id in view.ancestors(row) and view.is_wanted(row) and _free(view, row)),
                  key=lambda row: -row.id)


def _free(view: View, row: Resource) -> bool:
    return not any(graph.Node(row.id, is_update) in view.traversal for is_update in (True, False))


def target(view: View, node: graph.Node) -> int | str | None:
    """Return the row that is to be checked for a node; None if there is none any more.

    A replacement is checked itself, unless it failed: another is made from the original then.
    A nested stack is never replaced again, it is updated.
    """
    if node.kind != graph.RESOURCE:
        return node.id
    rows = workers(view, node)
    for row in rows:
        if row.id == node.id or row.status != 'FAILED' or view.child(row) is not None:
            return row.id
    return None


def may_be_replaced(view: View, node: graph.Node) -> bool:
    """Return whether a check could replace a resource, so that a second one would do so again."""
    target_id = target(view, node)
    row = next((row for row in workers(view, node) if row.id == target_id), None)
    return node.is_update and row is not None and row.action != 'INIT' and (
        row.status, row.template_id) != ('COMPLETE', view.stack.template_id)


def _name(view: View, node: graph.Node) -> str:
    rows = workers(view, node)
    return rows[0].name if rows else str(node)


