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

"""When an engine asks for the work of ended engines, and when it forgets them."""

import dataclasses
import logging
import math
from collections.abc import Collection

import pytest

from heat_liveness import errors, fence, takeover
from heat_liveness.db.members import ServiceRow
from heat_liveness.work import Claim
from tests.unit import fakes
from tests.unit.fakes import SETTINGS


class Work:
    """A work store that counts pieces."""

    def __init__(self, **pieces: int) -> None:
        self.pieces = dict(pieces)
        self.room = 1000
        self.doubts = False
        self.asked: list[str] = []
        self.questions = 0
        self.reclaims = 0
        self.reclaim_error: errors.LivenessError | None = None
        self.refuses: set[str] = set()

    def claim(self, owner: ServiceRow) -> Claim:
        self.asked.append(owner.engine_id)
        if owner.engine_id in self.refuses:
            raise errors.LockHeld('The row exists already.')
        left = self.pieces.get(owner.engine_id, 0)
        taken = min(left, self.room, 10)
        self.room -= taken
        self.pieces[owner.engine_id] = left - taken
        return Claim(taken, more=left > taken)

    def reclaim(self) -> int:
        self.reclaims += 1
        self.doubts = False
        if self.reclaim_error is not None:
            raise self.reclaim_error
        return 0

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        self.questions += 1
        return {engine_id for engine_id in engine_ids if self.pieces.get(engine_id)}

    def drain(self) -> None:
        raise NotImplementedError


class Journal:
    """A journal that forgets on demand."""

    def __init__(self) -> None:
        self.purged: list[tuple[float, str]] = []
        self.entries = 0

    def purge(self, after: float, actor_id: str) -> int:
        self.purged.append((after, actor_id))
        return self.entries


class Taker:
    """A takeover, and all that stands round it."""

    def __init__(self, **pieces: int) -> None:
        self.clock = fakes.Clock()
        self.table = fakes.Table(self.clock)
        self.work = Work(**pieces)
        self.journal = Journal()
        self.gate = fence.Gate(SETTINGS.fence_time, self.clock)
        self.takeover = takeover.Takeover(
            fakes.identity('me'), SETTINGS, self.work,
            self.table, self.journal,  # type: ignore[arg-type]
            self.gate, self.clock, fakes.Even())
        self.beat()

    def beat(self) -> None:
        self.gate.good_beat(self.clock.now())

    def later(self, seconds: float) -> None:
        self.clock.forward(seconds)
        self.beat()

    def sweep(self, *names: str) -> int:
        self.work.asked.clear()
        return self.takeover.sweep([fakes.service_row(name, state='dead') for name in names])


def test_a_sweep_takes_all_there_is_room_for() -> None:
    taker = Taker(x=25, y=3)
    assert taker.sweep('x', 'y') == 28
    assert taker.work.pieces == {'x': 0, 'y': 0}


def test_an_owner_whose_work_cannot_be_had_stands_in_nobodys_way() -> None:
    """I8."""
    taker = Taker(x=1, y=1, z=1)
    taker.work.refuses = {'y'}
    with pytest.raises(errors.LockHeld):
        taker.sweep('x', 'y', 'z')
    assert taker.work.pieces == {'x': 0, 'y': 1, 'z': 0}
    taker.work.refuses = set()
    assert taker.sweep('x', 'y', 'z') == 1


def test_what_there_was_no_room_for_is_found_at_the_next_sweep() -> None:
    """I8."""
    taker = Taker(x=25)
    taker.work.room = 5
    assert taker.sweep('x') == 5
    taker.work.room = 5
    assert taker.sweep('x') == 5


def test_work_is_asked_for_until_there_is_no_more_although_the_owner_is_shown_no_longer() -> None:
    """I8: an observer shows the ended only for a while, and then now and then."""
    taker = Taker(x=25)
    taker.work.room = 5
    taker.sweep('x')
    for _ in range(4):
        taker.work.room = 5
        assert taker.sweep() == 5
    taker.sweep()
    assert taker.sweep() == 0
    assert taker.work.asked == []


def test_an_owner_with_nothing_more_is_asked_about_again_only_now_and_then() -> None:
    """I7, I8, I17: a statement of its own may still have gained it a lock."""
    taker = Taker(x=1, y=1)
    taker.sweep('x', 'y')
    taker.work.questions = 0
    for _ in range(10):
        taker.later(1)
        assert taker.sweep('x', 'y') == 0
        assert taker.work.asked == []
    assert taker.work.questions == 0
    taker.work.pieces['x'] = 1
    taker.later(SETTINGS.service_down_time)
    assert taker.sweep('x', 'y') == 1
    assert set(taker.work.asked) == {'x'}
    assert taker.work.questions == 1
    taker.work.pieces['y'] = 1
    taker.later(SETTINGS.service_down_time - 1)
    assert taker.sweep('x', 'y') == 0
    taker.later(1)
    assert taker.sweep('x', 'y') == 1
    assert taker.takeover._owing == {}


def test_an_owner_that_has_more_again_is_asked_until_there_is_no_more() -> None:
    """I8."""
    taker = Taker(x=1)
    taker.sweep('x')
    taker.work.pieces['x'] = 12
    taker.later(SETTINGS.service_down_time)
    taker.work.room = 5
    assert taker.sweep('x') == 5
    taker.work.room = 5
    assert taker.sweep() == 5
    assert set(taker.takeover._owing) == {'x'}
    taker.work.room = 5
    assert taker.sweep() == 2
    assert taker.takeover._owing == {}


def test_an_engine_that_holds_takes_nothing_over() -> None:
    """I6."""
    taker = Taker(x=1)
    taker.clock.forward(SETTINGS.fence_time)
    with pytest.raises(errors.EngineHeld):
        taker.sweep('x')
    assert taker.work.pieces == {'x': 1}


def test_an_engine_looks_after_itself_first_now_and_then_and_in_doubt() -> None:
    taker = Taker()
    taker.sweep()
    assert taker.work.reclaims == 1
    taker.later(1)
    taker.sweep()
    assert taker.work.reclaims == 1
    taker.work.doubts = True
    taker.sweep()
    assert taker.work.reclaims == 2
    taker.later(SETTINGS.service_down_time)
    taker.sweep()
    assert taker.work.reclaims == 3


def test_survivors_begin_with_different_owners() -> None:
    taker = Taker(x=1, y=1)
    taker.takeover._chance = Backwards()
    taker.sweep('x', 'y')
    assert taker.work.asked[0] == 'y'


class Backwards(fakes.Even):
    def shuffle(self, x: list[ServiceRow]) -> None:
        x.reverse()


def test_what_is_long_dead_and_owns_nothing_is_forgotten(
        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    taker = Taker(x=1)
    for name in ('w', 'x', 'y', 'z'):
        taker.table.insert(fakes.identity(name), 4, 20)
    for name in ('w', 'x', 'y'):
        taker.table.end(name)
    taker.takeover.forget()
    assert set(taker.table.rows) == {'w', 'x', 'y', 'z'}
    assert 'Removed' not in caplog.text
    taker.later(SETTINGS.purge_after + 1)
    taker.table.end('z')
    taker.takeover.forget()
    assert set(taker.table.rows) == {'w', 'x', 'y', 'z'}, 'the database may have a new clock'
    taker.later(10 * SETTINGS.service_down_time)
    taker.takeover.forget()
    assert set(taker.table.rows) == {'x', 'z'}
    assert taker.journal.purged[-1] == (SETTINGS.purge_after, 'me')
    assert taker.table.purged_by == ['me']
    assert 'Removed 2 rows' in caplog.text


def test_who_was_purged_by_another_is_forgotten_too() -> None:
    taker = Taker()
    taker.sweep('x', 'y')
    taker.takeover.forget()
    assert set(taker.takeover._relieved) == {'x', 'y'}
    for _ in range(10):
        taker.later(SETTINGS.service_down_time)
        taker.sweep('x')
    assert set(taker.takeover._relieved) == {'x'}


def test_rows_that_own_work_do_not_keep_others_from_being_forgotten() -> None:
    """I17: such as locks that are left alone, of hundreds of engines."""
    taker = Taker(**{f'a{number:03}': 1 for number in range(250)})
    for name in [*taker.work.pieces, 'z']:
        taker.table.insert(fakes.identity(name), 4, 20)
        taker.table.end(name)
    taker.later(SETTINGS.purge_after + 1)
    for _ in range(2):
        taker.takeover.forget()
        taker.later(10 * SETTINGS.service_down_time)
    assert 'z' not in taker.table.rows
    assert len(taker.table.rows) == 250
    assert taker.work.questions == 3, 'a question for each hundred'


def test_a_sweep_ends_though_tasks_end_as_fast_as_they_are_claimed() -> None:
    """I14, I6: the engine watches nobody meanwhile."""
    taker = Taker(x=10_000)
    claim = taker.work.claim

    def slow(owner: ServiceRow) -> Claim:
        taker.later(.5)
        return claim(owner)

    taker.work.room = 1_000_000
    taker.work.claim = slow  # type: ignore[method-assign]
    taken = taker.sweep('x')
    assert taken == 10 * math.ceil(SETTINGS.scan_interval / .5)
    assert taker.sweep() == taken, 'the rest is found though nobody shows it'


def test_a_sweep_ends_though_there_are_many_owners() -> None:
    """Each is asked about, in turn, however many there are."""
    taker = Taker(**{f'o{number}': 1 for number in range(30)})
    claim = taker.work.claim

    def slow(owner: ServiceRow) -> Claim:
        taker.later(SETTINGS.scan_interval / 4)
        return claim(owner)

    taker.work.claim = slow  # type: ignore[method-assign]
    # Two claims an owner: the second finds that there is no more.
    assert taker.sweep(*taker.work.pieces) == 2
    sweeps = 1
    while any(taker.work.pieces.values()):
        assert taker.sweep() == 2
        sweeps += 1
    assert sweeps == 15


def test_after_a_long_outage_the_relieved_are_asked_about_with_one_question() -> None:
    """I17: or all engines would ask about each of them, of a database that has just come back."""
    taker = Taker()
    names = [f'o{number}' for number in range(50)]
    taker.sweep(*names)
    taker.takeover.forget()
    taker.later(20 * SETTINGS.service_down_time)
    taker.takeover.forget()
    before = taker.work.questions
    taker.sweep(*names)
    assert (taker.work.asked, taker.work.questions) == ([], before + 1)


def test_forgetting_is_tried_only_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """I17."""
    taker = Taker()
    caplog.set_level(logging.INFO)
    for _ in range(10 * round(SETTINGS.service_down_time)):
        taker.takeover.forget()
        taker.later(1)
    assert len(taker.journal.purged) == 1
    taker.journal.entries = 4
    taker.takeover.forget()
    assert len(taker.journal.purged) == 2
    assert 'Removed 0 rows' in caplog.text
    taker.later(1)
    taker.takeover.forget()
    assert len(taker.journal.purged) == 2


def test_the_work_of_who_left_is_taken_over_too(caplog: pytest.LogCaptureFixture) -> None:
    """I13."""
    caplog.set_level(logging.INFO)
    taker = Taker(x=2)
    row = dataclasses.replace(fakes.service_row('x'), state='left')
    assert taker.takeover.sweep([row]) == 2
    assert 'has taken over 2 pieces of work of engine x (left)' in caplog.text


def test_own_work_that_cannot_be_claimed_stands_in_nobodys_way() -> None:
    """I8."""
    taker = Taker(x=1)
    taker.work.reclaim_error = errors.DataRefused('A number cannot be raised.')
    with pytest.raises(errors.DataRefused):
        taker.sweep('x')
    assert taker.work.pieces == {'x': 0}
    held = Taker(x=1)
    held.work.reclaim_error = errors.EngineHeld('No beat.')
    with pytest.raises(errors.EngineHeld):
        held.sweep('x')
    assert held.work.pieces == {'x': 1}
