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

"""Each statement about service rows, on each database."""

import dataclasses
import datetime
import math

import pytest
import sqlalchemy as sa

from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.db import models
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members, ended
from tests.databases.conftest import Bed, at_once


def test_a_row_comes_back_as_it_was_written(bed: Bed) -> None:
    bed.members.insert(dataclasses.replace(bed.identity('e1'), host='höst-\N{SNOWMAN}-\U0001f525'),
                       4.5, 20.25)
    row = bed.row('e1')
    assert (row.host, row.hostname) == ('höst-\N{SNOWMAN}-\U0001f525', 'host.domain')
    assert (row.report_interval, row.fence_time) == (4.5, 20.25)
    assert row.process == bed.identity('e1').process
    assert (row.state, row.report_count, row.mass, row.declared_by) == ('up', 0, False, None)
    assert row.live
    assert row.judged
    assert not row.ended
    assert -.1 < row.age < 60
    assert bed.members.read('nobody') is None


def test_who_died_alone_is_blamed_and_nobody_else(bed: Bed) -> None:
    """I10."""
    for name in ('live', 'died', 'mass', 'left'):
        bed.engine(name)
    bed.kill('died')
    bed.kill('mass', mass=True)
    bed.members.leave('left')
    assert [(row.engine_id, row.mass) for row in bed.members.all() if row.blamed or row.mass] == [
        ('died', False), ('mass', True)]
    assert not bed.row('mass').blamed


def test_who_has_ended_is_said_in_sql(bed: Bed) -> None:
    """I5: an engine without a row is neither."""
    for name in ('live', 'draining', 'dead', 'left'):
        bed.engine(name)
    bed.members.drain('draining')
    bed.kill('dead')
    bed.members.leave('left')
    with bed.database.autocommit() as connection:
        assert [bool(connection.scalar(sa.select(ended(name))))
                for name in ('live', 'draining', 'nobody', 'dead', 'left')] == [
            False, False, False, True, True]


def test_a_machine_is_a_boot_or_a_hostname_where_none_is_known(bed: Bed) -> None:
    bed.engine('e1', boot_id='b')
    bed.engine('e2', boot_id='')
    assert (bed.row('e1').machine, bed.row('e2').machine) == ('b', 'host.domain')


def test_a_beat_at_no_time_is_an_old_one(sqlite_bed: Bed) -> None:
    sqlite_bed.engine('e1')
    with sqlite_bed.database.transaction() as connection:
        connection.exec_driver_sql("UPDATE liveness_service SET updated_at = 'yesterday'")
    assert sqlite_bed.row('e1').age == math.inf


def test_an_engine_joins_once(bed: Bed) -> None:
    bed.engine('e1')
    with pytest.raises(errors.LockHeld):
        bed.engine('e1')


def test_names_differ_by_case(bed: Bed) -> None:
    assert [bed.engine(name) for name in ('e1', 'E1')] == ['e1', 'E1']
    bed.kill('E1')
    assert bed.row('e1').live


def test_a_beat_raises_the_count_and_the_time_in_microseconds(bed: Bed) -> None:
    bed.engine('e1')
    before = bed.row('e1')
    bed.shift(models.service, 'updated_at', 5.5, engine_id='e1')
    assert 5.4 < bed.row('e1').age < 65
    assert bed.members.beat('e1')
    assert bed.members.beat('e1')
    row = bed.row('e1')
    assert row.report_count == 2
    assert row.updated_at > before.updated_at
    fractions = set()
    for _ in range(20):
        bed.members.beat('e1')
        fractions.add(bed.row('e1').updated_at.microsecond)
    assert len(fractions) > 5


def test_the_times_are_utc_whatever_the_servers_zone(bed: Bed) -> None:
    bed.engine('e1')
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    assert abs(now - bed.row('e1').updated_at) < datetime.timedelta(minutes=2)


@pytest.mark.parametrize('state', ['nowhere', 'dead', 'left'])
def test_a_beat_never_raises_the_dead(bed: Bed, state: str) -> None:
    """I7."""
    if state != 'nowhere':
        bed.engine('e1')
        bed.kill('e1') if state == 'dead' else bed.members.leave('e1')
    before = bed.members.read('e1')
    assert not bed.members.beat('e1')
    after = bed.members.read('e1')
    assert (after and after.updated_at) == (before and before.updated_at)
    assert not bed.members.drain('e1')
    assert not bed.members.leave('e1')


def test_a_draining_engine_beats_and_leaves_once(bed: Bed) -> None:
    """I13."""
    bed.engine('e1')
    assert bed.members.drain('e1')
    assert bed.row('e1').live
    assert not bed.members.drain('e1')
    assert bed.members.beat('e1')
    assert bed.members.leave('e1')
    row = bed.row('e1')
    assert (row.state, row.declared_by, row.ended) == ('left', 'e1', True)
    assert row.declared_at is not None
    assert not bed.members.leave('e1')


def test_a_declaration_is_written_with_its_journal(bed: Bed) -> None:
    """I18."""
    bed.engine('judge', topic='judges')
    bed.engine('e1')
    for _ in range(2):
        bed.members.beat('e1')
    row = bed.kill('e1')
    assert (row.state, row.declared_by, row.evidence, row.mass) == (
        'dead', 'judge', 'watched', False)
    (entry,) = bed.journal.search(engine_id='e1', kind='death')
    assert (entry.subject, entry.taken_by, entry.status) == ('engine:e1', 'judge', 'done')
    assert (entry.pieces, entry.generation) == (1, 2)
    assert entry.detail == {'evidence': 'watched', 'host': 'host', 'mass': False, 'why': 'a test'}
    assert bed.journal.find(entry.id) == entry
    assert bed.journal.find(entry.id + 1) is None


def test_a_beat_after_the_look_saves_the_engine(bed: Bed) -> None:
    """I4."""
    bed.engine('e1')
    bed.engine('judge')
    seen = bed.row('e1')
    bed.members.beat('e1')
    assert not bed.members.declare(seen, 'judge', 'watched', mass=False, detail={})
    assert bed.row('e1').live
    assert bed.journal.search() == []


def test_an_engine_is_declared_once(bed: Bed) -> None:
    """I18."""
    bed.engine('judge')
    bed.engine('e1')
    seen = bed.row('e1')
    assert bed.members.declare(seen, 'judge', 'kernel', mass=False, detail={})
    assert not bed.members.declare(seen, 'judge', 'kernel', mass=False, detail={})
    assert len(bed.journal.search()) == 1


@pytest.mark.parametrize('state', ['nowhere', 'dead', 'left'])
def test_an_observer_that_is_not_alive_declares_nobody(bed: Bed, state: str) -> None:
    """I7."""
    bed.engine('e1')
    if state != 'nowhere':
        bed.engine('observer')
        bed.kill('observer') if state == 'dead' else bed.members.leave('observer')
    assert not bed.members.declare(bed.row('e1'), 'observer', 'watched', mass=False, detail={})
    assert bed.row('e1').live
    assert bed.journal.search(engine_id='e1') == []


def test_an_engine_whose_row_was_written_again_can_die_again(bed: Bed) -> None:
    """I8: somebody removed the row of a dead engine that still beat."""
    bed.engine('judge')
    bed.engine('e1')
    assert bed.members.declare(bed.row('e1'), 'judge', 'operator', mass=False, detail={})
    with bed.database.transaction() as connection:
        connection.execute(models.service.delete().where(models.service.c.engine_id == 'e1'))
    bed.members.insert(bed.identity('e1'), 4, 20, report_count=1)
    assert bed.members.declare(bed.row('e1'), 'judge', 'watched', mass=False, detail={})
    assert len(bed.journal.search(engine_id='e1')) == 2


def test_of_two_observers_one_declares(bed: Bed) -> None:
    """I18."""
    for number in range(8):
        bed.engine(f'observer-{number}')
    for number in range(10):
        bed.engine(f'e{number}')
        seen = bed.row(f'e{number}')
        results = at_once(*(
            lambda name=f'observer-{other}', seen=seen: bed.members.declare(  # type: ignore[misc]
                seen, name, 'watched', mass=False, detail={}) for other in range(8)))
        assert results.count(True) == 1, results
        assert bed.row(f'e{number}').state == 'dead'
        assert len(bed.journal.search(engine_id=f'e{number}')) == 1


def test_a_beat_and_a_declaration_at_once_never_both_win(bed: Bed) -> None:
    """I4, I5."""
    bed.engine('judge')
    beaters = [Members(bed.database) for _ in range(2)]
    won = 0
    for number in range(30):
        name = bed.engine(f'e{number}')
        seen = bed.row(name)
        beat, *declared = at_once(
            lambda: beaters[0].beat(name),  # noqa: B023 - called at once
            lambda: bed.members.declare(seen, 'judge', 'watched',  # noqa: B023
                                        mass=False, detail={}))
        row = bed.row(name)
        assert beat is not declared[0], (beat, declared)
        assert row.live is beat
        assert row.report_count == seen.report_count + (beat is True)
        won += beat is True
    beaters[0].hang_up()
    assert won <= 30


def test_a_beat_has_its_connection_when_all_others_are_in_use(bed: Bed) -> None:
    """I6: or busy tasks would have their engine hold."""
    bed.engine('me')
    database = Database(bed.database.url.render_as_string(hide_password=False), connections=1)
    members = Members(database)
    try:
        with database.autocommit():
            assert members.beat('me')
        members.hang_up()
    finally:
        database.close()


def test_after_an_error_of_any_kind_a_beat_opens_another_connection(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.engine('me')
    members = Members(bed.database)
    assert members.beat('me')
    with monkeypatch.context() as patch:
        patch.setattr(members._kept, 'exec_driver_sql', lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            members.beat('me')
    assert members._kept is None
    assert members.beat('me')
    members.hang_up()


def test_a_look_shows_what_an_observer_must_see(bed: Bed) -> None:
    for name in ('me', 'well', 'late', 'future', 'dead', 'left', 'long-dead'):
        bed.engine(name, boot_id='mine' if name == 'me' else 'theirs')
    bed.engine('neighbour', boot_id='mine')
    bed.engine('stranger', topic='other')
    bed.engine('alien')
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.service).filter_by(engine_id='alien')
                           .values(binary='other'))
    for name in ('late', 'stranger', 'alien'):
        bed.shift(models.service, 'updated_at', 100, engine_id=name)
    bed.shift(models.service, 'updated_at', -100, engine_id='future')
    bed.kill('dead')
    bed.kill('long-dead')
    bed.members.leave('left')
    bed.shift(models.service, 'declared_at', 1000, engine_id='long-dead')
    me = bed.identity('me', boot_id='mine')
    look = {row.engine_id: row for row in bed.members.look(me, 50, 500)}
    assert set(look) == {'me', 'neighbour', 'late', 'future', 'dead', 'left'}
    assert look['late'].age == pytest.approx(100, abs=60)
    assert look['future'].age < 0
    everything = {row.engine_id for row in bed.members.look(me, 50, None)}
    assert everything == {*look, 'long-dead'}
    assert {row.engine_id for row in bed.members.all()} >= {*everything, 'well', 'stranger'}


def test_the_machines_are_counted_with_those_lost_to_a_watch(bed: Bed) -> None:
    for name, boot in [('me', 'a'), ('e1', 'b'), ('e2', 'b'), ('e3', 'c'), ('e4', 'd'),
                       ('e5', 'e'), ('e6', 'f'), ('nameless', '')]:
        bed.engine(name, boot_id=boot)
    bed.engine('stranger', topic='other', boot_id='g')
    bed.engine('alien', boot_id='h')
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.service).filter_by(engine_id='alien')
                           .values(binary='other'))
    bed.kill('e2')
    bed.kill('e3')
    bed.members.leave('e4')
    bed.kill('e5')
    bed.shift(models.service, 'declared_at', 1000, engine_id='e5')
    # I10: a clock was set back since; all that poison kills would be a mass death for so long.
    bed.engine('e7', boot_id='i')
    bed.kill('e7')
    bed.shift(models.service, 'declared_at', -1000, engine_id='e7')
    bed.shift(models.service, 'declared_at', -100, engine_id='e3')
    assert bed.members.declare(bed.row('e6'), 'me', 'kernel', mass=False, detail={})
    machines, lost = bed.members.machines(bed.identity('me'), 500)
    assert machines == {'a', 'b', 'c', 'host.domain'}
    assert lost == {'b', 'c'}


def test_only_what_owns_nothing_and_ended_long_ago_is_purged(bed: Bed) -> None:
    """I8."""
    for name in ('me', 'live', 'dead', 'left', 'owner', 'recent', 'other'):
        bed.engine(name, topic='other' if name == 'other' else 'topic')
    bed.locks.acquire('x', 'task', None, 'owner')
    for name in ('dead', 'owner', 'recent', 'other'):
        bed.kill(name)
    bed.members.leave('left')
    for name in ('dead', 'left', 'owner', 'other'):
        bed.shift(models.service, 'declared_at', 1000, engine_id=name)
    with bed.database.transaction() as connection:
        # It is the state that says so, whatever else a row may have.
        connection.execute(sa.update(models.service).filter_by(engine_id='live')
                           .values(declared_at=bed.row('dead').declared_at))
        connection.execute(models.service.insert().from_select(
            [column.name for column in models.service.c],
            sa.select(*(sa.literal('alien') if column.name == 'engine_id' else
                        sa.literal('other') if column.name == 'binary' else column
                        for column in models.service.c)).filter_by(engine_id='dead')))
    bed.shift(models.service, 'declared_at', 2000, engine_id='left')
    bed.shift(models.service, 'declared_at', 3000, engine_id='owner')
    assert bed.members.purgeable(bed.identity('me'), 500) == ['owner', 'left', 'dead']
    assert bed.members.purge(['alien'], None) == ['alien']
    names = ['dead', 'left', 'live', 'nobody', 'owner', 'recent']
    assert bed.members.purge(names, 'nobody') == []
    assert bed.members.purge(names, 'dead') == []
    assert bed.members.purge(names, 'me') == ['dead', 'left', 'recent']
    assert bed.members.purge(['other'], None) == ['other']
    assert {row.engine_id for row in bed.members.all()} == {'me', 'live', 'owner', 'judge'}


def test_an_end_at_no_time_is_as_old_as_the_last_beat(bed: Bed) -> None:
    bed.engine('me')
    for name in ('undated', 'undated-young', 'dated'):
        bed.engine(name)
        bed.kill(name)
    for name in ('undated', 'dated'):
        bed.shift(models.service, 'updated_at', 1000, engine_id=name)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.service)
                           .where(models.service.c.engine_id.in_(['undated', 'undated-young']))
                           .values(declared_at=None))
    assert bed.members.purgeable(bed.identity('me'), 500) == ['undated']


def test_all_that_ended_long_ago_may_be_purged(bed: Bed) -> None:
    """I17: the first hundred may all own work that is left alone."""
    bed.engine('me')
    bed.engine('e')
    bed.kill('e')
    bed.shift(models.service, 'declared_at', 1000, engine_id='e')
    with bed.database.transaction() as connection:
        values = dict(connection.execute(
            sa.select(models.service).filter_by(engine_id='e')).one()._mapping)
        connection.execute(models.service.insert(), [
            {**values, 'engine_id': f'e{number}'} for number in range(101)])
    assert len(bed.members.purgeable(bed.identity('me'), 500)) == 102


def test_all_rows_are_shown_oldest_first(bed: Bed) -> None:
    for seconds, name in enumerate(['a', 'c', 'b']):
        bed.engine(name, topic=f'topic-{name}')
        bed.shift(models.service, 'created_at', 1000 * seconds, engine_id=name)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.service)
                           .where(models.service.c.engine_id.in_(['b', 'c']))
                           .values(created_at=bed.row('b').created_at))
    assert [row.engine_id for row in bed.members.all()] == ['b', 'c', 'a']


def test_the_journal_is_purged_of_what_is_long_done(bed: Bed) -> None:
    bed.engine('me')
    for number in range(4):
        bed.engine(f'e{number}')
        bed.kill(f'e{number}')
    first, second, *others = bed.journal.search()
    bed.shift(models.takeover, 'updated_at', 1000, id=first.id)
    bed.shift(models.takeover, 'updated_at', 1000, id=second.id)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.takeover).filter_by(id=second.id)
                           .values(status='pending'))
    assert bed.journal.purge(500, 'nobody') == 0
    assert bed.journal.purge(500, 'me') == 1
    assert [entry.id for entry in bed.journal.search()] == [second.id, *(e.id for e in others)]


def test_the_journal_shows_the_newest_entries_oldest_first(bed: Bed) -> None:
    for number in range(5):
        bed.engine(f'e{number}')
        bed.kill(f'e{number}')
    shown = [entry.engine_id for entry in bed.journal.search(limit=3)]
    assert shown == ['e2', 'e3', 'e4']
    assert len(bed.journal.search(engine_id='judge')) == 5
    assert [entry.engine_id for entry in bed.journal.search(subject='engine:e1')] == ['e1']
    assert bed.journal.search(kind='takeover') == []


def test_an_engine_that_writes_no_row_is_given_one_that_nobody_judges(bed: Bed) -> None:
    process = engines.Process(
        pid=0, start_time=0, pid_namespace=0, time_namespace=0, boot_id='')
    row = bed.members.introduce('e1', 'host', 'host.domain', 'binary', 'topic', 60)
    assert row is not None
    assert row == dataclasses.replace(bed.row('e1'), age=row.age)
    assert (row.host, row.hostname, row.binary, row.topic) == (
        'host', 'host.domain', 'binary', 'topic')
    assert (row.report_interval, row.fence_time, row.report_count, row.process) == (
        60, 0, 0, process)
    assert (row.state, row.protocol, row.mass) == ('up', engines.OBSERVED, False)
    assert not row.judged
    again = bed.members.introduce('e1', 'other', 'other', 'other', 'other', 1)
    assert again == dataclasses.replace(row, age=again.age if again else 0)
    bed.engine('e2')
    kept = bed.members.introduce('e2', 'other', 'other', 'other', 'other', 1)
    assert kept is not None
    assert (kept.host, kept.judged) == ('host', True)
    assert not bed.members.disown('e2'), 'it has a row of its own'
    assert not bed.members.disown('nobody')
    assert bed.members.disown('e1')
    assert bed.members.read('e1') is None
    assert bed.row('e2').live


def test_the_silent_are_those_of_each_kind_that_a_verdict_may_fall_upon(bed: Bed) -> None:
    for name in ('well', 'late', 'future', 'dead', 'another-protocol'):
        bed.engine(name)
    bed.engine('stranger', topic='other')
    for name in ('late', 'dead', 'another-protocol', 'stranger'):
        bed.shift(models.service, 'updated_at', 100, engine_id=name)
    bed.shift(models.service, 'updated_at', -100, engine_id='future')
    bed.kill('dead')
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.service).filter_by(engine_id='another-protocol')
                           .values(protocol=engines.OBSERVED))
    assert {row.engine_id for row in bed.members.silent(50)} == {'late', 'future', 'stranger'}


def test_the_eldest_is_the_first_of_its_kind_that_beats(bed: Bed) -> None:
    observer = bed.identity('me')
    assert bed.members.eldest(observer, 50) is None
    names = ['other-topic', 'other-binary', 'other-protocol',
             'dead', 'draining', 'late', 'b', 'a', 'younger']
    for name in names:
        bed.engine(name, topic='other' if name == 'other-topic' else 'topic')
    with bed.database.transaction() as connection:
        for name, change in (('other-binary', {'binary': 'other'}),
                             ('other-protocol', {'protocol': engines.OBSERVED})):
            connection.execute(sa.update(models.service).filter_by(engine_id=name).values(change))
    for seconds, name in enumerate(reversed(names)):
        bed.shift(models.service, 'created_at', 100 + seconds, engine_id=name)
    with bed.database.transaction() as connection:
        # Two that joined in the same moment: the name decides, for all alike.
        connection.execute(sa.update(models.service)
                           .where(models.service.c.engine_id.in_(['a', 'b']))
                           .values(created_at=bed.row('a').created_at))
    bed.kill('dead')
    bed.members.drain('draining')
    bed.shift(models.service, 'updated_at', 100, engine_id='late')
    assert bed.members.eldest(observer, 50) == 'a'
    assert bed.members.eldest(observer, 150) == 'late'


def test_the_endings_of_one_program_are_told_last_first(bed: Bed) -> None:
    names = ['died', 'left', 'mass', 'b', 'a']
    for name in [*names, 'live', 'undated', 'other-binary']:
        bed.engine(name, topic=f'topic-of-{name}')
    bed.members.leave('left')
    bed.shift(models.service, 'declared_at', 0, engine_id='live')
    for name in ('died', 'b', 'a', 'undated', 'other-binary'):
        bed.kill(name)
    bed.kill('mass', mass=True)
    for seconds, name in enumerate(names):
        bed.shift(models.service, 'declared_at', 100 * seconds, engine_id=name)
    with bed.database.transaction() as connection:
        for name, change in (('undated', {'declared_at': None}), ('other-binary', {'binary': 'x'}),
                             ('b', {'declared_at': bed.row('a').declared_at})):
            connection.execute(sa.update(models.service).filter_by(engine_id=name)
                               .values(change))
    endings = bed.members.endings('binary')
    assert [(each.engine_id, each.blamed) for each in endings] == [
        ('died', True), ('left', False), ('mass', False), ('a', True), ('b', True)]
    assert [each.age for each in endings] == pytest.approx([0, 100, 200, 400, 400], abs=60)
