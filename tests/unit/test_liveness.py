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

"""One engine put together: its threads, its start without a database, its death and its end."""

import logging
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from oslo_config import cfg

from heat_liveness import agent, conf, errors, fence
from heat_liveness import engine as engines
from heat_liveness.db import models
from heat_liveness.db.database import Database
from heat_liveness.db.locks import Locks
from heat_liveness.db.members import Members
from heat_liveness.work.native import NativeWork
from tests.bed.waiting import wait_until
from tests.unit import fakes
from tests.unit.fakes import QUICK

AWAY = errors.DatabaseError('The database is away.')


@pytest.fixture
def url(tmp_path: pathlib.Path) -> str:
    url = f'sqlite:///{tmp_path}/agent.sqlite'
    database = Database(url)
    models.metadata.create_all(database.engine)
    database.close()
    return url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    found = Database(url)
    yield found
    found.close()


Make = Callable[..., agent.Liveness]


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    made: list[agent.Liveness] = []

    def make(handlers: dict[str, Any] | None = None, **options: Any) -> agent.Liveness:
        identity = engines.Identity.new(host='h', hostname='h', binary='b', topic='t')
        reasons: list[str] = []
        live = agent.Liveness(
            identity, QUICK, Database(url), lambda context: NativeWork(context, handlers),
            **{'timer': fakes.Timer(),
               'end': lambda reason, level=0: reasons.append(reason), **options})
        live.reasons = reasons  # type: ignore[attr-defined]
        made.append(live)
        return live

    yield make
    for live in made:
        live.stop()


def started(live: agent.Liveness) -> agent.Liveness:
    live.join()
    live.start()
    return live


def state(database: Database, live: agent.Liveness) -> str | None:
    row = Members(database).read(live.identity.engine_id)
    return None if row is None else row.state


def count(database: Database, live: agent.Liveness) -> int:
    row = Members(database).read(live.identity.engine_id)
    return 0 if row is None else row.report_count


def test_an_engine_beats_scans_and_leaves(make: Make, database: Database) -> None:
    live = started(make())
    assert live.joined
    wait_until(lambda: count(database, live) > 3, 60, 'Some beats')
    assert live.well
    live.stop()
    assert state(database, live) == 'left'
    assert isinstance(live.membership._timer, fakes.Timer)
    assert live.membership._timer.due is None
    assert not any(thread.is_alive() for thread in live._threads)


def test_an_engine_that_stops_while_the_database_is_away_is_not_ended_by_its_fence(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """I11: it holds, its work has ended, and to say that it leaves may take all timeouts."""
    live = started(make())
    due: list[float | None] = []

    def leave(engine_id: str) -> None:
        due.append(live.membership._timer.due)  # type: ignore[attr-defined]
        raise AWAY
    monkeypatch.setattr(live.membership._members, 'leave', leave)
    live.stop()
    assert due[0] is None


def test_the_work_of_a_dead_engine_is_finished(make: Make, database: Database) -> None:
    """I8."""
    members, locks = Members(database), Locks(database)
    dead = engines.Identity.new(host='h', hostname='h', binary='b', topic='t')
    members.insert(dead, .3, 2)
    locks.acquire('x', 'build', None, dead.engine_id)
    started(make({'build': lambda task: None}))
    row = members.read(dead.engine_id)
    assert row is not None
    assert members.declare(row, next(
        each.engine_id for each in members.all() if each.engine_id != dead.engine_id),
        'operator', mass=False, detail={})

    def complete() -> bool:
        found = locks.find('x')
        return found is not None and found.status == 'complete'

    wait_until(complete, 60, 'The work')


def test_an_engine_that_is_declared_dead_ends(make: Make, database: Database) -> None:
    """I7."""
    live = started(make())
    members = Members(database)
    judge = fakes.identity('judge')
    members.insert(judge, 4, 20)

    def declared() -> bool:
        row = members.read(live.identity.engine_id)
        assert row is not None
        return members.declare(row, 'judge', 'operator', mass=False, detail={})

    wait_until(declared, 60, 'The declaration')
    wait_until(lambda: live.reasons, 60, 'The end')  # type: ignore[attr-defined]
    assert 'was declared dead by judge (operator)' in live.reasons[0]  # type: ignore[attr-defined]


def test_a_step_that_fails_is_followed_by_another(
        make: Make, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    live = make()
    fails = 5
    scan = live.observer.scan

    def fail() -> Any:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise MemoryError('by chance')
        scanned.set()
        return scan()

    scanned = threading.Event()
    live.observer.scan = fail  # type: ignore[method-assign]
    started(live)
    assert scanned.wait(60)
    live.stop()
    assert caplog.text.count('a step failed; it is taken again') == 5


def test_a_periodic_scan_lets_nothing_out_and_ends_the_dead(
        make: Make, caplog: pytest.LogCaptureFixture) -> None:
    live = make()
    live.join()
    live.observer.scan = fail(MemoryError('by chance'))  # type: ignore[method-assign]
    live.periodic_scan()
    assert 'by chance' in caplog.text
    live.observer.scan = fail(errors.EngineDead('It is dead.'))  # type: ignore[method-assign]
    live.periodic_scan()
    assert live.reasons == ['It is dead.']  # type: ignore[attr-defined]


def fail(error: Exception) -> Callable[..., Any]:
    def method(*arguments: Any, **named: Any) -> Any:
        raise error

    return method


def test_death_is_no_news_once_the_engine_has_left(make: Make) -> None:
    live = make()
    live.join()
    live.stop()
    live.observer.scan = fail(errors.EngineDead('It has left.'))  # type: ignore[method-assign]
    live.periodic_scan()
    assert live.reasons == []  # type: ignore[attr-defined]


@pytest.mark.parametrize('error', [AWAY, errors.UnclearOutcome('?'), errors.SchemaError('?')])
def test_an_observer_that_sees_nothing_says_so_once(
        make: Make, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    caplog.set_level(logging.INFO)
    live = make()
    live.join()
    scan = live.observer.scan
    live.observer.scan = fail(error)  # type: ignore[method-assign]
    for _ in range(3):
        assert live.scan() == QUICK.scan_interval
    live.observer.scan = scan  # type: ignore[method-assign]
    live.scan()
    assert caplog.text.count('cannot see the others') == 1
    assert caplog.text.count('sees the others again') == 1


def test_an_engine_that_holds_goes_on_looking(make: Make) -> None:
    live = make()
    live.join()
    live.takeover.sweep = fail(errors.EngineHeld('It holds.'))  # type: ignore[method-assign]
    assert live.scan() == QUICK.scan_interval


def test_an_engine_whose_threads_take_no_step_is_not_well(make: Make) -> None:
    clock = fakes.Clock()
    live = make(clock=clock)
    live._taken['beat'] = clock.now()
    assert live.well
    clock.forward(QUICK.fence_time)
    assert not live.well


# The start without a database.

def test_an_engine_begins_at_once_where_it_can(make: Make, database: Database) -> None:
    live, joined = make(), threading.Event()
    live.begin(joined.set)
    assert joined.is_set()
    assert state(database, live) == 'up'


@pytest.mark.parametrize('error', [AWAY, errors.SchemaError('The tables are missing.')])
def test_an_engine_joins_when_the_database_is_there(
        make: Make, database: Database, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    monkeypatch.setattr(agent, 'JOIN_RETRY_SECONDS', .01)
    caplog.set_level(logging.INFO)
    live, joined = make(), threading.Event()
    join = live.membership.join
    tries = [error] * 3

    def try_to_join() -> None:
        if tries:
            raise tries.pop()
        join()

    live.membership.join = try_to_join  # type: ignore[method-assign]
    live.begin(joined.set)
    assert not live.joined
    assert joined.wait(60)
    assert live.joined
    assert caplog.text.count('could not join the service table') == 1
    wait_until(lambda: count(database, live) > 1, 60, 'The beats')


def test_an_engine_declared_dead_before_it_joins_ends(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """I7."""
    monkeypatch.setattr(agent, 'JOIN_RETRY_SECONDS', .01)
    live = make()
    errors_to_come: list[Exception] = [errors.EngineDead('It is dead.'), AWAY]

    def try_to_join() -> None:
        raise errors_to_come.pop()

    live.membership.join = try_to_join  # type: ignore[method-assign]
    live.begin(lambda: None)
    wait_until(lambda: live.reasons, 60, 'The end')  # type: ignore[attr-defined]


def test_an_engine_that_never_joined_stops_without_a_word(
        make: Make, database: Database) -> None:
    live = make()
    live.membership.join = fail(AWAY)  # type: ignore[method-assign]
    live.begin(lambda: None)
    live.drain()
    live.stop()
    assert not live.joined
    assert state(database, live) is None


def test_a_join_that_succeeds_while_the_engine_stops_leaves_again(
        make: Make, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its row would stay, and its timer end a process that works on."""
    monkeypatch.setattr(agent, 'JOIN_RETRY_SECONDS', .01)
    live = make()
    join, joining, go_on = live.membership.join, threading.Event(), threading.Event()
    tries: list[Exception] = [AWAY]

    def slow() -> None:
        if tries:
            raise tries.pop()
        joining.set()
        assert go_on.wait(60)
        join()

    live.membership.join = slow  # type: ignore[method-assign]
    started: list[str] = []
    live.begin(lambda: started.append('scans'))
    assert joining.wait(60)
    stop = threading.Thread(target=live.stop)
    stop.start()
    wait_until(live._stop.is_set, 60, 'The stop')
    go_on.set()
    stop.join(60)
    assert state(database, live) == 'left'
    assert started == []
    assert live.membership._timer.due is None  # type: ignore[attr-defined]


# The end.

def test_beats_go_on_until_the_last_task_has_ended(make: Make, database: Database) -> None:
    """I13."""
    go_on = threading.Event()
    live = started(make({'long': lambda task: go_on.wait(60)}))
    live.work.submit('x', 'long')  # type: ignore[attr-defined]
    stop = threading.Thread(target=live.stop)
    stop.start()
    wait_until(lambda: state(database, live) == 'draining', 60, 'The drain')
    before = count(database, live)
    wait_until(lambda: count(database, live) > before + 3, 60, 'Some beats')
    go_on.set()
    stop.join(60)
    assert state(database, live) == 'left'
    found = Locks(database).find('x')
    assert found is not None
    assert (found.status, found.generation) == ('complete', 1)


def test_an_engine_that_cannot_say_so_ends_all_the_same(
        make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    live = make()
    live.join()
    live.membership._members.drain = fail(AWAY)  # type: ignore[method-assign]
    live.membership._members.leave = fail(AWAY)  # type: ignore[method-assign]
    live.stop()
    assert 'were not told' in caplog.text
    assert 'ends without having left' in caplog.text


def test_an_engine_may_be_stopped_from_a_thread_of_its_own(
        make: Make, database: Database) -> None:
    live = make()
    live.join()
    live.observer.scan = live.stop  # type: ignore[method-assign,assignment]
    live.start()
    wait_until(lambda: state(database, live) == 'left', 60, 'The leave')


def test_a_dead_engine_ends_its_process_without_unwinding() -> None:
    program = textwrap.dedent("""\
        import atexit, logging
        from heat_liveness import agent
        logging.basicConfig()
        atexit.register(print, 'unwound', flush=True)
        try:
            agent.end_process('It was declared dead.')
        finally:
            print('unwound', flush=True)
        """)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == agent.EXIT_DEAD
    assert done.stdout == ''
    assert 'CRITICAL:heat_liveness.agent:It was declared dead.' in done.stderr


def test_the_status_of_a_dead_engine_asks_for_a_new_one(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(agent.os, '_exit', statuses.append)
    monkeypatch.setattr(logging, 'shutdown', lambda: None)
    agent.end_process('It was declared dead.')
    assert statuses == [75]
    assert 'It was declared dead.' in caplog.text


def test_a_real_engine_that_cannot_hold_is_ended_by_the_kernel(url: str) -> None:
    """I6."""
    program = textwrap.dedent("""\
        import ctypes, sys
        from heat_liveness import agent, engine
        from heat_liveness.db.database import Database
        from heat_liveness.work.native import NativeWork
        from tests.unit.fakes import QUICK
        live = agent.Liveness(
            engine.Identity.new(host='h', hostname='h', binary='b', topic='t'), QUICK,
            Database(sys.argv[1]), NativeWork)
        live.join()
        live.start()
        # It keeps the interpreter to itself, so no thread of the engine runs any more.
        ctypes.PyDLL(None).pause()
        """)
    done = subprocess.run([sys.executable, '-c', program, url], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_kernel_without_such_a_timer_is_refused(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, 'KernelTimer', fail(OSError('Invalid argument')))
    with pytest.raises(errors.ConfigError,
                       match=r'no timer on CLOCK_BOOTTIME \(Invalid argument\)'):
        make(timer=None)


def test_the_database_is_the_one_of_the_configuration(tmp_path: pathlib.Path) -> None:
    file = tmp_path / 'x.conf'
    file.write_text('[database]\nconnection = mysql://u:secret@h/d\n'
                    'connection_parameters = ssl_ca=/ca.pem\n')
    config = cfg.ConfigOpts()
    conf.load(config, ['--config-file', str(file)], 'test', '1')
    found = agent.database(config, QUICK)
    assert found.name == 'mysql+pymysql://u:***@h/d'
    assert found.url.query == {'ssl_ca': '/ca.pem'}


def test_an_engine_that_is_not_done_in_time_leaves_and_ends(
        make: Make, database: Database) -> None:
    release = threading.Event()
    live = started(make({'wait': lambda task: release.wait(60)}))
    live.work.submit('a', 'wait', None)  # type: ignore[attr-defined]
    live.give_up('its time is over')
    assert state(database, live) == 'left'
    with pytest.raises(errors.EngineDead):
        live.gate.check()
    reason, = live.reasons  # type: ignore[attr-defined]
    assert 'because its time is over' in reason
    # The others find what it was working on.
    assert Locks(database).owners([live.identity.engine_id]) == {live.identity.engine_id}
    release.set()


def test_an_engine_that_gave_up_and_hangs_in_its_last_words_is_ended_by_the_kernel(
        make: Make) -> None:
    live = started(make())
    live.give_up('its time is over')
    for thread in live._threads:
        if thread.name in {'liveness-watchdog', 'liveness-heart'}:
            thread.join(60)
            assert not thread.is_alive(), 'it would move the timer on for good'
    assert live.membership._timer.due is not None  # type: ignore[attr-defined]


def test_who_has_not_joined_does_not_say_that_he_leaves(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row under its engine_id, if there is one, is another's."""
    live = make()
    said: list[str] = []
    monkeypatch.setattr(live.membership._members, 'leave', said.append)
    live.give_up('its time is over')
    live.stop()
    assert said == []


def test_an_engine_that_gives_up_while_it_holds_is_not_ended_before_it_has_left(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    live = started(make())
    timer = live.membership._timer
    assert isinstance(timer, fakes.Timer)
    left = []

    def leave(engine_id: str) -> None:
        wait_until(lambda: live.gate.held, 60, 'The hold')
        due = timer.due
        wait_until(lambda: timer.due is not None and due is not None and timer.due > due, 60,
                   'A timer that is moved on')
        left.append(engine_id)

    monkeypatch.setattr(live.membership._members, 'leave', leave)
    live.give_up('its time is over')
    assert left == [live.identity.engine_id]
    monkeypatch.undo()


def test_what_a_takeover_has_lasted_is_no_pause_before_the_next_look(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = fakes.Clock()
    live = make(clock=clock)
    live.join()
    for lasted, left in ((0.75, 0.25), (2.0, 0.0)):
        monkeypatch.setattr(live.takeover, 'sweep', lambda ended, lasted=lasted: clock.forward(
            lasted * QUICK.scan_interval))
        assert live.scan() == pytest.approx(left * QUICK.scan_interval, abs=1e-3)
