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

"""The judge finds what the nemesis is there for: engines with a bug planted in them are caught."""

import itertools
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.bed.clocks import HOUR_SECONDS
from tests.bed.waiting import wait_until
from tests.faults import nemesis
from tests.faults.databases import Bed
from tests.history import events

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def crew_with(open_bed: Callable[[str], Bed],
              tmp_path: pathlib.Path) -> Iterator[Callable[[str], nemesis.Crew]]:
    """Put engines with a bug to work on MariaDB."""
    crews: list[nemesis.Crew] = []

    def make(bug: str) -> nemesis.Crew:
        crew = nemesis.Crew(open_bed('mariadb'), tmp_path, planted=bug, engines=3)
        crews.append(crew)
        return crew

    yield make
    for crew in crews:
        crew.close()


def broken(crew: nemesis.Crew) -> set[int]:
    return {fault.invariant for fault in nemesis.judge(crew, crew.history())}


def beats(crew: nemesis.Crew) -> int:
    return sum(isinstance(event, events.Beat) for event in crew.history())


def cut_off(crew: nemesis.Crew) -> None:
    """Cut an engine off until its work belongs to others, and connect it again."""
    slot = crew.slots[2]
    assert slot.proxy is not None
    slot.proxy.mode = 'cut'
    assert slot.engine is not None
    crew.wait_until_dead(slot.engine)
    wait_until(lambda: any(isinstance(event, events.Owned) and event.how == 'takeover'
                           for event in crew.history()), 60, 'The takeover')
    slot.proxy.mode = 'open'


def test_a_gate_that_is_always_open(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('the gate is always open')
    crew.begin()
    slot = crew.slots[2]
    assert slot.proxy is not None
    assert slot.engine is not None
    slot.signal(signal.SIGSTOP, events.Stopped)
    crew.wait_until_dead(slot.engine)
    slot.signal(signal.SIGCONT, events.Continued)
    wait_until(lambda: 6 in broken(crew), 60, 'The discovery of a call by the dead')


def test_a_write_that_names_no_owner(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('a write names no owner')
    crew.begin()
    cut_off(crew)
    wait_until(lambda: 3 in broken(crew), 60, 'The discovery of a zombie write')


def test_a_clock_that_is_believed(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('the clock is believed')
    crew.begin()
    hours = itertools.cycle([1, 0])

    def robbed_after_a_step() -> bool:
        # A beat makes the row young again, so somebody has to look before that.
        seconds = next(hours) * HOUR_SECONDS
        crew.note(events.Stepped, node='database', seconds=seconds)
        crew.bed.step(0, seconds)
        seen = beats(crew)
        wait_until(lambda: beats(crew) > seen + len(crew.slots), 60, 'A beat of each engine')
        return {5, 15} <= broken(crew)

    wait_until(robbed_after_a_step, 60, 'The discovery of a robbery')


def test_a_declaration_without_a_watch(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('nobody is watched')
    crew.begin()
    slot = crew.slots[2]
    slot.signal(signal.SIGSTOP, events.Stopped)
    wait_until(lambda: 5 in broken(crew), 60, 'The discovery of a robbery')


def test_a_takeover_from_the_living(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('the living are relieved')
    crew.begin()
    wait_until(lambda: 5 in broken(crew), 60, 'The discovery of a robbery')


def test_progress_that_is_put_back(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('a record without a reply is only sent again')
    crew.begin()

    def put_back() -> bool:
        for slot in crew.slots:
            for seconds in nemesis.requests_late(crew, slot):
                time.sleep(seconds)
        return 8 in broken(crew)

    wait_until(put_back, 60, 'The discovery of lost progress')


def test_poison_that_is_passed_on(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('nothing is quarantined')
    crew.begin()
    crew.fill(crew.slots[0], 'poison', task='poison')
    wait_until(lambda: 10 in broken(crew), 120, 'The discovery of one victim too many')


def test_poison_is_set_aside(crew_with: Callable[[str], nemesis.Crew]) -> None:
    crew = crew_with('')
    crew.begin()
    crew.fill(crew.slots[0], 'poison', task='poison')
    wait_until(lambda: any(isinstance(event, events.Wrote) and event.what == 'quarantine'
                           for event in crew.history()), 180, 'The quarantine')
    crew.note(events.Healed)
    crew.converge()
    assert nemesis.judge(crew, crew.history()) == []
