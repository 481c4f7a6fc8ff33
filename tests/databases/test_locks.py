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

"""Each statement about locks, on each database: who acts is alive, and owner and generation fit."""

import dataclasses
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import locks as lock_statements
from heat_liveness.db import models
from heat_liveness.db.locks import HeldLock, LockRow
from tests.databases.conftest import Bed, at_once, skip_on_galera

STRANGE = 'Näme \N{SNOWMAN} \U0001f525 %s :x \'"\\'


def found(bed: Bed, name: str) -> LockRow:
    row = bed.locks.find(name)
    assert row is not None
    return row


def hold(bed: Bed, owner: str, count: int) -> list[LockRow]:
    """Let an engine hold some locks, written at one go."""
    with bed.database.transaction() as connection:
        connection.execute(models.lock.insert(), [{
            'name': f'{owner}-{number:04}', 'task': 'task', 'arguments': 'null',
            'progress': 'null', 'status': 'in_progress', 'engine_id': owner, 'generation': 1,
            'takeovers': 0, 'history': '', 'created_at': bed.row(owner).created_at,
            'updated_at': bed.row(owner).created_at} for number in range(count)])
    return bed.locks.search(engine_id=owner)


def test_a_lock_comes_back_as_it_was_written(bed: Bed) -> None:
    bed.engine('e1')
    arguments = {'text': STRANGE, 'list': [1, 2.5, None, True]}
    row = bed.locks.acquire(STRANGE, 'täsk', arguments, 'e1')
    assert row == found(bed, STRANGE)
    assert (row.task, row.arguments, row.progress) == ('täsk', arguments, None)
    assert (row.status, row.engine_id, row.generation) == ('in_progress', 'e1', 1)
    assert (row.takeovers, row.history, row.reason) == (0, [], None)
    assert bed.locks.write(row, progress=arguments)
    assert found(bed, STRANGE).progress == arguments
    assert bed.locks.find('nothing') is None


def test_a_lock_may_have_the_longest_name_and_much_to_say(bed: Bed) -> None:
    bed.engine('e1')
    bed.engine('taker')
    name = '\N{SNOWMAN}' * 255
    row = bed.locks.acquire(name, 'task', 'x' * 300_000, 'e1')
    assert bed.locks.write(row, progress='y' * 300_000)
    # Its journal has room for it, too.
    assert [each.name for each in bed.locks.quarantine(bed.kill('e1'), 'taker', 0)] == [name]
    assert found(bed, name).progress == 'y' * 300_000


def test_names_of_locks_differ_by_case_and_by_trailing_space(bed: Bed) -> None:
    bed.engine('e1')
    for name in ('lock', 'LOCK', 'löck', 'lock2'):
        bed.locks.acquire(name, 'task', None, 'e1')
    assert len(bed.locks.search()) == 4


def test_a_name_that_ends_with_a_space_is_refused(bed: Bed) -> None:
    bed.engine('e1')
    for name, task in (('x ', 'task'), ('x', 'task ')):
        with pytest.raises(errors.DataRefused, match=" ', ends with a space"):
            bed.locks.acquire(name, task, None, 'e1')
    assert bed.locks.acquire(' x', ' task', None, 'e1').name == ' x'


def test_a_lock_is_shown_by_the_names_of_its_columns(bed: Bed) -> None:
    bed.engine('e1')
    record = bed.locks.acquire('x', 'task', [1], 'e1').record()
    assert set(record) == {column.name for column in models.lock.c}
    assert (record['name'], record['arguments'], record['history']) == ('x', [1], [])
    assert [column.name for column in lock_statements._columns(HeldLock)] == [
        'id', 'name', 'task', 'arguments', 'progress', 'engine_id', 'generation', 'takeovers']


def test_a_lock_that_is_held_is_refused_even_to_its_owner(bed: Bed) -> None:
    """I1."""
    bed.engine('e1')
    bed.engine('e2')
    bed.locks.acquire('x', 'task', None, 'e1')
    for name in ('e1', 'e2'):
        with pytest.raises(errors.LockHeld, match='The lock x is held by another task'):
            bed.locks.acquire('x', 'task', None, name)
    assert (found(bed, 'x').engine_id, found(bed, 'x').generation) == ('e1', 1)


@pytest.mark.parametrize('status', ['complete', 'failed', 'released'])
def test_a_lock_that_is_free_is_acquired_anew_under_the_next_generation(
        bed: Bed, status: str) -> None:
    """I2."""
    bed.engine('e1')
    bed.engine('e2')
    row = bed.locks.acquire('x', 'task', 1, 'e1')
    assert bed.locks.write(row, status=status, reason='why', engine_id=None, progress='half')
    row = bed.locks.acquire('x', 'other', 2, 'e2')
    assert (row.generation, row.engine_id, row.task, row.arguments) == (2, 'e2', 'other', 2)
    assert (row.progress, row.reason, row.takeovers) == (None, None, 0)
    taken = bed.locks.take_over(bed.kill('e2'), 'e1', 1, tainted=False)[0]
    assert bed.locks.write(taken, status=status, engine_id=None)
    row = bed.locks.acquire('x', 'task', None, 'e1')
    assert (row.generation, row.history, row.takeovers) == (4, [], 0)


def test_a_lock_that_has_an_owner_is_not_free_whatever_it_says(bed: Bed) -> None:
    """I1."""
    bed.engine('e1')
    bed.engine('e2')
    bed.locks.acquire('x', 'task', None, 'e1')
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.lock).values(status='complete'))
    with pytest.raises(errors.LockHeld):
        bed.locks.acquire('x', 'task', None, 'e2')
    assert found(bed, 'x').engine_id == 'e1'


@pytest.mark.parametrize('free', [True, False])
@pytest.mark.parametrize('state', ['nowhere', 'dead', 'left'])
def test_an_engine_that_is_not_alive_acquires_nothing(
        bed: Bed, state: str, free: bool) -> None:
    """I7."""
    bed.engine('other')
    if free:
        row = bed.locks.acquire('x', 'task', None, 'other')
        assert bed.locks.write(row, status='released', engine_id=None)
    if state != 'nowhere':
        bed.engine('e1')
        bed.kill('e1') if state == 'dead' else bed.members.leave('e1')
    before = bed.locks.find('x')
    with pytest.raises(errors.EngineDead if not free else errors.LivenessError):
        bed.locks.acquire('x', 'task', None, 'e1')
    assert bed.locks.find('x') == before


@pytest.mark.parametrize('spoil', ['dead', 'left', 'generation', 'owner'])
def test_a_write_that_does_not_fit_changes_nothing(bed: Bed, spoil: str) -> None:
    """I2, I3, I7."""
    bed.engine('e1')
    bed.engine('e2')
    row = bed.locks.acquire('x', 'task', None, 'e1')
    if spoil == 'dead':
        bed.kill('e1')
    elif spoil == 'left':
        bed.members.leave('e1')
    elif spoil == 'generation':
        row = dataclasses.replace(row, generation=2)
    else:
        row = dataclasses.replace(row, engine_id='e2')
    before = found(bed, 'x')
    assert not bed.locks.write(row, progress='half')
    assert not bed.locks.write(row, status='complete', engine_id=None)
    assert found(bed, 'x') == before


def test_a_takeover_moves_locks_raises_the_generation_by_one_and_blames(bed: Bed) -> None:
    """I2, I10."""
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 3)
    dead = bed.kill('e1')
    rows = bed.locks.take_over(dead, 'taker', 2, tainted=False)
    assert [row.name for row in rows] == ['e1-0000', 'e1-0001']
    stored = [found(bed, row.name) for row in rows]
    assert rows == [HeldLock(*(getattr(row, field.name) for field in dataclasses.fields(HeldLock)))
                    for row in stored]
    assert {(row.engine_id, row.generation, row.takeovers) for row in rows} == {('taker', 2, 1)}
    assert stored[0].history == [{'engine_id': 'e1', 'state': 'dead', 'taken_by': 'taker'}]
    assert found(bed, 'e1-0002').engine_id == 'e1'
    (entry,) = bed.journal.search(kind='takeover')
    assert (entry.engine_id, entry.taken_by, entry.pieces) == ('e1', 'taker', 2)
    assert (entry.generation, entry.status) == (0, 'done')
    assert entry.subject.startswith('batch:')
    assert entry.detail == {'locks': [['e1-0000', 2, 0], ['e1-0001', 2, 0]]}
    bed.locks.take_over(dead, 'taker', 1, tainted=False)
    assert [each.generation for each in bed.journal.search(kind='takeover')] == [0, 2]


def test_tainted_and_untainted_work_is_taken_apart(bed: Bed) -> None:
    """I10."""
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 3)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.lock)
                           .where(models.lock.c.name.in_(['e1-0001', 'e1-0002']))
                           .values(takeovers=1))
    dead = bed.kill('e1')
    assert [row.name for row in bed.locks.take_over(dead, 'taker', 1, tainted=True)] == ['e1-0001']
    assert [row.name for row in bed.locks.take_over(dead, 'taker', 9, tainted=False)] == ['e1-0000']
    assert [row.name for row in bed.locks.take_over(dead, 'taker', 9, tainted=True)] == ['e1-0002']
    assert bed.locks.take_over(dead, 'taker', 9, tainted=True) == []


def test_work_of_tasks_that_are_not_asked_for_is_left(bed: Bed) -> None:
    """I8."""
    bed.engine('e1')
    bed.engine('taker')
    for name in ('old', 'new'):
        bed.locks.acquire(f'x-{name}', name, None, 'e1')
    dead = bed.kill('e1')
    assert bed.locks.take_over(dead, 'taker', 9, tainted=False, tasks=['other']) == []
    assert bed.locks.take_over(dead, 'taker', 9, tainted=True, tasks=['new']) == []
    (row,) = bed.locks.take_over(dead, 'taker', 9, tainted=False, tasks=['new', 'other'])
    assert row.name == 'x-new'
    assert bed.locks.owners(['e1', 'taker'], ['old']) == {'e1'}
    assert bed.locks.owners(['e1', 'taker'], ['new', 'old']) == {'e1', 'taker'}
    assert bed.locks.owners(['e1', 'taker'], []) == set()


def test_poison_is_not_taken_over(bed: Bed) -> None:
    """I10."""
    bed.engine('e1')
    bed.engine('taker')
    for row in hold(bed, 'e1', 4):
        with bed.database.transaction() as connection:
            connection.execute(sa.update(models.lock).filter_by(id=row.id)
                               .values(takeovers=int(row.name[-1])))
    dead = bed.kill('e1')
    rows = bed.locks.take_over(dead, 'taker', 9, tainted=True, poison=2)
    assert [row.name for row in rows] == ['e1-0001']
    assert len(bed.locks.take_over(dead, 'taker', 9, tainted=True)) == 2


def test_a_lock_whose_numbers_cannot_be_raised_keeps_no_other_back(bed: Bed) -> None:
    """I8: it was not written by an engine."""
    bed.engine('e1')
    bed.engine('taker')
    rows = hold(bed, 'e1', 3)
    with bed.database.transaction() as connection:
        for name, values in (('e1-0000', {'generation': 2**62}),
                             ('e1-0001', {'takeovers': 2**31 - 1})):
            connection.execute(sa.update(models.lock).filter_by(name=name).values(values))
    rows = bed.locks.search(engine_id='e1')
    assert [row.name for row in bed.locks.reclaim(rows, 'e1')] == ['e1-0002']
    dead = bed.kill('e1')
    assert [row.name for row in bed.locks.take_over(dead, 'taker', 9, tainted=False)] == ['e1-0002']
    assert bed.locks.take_over(dead, 'taker', 9, tainted=True) == []
    assert bed.locks.quarantine(dead, 'taker', 0) == []


def test_who_was_in_vain_once_begins_somewhere_and_goes_round(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """I17: on Galera, where all would begin with the same lock."""
    if bed.database.backend == 'postgresql':
        pytest.skip('Its row locks keep takers apart.')
    bed.engine('e1')
    bed.engine('taker')
    ids = [row.id for row in hold(bed, 'e1', 9)]
    dead = bed.kill('e1')

    def contend(*arguments: object) -> list[HeldLock]:
        raise errors.Contended('1213')

    with monkeypatch.context() as patch:
        patch.setattr(bed.locks, '_take_over', contend)
        with pytest.raises(errors.Contended):
            bed.locks.take_over(dead, 'taker', 1, tainted=False)
    beginnings = iter([5, 8, 3])

    def somewhere(connection: sa.Connection, engine_id: str) -> int:
        assert not connection.closed
        return {'e1': ids}[engine_id][next(beginnings)]

    monkeypatch.setattr(lock_statements, '_somewhere', somewhere)
    taken = [''.join(row.name[-1] for row in bed.locks.take_over(
        dead, 'taker', limit, tainted=False)) for limit in (2, 3, 99)]
    assert taken == ['56', '801', '3472']


def test_somewhere_is_any_of_an_engines_own_locks(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('before', 'e1', 'after'):
        bed.engine(name)
        hold(bed, name, 3)
    first, _, last = (row.id for row in bed.locks.search(engine_id='e1'))
    found_at = []
    with bed.database.transaction() as connection:
        for number in range(4):
            monkeypatch.setattr(uuid, 'uuid4', lambda number=number: uuid.UUID(int=number))
            found_at.append(lock_statements._somewhere(connection, 'e1'))
        assert lock_statements._somewhere(connection, 'nobody') == 0
    assert found_at == [first + number % (last - first + 1) for number in range(4)]


@pytest.mark.parametrize('case', ['alive', 'nowhere'])
def test_nothing_is_taken_from_an_engine_that_has_not_ended(bed: Bed, case: str) -> None:
    """I5: an owner without a row is unknown, and never dead."""
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 2)
    row = dataclasses.replace(bed.row('e1'), state='dead')
    if case == 'nowhere':
        with bed.database.transaction() as connection:
            connection.execute(sa.delete(models.service).filter_by(engine_id='e1'))
    assert bed.locks.take_over(row, 'taker', 9, tainted=False) == []
    assert bed.locks.quarantine(row, 'taker', 0) == []
    assert {each.engine_id for each in bed.locks.search()} == {'e1'}


@pytest.mark.parametrize('state', ['nowhere', 'dead', 'left'])
def test_a_taker_that_is_not_alive_takes_nothing(bed: Bed, state: str) -> None:
    """I7, I12."""
    bed.engine('e1')
    if state != 'nowhere':
        bed.engine('taker')
        bed.kill('taker') if state == 'dead' else bed.members.leave('taker')
    before = hold(bed, 'e1', 2)
    dead = bed.kill('e1')
    assert bed.locks.take_over(dead, 'taker', 9, tainted=False) == []
    assert bed.locks.quarantine(dead, 'taker', 0) == []
    assert bed.locks.reclaim(before, 'e1') == []
    assert bed.locks.search() == before
    assert bed.journal.search(kind='takeover') == []
    assert bed.journal.search(kind='quarantine') == []


def test_quarantine_sets_aside_what_was_taken_over_too_often(bed: Bed) -> None:
    """I10."""
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 2)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.lock).filter_by(name='e1-0000').values(takeovers=3))
    (aside,) = bed.locks.quarantine(bed.kill('e1'), 'taker', 3)
    assert (aside.name, aside.takeovers) == ('e1-0000', 3)
    row = found(bed, 'e1-0000')
    assert (row.status, row.engine_id, row.generation) == ('quarantined', None, 2)
    assert row.reason == 'Its owner died 4 times in a row.'
    assert row.history == [{'engine_id': 'e1', 'state': 'dead', 'taken_by': None}]
    assert found(bed, 'e1-0001').status == 'in_progress'
    (entry,) = bed.journal.search(kind='quarantine')
    assert (entry.subject, entry.generation, entry.engine_id) == ('lock:e1-0000', 2, 'e1')
    assert (entry.pieces, entry.taken_by) == (1, 'taker')
    assert entry.detail == {'locks': [['e1-0000', 2, 3]]}
    with pytest.raises(errors.LockHeld):
        bed.locks.acquire('e1-0000', 'task', None, 'taker')


def test_an_engine_claims_from_itself_under_the_next_generation(bed: Bed) -> None:
    """I2, I9."""
    bed.engine('e1')
    first, second = hold(bed, 'e1', 2)
    assert bed.locks.write(second, progress='more')
    assert bed.locks.write(second, status='complete', engine_id=None)
    (won,) = bed.locks.reclaim([first, second], 'e1')
    stored = found(bed, first.name)
    assert won == dataclasses.replace(stored, updated_at=won.updated_at)
    assert stored.generation == 2
    assert not bed.locks.write(first, progress='late')
    assert bed.locks.reclaim([first], 'e1') == []


def test_batches_of_many_generations_move_whole(bed: Bed) -> None:
    bed.engine('e1')
    bed.engine('taker')
    rows = hold(bed, 'e1', 250)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.lock).values(generation=models.lock.c.id % 120 + 1))
    before = {row.name: row.generation for row in bed.locks.search()}
    dead = bed.kill('e1')
    with bed.statements() as sent:
        won = bed.locks.take_over(dead, 'taker', 1000, tainted=False)
    assert len(won) == len(rows)
    assert len([each for each in sent if each.startswith('UPDATE')]) == 2
    assert {row.name: row.generation - 1 for row in won} == before
    assert {row.name: row.generation - 1 for row in bed.locks.search()} == before


def test_who_owns_work_is_known(bed: Bed) -> None:
    for name in ('e1', 'e2', 'e3'):
        bed.engine(name)
    bed.locks.acquire('x', 'task', None, 'e1')
    bed.locks.acquire('y', 'task', None, 'e3')
    assert bed.locks.owners(['e1', 'e2', 'nobody']) == {'e1'}
    assert bed.locks.owners([]) == set()
    assert [row.name for row in bed.locks.search(status='in_progress', engine_id='e3')] == ['y']


def test_an_operator_settles_what_nobody_owns(bed: Bed) -> None:
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 1)
    held = found(bed, 'e1-0000')
    assert not bed.locks.settle(held, 'failed', 'no'), 'somebody owns it'
    bed.locks.quarantine(bed.kill('e1'), 'taker', 0)
    row = found(bed, 'e1-0000')
    assert bed.locks.settle(row, 'failed', 'It is broken.')
    assert not bed.locks.settle(row, 'released', None), 'it is not as it was read'
    row = found(bed, 'e1-0000')
    assert (row.status, row.reason, row.generation) == ('failed', 'It is broken.', 3)
    (entry,) = bed.journal.search(kind='operator')
    assert (entry.subject, entry.generation, entry.taken_by) == ('lock:e1-0000', 3, 'operator')
    assert (entry.engine_id, entry.pieces, entry.status) == (None, 1, 'done')
    assert entry.detail == {'from': 'quarantined', 'to': 'failed', 'reason': 'It is broken.'}


def test_a_retry_leaves_quarantined_work_to_the_engines(bed: Bed) -> None:
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 1)
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.lock).values(takeovers=3))
    bed.locks.quarantine(bed.kill('e1'), 'taker', 3)
    row = found(bed, 'e1-0000')
    assert bed.locks.retry(row, bed.identity('operator'))
    assert not bed.locks.retry(row, bed.identity('operator-2')), 'it is not as it was read'
    assert bed.members.read('operator-2') is None
    left = bed.row('operator')
    assert (left.state, left.declared_by, left.evidence) == ('left', 'operator', 'operator')
    assert (left.report_interval, left.fence_time, left.report_count) == (0, 0, 0)
    assert left.declared_at is not None
    (entry,) = bed.journal.search(kind='operator')
    assert (entry.generation, entry.engine_id) == (3, 'operator')
    assert entry.detail == {'from': 'quarantined', 'to': 'in_progress', 'reason': None}
    (won,) = bed.locks.take_over(left, 'taker', 1, tainted=False)
    assert (won.generation, won.takeovers) == (4, 0)
    assert (found(bed, won.name).status, found(bed, won.name).reason) == ('in_progress', None)


def test_an_operator_settles_what_is_as_he_has_read_it_and_nothing_else(bed: Bed) -> None:
    bed.engine('e1')
    held = bed.locks.acquire('x', 'task', None, 'e1')
    beside = bed.locks.acquire('y', 'task', None, 'e1')
    for row in (held, beside):
        assert bed.locks.write(row, status='failed', engine_id=None)
    assert not bed.locks.settle(held, 'released', None), 'it is in progress no more'
    read, beside = found(bed, 'x'), found(bed, 'y')
    again = bed.locks.acquire('x', 'task', None, 'e1')
    assert bed.locks.write(again, status='failed', engine_id=None)
    assert not bed.locks.settle(read, 'released', None), 'it has been held since'
    assert bed.locks.settle(found(bed, 'x'), 'released', None)
    assert found(bed, 'y') == beside


def test_an_operator_settles_what_an_ended_engine_has_left_and_what_no_other_holds(
        bed: Bed) -> None:
    """I5."""
    for name in ('e1', 'e2'):
        bed.engine(name)
    held = bed.locks.acquire('x', 'task', None, 'e1')
    assert not bed.locks.settle(held, 'failed', 'no'), 'its owner lives'
    dead = bed.kill('e1')
    (moved,) = bed.locks.take_over(dead, 'e2', 1, tainted=False)
    read = dataclasses.replace(found(bed, 'x'), engine_id='e1')
    assert not bed.locks.settle(read, 'failed', 'no'), 'another owns it'
    bed.kill('e2')
    read = dataclasses.replace(found(bed, 'x'), status='released')
    assert not bed.locks.settle(read, 'failed', 'no'), 'it is in progress'
    assert bed.locks.settle(found(bed, 'x'), 'failed', 'It is broken.', bed.row('e2'))
    row = found(bed, 'x')
    assert (row.status, row.reason, row.engine_id, row.generation) == (
        'failed', 'It is broken.', None, moved.generation + 1)
    assert row.history == [
        {'engine_id': 'e1', 'state': 'dead', 'taken_by': 'e2'},
        {'engine_id': 'e2', 'state': 'dead', 'taken_by': 'operator'}]
    (entry,) = bed.journal.search(kind='operator')
    assert (entry.generation, entry.engine_id) == (row.generation, 'e2')
    assert bed.locks.settle(row, 'released', None)
    assert found(bed, 'x').history == row.history


@pytest.mark.parametrize('change', [
    'acquire', 'write', 'take_over', 'reclaim', 'quarantine', 'settle', 'retry'])
def test_each_change_of_a_lock_is_dated(bed: Bed, change: str) -> None:
    bed.engine('e1')
    bed.engine('taker')
    row = bed.locks.acquire('x', 'task', None, 'e1')
    if change in {'acquire', 'settle', 'retry'}:
        assert bed.locks.write(row, status='failed', engine_id=None)
    dead = bed.kill('e1') if change in {'take_over', 'quarantine'} else bed.row('e1')
    row = found(bed, 'x')
    bed.shift(models.lock, 'updated_at', 1000, name='x')
    assert {'acquire': lambda: bed.locks.acquire('x', 'task', None, 'e1'),
            'write': lambda: bed.locks.write(row, progress=1),
            'take_over': lambda: bed.locks.take_over(dead, 'taker', 1, tainted=False),
            'reclaim': lambda: bed.locks.reclaim([row], 'e1'),
            'quarantine': lambda: bed.locks.quarantine(dead, 'taker', 0),
            'settle': lambda: bed.locks.settle(row, 'released', None),
            'retry': lambda: bed.locks.retry(row, bed.identity('operator'))}[change]()
    changed = found(bed, 'x')
    assert changed.created_at == row.created_at
    assert changed.updated_at >= row.updated_at


def test_a_line_of_the_history_that_says_less_is_shown_too(bed: Bed) -> None:
    bed.engine('e1')
    bed.locks.acquire('x', 'task', None, 'e1')
    with bed.database.transaction() as connection:
        connection.execute(sa.update(models.lock).values(history='{}\n{"state": "left"}\n'))
    nothing = {'engine_id': None, 'state': None, 'taken_by': None}
    assert found(bed, 'x').history == [nothing, {**nothing, 'state': 'left'}]


def test_a_write_under_one_lock_leaves_the_others_of_its_owner(bed: Bed) -> None:
    bed.engine('e1')
    first, second = (bed.locks.acquire(name, 'task', None, 'e1') for name in 'xy')
    assert bed.locks.write(first, progress=1)
    assert found(bed, 'y') == second


def test_arguments_and_progress_have_a_longest_length(bed: Bed) -> None:
    bed.engine('e1')
    longest = 'x' * (lock_statements.MOST_CHARACTERS - 2)
    row = bed.locks.acquire('x', 'task', longest, 'e1')
    assert bed.locks.write(row, progress=longest)
    assert found(bed, 'x').progress == longest
    with pytest.raises(errors.DataRefused, match='of 1000001 characters in JSON are more than'):
        bed.locks.write(row, progress=longest + 'x')
    with pytest.raises(errors.DataRefused):
        bed.locks.acquire('y', 'task', longest + 'x', 'e1')


def test_locks_are_shown_oldest_first_and_no_more_than_asked_for(bed: Bed) -> None:
    for name in ('e1', 'e2'):
        bed.engine(name)
        hold(bed, name, 2)
    assert [row.name for row in bed.locks.search()] == [
        'e1-0000', 'e1-0001', 'e2-0000', 'e2-0001']
    assert [row.name for row in bed.locks.search(limit=3)] == ['e1-0000', 'e1-0001', 'e2-0000']
    assert [row.name for row in bed.locks.search(engine_id='e2', limit=1)] == ['e2-0000']
    assert bed.locks.search(status='failed') == []


def test_no_batch_is_larger_than_a_transaction_may_be(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_statements, 'MOST_ROWS', 2)
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 5)
    dead = bed.kill('e1')
    assert [row.name for row in bed.locks.take_over(dead, 'taker', 9, tainted=False)] == [
        'e1-0000', 'e1-0001']
    assert [row.name for row in bed.locks.quarantine(dead, 'taker', 0)] == ['e1-0002', 'e1-0003']
    assert [row.name for row in bed.locks.take_over(dead, 'taker', 9, tainted=False)] == ['e1-0004']


# At once.

def test_of_many_that_acquire_a_new_or_a_free_lock_one_wins(bed: Bed) -> None:
    """I1, I2."""
    for number in range(8):
        bed.engine(f'e{number}')
    for generation in range(1, 9):
        results = at_once(*(
            lambda name=f'e{number}': bed.locks.acquire(  # type: ignore[misc]
                'x', 'task', None, name) for number in range(8)))
        (won,) = [each for each in results if isinstance(each, LockRow)]
        assert all(isinstance(each, LockRow | errors.LockHeld) for each in results), results
        assert (won.generation, won) == (generation, found(bed, 'x'))
        assert bed.locks.write(won, status='released', engine_id=None)


def test_each_lock_of_a_dead_engine_gets_one_new_owner(bed: Bed) -> None:
    """I1, I2, I12: eight takers at once, none of them coordinated."""
    for number in range(8):
        bed.engine(f'taker-{number}')
    bed.engine('e1')
    names = {row.name for row in hold(bed, 'e1', 400)}
    dead = bed.kill('e1')

    def take(taker: str) -> list[HeldLock]:
        won: list[HeldLock] = []
        while True:
            try:
                rows = bed.locks.take_over(dead, taker, 16, tainted=False)
            except errors.UnclearOutcome:
                raise
            except errors.DatabaseError:
                continue  # a deadlock that the database broke: certain, so again
            won += rows
            if not rows and not bed.locks.owners(['e1']):
                return won

    results = at_once(*(lambda name=f'taker-{number}': take(name)  # type: ignore[misc]
                        for number in range(8)))
    won: list[HeldLock] = []
    for each in results:
        assert isinstance(each, list), each
        won += each
    assert sorted(row.name for row in won) == sorted(names)
    stored = {row.name: row for row in bed.locks.search()}
    assert all(stored[row.name].engine_id == row.engine_id for row in won)
    assert {row.generation for row in stored.values()} == {2}
    pieces = sum(entry.pieces for entry in bed.journal.search(kind='takeover'))
    assert pieces == len(names)


Race = Callable[[Bed, LockRow], Any]


def complete(bed: Bed, row: LockRow) -> Any:
    return bed.locks.write(row, status='complete', engine_id=None)


def release(bed: Bed, row: LockRow) -> Any:
    return bed.locks.write(row, status='released', engine_id=None)


def reclaim(bed: Bed, row: LockRow) -> Any:
    return bool(bed.locks.reclaim([row], str(row.engine_id)))


@pytest.mark.parametrize('race', [complete, release, reclaim])
def test_the_owner_and_its_judge_at_once(bed: Bed, race: Race) -> None:
    """I1, I3: declare and take over in one thread, an owner that still acts in the other."""
    bed.engine('judge')
    for number in range(12):
        owner = bed.engine(f'e{number}')
        row = bed.locks.acquire(f'x{number}', 'task', None, owner)

        def judge(owner: str = owner) -> list[LockRow]:
            while not bed.members.declare(bed.row(owner), 'judge', 'operator',
                                          mass=False, detail={}):
                continue
            return bed.locks.take_over(bed.row(owner), 'judge', 9, tainted=False)

        acted, won = at_once(lambda row=row: race(bed, row), judge)  # type: ignore[misc]
        stored = found(bed, row.name)
        if isinstance(won, errors.DatabaseError):
            # A deadlock that the database broke is certain: it is tried again, as a scan does.
            assert not isinstance(won, errors.UnclearOutcome), won
            won = judge()
        stored = found(bed, row.name)
        assert isinstance(won, list), won
        if won:
            assert (stored.engine_id, stored.status) == ('judge', 'in_progress')
            assert stored.generation == 2 + (race is reclaim and acted is True)
            assert won[0].generation == stored.generation
            assert race is reclaim or acted is not True
        else:
            assert race is not reclaim
            assert acted is True
            assert (stored.engine_id, stored.generation) == (None, 1)
        # Whatever it held, the old owner writes no more.
        assert not bed.locks.write(row, progress='late')


@pytest.mark.parametrize('what', ['take_over', 'quarantine'])
def test_locked_rows_are_passed_by_where_the_database_can(bed: Bed, what: str) -> None:
    """I17: a taker waits for nobody's transaction."""
    if bed.database.backend == 'sqlite':
        pytest.skip('It has one writer at a time.')
    skip_on_galera(bed.database)
    bed.engine('e1')
    bed.engine('taker')
    hold(bed, 'e1', 4)
    dead = bed.kill('e1')
    with bed.database.transaction() as connection:
        connection.execute(sa.select(models.lock.c.id).where(
            models.lock.c.name.in_(['e1-0000', 'e1-0001'])).with_for_update()).all()
        if what == 'take_over':
            rows = bed.locks.take_over(dead, 'taker', 9, tainted=False)
        else:
            rows = bed.locks.quarantine(dead, 'taker', 0)
        assert [row.name for row in rows] == ['e1-0002', 'e1-0003']


def test_a_batch_of_which_one_row_does_not_fit_is_rolled_back_whole(
        bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: the WHERE decides, and not the read before it."""
    bed.engine('e1')
    bed.engine('taker')
    before = hold(bed, 'e1', 3)
    dead = bed.kill('e1')
    read = lock_statements._as_read

    def spoiled(rows: Any) -> Any:
        return read([*rows[:-1], _Other(rows[-1].id, rows[-1].generation + 1)])  # type: ignore[list-item]

    monkeypatch.setattr(lock_statements, '_as_read', spoiled)
    assert bed.locks.take_over(dead, 'taker', 9, tainted=False) == []
    assert bed.locks.quarantine(dead, 'taker', 0) == []
    assert bed.locks.search() == before
    assert bed.journal.search(kind='takeover') == []


@dataclasses.dataclass
class _Other:
    id: int
    generation: int
