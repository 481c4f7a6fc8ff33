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

"""``heat-liveness-manage recover --once``: recovery in one go, for a cron job or an incident.

It does what the agent does, once: it watches the engines that own work and have ended, or do not
beat, those that recovered before it among them, until it knows of each; takes over what the dead
own; waits until a lost message can be told from one that is late; has all of it carried out; and
leaves.

With ``--dry-run`` it writes nothing, and says of each stack and resource what would be done, and
why.  It asks only what it can see at once: engines that are recorded as dead, have left or do not
beat, and stacks that did not move while it looked.  Each thing that it says is what is then said to
be done, if nobody does it before and who is silent is dead; what is left locked, both say.
"""

import dataclasses
import time
from collections.abc import Callable, Collection
from typing import Any

from heat_liveness import agent, conf, errors
from heat_liveness import clock as clocks
from heat_liveness import engine as engines
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Journal
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.heat import bridge, calls, observed, orders, rows, sweep, watcher, work
from heat_liveness.heat.plans import Decision, Plan, Resource

BINARY = 'heat-liveness-recover'

_LANDING_SECONDS = 120.0
"""How long a message may take to be acted on before the command no longer waits for it."""


def tell(configuration: Any, settings: conf.Settings, only: str | None,
         say: Callable[[str], None]) -> str:
    """Say what would be done; see :func:`.standalone.recover`."""
    database = agent.database(configuration, settings)
    clock = clocks.BootClock()
    heat = rows.HeatRows(database)
    _require(heat, only)
    stacks = None if only is None else heat.family(only)
    look = sweep.Sweep(heat, clock)
    # The command knows no tokens, so whatever it sends could be a second message to some engine.
    policy = work.policy(settings, preempts=True)
    try:
        look.look(policy, stacks)
        say(f'Looking at the stacks for {settings.lost_message_time:g} s.')
        time.sleep(settings.lost_message_time)
        lines = _held(database, heat, settings, stacks)
        found = [*observed.half_deleted(heat, stacks),
                 *look.look(policy, stacks, heat.endings())]
        lines += [f'Stack {finding.stack.name} ({finding.stack.id}) '
                  f'{finding.stack.action}_{finding.stack.status}'
                  f'{f", resource {finding.name}" if finding.name else ""}: {finding.plan}, as '
                  f'{finding.reason}.' for finding in found if not heat.orders.given(
                      finding.stack, finding.plan, finding.node, finding.name)]
    finally:
        database.close()
    return '\n'.join(lines) or 'Nothing is to be done.'


def _require(heat: rows.HeatRows, stack_id: str | None) -> None:
    if stack_id is not None and heat.view(stack_id) is None:
        raise errors.NotFound(
            f'There is no stack {stack_id}: give the id that "openstack stack list" shows.')


def _held(database: Database, heat: rows.HeatRows, settings: conf.Settings,
          only: Collection[str] | None) -> list[str]:
    """Tell what would be done with the work of engines that are not alive."""
    members = Members(database)
    peer = observed.peer(members, _identity(settings), settings)
    # As the watcher does: one that beats for us is not its to judge, whatever its version.
    known = {row.engine_id: row for row in members.all()
             if row.protocol != engines.OBSERVED or row.ended}
    lines = []
    for row in known.values():
        if row.ended:
            lines += _considered(heat, row, settings, only, peer)
    silent = {row.engine_id: row for row in members.silent(settings.candidate_age)}
    for engine_id in sorted(heat.claims.owners(silent)):
        row = silent[engine_id]
        lines.append(
            f'Engine {engine_id} on {row.host} ({row.binary}) owns work and does not beat: its '
            f'last beat is {row.age:.0f} s old. It would be watched for at least '
            f'{settings.service_down_time:g} s, and if it is dead then:')
        lines += _considered(heat, dataclasses.replace(row, state='dead'), settings, only, peer)
    theirs = watcher.observed(database)
    for engine_id in sorted(heat.claims.unknown_holders(known)):
        engine = theirs.get(engine_id, watcher.Observed(engine_id=engine_id))
        lines.append(
            f'Engine {engine_id} on {engine.host} holds resources and does not beat for us; in the '
            f'service table of Heat itself it beat last at {engine.beat}. It would be watched for '
            f'at least {settings.observed_down_time:g} s, and if it is dead then:')
        lines += _considered(heat, engine.dead, settings, only, peer)
    return lines


def _considered(heat: rows.HeatRows, owner: ServiceRow, settings: conf.Settings,
                only: Collection[str] | None, peer: str | None) -> list[str]:
    """Tell what would be done with the work of one engine.

    :param peer: an engine with the plug-in that lives, if there is one
    """
    lines = [
        f'Stack {order.stack_name} ({order.stack_id}), {order.name}: {order.plan}, as '
        f'{order.reason}; engine {owner.engine_id} was to do that.'
        for order in heat.orders.each(owner.engine_id)
        if not order.foreign and (only is None or order.stack_id in only)]
    if (owner.binary, owner.topic) != (bridge.BINARY, bridge.TOPIC):
        return lines
    considered = _consider(heat, owner, settings, only)
    if considered and owner.judged and peer is not None:
        lines.append(f'What engine {owner.engine_id} holds is left to the engines with the '
                     f'plug-in, such as {peer}.')
        return lines
    return lines + [
        f'Stack {held.stack.name} ({held.stack.id}) {held.stack.action}_{held.stack.status}, '
        f'resource {held.name} ({held.action}_{held.status}), held by engine {owner.engine_id}: '
        f'{decision.plan}, as {decision.reason}.' for held, decision in considered]


def _consider(heat: rows.HeatRows, owner: ServiceRow, settings: conf.Settings,
              only: Collection[str] | None) -> list[tuple[Resource, Decision]]:
    return heat.claims.consider(owner, work.rules(settings, owner, only, tokened=False))


class _OneGo(observed.ObservedWork):
    """The work store of the command."""

    def _sweeps(self) -> bool:
        # Another one, for another stack or about to end, may be older; orders are unique.
        return True


def do(configuration: Any, settings: conf.Settings, only: str | None,
       say: Callable[[str], None]) -> str:
    """Recover; see :func:`.standalone.recover`."""
    clock = clocks.BootClock()
    identity = _identity(settings)
    database = agent.database(configuration, settings)
    heat = rows.HeatRows(database)
    _require(heat, only)
    live = agent.Liveness(
        identity, settings, database,
        lambda context: _OneGo(context, only=only), configuration=configuration)
    store: Any = live.work
    told = ''
    try:
        live.join()
        live.start(scanner=False)
        started = clock.now()
        while True:
            live.observer.scan()
            store.search()
            waits = _waits(store, settings, clock.now() - started)
            if not waits:
                break
            if waits != told:
                told = waits
                say(waits)
            time.sleep(settings.scan_interval)
        unclear = [f'Engine {engine_id} owns work and does not beat, and it is not certain that it '
                   f'is dead: recover again.' for engine_id in sorted(store.silent)]
        # What stays locked is told as it stands now, whoever has noted it.
        found = [_line(order) for order in heat.orders.by(identity.engine_id)
                 if order.plan is not Plan.LEAVE_ALONE]
        stacks = None if only is None else heat.family(only)
        held = [f'Stack {row.stack.name} ({row.stack.id}), {row.name}: {decision.plan}, as '
                f'{decision.reason}: engine {owner.engine_id} holds it still.'
                for owner in store.ended()
                for row, decision in _consider(heat, owner, settings, stacks)]
        deaths = [f'Engine {entry.engine_id} was declared dead.' for entry in Journal(
            database).search(identity.engine_id, 'death')]
    except KeyboardInterrupt:
        say('It ends before all is done; whoever recovers next goes on with it.')
        raise
    finally:
        calls.wait_for_traversals()
        live.stop()
    return '\n'.join([*deaths, *found, *held, *unclear]) or 'Nothing was to be done.'


def _identity(settings: conf.Settings) -> engines.Identity:
    return engines.Identity.new(host=settings.host, hostname=settings.host, binary=BINARY,
                                topic=BINARY)


def _waits(store: Any, settings: conf.Settings, passed: float) -> str:
    """Say what the command still waits for; nothing once all is done."""
    if store.watcher.suspects:
        return (f'Watching {len(store.watcher.suspects)} engines that hold resources and do not '
                f'beat, for at least {settings.observed_down_time:g} s.')
    if store.silent and passed < _longest(settings):
        return (f'Watching {len(store.silent)} engines that own work and do not beat any more, for '
                f'at least {settings.service_down_time:g} s.')
    if passed < settings.lost_message_time + 2 * settings.sweep_interval:
        return f'Looking at the stacks for {settings.lost_message_time:g} s.'
    if not store.delivery.idle and passed < _longest(settings):
        return 'Waiting until the messages have landed.'
    return ''


def _longest(settings: conf.Settings) -> float:
    """Return after how many seconds the command no longer waits for others."""
    verdict = max(settings.observed_down_time,
                  settings.service_down_time + settings.breaker_delay)
    return verdict + settings.lost_message_time + _LANDING_SECONDS


def _line(order: orders.Order) -> str:
    outcome = order.detail.get('outcome') or order.status
    return (f'Stack {order.stack_name} ({order.stack_id}), {order.name}: {order.plan}, as '
            f'{order.reason}: {outcome}.')
