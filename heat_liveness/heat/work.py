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

"""Heat's stacks as work: what a dead heat-engine leaves behind is made to go on.

The unit of recovery is the traversal of a stack.  Two things start it, and both end in an
*order* (:mod:`.orders`) that anyone can carry out:

* a **claim** of a lock that a dead engine holds: one compare-and-swap clears it, writes the
  state from which Heat does the right thing by itself (:mod:`.plans`), and writes the order;
* the **sweep** (:mod:`.sweep`), which finds what hangs without a lock.

:mod:`.delivery` carries them out.

**Whoever owns work is watched**, of whatever kind he is.  An open order stands in the way of all
others about the same thing, and those who give orders are engines, agents and commands, each of
which has no peers but its own.  So whoever sweeps asks which engines own work and do not beat, and
observes their kind as well (:mod:`heat_liveness.detection`): a death is declared upon the same
evidence, and their orders are then adopted.
"""

import logging
from collections.abc import Collection

from oslo_config import cfg

from heat_liveness import conf, errors
from heat_liveness.db.members import ServiceRow
from heat_liveness.heat import bridge, calls, claims, delivery, orders, rows, sweep
from heat_liveness.heat.plans import Decision, Plan, Resource
from heat_liveness.work import Claim, Context, Observer

LOG = logging.getLogger(__name__)

_WAIT_SECONDS = 5.0
"""How long a resource that waits for its nested stack is not asked about again."""


def rules(settings: conf.Settings, owner: ServiceRow, only: Collection[str] | None, *,
          tokened: bool) -> claims.Rules:
    """Return what decides, beside the rows themselves, about what an engine has left behind."""
    return claims.Rules(max_takeovers=settings.max_takeovers, only=only, tokened=tokened,
                        abandons=bool(cfg.CONF.enable_stack_abandon),
                        # One that never beat for us has no fence.
                        fenced=owner.judged)


def policy(settings: conf.Settings, *, preempts: bool) -> sweep.Policy:
    """Return what a sweep goes by."""
    return sweep.Policy(
        lost_message_time=settings.lost_message_time, sweep_interval=settings.sweep_interval,
        stack_timeout=float(cfg.CONF.stack_action_timeout),
        abandons=bool(cfg.CONF.enable_stack_abandon), graphless=calls.GRAPHLESS,
        # Without a lock: 2 to the power of the try, and up to 2 s of jitter.
        retry_pause=2.0 ** cfg.CONF.action_retry_limit + 4, preempts=preempts)


class HeatWork:
    """The work store of a heat-engine."""

    def __init__(self, context: Context, only: str | None = None) -> None:
        """Begin with nothing taken.

        :param only: the one stack that is recovered, with those nested in it; all for None
        """
        self.doubts = False
        self._me = context.identity.engine_id
        self._identity = context.identity
        self._clock = context.clock
        self._settings = context.settings
        self._rows = rows.HeatRows(context.database)
        self._orders = self._rows.orders
        self._members = context.members
        self._sweep = sweep.Sweep(self._rows, context.clock)
        self.delivery = delivery.Delivery(context, self._rows, self._receiver)
        self._left_alone: set[tuple[int, int]] = set()
        self._waiting: dict[tuple[int, int], float] = {}
        self._paused: dict[str, float] = {}
        self._swept: float | None = None
        self._sweeping = False
        self._draining = False
        self._only = None if only is None else self._rows.family(only)
        self._kind = (self._identity.binary, self._identity.topic)
        self._observer = context.observer
        self._observers: dict[tuple[str, str], Observer] = {}
        """Those of the other kinds of engines that are watched."""
        self.silent: set[str] = set()
        """Engines, of any kind, that owned work at the last sweep and did not beat."""

    def claim(self, owner: ServiceRow) -> Claim:
        """Take over locked resources and open orders of an ended engine; see :class:`Claim`."""
        room, now = self._room(), self._clock.now()
        if not room or self._paused.get(owner.engine_id, now) > now:
            return Claim(0, more=True)
        if owner.judged:
            # What beats in Heat's table alone may have to come back there.
            self._rows.hide_service(owner.engine_id)
        self._waiting = {key: until for key, until in self._waiting.items() if until > now}
        try:
            adopted = self._orders.adopt(owner, self._me, room, self._only)
            decided = self._rows.claims.take_over(
                owner, self._me, room, self._left_alone | set(self._waiting),
                rules(self._settings, owner, self._only, tokened=self.delivery.tokened))
        except errors.UnclearOutcome:
            self.doubts = True
            raise
        taken = 0
        for row, decision in decided:
            taken += self._note(row, decision, owner.engine_id)
        self.delivery.carry_out(adopted)
        if taken:
            self.reclaim()
        if not taken and not adopted and self._waiting:
            # What waits for its nested stack is asked about again, but not at each look.
            self._paused[owner.engine_id] = now + _WAIT_SECONDS
        return Claim(taken + len(adopted),
                     more=len(decided) + len(adopted) >= room or bool(self._waiting))

    def _note(self, row: Resource, decision: Decision, owner_id: str) -> int:
        """Say what was decided about a resource; return 1 if its lock was cleared, else 0."""
        what = f'Resource {row.name} of stack {row.stack.name} ({row.stack.id})'
        key = (row.id, row.generation)
        if decision.plan is Plan.WAIT:
            self._waiting[key] = self._clock.now() + _WAIT_SECONDS
            LOG.debug('%s, held by the ended engine %s, waits: %s.', what, owner_id,
                      decision.reason)
            return 0
        if decision.plan is Plan.LEAVE_ALONE:
            self._left_alone.add(key)
            LOG.warning('%s is locked by the ended engine %s and is left alone: %s.', what,
                        owner_id, decision.reason)
            return 0
        LOG.info('%s is taken over from engine %s: %s, as %s.', what, owner_id, decision.plan,
                 decision.reason)
        if decision.plan is Plan.REPLACE:
            LOG.warning('%s is replaced. What engine %s had made of it%s may be left behind until '
                        'the stack is updated or deleted.', what, owner_id,
                        '' if row.physical_id is None else f', {row.physical_id},')
        return 1

    def reclaim(self) -> int:
        """Carry out what this engine has claimed, and follow what it has sent or used."""
        self.doubts = False
        return self.delivery.follow()

    def search(self) -> None:
        """Follow the orders, and sweep where it is this engine that sweeps for all."""
        now = self._clock.now()
        self.delivery.follow_in_time()
        if self._draining:
            return
        if self._sweeping:
            for observer in self._observers.values():
                observer.scan()
        if self._swept is None or now - self._swept >= self._settings.sweep_interval:
            self._swept = now
            self._sweeping = self._sweeps()
            if self._sweeping:
                self._look_at_all()

    def _sweeps(self) -> bool:
        """Return whether it is this engine that sweeps for all."""
        return self._members.eldest(self._identity, self._settings.candidate_age) == self._me

    def _look_at_all(self) -> None:
        self._watch_the_silent()
        for finding in self._sweep.look(policy(self._settings, preempts=not self.delivery.tokened),
                                        self._only, self._rows.endings()):
            self._give(finding)
        for engine_id in self._orders.abandoned():
            giver = self._members.read(engine_id)
            if giver is not None:
                self.delivery.carry_out(self._orders.adopt(
                    giver, self._me, orders.AT_ONCE, self._only))
        self.reclaim()

    def _watch_the_silent(self) -> None:
        """Observe each other kind of which an engine owns work and does not beat."""
        silent = {row.engine_id: (row.binary, row.topic)
                  for row in self._members.silent(self._settings.candidate_age)}
        # Only a heat-engine holds resources, and to find them reads the stacks.
        others = [engine_id for engine_id, (binary, _) in silent.items() if binary != bridge.BINARY]
        self.silent = self._rows.claims.owners(silent.keys() - others)
        if others:
            self.silent |= self._orders.claimers(others)
        kinds = {silent[engine_id] for engine_id in self.silent} - {self._kind}
        if self._observer is not None:
            self._observers = {kind: self._observers.get(kind) or self._observer(kind)
                               for kind in kinds}

    def _give(self, finding: sweep.Finding) -> None:
        stack = finding.stack
        given = (self._orders.stack(stack, finding.plan, finding.reason, self._me)
                 if finding.node is None else
                 self._orders.message(stack, finding.node, finding.name, finding.reason, self._me,
                                      finding.culprit))
        if given:
            LOG.warning('%s (%s) hangs in %s_%s: %s, as %s.',
                        f'Resource {finding.name} of stack {stack.name}' if finding.name
                        else f'Stack {stack.name}', stack.id, stack.action, stack.status,
                        finding.plan, finding.reason)

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that hold a resource, or an order, of Heat's still."""
        return self._rows.claims.owners(engine_ids)

    def stopping(self) -> None:
        """Claim nothing more: this engine takes no messages any more."""
        self._draining = self.delivery.draining = True

    def drain(self) -> None:
        """Claim nothing more; what is not sent yet, the others will send."""
        self.stopping()
        self.delivery.stop()

    def resent(self, stack_id: str, traversal: str) -> bool:
        """Return whether a message of this traversal was sent again because it seemed lost."""
        return self._orders.resent(stack_id, traversal)

    def replaced(self, resource_id: int, template_id: int) -> bool:
        """Return whether another row has taken a resource's place, made to this template."""
        return self._rows.replaced(resource_id, template_id)

    def _room(self) -> int:
        return 0 if self._draining else max(0, self._settings.max_tasks - self.delivery.running)

    @property
    def _receiver(self) -> str | None:
        """Who works on what must be worked on alone."""
        return self._me
