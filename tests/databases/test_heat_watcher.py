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

"""Engines that do not beat for us: who is taken for dead, when, and who never."""

import datetime
import pathlib
from collections.abc import Collection, Iterator

import pytest

from heat_liveness import conf, errors
from heat_liveness import engine as engines
from heat_liveness.db import models
from heat_liveness.heat import watcher
from tests.databases import heat_tables as tables
from tests.databases.heat_tables import Heat
from tests.unit import fakes

INTERVAL = 60
SETTINGS = conf.Settings(observed_down_time=240.0, breaker_delay=60.0)
BEGIN = datetime.datetime(2026, 3, 1)  # noqa: DTZ001 - as the database gives it


class Fleet:
    """Engines of an unmodified Heat, and one who watches them on a clock of its own."""

    def __init__(self, heat: Heat) -> None:
        self.heat = heat
        self.clock = fakes.Clock()
        self.silent: set[str] = set()
        """Engines that do not answer."""
        self.queue_away = False
        self.asked: list[str] = []
        self._held = 10
        self.watcher = self.new_watcher()

    def new_watcher(self) -> watcher.Watcher:
        return watcher.Watcher(self.heat.me, SETTINGS, self.heat.database, self.heat.members,
                               self.heat.rows, self.clock, self._ping)

    def _ping(self, engine_id: str) -> bool:
        if self.queue_away:
            raise OSError('The queue is away.')
        self.asked.append(engine_id)
        return engine_id not in self.silent

    def start(self, engine_id: str, host: str = 'h1', interval: int = INTERVAL) -> None:
        self.heat.run(tables.service.insert().values(
            id=engine_id, engine_id=engine_id, host=host, hostname=host, binary='heat-engine',
            topic='engine', report_interval=interval, created_at=BEGIN, updated_at=BEGIN))
        self._held += 1
        self.heat.resource(self._held, engine_id=engine_id)

    def beat(self, engine_id: str) -> None:
        self.heat.run(tables.service.update().where(tables.service.c.engine_id == engine_id).values(
            updated_at=BEGIN + datetime.timedelta(seconds=self.clock.now())))

    def die(self, engine_id: str) -> None:
        self.silent.add(engine_id)

    def look(self, seconds: float, *, step: float = 5.0) -> set[str]:
        """Look every few seconds for so long; return who was declared dead."""
        found: set[str] = set()
        for _ in range(round(seconds / step)):
            self.clock.forward(step)
            found |= {row.engine_id for row in self.watcher.look()}
        return found


@pytest.fixture
def fleet(tmp_path: pathlib.Path) -> Iterator[Fleet]:
    heat = Heat(f'sqlite:///{tmp_path}/liveness.sqlite')
    found = Fleet(heat)
    found.start('e1')
    yield found
    heat.close()


def test_an_engine_that_beats_is_left_in_peace(fleet: Fleet) -> None:
    for _ in range(10):
        fleet.beat('e1')
        assert fleet.look(INTERVAL) == set()
    assert fleet.asked == []
    assert fleet.heat.members.read('e1') is None


def test_one_that_does_not_beat_and_does_not_answer_is_dead_after_the_window(
        fleet: Fleet) -> None:
    fleet.die('e1')
    assert fleet.look(235) == set()
    assert fleet.look(15) == {'e1'}
    row = fleet.heat.row('e1')
    assert (row.state, row.evidence, row.protocol, row.declared_by) == (
        'dead', 'observed', engines.OBSERVED, fleet.heat.me)
    entry, = fleet.heat.journal.search('e1', 'death')
    assert entry.detail['pings_missed'] == 2
    assert fleet.look(500) == set()


def test_one_that_still_answers_is_not_dead(fleet: Fleet) -> None:
    assert fleet.look(1000) == set()
    assert fleet.heat.members.read('e1') is None


def test_the_window_is_three_report_intervals_if_that_is_longer(fleet: Fleet) -> None:
    fleet.start('slow', 'h2', interval=200)
    fleet.die('slow')
    assert fleet.look(590) == set()
    assert fleet.look(25) == {'slow'}


def test_a_queue_that_is_away_is_no_silence(fleet: Fleet) -> None:
    fleet.die('e1')
    fleet.queue_away = True
    assert fleet.look(600) == set()
    fleet.queue_away = False
    assert fleet.look(300) == {'e1'}


def test_time_without_a_view_counts_for_nothing_and_then_all_may_beat_first(
        fleet: Fleet) -> None:
    fleet.die('e1')
    assert fleet.look(200) == set()
    # Nobody could beat, nor look, while the database was away.
    fleet.clock.forward(3600)
    assert fleet.look(60) == set()
    assert fleet.look(60) == {'e1'}


def test_a_beat_after_an_outage_begins_the_window_anew(fleet: Fleet) -> None:
    fleet.die('e1')
    assert fleet.look(230) == set()
    fleet.clock.forward(3600)
    assert fleet.look(10) == set()
    fleet.beat('e1')
    assert fleet.look(230) == set()


def test_a_flapping_database_delays_a_verdict_and_does_not_prevent_it(fleet: Fleet) -> None:
    fleet.die('e1')
    found: set[str] = set()
    for _ in range(12):
        found |= fleet.look(100)
        fleet.clock.forward(60)
    assert found == {'e1'}


def test_a_soft_deleted_row_alone_is_no_death(fleet: Fleet) -> None:
    fleet.heat.run(tables.service.update().values(deleted_at=BEGIN))
    for _ in range(6):
        fleet.beat('e1')
        assert fleet.look(INTERVAL) == set()


def test_a_holder_without_a_row_is_judged_by_pings_over_the_whole_window(fleet: Fleet) -> None:
    fleet.heat.resource(1, engine_id='rowless')
    fleet.die('rowless')
    assert fleet.look(235) == set()
    assert 'rowless' in fleet.watcher.suspects
    assert fleet.look(15) == {'rowless'}
    assert 'rowless' not in fleet.watcher.suspects


def test_a_suspect_has_not_been_seen_to_live(fleet: Fleet) -> None:
    fleet.look(10)
    assert fleet.watcher.suspects == {'e1'}
    fleet.beat('e1')
    fleet.look(10)
    assert fleet.watcher.suspects == set()


def test_nobody_is_asked_who_holds_nothing(fleet: Fleet) -> None:
    fleet.heat.run(tables.resource.delete())
    fleet.die('e1')
    assert fleet.look(600) == set()
    assert fleet.asked == []


def test_an_engine_with_a_row_of_ours_is_not_watched(fleet: Fleet) -> None:
    fleet.start(fleet.heat.other, 'h2')
    fleet.die(fleet.heat.other)
    assert fleet.look(600) == set()
    assert fleet.heat.row(fleet.heat.other).live


def test_an_engine_of_another_version_is_not_watched(fleet: Fleet) -> None:
    """It beats for its own kind, and would end itself if it was declared dead."""
    fleet.heat.engine('e1')
    fleet.heat.run(models.service.update().where(models.service.c.engine_id == 'e1').values(
        protocol=engines.PROTOCOL_VERSION + 1))
    fleet.die('e1')
    assert fleet.look(1000) == set()
    assert fleet.heat.row('e1').live


def test_to_ask_many_engines_is_no_gap(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds work and stays dead is asked for ever, and each waits for its answer."""
    def ask(those: Collection[watcher.Observed]) -> list[bool | None]:
        fleet.clock.forward(40.0 if those else 0.0)
        return [engine.engine_id not in fleet.silent for engine in those]

    monkeypatch.setattr(fleet.watcher, '_ask', ask)
    fleet.die('e1')
    assert fleet.look(1000) == {'e1'}
    fleet.start('e2')
    fleet.die('e2')
    assert fleet.look(1000) == {'e2'}


def test_one_that_comes_back_gets_its_name_back(
        fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.die('e1')
    assert fleet.look(260) == {'e1'}
    fleet.silent.clear()
    fleet.beat('e1')
    fleet.look(5)
    assert fleet.heat.members.read('e1') is None
    assert 'beats again' in caplog.text


def test_one_without_a_row_that_answers_gets_its_name_back(
        fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.heat.resource(1, engine_id='rowless')
    fleet.die('rowless')
    assert fleet.look(260) == {'rowless'}
    fleet.silent.clear()
    fleet.look(INTERVAL + 5)
    assert fleet.heat.members.read('rowless') is None
    assert 'answers' in caplog.text
    assert fleet.look(1000) == set()


def test_one_whose_row_was_purged_gets_its_name_back_when_it_answers(fleet: Fleet) -> None:
    fleet.die('e1')
    assert fleet.look(260) == {'e1'}
    fleet.heat.run(tables.service.delete())
    fleet.silent.clear()
    fleet.look(INTERVAL + 5)
    assert fleet.heat.members.read('e1') is None


def test_all_the_dead_are_asked_at_one_look(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for answers sees nothing meanwhile, and may not do so all the time."""
    names = [f'rowless-{number}' for number in range(6)]
    for number, name in enumerate(names):
        fleet.heat.resource(number + 1, engine_id=name)
        fleet.die(name)
        fleet.look(15)
    fleet.look(600)
    looks: list[float] = []

    def ping(name: str) -> bool:
        if name in names:
            looks.append(round(fleet.clock.now(), 3))
        return name not in fleet.silent

    monkeypatch.setattr(fleet.watcher, '_ping', ping)
    fleet.look(5 * INTERVAL)
    assert len(looks) == 5 * len(names)
    assert len(set(looks)) == 5


def test_the_dead_are_asked_once_in_an_interval_and_only_while_they_hold_something(
        fleet: Fleet) -> None:
    fleet.die('e1')
    assert fleet.look(260) == {'e1'}
    fleet.asked.clear()
    fleet.look(5 * INTERVAL)
    assert len(fleet.asked) == 5
    assert not fleet.heat.row('e1').live
    fleet.heat.run(tables.resource.delete())
    fleet.asked.clear()
    fleet.look(5 * INTERVAL)
    assert fleet.asked == []


def test_a_queue_that_is_away_is_no_answer_either(fleet: Fleet) -> None:
    fleet.die('e1')
    assert fleet.look(260) == {'e1'}
    fleet.queue_away = True
    fleet.look(5 * INTERVAL)
    assert not fleet.heat.row('e1').live


def test_a_verdict_of_another_is_asked_about_at_once(fleet: Fleet) -> None:
    """Before anything is taken from one that has come back long ago."""
    fleet.die('e1')
    assert fleet.look(260) == {'e1'}
    fleet.silent.clear()
    fleet.watcher = fleet.new_watcher()
    fleet.look(5)
    assert fleet.heat.members.read('e1') is None
    assert fleet.watcher.suspects == set()


def test_who_was_revived_by_another_is_watched_from_the_beginning(fleet: Fleet) -> None:
    fleet.die('e1')
    other, mine = fleet.watcher, fleet.new_watcher()
    for _ in range(52):
        fleet.clock.forward(5)
        for watcher_ in (mine, other):
            watcher_.look()
    assert not fleet.heat.row('e1').live
    fleet.heat.members.disown('e1')
    fleet.watcher = other
    assert fleet.look(235) == set()
    assert fleet.look(15) == {'e1'}


def test_a_beat_in_the_last_moment_prevents_the_verdict_and_leaves_no_row_behind(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.die('e1')
    fleet.look(235)

    def late(engine_id: str) -> bool:
        # It was busy, and beats while it is asked.
        fleet.beat('e1')
        return False

    monkeypatch.setattr(fleet.watcher, '_ping', late)
    assert fleet.look(10) == set()
    assert fleet.heat.members.read('e1') is None


def test_when_most_hosts_fall_silent_at_once_it_waits_longer(fleet: Fleet) -> None:
    for number in range(2, 5):
        fleet.start(f'e{number}', f'h{number}')
    for number in range(1, 4):
        fleet.die(f'e{number}')
    found = set()
    for _ in range(5):
        fleet.beat('e4')
        found |= fleet.look(60)
    assert found == set()
    fleet.beat('e4')
    assert fleet.look(20) == {'e1', 'e2', 'e3'}
    assert all(fleet.heat.row(f'e{number}').mass for number in range(1, 4))


def test_another_watcher_finds_the_same_and_begins_by_itself(fleet: Fleet) -> None:
    fleet.die('e1')
    fleet.look(200)
    fleet.watcher = fleet.new_watcher()
    assert fleet.look(200) == set()
    assert fleet.look(60) == {'e1'}


def test_a_database_that_is_away_is_an_error_and_no_verdict(fleet: Fleet) -> None:
    fleet.heat.run(tables.service.delete())
    with fleet.heat.database.transaction() as connection:
        connection.exec_driver_sql('DROP TABLE service')
    with pytest.raises(errors.SchemaError, match='The table service is missing'):
        fleet.look(5)
