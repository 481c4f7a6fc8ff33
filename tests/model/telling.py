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

"""A trace of the model as a history, for the checker that judges real engines, too.

A tick is :data:`TICK` seconds; what happens between two ticks is a millisecond apart.  In the true
time of the model an engine that is declared dead may have beaten as little as ``fence + lag`` ticks
ago, so the checker is given that as its fence.
"""

from collections.abc import Sequence
from typing import Any

from tests.history import checker, events
from tests.model import words
from tests.model.config import Config
from tests.model.world import Label, World

TICK = 10.0


def history(config: Config, trace: Sequence[Label],
            removed: frozenset[str] = frozenset()) -> list[events.Event]:
    """Take the steps of a trace again, and return all that happened.

    :raises LookupError: the model has no such step there
    """
    world = World(config, removed)
    facts: list[tuple[Any, ...]] = []
    world.happened = facts
    state = world.beginning()
    for label in trace:
        begun = len(facts)
        for other, after, _ in world.moves(state):
            if other == label:
                state = after
                break
            del facts[begun:]
        else:
            raise LookupError(f'There is no step {label} there.')
    return _events(config, facts)


def rules(config: Config, *, strict: bool = False) -> checker.Rules:
    """Return what the checker is to hold engines of that configuration to.

    :param strict: nothing that the dead have sent may land, as if all were sent after their death
    """
    return checker.Rules(
        fence_time=TICK * (config.fence - 1) + 1, max_takeovers=config.max_takeovers,
        statement_time=0.0 if strict else TICK * (config.transaction + 1))


def _events(config: Config, facts: Sequence[tuple[Any, ...]]) -> list[events.Event]:
    told: list[events.Event] = []
    now = 0.0
    for kind, *values in facts:
        if kind == 'tick':
            now = (now // TICK + 1) * TICK
            continue
        now += 0.001
        told.append(_event(config, kind, values, now))
    return told


def _event(config: Config, kind: str, values: Sequence[Any], now: float) -> events.Event:
    make = getattr(events, kind)
    if kind == 'Outage':
        return make(at=now, began=values[0])
    if kind == 'Stepped':
        return make(at=now, node='database', seconds=TICK * values[0])
    if kind in {'Owned', 'Wrote', 'Started', 'Called'}:
        name, generation, engine, *rest = values
        fields = {'lock': words.lock(name), 'generation': generation,
                  'engine': words.engine(engine)}
        if kind == 'Owned':
            fields['previous'] = None if rest[0] is None else words.engine(rest[0])
            fields['how'] = rest[1]
        elif kind == 'Wrote':
            fields['what'] = rest[0]
            fields['step'] = rest[1] if rest[0] == 'progress' and config.steps else None
        return make(at=now, **fields)
    if kind == 'Recorded':
        name, generation, engine, step = values
        return make(at=now, lock=words.lock(name), generation=generation,
                    engine=words.engine(engine), step=step)
    engine, *rest = values
    fields = {'engine': words.engine(engine)}
    if kind == 'Joined':
        fields['machine'] = str(config.machines[engine])
    elif kind == 'Beat':
        fields['count'] = rest[0]
    elif kind == 'Declared':
        fields.update(zip(('by', 'seen', 'count', 'evidence', 'mass'),
                          (words.engine(rest[0]), *rest[1:]), strict=True))
    elif kind in {'Purged', 'Journalled'}:
        fields['by'] = words.engine(rest[0])
    elif kind == 'Cut':
        fields['began'] = rest[0]
    elif kind == 'Killed':
        fields['why'] = rest[0]
    return make(at=now, **fields)
