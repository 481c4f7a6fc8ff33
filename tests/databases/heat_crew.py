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

"""Engines that live, step by step, among those that are rows; and the command ``recover``."""

from collections.abc import Callable
from typing import Any

import pytest

from heat_liveness import agent, conf
from heat_liveness import engine as engines
from heat_liveness.db import models
from heat_liveness.db.database import Database
from heat_liveness.heat import bridge
from tests.databases.heat_rooms import Rooms
from tests.databases.heat_tables import Heat
from tests.unit import fakes

ENGINE = (bridge.BINARY, bridge.TOPIC)
AGENT = ('heat-liveness-agent', 'liveness')
RECOVER = ('heat-liveness-recover', 'heat-liveness-recover')
SETTINGS = conf.Settings(host='here')

PEER = 'peer'
"""An engine that beats whenever the command looks, however long that takes on a busy machine."""

Recover = Callable[..., str]
"""Takes ``dry_run``, ``only`` and ``say``; returns what the command prints."""


def identity(name: str, kind: tuple[str, str]) -> engines.Identity:
    """Describe an engine of which this machine can prove nothing."""
    return engines.Identity(name, f'host-of-{name}', f'host-of-{name}', *kind,
                            fakes.process(f'boot-of-{name}'))


class Crew:
    """Engines that are rows, and one that lives, on a clock of its own."""

    def __init__(self, heat: Heat, rooms: Rooms) -> None:
        self.heat = heat
        self.clock = fakes.Clock()
        self._rooms = rooms
        self._lives: list[agent.Liveness] = []

    def engine(self, name: str, kind: tuple[str, str], *, silent: float = 0) -> str:
        """Put an engine's row there, that has not beaten for so long."""
        self.heat.members.insert(identity(name, kind), 4, 20)
        if silent:
            self.heat.shift(models.service, 'updated_at', silent, engine_id=name)
        return name

    def live(self, name: str, kind: tuple[str, str], store: Any = None) -> agent.Liveness:
        """Let an engine join that is driven step by step."""
        made = agent.Liveness(
            identity(name, kind), SETTINGS, Database(self.heat.url),
            store or self._rooms.work.HeatWork, clock=self.clock, timer=fakes.Timer())
        made.join()
        self._lives.append(made)
        return made

    def run(self, live: agent.Liveness, seconds: float) -> None:
        """Let an engine scan every two seconds, and beat."""
        for _ in range(round(seconds / 2)):
            self.clock.forward(2)
            live.membership.beat()
            live.scan()

    def close(self) -> None:
        for live in self._lives:
            live.stop()


def command(heat: Heat, rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> Recover:
    """Return the command ``recover``, on a clock that does not wait."""
    clock = fakes.Clock()

    def sleep(seconds: float) -> None:
        clock.forward(seconds)
        heat.members.beat(PEER)

    monkeypatch.setattr(rooms.recover.clocks, 'BootClock', lambda: clock)
    monkeypatch.setattr(rooms.recover.time, 'sleep', sleep)
    made = agent.Liveness

    def liveness(*arguments: Any, **more: Any) -> agent.Liveness:
        live = made(*arguments, **{'clock': clock, 'timer': fakes.Timer(), **more})
        scan = live.observer.scan

        def beat_and_scan() -> Any:
            live.membership.beat()
            heat.members.beat(PEER)
            return scan()

        monkeypatch.setattr(live, 'start', lambda scanner: None)
        monkeypatch.setattr(live.observer, 'scan', beat_and_scan)
        return live

    monkeypatch.setattr(rooms.recover.agent, 'Liveness', liveness)
    monkeypatch.setattr(rooms.recover.agent, 'database',
                        lambda config, settings: Database(heat.url))

    def run(*, dry_run: bool = False, only: str | None = None,
            say: Callable[[str], None] = lambda text: None) -> str:
        return str((rooms.recover.tell if dry_run else rooms.recover.do)(
            None, SETTINGS, only, say))
    return run
