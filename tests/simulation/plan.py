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

"""What is to happen in one simulated run: all of it data, drawn from a seed.

Faults are drawn *swarm* style: each run has only some kinds of them, each at a rate of its
own, since a run with a little of everything hardly ever gets into the odd corners.
"""

import dataclasses
import random
from typing import Any

from heat_liveness import conf
from tests.simulation.network import CALL_FAULTS

SETTINGS: dict[str, Any] = {'host': 'host', 'purge_after': 50 + 10 * 48.0}
PATIENT: dict[str, Any] = {'fence_time': 29.0, 'service_down_time': 48.0, 'stall_time': 9.8}
HASTY: dict[str, Any] = {
    'report_interval': 2.0, 'fence_time': 17.8, 'service_down_time': 24.0, 'breaker_delay': 20.0}
SLOW: dict[str, Any] = {
    'report_interval': 9.0, 'fence_time': 27.0, 'service_down_time': 47.5}
KINDS: tuple[dict[str, Any], ...] = ({}, HASTY, PATIENT, SLOW)
"""Sets of options that are safe, alone and beside each other, as the defaults are."""


@dataclasses.dataclass(frozen=True)
class Incident:
    """Something that goes wrong at a time."""

    kind: str
    """crash, reboot, stop, pause, cut, leave, unwell, give_up, reload: of a slot; outage, freeze,
    failover: of the database; step, lag, down: of a node; meddle, command: by an operator."""
    at: float
    where: int
    seconds: float
    lost: float = 0.0
    """A failover: the seconds before it of which it loses the commits."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Work that a user asks for."""

    at: float
    slot: int
    lock: str
    steps: int
    pace: float
    """Seconds a step takes."""
    outcome: str
    """complete, fail, release or poison; by_hand for one that no handler runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    machines: tuple[int, ...]
    """The machine of each slot; in a slot there is one engine after the other."""
    settings: tuple[dict[str, Any], ...]
    nodes: int
    roaming: bool
    """Whether a proxy sends each transaction to a node of its choice."""
    offsets: tuple[float, ...]
    """What the clocks of the nodes are wrong by from the beginning."""
    latency: float
    preempting: float
    slow_scans: float
    """The longest a scan comes too late."""
    stops: float
    """How likely a process is stopped just between a look at the gate and what it does then."""
    restart: float
    """The longest a supervisor takes to start a new engine."""
    duration: float
    """When all faults end."""
    rates: dict[str, float]
    """How likely each fault of a call is."""
    incidents: tuple[Incident, ...]
    jobs: tuple[Job, ...]
    muted: frozenset[int] = frozenset()
    """Faults of calls, by number, that do not happen after all."""

    @property
    def longest(self) -> float:
        """The longest incident, in seconds."""
        return max((incident.seconds for incident in self.incidents
                    if incident.kind != 'step'), default=0.0)


_INCIDENTS = {
    'crash': (0, 0), 'reboot': (5, 60), 'stop': (0.2, 150), 'pause': (0.2, 150),
    'cut': (1, 120), 'leave': (0, 0), 'unwell': (0.2, 100), 'give_up': (0, 0), 'reload': (0, 0),
    'outage': (1, 150), 'freeze': (1, 60), 'failover': (0, 60), 'step': (-4000, 4000),
    'lag': (0.1, 40), 'down': (1, 60), 'meddle': (0, 0), 'command': (0, 0)}
OF_SLOTS = ('crash', 'reboot', 'stop', 'pause', 'cut', 'leave', 'unwell', 'give_up', 'reload',
            'meddle', 'command')
_RARE = ('pause', 'failover', 'unwell', 'give_up', 'reload', 'meddle', 'command')
LONGEST_LOST = 30.0


def draw(seed: int) -> Plan:
    """Draw a plan."""
    chance = random.Random(seed)
    slots = chance.choice((2, 3, 3, 4, 4, 5))
    machines = tuple(slot if chance.random() < 0.7 else chance.randrange(slots)
                     for slot in range(slots))
    nodes = chance.choice((1, 1, 1, 3, 3))
    duration = chance.uniform(40, 200)
    base = {**SETTINGS, 'scan_interval': chance.choice((1.0, 3.0, 5.0, 7.0)),
            'max_tasks': chance.choice((1, 2, 4)), 'max_takeovers': chance.choice((2, 3)),
            'breaker_delay': chance.choice((0.0, 60.0))}
    kind = chance.choice(({}, {}, HASTY, PATIENT, SLOW))
    settings = tuple({**base, **(kind if chance.random() < 0.8 else chance.choice(KINDS))}
                     for _ in range(slots))
    kinds = [name for name in CALL_FAULTS if chance.random() < 0.4]
    rates = {name: 10 ** chance.uniform(-3.5, -1.3 if name[:5] != 'crash' else -2.2)
             for name in kinds}
    incidents: list[Incident] = []
    for name, (least, most) in _INCIDENTS.items():
        # A failover that loses commits is that of one server and its standby.
        fits = nodes == 1 if name == 'failover' else nodes > 1 or name not in {'lag', 'down'}
        if chance.random() < (0.2 if name in _RARE else 0.45) and fits:
            for _ in range(chance.choice((1, 1, 2, 3, 5))):
                # Short ones as often as long ones, whatever the scale.
                seconds = least + (most - least) * chance.random() ** 2
                incidents.append(Incident(
                    name, chance.uniform(1, duration),
                    chance.randrange(slots if name in OF_SLOTS else nodes), seconds,
                    LONGEST_LOST * chance.random() ** 2 if name == 'failover' else 0.0))
    locks = [f'lock-{number}' for number in range(chance.randint(2, 6))]
    poison = chance.choice(locks) if chance.random() < 0.2 else None
    jobs = tuple(job for lock in locks for job in _jobs(
        chance, lock, slots, duration, poison=lock == poison))
    return Plan(
        seed=seed, machines=machines, settings=settings, nodes=nodes,
        roaming=nodes > 1 and chance.random() < 0.4,
        offsets=tuple(chance.choice((0.0, 0.0, chance.uniform(-3, 3))) for _ in range(nodes)),
        latency=chance.choice((0.005, 0.05, 1.0)),
        preempting=chance.choice((0.0, 0.0, 0.3)),
        slow_scans=chance.choice((0.0, 0.0, 1.0, 30.0)),
        restart=chance.choice((1.0, 20.0, 200.0)),
        stops=chance.choice((0.0, 0.0, 0.03)),
        duration=duration, rates=rates,
        incidents=tuple(sorted(incidents, key=lambda incident: incident.at)), jobs=jobs)


def _jobs(chance: random.Random, lock: str, slots: int, duration: float, *,
          poison: bool) -> list[Job]:
    """Draw what is asked for under one lock: anywhere, or one after the other of one engine."""
    together = chance.random() < 0.4
    at, slot = chance.uniform(0.5, duration), chance.randrange(slots)
    jobs = []
    for _ in range(chance.randint(1, 4)):
        outcome = 'poison' if poison else chance.choice(
            ('complete', 'complete', 'complete', 'fail', 'release', 'by_hand'))
        steps, drawn = chance.randint(0, 4), chance.random()
        # Some take longer than it takes to be declared dead.
        pace = 20 * drawn ** 2 if drawn < 0.85 else 30 + 400 * (drawn - 0.85)
        jobs.append(Job(at, slot, lock, steps, pace, outcome))
        at = min(duration, at + 20 * chance.random()) if together else chance.uniform(
            0.5, duration)
        slot = slot if together else chance.randrange(slots)
    return jobs


def options(plan: Plan) -> list[conf.Settings]:
    """Return the options that engines of a plan may have, also after a reload."""
    reloads = any(incident.kind == 'reload' for incident in plan.incidents)
    return [conf.Settings(**{**each, **kind}) for each in plan.settings
            for kind in ({}, *KINDS) if not kind or reloads]


def check_settings() -> list[str]:
    """Return what is wrong with the sets of options; nothing, or a plan would prove nothing."""
    return [broken for kind in KINDS
            for broken in conf.Settings(**{**SETTINGS, **kind}).violations()]
