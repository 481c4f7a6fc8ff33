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

"""Who is declared dead, by whom, when, and above all who is not."""

import dataclasses
import datetime
import math
from typing import Any

import pytest

from heat_liveness import conf, detection, errors, fence
from heat_liveness import engine as engines
from heat_liveness.membership import Pulse
from tests.unit import fakes
from tests.unit.fakes import SETTINGS, Fleet

AWAY = errors.DatabaseError('The database cannot be reached.')


def seconds_to_death(fleet: Fleet, name: str, at_most: float = 300) -> float:
    return fleet.seconds_until(lambda: name in fleet.dead(), at_most)


def found(fleet: Fleet) -> list[tuple[str, str, bool]]:
    """Return what the look found at which an engine was declared dead, just now."""
    _, declared_by, _, _ = fleet.table.deaths[-1]
    seen = fleet.engines[declared_by].seen
    assert seen is not None
    return [(row.engine_id, row.state, row.mass) for row in seen.ended]


@pytest.fixture
def fleet() -> Fleet:
    """Four engines on four machines that have seen each other for a while."""
    fleet = Fleet('a', 'b', 'c', 'd')
    fleet.run(60)
    return fleet


def test_nobody_is_declared_dead_while_all_are_well(fleet: Fleet) -> None:
    """I5."""
    fleet.run(600)
    assert fleet.dead() == set()
    assert not any(one.ended for one in fleet.engines.values())


def test_a_silent_engine_is_declared_within_the_bound_and_by_one(fleet: Fleet) -> None:
    fleet.engines['d'].silent = True
    last_beat = fleet.table.beaten['d']
    seconds_to_death(fleet, 'd')
    passed = fleet.clock.now() - last_beat
    assert SETTINGS.window < passed <= SETTINGS.declaration_bound
    assert found(fleet) == [('d', 'dead', False)], 'or its work would not be blamed'
    fleet.run(60)
    ((name, _, evidence, mass),) = fleet.table.deaths
    assert (name, evidence, mass) == ('d', 'watched', False)
    assert fleet.dead() == {'d'}


def test_an_engine_holds_before_it_is_declared(fleet: Fleet) -> None:
    """I6."""
    silent = fleet.engines['d']
    silent.silent = True
    seconds_to_death(fleet, 'd')
    assert silent.gate.held
    assert silent.timer.due is not None
    assert silent.timer.due < fleet.clock.now(), 'the kernel has ended it'


def test_an_engine_declared_dead_ends_when_it_beats_again(fleet: Fleet) -> None:
    """I7."""
    fleet.engines['d'].silent = True
    seconds_to_death(fleet, 'd')
    fleet.engines['d'].silent = False
    fleet.run(10)
    assert fleet.engines['d'].ended
    assert fleet.dead() == {'d'}


def test_an_engine_that_beats_just_in_time_is_not_declared(fleet: Fleet) -> None:
    """I4, I5."""
    for _ in range(5):
        fleet.engines['d'].silent = True
        fleet.run(SETTINGS.fence_time)
        fleet.engines['d'].silent = False
        fleet.run(5)
    assert fleet.dead() == set()


@pytest.mark.parametrize('seconds', [25, 300, 86400])
def test_an_outage_of_any_length_costs_nobody_an_engine(fleet: Fleet, seconds: float) -> None:
    """I11: the database is away for all, and comes back for all."""
    fleet.table.error = AWAY
    fleet.run(min(seconds, 100))
    fleet.clock.forward(seconds - min(seconds, 100))
    fleet.run(1)
    fleet.table.error = None
    fleet.run(100)
    assert fleet.dead() == set()
    assert not any(one.ended for one in fleet.engines.values())


def test_a_new_observer_after_an_outage_robs_nobody(fleet: Fleet) -> None:
    """I11: it has seen nothing yet, and all get the time to beat first."""
    fleet.table.error = AWAY
    fleet.run(100)
    fleet.table.error = None
    one = fleet.join('new')
    one.observer.scan()
    fleet.run(100)
    assert fleet.dead() == set()


def test_a_flapping_database_delays_a_death_and_does_not_prevent_it(fleet: Fleet) -> None:
    fleet.engines['d'].silent = True

    def flap() -> bool:
        fleet.table.error = AWAY if fleet.clock.now() % 25 < 1 else None
        return 'd' in fleet.dead()

    passed = fleet.seconds_until(flap)
    assert passed > SETTINGS.service_down_time
    assert fleet.dead() == {'d'}


def busy(engine: fakes.Engine, monkeypatch: pytest.MonkeyPatch, *, dumb: bool) -> None:
    """Let an engine take over for longer than its view allows a pause, again and again."""
    scan, paused = engine.scan, [engine.clock.now()]

    def slow() -> float:
        rest = scan()
        if engine.clock.now() < paused[0] + 10:
            return rest
        paused[0] = engine.clock.now()
        if dumb:
            engine._beat_due = engine.clock.now() + 9
            return 9.5
        return 3.1

    monkeypatch.setattr(engine, 'scan', slow)


def test_the_last_one_declares_though_it_is_busy(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: its beats go on, so its pauses are none of its view."""
    for name in 'bcd':
        fleet.engines[name].silent = True
    busy(fleet.engines['a'], monkeypatch, dumb=False)
    fleet.seconds_until(lambda: fleet.dead() == set('bcd'))


def test_an_engine_that_stands_still_sees_nothing_meanwhile(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """I11: the beat that comes first afterwards tells nothing of the time before it."""
    fleet.engines['d'].silent = True
    busy(fleet.engines['a'], monkeypatch, dumb=True)
    for name in 'bc':
        fleet.engines[name].silent = True
    fleet.run(200)
    assert fleet.dead() == set()


@pytest.mark.parametrize('step', [-3600.0, -25.0, 25.0, 3600.0])
def test_a_stepped_database_clock_robs_nobody_and_hides_no_death(
        fleet: Fleet, step: float) -> None:
    """I15."""
    fleet.table.step = step
    fleet.run(100)
    assert fleet.dead() == set()
    fleet.engines['d'].silent = True
    assert seconds_to_death(fleet, 'd') <= SETTINGS.declaration_bound
    fleet.table.step = 0
    fleet.run(100)
    assert fleet.dead() == {'d'}


def test_a_death_under_a_clock_that_then_falls_back_is_seen(fleet: Fleet) -> None:
    """I15: a beat from the future makes a candidate, too."""
    fleet.table.step = 86400
    fleet.run(10)
    fleet.engines['d'].silent = True
    fleet.table.step = 0
    assert seconds_to_death(fleet, 'd') <= SETTINGS.declaration_bound
    assert fleet.dead() == {'d'}


def test_an_observer_that_slept_does_not_count_its_sleep() -> None:
    """I15: each engine has a clock of its own, so only the observer's has run on."""
    fleet = Fleet('other')
    clock = fakes.Clock()
    observer = fakes.Engine('observer', fleet.table, clock=clock)
    observer.membership.join()
    for _ in range(100):
        fleet.run(1)
        clock.forward(1)
        observer.membership.beat()
        observer.scan()
    fleet.table.step = 10
    observer.scan()
    clock.forward(10_000)
    observer.membership.beat()
    observer.scan()
    assert fleet.dead() == set()


def test_a_look_after_an_own_beat_that_failed_is_a_gap_in_the_view(fleet: Fleet) -> None:
    """I6."""
    one = fleet.engines['a']
    one.observer.scan()
    seen = one.observer._view.at(fleet.clock.now())
    one.membership._failures += 1
    fleet.clock.forward(1)
    one.observer.scan()
    assert one.observer._view.at(fleet.clock.now()) == pytest.approx(seen, abs=.01)


def test_an_observer_may_watch_engines_of_another_kind_than_its_own(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    observers: list[engines.Identity] = []

    def look(observer: engines.Identity, *rest: object) -> list[object]:
        observers.append(observer)
        return []

    monkeypatch.setattr(fleet.table, 'look', look)
    one = fleet.engines['a']
    one.observer.scan()
    detection.Observer(one.membership, SETTINGS, fleet.table,  # type: ignore[arg-type]
                       fleet.clock, ('another', 'kind')).scan()
    assert observers == [
        one.identity, dataclasses.replace(one.identity, binary='another', topic='kind')]


def test_a_candidate_has_to_be_silent_for_what_its_own_fence_time_asks(fleet: Fleet) -> None:
    """I5: machines do not share one configuration at all times."""
    slow = conf.Settings(fence_time=100, service_down_time=120, host='here')
    fleet.join('slow', settings=slow)
    fleet.run(60)
    fleet.engines['slow'].silent = True
    passed = seconds_to_death(fleet, 'slow')
    assert passed >= conf.window_for(100)
    assert fleet.engines['slow'].gate.held


def test_a_count_that_moved_starts_the_watch_afresh_downwards_too(fleet: Fleet) -> None:
    """I4: a failover may lose commits."""
    fleet.engines['d'].silent = True
    fleet.run(SETTINGS.service_down_time - 5)
    fleet.table.change('d', report_count=fleet.table.rows['d'].report_count - 1)
    assert seconds_to_death(fleet, 'd') >= SETTINGS.window


def test_a_count_that_fell_and_rose_to_where_it_was_starts_the_watch_afresh(
        fleet: Fleet) -> None:
    """A failover loses beats, and as many come after it, before the next look."""
    fleet.engines['d'].silent = True
    fleet.run(SETTINGS.service_down_time - 5)
    fleet.table.change('d', updated_at=fakes.EPOCH + datetime.timedelta(seconds=1))
    assert seconds_to_death(fleet, 'd') >= SETTINGS.window


def test_a_beat_between_the_look_and_the_declaration_saves_the_engine(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4."""
    late = fleet.engines['d']
    late.silent = True
    machines = fleet.table.machines

    def beat_first(*arguments: object) -> tuple[set[str], set[str]]:
        fleet.table.beat('d')
        return machines(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet.table, 'machines', beat_first)
    fleet.run(SETTINGS.declaration_bound)
    assert fleet.dead() == set()


def test_an_engine_of_another_version_is_shown_and_never_judged(fleet: Fleet) -> None:
    fleet.engines['d'].silent = True
    fleet.table.change('d', protocol=engines.PROTOCOL_VERSION + 1)
    fleet.run(300)
    assert fleet.dead() == set()
    row = fleet.table.read('d')
    assert row is not None
    assert not row.judged
    assert row.age > 300


def test_an_engine_without_a_row_is_unknown_and_never_dead(fleet: Fleet) -> None:
    fleet.engines['d'].silent = True
    fleet.run(20)
    fleet.table.remove('d')
    fleet.run(100)
    assert fleet.dead() == set()


def test_who_left_is_relieved_and_not_declared(fleet: Fleet) -> None:
    """I13."""
    fleet.engines['d'].membership.leave()
    fleet.engines['d'].silent = True
    fleet.run(SETTINGS.scan_interval + .1)
    seen = fleet.engines['a'].seen
    assert seen is not None
    assert [(row.engine_id, row.state) for row in seen.ended] == [('d', 'left')]
    fleet.run(100)
    assert fleet.table.deaths == []


def test_an_observer_that_holds_declares_nobody(fleet: Fleet) -> None:
    one = fleet.engines['a']
    fleet.engines['d'].silent = fleet.engines['b'].silent = fleet.engines['c'].silent = True
    one.membership.checks.append(lambda: 'stuck')
    fleet.run(100)
    assert one.gate.held
    assert fleet.dead() == set()


def test_a_declaration_whose_reply_was_lost_is_found_by_the_next_look(fleet: Fleet) -> None:
    """I16, I18: it is not made twice."""
    fleet.engines['d'].silent = True
    declare = fleet.table.declare

    def lose(*arguments: object, **named: object) -> bool:
        fleet.table.lost_replies = 1
        return declare(*arguments, **named)  # type: ignore[arg-type]

    fleet.table.declare = lose  # type: ignore[method-assign]
    seconds_to_death(fleet, 'd')
    fleet.run(SETTINGS.scan_interval + .2)
    assert len(fleet.table.deaths) == 1
    for name in 'abc':
        seen = fleet.engines[name].seen
        assert seen is not None
        assert [row.engine_id for row in seen.ended] == ['d']


def test_all_that_ended_are_looked_at_now_and_then(fleet: Fleet) -> None:
    one = fleet.join('one')
    fleet.table.looks.clear()
    asked = []
    for _ in range(70):
        one.observer.scan()
        asked += [(candidate_age, ended_within)
                  for _, candidate_age, ended_within in fleet.table.looks]
        fleet.table.looks.clear()
        fleet.clock.forward(1)
        one.membership.beat()
    recent, everything = (6.0, 60.0), (6.0, None)
    assert asked == [everything, *[recent] * 29, everything, *[recent] * 29,
                     everything, *[recent] * 9]


def test_a_beat_of_no_age_and_one_just_old_enough_are_no_suspicion(fleet: Fleet) -> None:
    observer = fleet.engines['a'].observer
    ages = [-.001, 0.0, SETTINGS.candidate_age, SETTINGS.candidate_age + .001]
    assert [observer._is_late(fakes.service_row('x', age=age)) for age in ages] == [
        True, False, False, True]


def test_what_was_seen_is_in_the_journal(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """I18."""
    fleet.clock.forward(.01234567)
    fleet.table.slow = .00012345
    fleet.engines['d'].silent = True
    count = fleet.table.rows['d'].report_count
    seconds_to_death(fleet, 'd')
    (detail,) = fleet.table.details
    assert set(detail) == {'age_seconds', 'watched_seconds', 'window_seconds', 'report_count',
                           'service_down_time_seconds'}
    assert SETTINGS.window <= detail['watched_seconds'] < detail['age_seconds']  # type: ignore[operator]
    assert detail['age_seconds'] < SETTINGS.declaration_bound  # type: ignore[operator]
    assert (detail['window_seconds'], detail['service_down_time_seconds']) == (24.0, 30.0)
    assert detail['report_count'] == count
    monkeypatch.setattr(engines, 'prove', lambda other, observer: engines.Proof.GONE)
    fleet.engines['b'].silent = fleet.engines['c'].silent = True
    fleet.engines['a'].scan()
    proved = fleet.table.details[1]
    assert set(proved) == {'age_seconds', 'pid'}
    assert proved['pid'] == 1
    for seconds in (detail['age_seconds'], detail['watched_seconds'], proved['age_seconds']):
        assert isinstance(seconds, float)
        assert seconds == round(seconds, 3) != round(seconds, 2)


def test_a_declaration_that_failed_is_no_death(fleet: Fleet) -> None:
    """I4: and it is tried again a scan later, not at once."""
    declare = fleet.table.declare

    def fail(*arguments: object, **named: object) -> bool:
        raise AWAY

    fleet.table.declare = fail  # type: ignore[method-assign]
    fleet.engines['d'].silent = True
    fleet.run(SETTINGS.declaration_bound)
    seen = fleet.engines['a'].seen
    assert seen is not None
    assert list(seen.ended) == []
    assert seen.next_seconds == SETTINGS.scan_interval
    fleet.table.declare = declare  # type: ignore[method-assign]
    fleet.run(SETTINGS.scan_interval + .2)
    assert fleet.dead() == {'d'}


def test_a_suspicion_that_is_just_ripe_brings_no_look_at_once(fleet: Fleet) -> None:
    one = fleet.engines['a'].observer
    late = fakes.service_row('x', age=7)
    one._follow([late], 100)
    assert one._judge([late], 100 + SETTINGS.window - .001) == []
    assert one._next([late], 100 + SETTINGS.window - .5) == pytest.approx(.5)
    assert one._next([late], 100 + SETTINGS.window) == SETTINGS.scan_interval
    fleet.table.rows['x'] = late
    fleet.table.beaten['x'] = fleet.clock.now()
    assert one._judge([late], 100 + SETTINGS.window) == [late]


def test_a_suspicion_that_has_waited_for_the_breaker_is_ripe(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet.table, 'machines', lambda *arguments: (set('abcde'), set('abc')))
    one = fleet.engines['a'].observer
    late = fakes.service_row('x', age=7)
    fleet.table.rows['x'] = late
    fleet.table.beaten['x'] = fleet.clock.now()
    one._follow([late], 100)
    ripe = 100 + SETTINGS.window + SETTINGS.breaker_delay
    assert one._judge([late], ripe - .001) == []
    assert one._judge([late], ripe) == [late]


@pytest.mark.parametrize(('age', 'suspect'), [
    (-.001, True), (0, False), (.5, False), (conf.candidate_age_for(600), False),
    (conf.candidate_age_for(600) + .001, True)])
def test_a_machine_is_suspect_when_its_engine_is_late_by_its_own_interval(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch, age: float, suspect: bool) -> None:
    monkeypatch.setattr(fleet.table, 'machines', lambda *arguments: (set('abcde'), set()))
    late = [fakes.service_row(name, age=age, report_interval=600, process=fakes.process(name))
            for name in 'xyz']
    assert fleet.engines['a'].observer._breaker(late, []) is suspect


@pytest.mark.parametrize(('age', 'kept'), [(7.12345, 7.123), (math.inf, None)])
def test_seconds_are_journaled_to_the_millisecond(
        fleet: Fleet, age: float, kept: float | None) -> None:
    one = fleet.engines['a'].observer
    late = fakes.service_row('x', age=age, fence_time=100.12345)
    fleet.table.rows['x'] = late
    fleet.table.beaten['x'] = fleet.clock.now()
    one._follow([late], 100.12345)
    assert one._judge([late], 300) == [late]
    (detail,) = fleet.table.details
    assert (detail['age_seconds'], detail['watched_seconds'], detail['window_seconds']) == (
        kept, 199.877, round(conf.window_for(100.12345), 3))


def test_the_machines_are_counted_only_when_somebody_is_to_be_declared(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """I17."""
    asked: list[float] = []
    machines = fleet.table.machines

    def count(observer: engines.Identity, within: float) -> tuple[set[str], set[str]]:
        assert observer in [one.identity for one in fleet.engines.values()]
        asked.append(within)
        return machines(observer, within)

    monkeypatch.setattr(fleet.table, 'machines', count)
    fleet.engines['d'].silent = True
    last_beat = fleet.table.beaten['d']
    fleet.seconds_until(lambda: fleet.clock.now() > last_beat + SETTINGS.window)
    assert asked == []
    seconds_to_death(fleet, 'd')
    assert set(asked) == {SETTINGS.service_down_time + SETTINGS.breaker_delay}


def test_an_observer_looks_again_exactly_when_the_next_suspicion_ripens() -> None:
    settings = conf.Settings(scan_interval=7, host='here')
    fleet = Fleet('a', 'b', 'c', 'd', settings=settings)
    fleet.run(60)
    fleet.engines['d'].silent = True
    last_beat = fleet.table.beaten['d']
    seconds_to_death(fleet, 'd')
    assert fleet.clock.now() - last_beat <= settings.declaration_bound
    waits = {round(one.seen.next_seconds, 1) for one in fleet.engines.values() if one.seen}
    assert waits
    assert max(waits) <= 7


def test_a_pause_inside_a_read_takes_nothing_from_the_watch_that_it_begins() -> None:
    """The next look is a gap, which gives nobody that time back."""
    view = detection.View(SETTINGS)
    view.look(0, 0.1, WELL)
    assert view.look(1, 1.1, WELL) == view.at(1.1)
    assert view.look(2, 2.1 + 60, WELL) == view.at(2)
    assert view.look(62.2, 62.3, WELL) == view.at(2)



# The breaker.

def machines_of(fleet: Fleet, count: int, workers: int = 1) -> list[list[fakes.Engine]]:
    return [[fleet.join(f'm{machine}w{worker}', machine=f'machine-{machine}')
             for worker in range(workers)] for machine in range(count)]


def silence(*machines: list[fakes.Engine]) -> None:
    for machine in machines:
        for one in machine:
            one.silent = True


def test_when_most_machines_look_dead_a_declaration_waits_loudly(
        caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    machines = machines_of(fleet, 5)
    fleet.run(60)
    silence(*machines[:3])
    fleet.run(SETTINGS.declaration_bound + 5)
    assert fleet.dead() == set()
    warnings = [each for each in caplog.records if 'looks dead, and so do' in each.getMessage()]
    # Once an observer and engine, however often they look.
    assert len(warnings) == 2 * 3
    assert '3 of 5 machines' in warnings[0].getMessage()


def test_a_true_mass_death_is_recovered_later_and_the_work_not_blamed() -> None:
    fleet = Fleet()
    machines = machines_of(fleet, 5)
    fleet.run(60)
    silence(*machines[:3])
    passed = fleet.seconds_until(lambda: len(fleet.dead()) == 3)
    assert passed >= SETTINGS.breaker_delay + SETTINGS.window
    assert {mass for _, _, _, mass in fleet.table.deaths} == {True}
    seen = machines[3][0].seen
    assert seen is not None
    declared_by_it = {name for name, by, _, _ in fleet.table.deaths if by == 'm3w0'}
    assert all(row.mass for row in seen.ended if row.engine_id in declared_by_it)


def test_machines_whose_engines_beat_less_often_are_not_suspect_for_that(
        caplog: pytest.LogCaptureFixture) -> None:
    """As while the options of a service are changed, machine by machine."""
    fleet = Fleet()
    machines = machines_of(fleet, 5)
    fleet.run(60)
    silence(*machines[:3])
    for name in ('m1w0', 'm2w0'):
        fleet.table.change(name, report_interval=600.0)
    fleet.run(SETTINGS.declaration_bound + 5)
    assert 'm0w0' in fleet.dead()
    assert 'looks dead, and so do' not in caplog.text


def test_half_of_the_machines_are_not_most(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    machines = machines_of(fleet, 6)
    fleet.run(60)
    silence(*machines[:3])
    fleet.run(SETTINGS.declaration_bound)
    assert len(fleet.dead()) == 3
    assert not any(mass for _, _, _, mass in fleet.table.deaths)
    assert 'looks dead, and so do' not in caplog.text


def test_the_breaker_counts_machines_and_not_workers() -> None:
    fleet = Fleet()
    machines = machines_of(fleet, 3, workers=4)
    fleet.run(60)
    silence(*machines[:2])
    fleet.run(SETTINGS.declaration_bound)
    assert len(fleet.dead()) == 8, 'two of three machines are not more than two'
    assert not any(mass for _, _, _, mass in fleet.table.deaths)


def test_machines_declared_dead_a_moment_ago_count_for_the_breaker() -> None:
    fleet = Fleet()
    machines = machines_of(fleet, 5)
    fleet.run(60)
    silence(*machines[:2])
    beaten = fleet.table.beaten
    # So late that it is no candidate yet when the first two are declared.
    fleet.seconds_until(lambda: beaten['m2w0'] > beaten['m0w0'] + 27)
    silence(machines[2])
    fleet.seconds_until(lambda: len(fleet.dead()) == 2)
    declared = fleet.clock.now()
    fleet.seconds_until(lambda: fleet.clock.now() > beaten['m2w0'] + 31.3)
    assert fleet.clock.now() < declared + SETTINGS.service_down_time
    assert fleet.dead() == {'m0w0', 'm1w0'}
    # They are remembered for as long as it has to wait because of them.
    fleet.seconds_until(lambda: fleet.clock.now() > beaten['m2w0'] + 85)
    assert fleet.dead() == {'m0w0', 'm1w0'}
    fleet.seconds_until(lambda: len(fleet.dead()) == 3)


def test_deaths_proved_by_the_kernel_and_leaves_do_not_trip_the_breaker(
        monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet()
    machines = machines_of(fleet, 7)
    fleet.run(60)
    gone = {one.identity.process.boot_id for machine in machines[:2] for one in machine}
    monkeypatch.setattr(
        engines, 'prove', lambda other, observer:
        engines.Proof.GONE if other.boot_id in gone else engines.Proof.NONE)
    silence(*machines[:5])
    for machine in machines[2:4]:
        machine[0].membership.leave()
    fleet.run(1.5)
    assert fleet.dead() == {'m0w0', 'm1w0'}
    fleet.run(SETTINGS.declaration_bound)
    assert fleet.dead() == {'m0w0', 'm1w0', 'm4w0'}
    assert not any(mass for _, _, _, mass in fleet.table.deaths)


def test_without_a_boot_id_the_breaker_counts_hostnames() -> None:
    row = fakes.service_row('x', hostname='one', process=fakes.process(boot_id=''))
    assert row.machine == 'one'


# Proof.

def test_what_the_kernel_proves_is_declared_at_once(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(
        engines, 'prove', lambda other, observer:
        engines.Proof.GONE if other.boot_id == 'boot-of-host-of-d' else engines.Proof.NONE)
    fleet.engines['d'].silent = True
    assert seconds_to_death(fleet, 'd') <= SETTINGS.scan_interval + .2
    ((name, _, evidence, mass),) = fleet.table.deaths
    assert (name, evidence, mass) == ('d', 'kernel', False)
    assert found(fleet) == [('d', 'dead', False)]
    assert 'is dead, by the kernel' in caplog.text


@pytest.mark.parametrize('proof', [engines.Proof.RUNNING, engines.Proof.NONE])
def test_without_a_proof_of_death_the_watch_decides(
        fleet: Fleet, monkeypatch: pytest.MonkeyPatch, proof: engines.Proof) -> None:
    monkeypatch.setattr(engines, 'prove', lambda other, observer: proof)
    fleet.engines['d'].silent = True
    assert seconds_to_death(fleet, 'd') >= SETTINGS.window


# The view.

WELL = Pulse(last=-math.inf, failures=0, late=0)
"""Of an engine whose beats have neither failed nor been late, nor said anything lately."""


@pytest.fixture
def view() -> detection.View:
    return detection.View(SETTINGS)


def test_an_observer_that_has_just_started_has_seen_nothing(view: detection.View) -> None:
    view.look(0, 0, WELL)
    assert view.at(SETTINGS.settle) == 0
    assert view.at(SETTINGS.settle + 1) == pytest.approx(1)


def look_until(view: detection.View, start: float, end: float, pulse: Pulse = WELL) -> float:
    time = start
    while time <= end:
        view.look(time, time + .1, pulse)
        time += 1
    return view.at(time - 1)


def test_time_of_good_view_is_counted(view: detection.View) -> None:
    assert look_until(view, 0, 100) == pytest.approx(100 - SETTINGS.settle)


@pytest.mark.parametrize('gap', ['a failed look', 'a failed beat', 'a pause', 'a stuck read'])
def test_a_gap_and_the_settle_time_add_nothing_and_take_nothing_away(
        view: detection.View, gap: str) -> None:
    before = look_until(view, 0, 100)
    pulse, again = WELL, 101.0
    if gap == 'a failed look':
        view.lost()
    elif gap == 'a failed beat':
        pulse = dataclasses.replace(WELL, failures=1)
    elif gap == 'a pause':
        again = 104.0
    else:
        view.look(101, 111, WELL)
        before = view.at(101)
        again = 112.0
    view.look(again, again + .1, pulse)
    assert view.at(again + SETTINGS.settle) == pytest.approx(before)
    after = look_until(view, again + 1, again + 50, pulse)
    assert after == pytest.approx(before + 50 - SETTINGS.settle)


@pytest.mark.parametrize(('last', 'late', 'is_gap'), [
    (300 - 8.4, 0, False), (300 - 8.401, 0, True), (300, 0, False), (300, 1, True)])
def test_a_pause_of_the_scanner_is_a_gap_unless_own_beats_went_on(
        view: detection.View, last: float, late: int, is_gap: bool) -> None:
    """One that came late may have gone past an outage."""
    before = look_until(view, 0, 100)
    view.look(300, 300, Pulse(last, 0, late))
    assert view.at(300) == pytest.approx(before if is_gap else before + 200)


def test_a_pause_is_a_gap_by_the_interval_between_two_looks() -> None:
    view = detection.View(dataclasses.replace(SETTINGS, scan_interval=3))
    before = [view.look(time, time, WELL) for time in (100, 103, 106, 109, 112)][-1]
    assert view.look(119, 119, WELL) == pytest.approx(before + 7)
    assert view.look(126.1, 126.1, WELL) == pytest.approx(before + 7), 'a gap'


def test_a_late_beat_is_no_gap_to_a_scanner_that_was_there_all_the_time(
        view: detection.View) -> None:
    """Or an engine whose beats are slow would be blind for good."""
    before = look_until(view, 0, 100)
    view.look(101, 101, dataclasses.replace(WELL, late=1))
    assert view.at(101) == pytest.approx(before + 1)
    view.look(150, 150, Pulse(150, 0, 1))
    assert view.at(150) == pytest.approx(before + 50), 'it was known already'


def test_a_beat_that_comes_while_an_observer_begins_to_look_hides_no_standstill(
        fleet: Fleet) -> None:
    """I11: a process that wakes beats on one thread, and looks on another."""
    one = fleet.engines['a']
    beats = [one.membership.beat]

    class Waking(fence.Gate):
        """Beats when it is asked for the first time."""

        def __getattribute__(self, name: str) -> Any:
            if name == 'last_good' and beats:
                beats.pop()()
            return super().__getattribute__(name)

    fleet.run(60)
    before = one.observer._view.at(fleet.clock.now())
    fleet.clock.forward(15)
    one.gate.__class__ = Waking
    one.observer.scan()
    assert one.observer._view.at(fleet.clock.now()) == pytest.approx(before, abs=3)


def test_a_slow_read_is_not_a_gap(view: detection.View) -> None:
    before = look_until(view, 0, 100)
    view.look(101, 109, WELL)
    view.look(110, 110.1, WELL)
    assert view.at(110) == pytest.approx(before + 10)


def test_a_look_after_the_longest_pause_is_no_gap_nor_is_the_longest_read(
        view: detection.View) -> None:
    """Two looks and a stall apart; as long as all timeouts of one read and a stall."""
    assert view.look(100, 101, WELL) == 0
    assert view.look(104, 109, WELL) == 0
    assert view.look(112, 112, WELL) == pytest.approx(2.1)
    assert view.look(115, 124, WELL) == pytest.approx(14.1)
    assert view.look(127, 127, WELL) == pytest.approx(17.1)
    assert view.look(130.001, 131, WELL) == pytest.approx(17.1), 'a gap'
    assert view.at(139.901) == pytest.approx(17.1)
    assert view.look(133, 142.001, WELL) == pytest.approx(17.1), 'a pause of our own'
    assert view.at(142.901) == pytest.approx(20.1)
