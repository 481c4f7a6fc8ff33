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

"""Recovery beside a Heat that knows nothing of it: ``[liveness] work = heat`` in the agent.

Engines without the plug-in do not beat for us, have no fence and know no tokens.  Whether
one is dead :mod:`.watcher` tells, after a long time, and it can be wrong.  So:

* **What would then be there twice is not done.**  A resource that may exist half-made, and so
  would be replaced, is left alone: an engine that came back would have it replaced once more.
  A nested stack is not updated again on time alone.
* A stack whose delete we have brought to its end may fail for want of its trust, which it has
  just deleted; the agent ends it then, with the account of Heat's own service.
"""

import dataclasses
import logging
from collections.abc import Collection

from heat_liveness import conf
from heat_liveness import engine as engines
from heat_liveness.db import models
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.heat import bridge, calls
from heat_liveness.heat.plans import Plan
from heat_liveness.heat.rows import HeatRows
from heat_liveness.heat.sweep import Finding
from heat_liveness.heat.watcher import Watcher
from heat_liveness.heat.work import HeatWork
from heat_liveness.work import Context

LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0


def heats(identity: engines.Identity) -> engines.Identity:
    """Return who looks at heat-engines as one of them would."""
    return dataclasses.replace(identity, binary=bridge.BINARY, topic=bridge.TOPIC)


def peer(members: Members, identity: engines.Identity, settings: conf.Settings) -> str | None:
    """Return a heat-engine that beats, if any does.

    What its like have held is left to it, as it does better: it knows tokens.
    """
    return members.eldest(heats(identity), settings.candidate_age)


def half_deleted(rows: HeatRows, only: Collection[str] | None) -> list[Finding]:
    """Return the stacks whose delete is to be ended here.

    :param only: the stacks that are recovered; all for None
    """
    return [Finding(stack, Plan.END_DELETE,
                    'it has deleted the trust by which it was to delete its project')
            for stack in rows.half_deleted() if only is None or stack.id in only]


class ObservedWork(HeatWork):
    """The work store of an agent beside an unmodified Heat."""

    def __init__(self, context: Context, only: str | None = None) -> None:
        """Begin to watch.

        :param only: the one stack that is recovered
        """
        super().__init__(context, only)
        self.watcher = Watcher(self._me, self._settings, context.database, self._members,
                               self._rows, context.clock, calls.ping)
        self._theirs = heats(self._identity)
        self._watched: float | None = None

    def search(self) -> None:
        """Watch, take over from those that are dead, and sweep."""
        now = self._clock.now()
        if self._watched is None or now - self._watched >= _LOOK_SECONDS:
            self._watched = now
            self.watcher.look()
            self._relieve()
        super().search()

    def _look_at_all(self) -> None:
        # First, so that these are carried out with what else is found.
        for finding in half_deleted(self._rows, self._only):
            self._end_delete(finding)
        super()._look_at_all()
        # Of those who are silent no longer some were declared dead meanwhile.
        self._relieve()

    def _relieve(self) -> None:
        for row in self.ended():
            while self.claim(row).pieces:
                pass

    def ended(self) -> list[ServiceRow]:
        """Return the heat-engines that have ended and own work still, and have no living peer."""
        rows = {row.engine_id: row for row in self._members.look(
            self._theirs, models.FOREVER_SECONDS, None) if row.ended}
        if any(row.judged for row in rows.values()) and peer(
                self._members, self._identity, self._settings):
            rows = {name: row for name, row in rows.items() if not row.judged}
        owners = self._rows.claims.owners(list(rows)) if rows else set()
        return [rows[engine_id] for engine_id in sorted(owners)]

    def _end_delete(self, finding: Finding) -> None:
        stack = finding.stack
        if self._orders.stack(stack, finding.plan, finding.reason, self._me):
            LOG.info('The delete of stack %s (%s) is brought to its end.', stack.name, stack.id)

    @property
    def _receiver(self) -> None:
        """Any engine: an agent works on nothing itself."""
        return None
