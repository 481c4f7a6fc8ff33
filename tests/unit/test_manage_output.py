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

"""What the commands write can be read again, by eyes and by programs."""

import argparse
import csv
import datetime
import io
import json

import pytest

from heat_liveness import conf
from heat_liveness.cmd import output, takeover
from heat_liveness.db.journal import Entry

TIME = datetime.datetime(2026, 3, 1, 4, 5, 6, 789)  # noqa: DTZ001 - as the database gives it
COLUMNS = ('engine_id', 'updated_at', 'mass', 'reason')
RECORDS = [
    {'engine_id': 'a', 'updated_at': TIME, 'mass': False, 'reason': None, 'hidden': 1},
    {'engine_id': 'b', 'updated_at': TIME, 'mass': True, 'reason': 'so, "it" is', 'hidden': 1},
]


def test_json_has_the_names_of_the_database_and_times_in_utc() -> None:
    assert json.loads(output.several('json', COLUMNS, RECORDS))[0] == {
        'engine_id': 'a', 'updated_at': '2026-03-01T04:05:06.000789Z', 'mass': False,
        'reason': None}


def test_csv_can_be_read_again() -> None:
    rows = list(csv.DictReader(io.StringIO(output.several('csv', COLUMNS, RECORDS))))
    assert rows[1] == {'engine_id': 'b', 'updated_at': '2026-03-01T04:05:06.000789Z',
                       'mass': 'true', 'reason': 'so, "it" is'}


def test_value_has_one_line_a_row_and_a_dash_for_nothing() -> None:
    assert output.several('value', COLUMNS, RECORDS).splitlines()[0] == (
        'a 2026-03-01T04:05:06.000789Z false -')


def test_a_row_stays_one_line_of_value() -> None:
    assert output.several('value', ['reason'], [{'reason': 'two\nlines'}]) == 'two lines'


def test_times_are_written_in_one_width() -> None:
    assert output.text(TIME.replace(microsecond=0)) == '2026-03-01T04:05:06.000000Z'


def test_a_table_has_titles_as_heat_writes_them() -> None:
    lines = output.several('table', COLUMNS, RECORDS).splitlines()
    assert [cell.strip() for cell in lines[1].strip('|').split('|')] == [
        'Engine_Id', 'Updated At', 'Mass', 'Reason']
    assert '2026-03-01 04:05:06 ' in lines[3]


@pytest.mark.parametrize('form', output.FORMATS)
def test_no_rows_are_written_too(form: str) -> None:
    written = output.several(form, COLUMNS, [])
    assert {'json': '[]', 'csv': ','.join(COLUMNS), 'value': ''}.get(form, written) == written


@pytest.mark.parametrize('form', output.FORMATS)
def test_one_row_is_written_with_all_it_has(form: str) -> None:
    written = output.one(form, {'name': 'x', 'arguments': {'at': [1]}, 'updated_at': TIME})
    assert 'x' in written
    assert '2026' in written
    assert '"at"' in written.replace('""', '"')


def entry(kind: str, subject: str = 'lock:a', **values: object) -> Entry:
    whole: dict[str, object] = {
        'id': 1, 'kind': kind, 'subject': subject, 'generation': 1, 'engine_id': 'dead-one',
        'taken_by': 'other', 'pieces': 1, 'status': 'done', 'detail': {}, 'created_at': TIME,
        'updated_at': TIME, **values}
    return Entry(**whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(('written', 'told'), [
    (entry('death', detail={'evidence': 'kernel', 'host': 'h', 'pid': 7, 'mass': False}),
     ('Engine dead-one on h was declared dead by engine other: its kernel has no such process any '
      'more (pid 7).')),
    (entry('death', taken_by='operator', detail={
        'evidence': 'watched', 'host': 'h', 'watched_seconds': 24.5, 'mass': True}),
     ('Engine dead-one on h was declared dead by an operator: it was watched for 24.5 s without a '
      'beat. So many were lost at once that its work is not blamed.')),
    (entry('takeover', pieces=1, detail={'locks': [['a', 2, 0]]}),
     'Engine other took over from engine dead-one the lock a.'),
    (entry('takeover', pieces=7, detail={'locks': [[n, 2, 0] for n in 'abcdefg']}),
     'Engine other took over from engine dead-one 7 locks: a, b, c, d, e and 2 more.'),
    (entry('quarantine'),
     ('The lock a was quarantined by engine other: its owners died too often, the last of them '
      'engine dead-one.')),
    (entry('operator', engine_id=None, detail={
        'from': 'quarantined', 'to': 'failed', 'reason': 'no use'}),
     'An operator changed the lock a from quarantined to failed: no use.'),
    (entry('operator', detail={'from': 'failed', 'to': 'in_progress', 'reason': None}),
     'An operator had the lock a (failed) tried again.'),
    (entry('resource', 'resource:id:5', status='claimed', detail={
        'plan': 'replace', 'reason': 'it may exist half-made', 'resource': 'r', 'stack_name': 's',
        'stack_id': 'id', 'state': 'CREATE_IN_PROGRESS', 'physical_id': 'vm-1'}),
     ('The resource r of stack s (id), CREATE_IN_PROGRESS, was taken over from engine dead-one: '
      'replace, as it may exist half-made; to be carried out by engine other. What was made of '
      'it, vm-1, may be left behind.')),
    (entry('resource', 'resource:id:5', detail={
        'plan': 'leave alone', 'reason': 'it is an UPDATE', 'resource': 'r', 'stack_name': 's',
        'stack_id': 'id'}),
     ('The resource r of stack s (id), locked by engine dead-one, was left alone: it is an '
      'UPDATE.')),
    (entry('message', 'message:id:5:update', status='sent', detail={
        'plan': 'send again', 'reason': 'nothing has moved for 40 s', 'resource': 'r',
        'stack_name': 's', 'stack_id': 'id'}),
     ('The message of r of stack s (id) seemed lost, as nothing has moved for 40 s: it is sent '
      'again; sent by engine other.')),
    (entry('stack', 'stack:id:t', detail={
        'plan': 'restart', 'reason': 'its traversal was never written out', 'stack_name': 's',
        'stack_id': 'id', 'operation': 'CREATE 2026-03-01T04:00:00',
        'outcome': 'it was begun anew'}),
     ('Stack s (id), CREATE 2026-03-01T04:00:00: restart, as its traversal was never written out; '
      'it was begun anew (engine other).')),
    (entry('something', 'new:1', detail={'x': 1}), 'something of new:1: {"x": 1}'),
])
def test_each_kind_of_entry_is_told(written: Entry, told: str) -> None:
    assert takeover.sentence(written) == told
    assert takeover.line(written) == f'2026-03-01 04:05:06  {told}'


def test_a_limit_that_cuts_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    output.warn_of_limit(2, [1, 2], 'the newest')
    output.warn_of_limit(3, [1, 2], 'the newest')
    assert capsys.readouterr().err == 'Only the newest 2 are shown; see --limit.\n'


def test_the_steps_of_an_order_are_told_with_their_times(
        monkeypatch: pytest.MonkeyPatch) -> None:
    written = entry('message', 'message:id:5:update', detail={
        'plan': 'send again', 'reason': 'quiet', 'resource': 'r', 'stack_name': 's',
        'stack_id': 'id', 'outcome': 'it was checked', 'seen': [[5, 1]], 'story': [
            {'at': '2026-03-01 04:05:07', 'what': 'sent', 'engine': 'e1'},
            {'at': '2026-03-01 04:05:08', 'what': 'used', 'engine': 'e2'},
            {'at': '2026-03-01 04:06:00', 'what': 'died', 'engine': 'e2'},
            {'at': '2026-03-01 04:06:09', 'what': 'it was checked', 'engine': 'e3'}]})
    monkeypatch.setattr(takeover.Journal, 'find', lambda self, entry_id: written)
    options = argparse.Namespace(id=1, form=None)
    told = takeover.show(None, conf.Settings(), options).splitlines()  # type: ignore[arg-type]
    assert told[1:6] == [
        '  2026-03-01 04:05:06  decided',
        '  2026-03-01 04:05:07  engine e1 sent its message',
        '  2026-03-01 04:05:08  engine e2 began to check it',
        '  2026-03-01 04:06:00  engine e2 died working on it',
        '  2026-03-01 04:06:09  engine e3 closed it: it was checked']
    assert not [line for line in told if 'seen' in line or 'story' in line]
