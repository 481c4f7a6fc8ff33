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

"""What the outcome of a beat means, and how an engine joins, holds, drains and leaves."""

import dataclasses
import logging
import random
from typing import Any

import pytest

from heat_liveness import errors, fence, membership
from heat_liveness.membership import State
from tests.unit import fakes
from tests.unit.fakes import SETTINGS

AWAY = errors.DatabaseError('The database cannot be reached.')


@pytest.fixture
def clock() -> fakes.Clock:
    return fakes.Clock()


@pytest.fixture
def table(clock: fakes.Clock) -> fakes.Table:
    return fakes.Table(clock)


@pytest.fixture
def engine(table: fakes.Table) -> fakes.Engine:
    one = fakes.Engine('me', table)
    one.membership.join()
    return one


def levels(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.levelno for record in caplog.records if record.levelno > logging.DEBUG]


def ends(one: fakes.Engine) -> str:
    with pytest.raises(errors.EngineDead) as caught:
        one.membership.beat()
    with pytest.raises(errors.EngineDead):
        one.gate.check()
    return str(caught.value)


def test_a_join_writes_the_row_with_the_engines_own_fence_time(
        engine: fakes.Engine, table: fakes.Table) -> None:
    row = table.rows['me']
    assert (row.fence_time, row.report_interval, row.report_count) == (20.0, 4.0, 0)
    assert engine.membership.state is State.JOINED
    engine.gate.check()


def test_a_join_that_fails_leaves_the_engine_outside(table: fakes.Table) -> None:
    one = fakes.Engine('me', table)
    table.error = AWAY
    with pytest.raises(errors.DatabaseError):
        one.membership.join()
    assert one.membership.state is State.NEW
    assert one.gate.held


def test_from_the_join_on_the_kernel_may_end_an_engine_unless_it_certainly_failed(
        table: fakes.Table) -> None:
    """I6: the others may see the row before this engine knows of it."""
    one = fakes.Engine('me', table)
    for error in (AWAY, errors.SchemaError('No tables.'), RuntimeError('A fault of ours.')):
        table.error = error
        with pytest.raises(type(error)):
            one.membership.join()
        assert one.timer.due is None
    table.error = errors.UnclearOutcome('No clear answer.')
    with pytest.raises(errors.UnclearOutcome):
        one.membership.join()
    assert one.timer.due == pytest.approx(table.clock.now() + SETTINGS.fence_time + 1)
    table.error = AWAY
    table.clock.forward(1)
    with pytest.raises(errors.DatabaseError):
        one.membership.join()
    assert one.timer.due == pytest.approx(table.clock.now() + SETTINGS.fence_time + 1)


def joined_perhaps(table: fakes.Table) -> fakes.Engine:
    """Return an engine that has a row, and does not know it."""
    one = fakes.Engine('me', table)
    table.lost_replies = 1
    with pytest.raises(errors.UnclearOutcome):
        one.membership.join()
    return one


def test_a_join_whose_reply_was_lost_is_found_by_the_next(
        table: fakes.Table, caplog: pytest.LogCaptureFixture) -> None:
    one = joined_perhaps(table)
    assert one.membership.state is State.JOINING
    assert one.gate.held, 'it may have a row, so it must heed the gate'
    one.membership.watch()
    assert levels(caplog) == [logging.WARNING], 'it holds, and says so'
    one.membership.join()
    assert one.membership.state is State.JOINED
    one.gate.check()


def test_a_join_that_is_made_again_after_its_row_was_removed_has_a_count_nobody_has_seen(
        table: fakes.Table) -> None:
    """I5: or a declaration that was under way would find what it has seen."""
    one = joined_perhaps(table)
    table.lost_replies = 1
    with pytest.raises(errors.UnclearOutcome):
        one.membership.join()
    seen = table.rows['me'].report_count
    table.remove('me')
    one.membership.join()
    assert table.rows['me'].report_count > seen


def test_an_engine_declared_dead_before_it_knew_that_it_had_joined_ends(
        table: fakes.Table) -> None:
    """I7: the dead stay dead."""
    one = joined_perhaps(table)
    table.end('me')
    with pytest.raises(errors.EngineDead, match=r'^Engine me was declared dead by another '
                       r'\(watched\); it ends, and its supervisor starts a new one\.$'):
        one.membership.join()
    assert one.membership.state is State.JOINING


def test_an_engine_whose_row_is_not_everywhere_yet_has_not_joined_and_lives(
        table: fakes.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """I11: on a node that is behind a beat finds no row, which is no verdict."""
    one = joined_perhaps(table)
    with monkeypatch.context() as patch:
        patch.setattr(table, 'beat', lambda engine_id: False)
        with pytest.raises(errors.DatabaseError, match='no beat finds it'):
            one.membership.join()
    assert one.membership.state is State.JOINING
    one.membership.join()
    assert one.membership.state is State.JOINED


def test_an_engine_that_finds_its_row_there_has_not_joined_before_it_beats(
        table: fakes.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: the others may see the row, so the kernel may end it."""
    one = fakes.Engine('me', table)
    table.insert(one.identity, 4, 20)

    def fail(engine_id: str) -> bool:
        raise AWAY

    monkeypatch.setattr(table, 'beat', fail)
    with pytest.raises(errors.DatabaseError):
        one.membership.join()
    assert one.membership.state is State.JOINING
    assert one.gate.held
    assert one.timer.due is not None
    monkeypatch.undo()
    one.membership.join()
    assert one.membership.state is State.JOINED
    assert table.rows['me'].report_count == 1


@pytest.mark.parametrize('perhaps', [False, True], ids=['new', 'without a reply before'])
def test_an_engine_whose_id_is_another_process_ends_and_touches_nothing(
        table: fakes.Table, perhaps: bool) -> None:
    """I5, I9: it would keep the other's row alive, and take its locks for its own."""
    one = joined_perhaps(table) if perhaps else fakes.Engine('me', table)
    table.rows.pop('me', None)
    other = dataclasses.replace(one.identity, process=fakes.process(pid=77), hostname='h2')
    table.insert(other, 4, 20)
    before = table.rows['me']
    with pytest.raises(errors.EngineDead, match='^Engine me finds a row under its engine_id '
                       'that is not its own, but of the process 77 on h2; it ends, and its '
                       r'supervisor starts a new one\.$'):
        one.membership.join()
    assert table.rows['me'] == before
    assert one.membership.state is State.NEW, 'it must not say that the other has left'
    with pytest.raises(errors.EngineDead):
        one.gate.check()


def test_an_engine_that_cannot_see_whose_row_it_finds_has_not_joined(
        table: fakes.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must say of nobody that he leaves, and the kernel need not end it."""
    one = fakes.Engine('me', table)
    table.insert(one.identity, 4, 20)

    def fail(engine_id: str) -> None:
        raise AWAY

    monkeypatch.setattr(table, 'read', fail)
    with pytest.raises(errors.DatabaseError):
        one.membership.join()
    assert one.membership.state is State.NEW
    assert one.timer.due is None


def test_an_engine_whose_removed_row_another_process_has_written_ends(
        engine: fakes.Engine, table: fakes.Table) -> None:
    """I5: whether it sees that before it writes its own again, or by that."""
    other = dataclasses.replace(engine.identity, process=fakes.process(pid=77))
    insert = table.insert
    table.remove('me')

    def too_late(*arguments: Any) -> None:
        insert(other, 4, 20)
        insert(*arguments)

    table.insert = too_late  # type: ignore[method-assign]
    assert ends(engine).startswith('Engine me finds a row under its engine_id that is not its own')
    assert table.rows['me'].process.pid == 77


def test_a_beat_raises_the_count_and_comes_again_after_the_interval(
        engine: fakes.Engine, table: fakes.Table) -> None:
    assert engine.membership.beat() == pytest.approx(SETTINGS.report_interval)
    assert table.rows['me'].report_count == 1


def test_the_fence_and_the_timer_count_from_the_start_of_the_beat(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    """I6: the others may count from what the database saw."""
    started = clock.now()
    table.slow = 2.5
    engine.membership.beat()
    assert clock.now() == pytest.approx(started + 2.5)
    assert engine.gate.closes_at == pytest.approx(started + SETTINGS.fence_time)
    assert engine.timer.due == pytest.approx(started + SETTINGS.fence_time + 1)


def test_a_beat_that_took_longer_than_the_fence_holds_on_and_kills_nobody(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    """I11: what such a beat allows is over when it returns; the watchdog holds meanwhile."""
    clock.forward(SETTINGS.fence_time)
    engine.membership.watch()
    due = engine.timer.due
    clock.forward(-SETTINGS.fence_time)
    table.slow = SETTINGS.fence_time + 1.5
    engine.membership.beat()
    assert engine.gate.held
    assert engine.timer.due == due
    table.slow = 0
    engine.membership.beat()
    assert not engine.gate.held
    assert engine.timer.due == pytest.approx(clock.now() + SETTINGS.fence_time + 1)


def test_a_beat_that_took_longer_than_it_allows_releases_no_hold(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    """I11: nor does it set a timer that would be due at once."""
    clock.forward(SETTINGS.fence_time)
    engine.membership.watch()
    due = engine.timer.due
    table.slow = SETTINGS.fence_time
    engine.membership.beat()
    assert engine.gate.held
    assert engine.timer.due == due
    table.slow = 0
    engine.membership.beat()
    engine.gate.check()


def test_a_beat_that_fails_is_tried_again_soon_and_kills_nobody(
        engine: fakes.Engine, table: fakes.Table, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    table.error = AWAY
    for _ in range(5):
        assert engine.membership.beat() == SETTINGS.beat_retry
    assert engine.membership.pulse.failures == 5
    assert levels(caplog) == [logging.WARNING]
    assert str(AWAY) in caplog.text
    table.error = None
    for _ in range(2):
        assert engine.membership.beat() == pytest.approx(SETTINGS.report_interval)
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    table.error = AWAY
    engine.membership.beat()
    assert levels(caplog) == [logging.WARNING, logging.INFO, logging.WARNING]


@pytest.mark.parametrize('error', [
    errors.UnclearOutcome('?'), errors.SchemaError('?'), errors.LockHeld('?')])
def test_no_error_of_the_database_is_a_death(
        engine: fakes.Engine, table: fakes.Table, error: Exception) -> None:
    """I16."""
    table.error = error
    assert engine.membership.beat() == SETTINGS.beat_retry
    engine.gate.check()


def test_a_row_that_says_dead_ends_the_engine(engine: fakes.Engine, table: fakes.Table) -> None:
    """I7."""
    table.end('me')
    assert ends(engine) == ('Engine me was declared dead by another (watched); it ends, and its '
                            'supervisor starts a new one.')


def test_a_row_removed_under_a_live_engine_is_written_again(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock,
        caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        engine.membership.beat()
    table.remove('me')
    clock.forward(SETTINGS.fence_time - .1)
    engine.membership.beat()
    assert levels(caplog) == [logging.WARNING]
    row = table.rows['me']
    assert row.report_count == 4, 'a count that falls would only start watches afresh'
    assert (row.fence_time, row.report_interval) == (20.0, 4.0)
    engine.gate.check()
    assert engine.gate.closes_at == pytest.approx(clock.now() + SETTINGS.fence_time)


def test_an_engine_whose_state_nobody_knows_leaves_and_ends(
        engine: fakes.Engine, table: fakes.Table) -> None:
    """I8: neither alive nor ended, it could do nothing, and nobody would take its work over."""
    engine.membership.beat()
    table.change('me', state='resting')
    table.error = errors.DatabaseError('It is away.')
    engine.membership.beat()
    table.error = None
    with pytest.raises(errors.EngineDead, match=r"has the state 'resting', which no engine gives "
                                                r"another.*it leaves; it ends"):
        engine.membership.beat()
    assert table.rows['me'].state == 'left'
    with pytest.raises(errors.EngineDead):
        engine.gate.check()


def test_an_engine_whose_state_nobody_knows_works_no_more_while_it_cannot_leave(
        engine: fakes.Engine, table: fakes.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.change('me', state='resting')
    def fail(engine_id: str) -> bool:
        raise errors.DatabaseError('It is away.')

    with monkeypatch.context() as patch:
        patch.setattr(table, 'leave', fail)
        engine.membership.beat()
        with pytest.raises(errors.EngineDead):
            engine.gate.check()
        table.change('me', state='up')
        engine.membership.beat()
    assert table.rows['me'].report_count == 0, 'it would live on, and do nothing'
    with pytest.raises(errors.EngineDead, match='it leaves'):
        engine.membership.beat()
    assert table.rows['me'].state == 'left'


def test_a_beat_that_fails_for_whatever_reason_is_a_gap_in_the_view(
        engine: fakes.Engine, table: fakes.Table) -> None:
    """I6: an observer counts its own beats that did not reach the database."""
    table.error = ZeroDivisionError('A fault of a driver.')
    for failures in (1, 2):
        with pytest.raises(ZeroDivisionError):
            engine.membership.beat()
        assert engine.membership.pulse.failures == failures


def test_a_row_written_again_has_a_count_that_nobody_has_seen(
        engine: fakes.Engine, table: fakes.Table) -> None:
    """I5: to an observer who saw the beat whose reply was lost, this is a sign of life too."""
    table.lost_replies = 1
    engine.membership.beat()
    seen = table.rows['me'].report_count
    table.remove('me')
    engine.membership.beat()
    assert table.rows['me'].report_count > seen


def test_a_beat_that_changed_no_row_of_a_live_engine_is_made_again(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """I5: the row has come back between the beat and the look at it."""
    clock.forward(1)
    closes_at = engine.gate.closes_at
    monkeypatch.setattr(table, 'beat', lambda engine_id: False)
    engine.membership.beat()
    assert engine.gate.closes_at == closes_at, 'it proves nothing'
    monkeypatch.undo()
    engine.membership.beat()
    assert table.rows['me'].report_count == 1


def test_the_pulse_tells_how_the_beats_have_been(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    """I11: what an observer asks after a pause; a first beat is not late, however long after."""
    pulse = engine.membership.pulse
    assert (pulse.failures, pulse.late) == (0, 0)
    assert pulse.last == engine.gate.last_good < clock.now()
    for seconds, late in ((SETTINGS.longest_silence - .1, 0), (SETTINGS.longest_silence + .1, 1),
                          (1000, 2)):
        clock.forward(seconds)
        before = clock.now()
        engine.membership.beat()
        assert engine.membership.pulse.late == late
        assert engine.membership.pulse.last >= before
    table.error = AWAY
    engine.membership.beat()
    assert engine.membership.pulse.failures == 1


def test_an_engine_that_holds_and_was_declared_dead_says_who_did(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    clock.forward(SETTINGS.fence_time)
    table.end('me')
    assert ends(engine).startswith('Engine me was declared dead by another')


def test_an_engine_without_a_row_that_may_be_called_dead_ends(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    """I7: it cannot know whether it was declared dead and then forgotten."""
    table.remove('me')
    clock.forward(SETTINGS.fence_time)
    assert ends(engine).startswith('Engine me has no row, and has not beaten for so long that it '
                                   'may be called dead; it ends')


def test_a_failing_health_check_withholds_the_beats_and_says_so_once(
        engine: fakes.Engine, table: fakes.Table, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    complaint: list[str | None] = ['its workers are stuck']
    engine.membership.checks += [lambda: None, lambda: complaint[0]]
    for _ in range(3):
        assert engine.membership.beat() == SETTINGS.beat_retry
    assert table.rows['me'].report_count == 0
    assert engine.membership.pulse.failures == 0
    assert levels(caplog) == [logging.WARNING]
    assert 'withholds its beats: its workers are stuck' in caplog.text
    complaint[0] = None
    engine.membership.beat()
    assert table.rows['me'].report_count == 1
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    engine.membership.beat()
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    complaint[0] = 'they are stuck again'
    engine.membership.beat()
    assert levels(caplog) == [logging.WARNING, logging.INFO, logging.WARNING]


def test_a_health_check_that_raises_has_failed(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock,
        caplog: pytest.LogCaptureFixture) -> None:
    def check() -> str | None:
        raise ZeroDivisionError('by what?')

    engine.membership.checks.append(check)
    assert engine.membership.beat() == SETTINGS.beat_retry
    assert 'a health check raised ZeroDivisionError: by what?' in caplog.text
    clock.forward(SETTINGS.fence_time)
    table.end('me')
    assert 'was declared dead' in ends(engine)


def test_an_engine_that_withholds_its_beats_reads_whether_it_was_called_dead(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    engine.membership.checks.append(lambda: 'stuck')
    clock.forward(SETTINGS.fence_time)
    assert engine.membership.beat() == SETTINGS.beat_retry
    table.end('me')
    assert 'was declared dead by another' in ends(engine)


def test_an_engine_that_is_well_again_is_not_well_before_its_beat_is_through(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    complaint: list[str | None] = ['stuck']
    engine.membership.checks.append(lambda: complaint[0])
    engine.membership.beat()
    clock.forward(SETTINGS.fence_time)
    complaint[0] = None
    assert engine.gate.held
    engine.membership.beat()
    engine.gate.check()


def test_the_watchdog_sleeps_until_the_gate_closes(
        engine: fakes.Engine, clock: fakes.Clock) -> None:
    due = engine.timer.due
    clock.forward(5)
    assert engine.membership.watch() == pytest.approx(SETTINGS.fence_time - 5)
    clock.forward(SETTINGS.fence_time - 5.5)
    assert engine.membership.watch() == pytest.approx(.5)
    assert engine.timer.due == due


def test_a_watchdog_that_sees_the_gate_closed_keeps_the_timer_away(
        engine: fakes.Engine, clock: fakes.Clock, caplog: pytest.LogCaptureFixture) -> None:
    """I11: whoever holds needs no killing, however long the outage."""
    caplog.set_level(logging.INFO)
    clock.forward(SETTINGS.fence_time)
    for _ in range(1000):
        assert engine.timer.due is not None
        assert engine.timer.due > clock.now()
        clock.forward(engine.membership.watch())
    assert levels(caplog) == [logging.WARNING]
    engine.membership.beat()
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    assert engine.timer.due == pytest.approx(clock.now() + SETTINGS.fence_time + 1)
    engine.membership.beat()
    assert levels(caplog) == [logging.WARNING, logging.INFO]
    clock.forward(SETTINGS.fence_time)
    assert engine.membership.watch() == SETTINGS.kernel_timer_lag / 4
    assert engine.timer.due == pytest.approx(clock.now() + 2 * SETTINGS.kernel_timer_lag)
    assert levels(caplog) == [logging.WARNING, logging.INFO, logging.WARNING]


def test_nothing_keeps_the_timer_away_from_an_engine_that_knows_it_is_dead(
        engine: fakes.Engine, table: fakes.Table, clock: fakes.Clock) -> None:
    """It may hang in its last words, as where nobody reads its log."""
    table.end('me')
    clock.forward(SETTINGS.fence_time)
    engine.membership.watch()
    due = engine.timer.due
    ends(engine)
    clock.forward(0.5)
    engine.membership.watch()
    assert engine.timer.due == due


def test_a_busy_engine_has_a_later_timer_and_tells_the_others_so(table: fakes.Table) -> None:
    """I11: the watchdog of an engine that stalls must get to run before the timer is due."""
    settings = dataclasses.replace(SETTINGS, stall_time=5.0)
    one = fakes.Engine('busy', table, settings)
    one.membership.join()
    assert table.rows['busy'].fence_time == settings.fence_time + 4
    table.clock.forward(settings.fence_time + 4.9)
    assert one.timer.due == pytest.approx(table.clock.now() + 0.1)
    one.membership.watch()
    assert one.timer.due == pytest.approx(table.clock.now() + 2 * settings.stall_time)


def test_without_a_watchdog_the_timer_is_due(engine: fakes.Engine, clock: fakes.Clock) -> None:
    """I6: a process that neither beats nor holds is ended before anybody calls it dead."""
    clock.forward(SETTINGS.fence_time + 1)
    assert engine.timer.due == pytest.approx(clock.now())
    assert clock.now() - 1000 < SETTINGS.window


def test_a_draining_engine_beats_on_and_leaves_last(
        engine: fakes.Engine, table: fakes.Table) -> None:
    """I13."""
    engine.membership.drain()
    assert engine.membership.state is State.DRAINING
    engine.membership.beat()
    assert table.rows['me'].state == 'draining'
    assert table.rows['me'].report_count == 1
    engine.gate.check()
    engine.membership.leave()
    assert table.rows['me'].state == 'left'
    assert engine.membership.state is State.LEFT
    with pytest.raises(errors.EngineDead, match='has left'):
        engine.gate.check()
    engine.membership.disarm()
    assert engine.timer.due is None


def test_an_engine_that_is_disarmed_stays_so_whatever_steps_are_on_their_way(
        engine: fakes.Engine, clock: fakes.Clock) -> None:
    engine.membership.disarm()
    engine.membership.beat()
    assert engine.timer.due is None
    clock.forward(SETTINGS.fence_time)
    engine.membership.watch()
    assert engine.timer.due is None


def test_a_leave_that_is_not_heard_has_shut_the_gate_all_the_same(
        engine: fakes.Engine, table: fakes.Table) -> None:
    table.error = AWAY
    with pytest.raises(errors.DatabaseError):
        engine.membership.leave()
    with pytest.raises(errors.EngineDead):
        engine.gate.check()


def test_jitter_spreads_the_beats_but_never_beyond_what_the_fence_counts_with(
        table: fakes.Table, clock: fakes.Clock) -> None:
    gate = fence.Gate(20, clock)
    one = membership.Membership(
        fakes.identity('me'), SETTINGS, table, gate,  # type: ignore[arg-type]
        fakes.Timer(), clock, random.Random(1))
    one.join()
    pauses = {one.beat() for _ in range(200)}
    assert len(pauses) > 100
    assert min(pauses) >= .9 * SETTINGS.report_interval
    assert max(pauses) <= 1.1 * SETTINGS.report_interval
