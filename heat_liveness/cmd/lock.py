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

"""``lock``: the work in the native store, and what an operator may do with it.

A command changes only a lock that nobody owns.  Work in progress belongs to its engine, and
when that dies, to whoever takes it over; so it is refused here.  But what an engine has left
that has ended may be given up: it may be a task for which no engine has a handler any more.
"""

import dataclasses
import datetime
import json
import socket
from collections.abc import Collection, Sequence
from typing import Any

from heat_liveness import engine as engines
from heat_liveness import errors
from heat_liveness.cmd import output, takeover
from heat_liveness.conf import Settings
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Entry, Journal
from heat_liveness.db.locks import LockRow, Locks
from heat_liveness.db.members import Members

_COLUMNS = ('name', 'task', 'status', 'engine_id', 'generation', 'takeovers', 'updated_at',
            'reason')


def shown(database: Database, settings: Settings, options: Any) -> str:
    """List locks, the oldest first."""
    rows = Locks(database).search(options.status, options.engine, options.limit)
    output.warn_of_limit(options.limit, rows, 'the oldest')
    return output.several(options.form or 'table', _COLUMNS,
                          [row.record() for row in rows])


def show(database: Database, settings: Settings, options: Any) -> str:
    """Show one lock with its history."""
    row = _find(database, options.lock)
    journal = Journal(database).search(subject=f'lock:{row.name}')
    if options.form:
        return output.one(options.form, row.record() | {
            'journal': [dataclasses.asdict(entry) for entry in journal]})
    operators = {entry.engine_id for entry in journal
                 if entry.kind == 'operator' and entry.detail.get('to') == 'in_progress'} - {None}
    return '\n'.join([*_told(row, operators), *_history(row, operators), *_journal(journal)])


def release(database: Database, settings: Settings, options: Any) -> str:
    """Give a lock back: its work is not done, and it may be acquired again."""
    row = _unowned(database, options.lock, ('quarantined', 'failed'))
    _must(Locks(database).settle(row, 'released', None), row)
    return f'The lock {row.name} is released: it may be acquired again.'


def fail(database: Database, settings: Settings, options: Any) -> str:
    """Give work up that is in quarantine, or that an engine has left that has ended."""
    row = _find(database, options.lock)
    owner = None if row.engine_id is None else Members(database).read(row.engine_id)
    if owner is None or not owner.ended:
        row, owner = _unowned(database, options.lock, ('quarantined',)), None
    _must(Locks(database).settle(row, 'failed', options.reason, owner), row)
    return f'The lock {row.name} is failed: {options.reason}'


def retry(database: Database, settings: Settings, options: Any) -> str:
    """Let the work be run again by a living engine."""
    row = _unowned(database, options.lock, ('quarantined', 'failed'))
    members = Members(database)
    last = members.read(str(row.history[-1]['engine_id'])) if row.history else None
    operator = engines.Identity.new(
        host=settings.host, hostname=socket.gethostname(),
        binary=last.binary if last else settings.binary,
        topic=last.topic if last else settings.topic)
    _must(Locks(database).retry(row, operator), row)
    kind = f'{operator.binary} (topic {operator.topic})'
    if any(each.live and (each.binary, each.topic) == (operator.binary, operator.topic)
           for each in members.all()):
        return f'The work of the lock {row.name} is run again by the next {kind} that has room.'
    return (f'The work of the lock {row.name} is run again by the next {kind} that starts: none '
            f'lives at present.')


def _find(database: Database, name: str) -> LockRow:
    row = Locks(database).find(name)
    if row is None:
        raise errors.NotFound(f'There is no lock {name}; see "lock list".')
    return row


def _unowned(database: Database, name: str, statuses: Sequence[str]) -> LockRow:
    row = _find(database, name)
    if row.engine_id is not None:
        raise errors.Refused(_owned(database, row, row.engine_id))
    if row.status not in statuses:
        raise errors.Refused(
            f'The lock {name} is {row.status}: this can be done only with one that is '
            f'{" or ".join(statuses)}.')
    return row


def _owned(database: Database, row: LockRow, engine_id: str) -> str:
    owner = Members(database).read(engine_id)
    begin = f'The lock {row.name} is in progress under engine {engine_id}'
    if owner is None:
        return (f'{begin}, which has no service row, so nobody can tell whether it works: look '
                f'for that id in the logs of the engines.')
    if owner.ended:
        return (f'{begin}, which is {owner.state}: the next engine that has room, and a handler '
                f'for the task {row.task}, takes the work over by itself.')
    if not owner.live:
        return (f'{begin}, whose state {owner.state!r} nobody knows: if its process has ended, '
                f'set its row in the service table to "dead".')
    return (f'{begin} on {owner.host} (pid {owner.process.pid}), which lives; its last beat is '
            f'{owner.age:.1f} s old. Wait until the work is done, or end that engine: then '
            f'another one takes the work over by itself.')


def _must(done: bool, row: LockRow) -> None:
    if not done:
        raise errors.Refused(
            f'The lock {row.name} was changed by somebody else at the same time, and nothing '
            f'was done: see "lock show {row.name}".')


def _told(row: LockRow, operators: Collection[str | None]) -> list[str]:
    holder = ''
    if row.engine_id in operators:
        holder = ', left by an operator for the next engine that has room'
    elif row.engine_id is not None:
        holder = f' under engine {row.engine_id}'
    return [
        f'Lock {row.name}: {row.status}{holder}.' + (f' {row.reason}' if row.reason else ''),
        f'Task {row.task}, arguments {_json(row.arguments)}, progress {_json(row.progress)}.',
        f'Generation {row.generation}; taken over from owners that died: {row.takeovers}.',
        f'Made {_time(row.created_at)}, last changed {_time(row.updated_at)} (UTC).',
    ]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _time(value: datetime.datetime) -> str:
    return output.text(value, plain=True)


def _history(row: LockRow, operators: Collection[str | None]) -> list[str]:
    """Tell who had the work since the lock was acquired.

    :param operators: the engine_ids under which operators left it to the engines
    """
    lines = ['History, since it was acquired:' if row.history
             else 'No owner has ended since it was acquired.']
    for number, entry in enumerate(row.history, 1):
        what = ('An operator had it tried again' if str(entry['engine_id']) in operators
                else f'Engine {entry["engine_id"]} {_ENDED.get(str(entry["state"]), "ended")}')
        taker = entry['taken_by']
        then = ('an operator gave the work up' if taker == 'operator'
                else f'engine {taker} took the work over' if taker else 'the work was quarantined')
        lines.append(f'  {number}. {what}; {then}.')
    return lines


_ENDED = {'dead': 'died', 'left': 'left'}


def _journal(journal: Sequence[Entry]) -> list[str]:
    if not journal:
        return []
    return ['Journal:', *(f'  {takeover.line(entry)}' for entry in journal)]
