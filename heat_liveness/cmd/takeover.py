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

"""``takeover``: the journal, told."""

import dataclasses
import json
from typing import Any

from heat_liveness import errors
from heat_liveness.cmd import output
from heat_liveness.conf import Settings
from heat_liveness.db import stored
from heat_liveness.db.database import Database
from heat_liveness.db.journal import Entry, Journal

_COLUMNS = ('id', 'created_at', 'kind', 'subject', 'engine_id', 'taken_by', 'pieces', 'status')
_MOST_NAMES = 5


def shown(database: Database, settings: Settings, options: Any) -> str:
    """Tell the newest entries, the oldest of them first."""
    entries = Journal(database).search(options.engine, options.kind, limit=options.limit)
    output.warn_of_limit(options.limit, entries, 'the newest')
    if options.form:
        columns = (*_COLUMNS, 'detail') if options.form == 'json' else _COLUMNS
        return output.several(options.form, columns,
                              [dataclasses.asdict(entry) for entry in entries])
    width = max((len(str(entry.id)) for entry in entries), default=0)
    return '\n'.join(f'{entry.id:>{width}}  {line(entry)}' for entry in entries)


def show(database: Database, settings: Settings, options: Any) -> str:
    """Show one entry with its details."""
    entry = Journal(database).find(options.id)
    if entry is None:
        raise errors.NotFound(f'There is no entry {options.id}; see "takeover list".')
    if options.form:
        return output.one(options.form, dataclasses.asdict(entry))
    detail = [f'  {name}: {output.text(value)}' for name, value in entry.detail.items()
              if name not in {'locks', 'story', 'seen'}]
    locks = [f'  lock {name}: generation {generation}; owners that had died with it before: {died}'
             for name, generation, died in stored.triples(entry.detail.get('locks'))]
    return '\n'.join([line(entry), *_story(entry), *detail, *locks])


def _story(entry: Entry) -> list[str]:
    """Tell the steps of an order, one line each, with their times."""
    story = stored.mappings(entry.detail.get('story'))
    if not story:
        return []
    told = {'sent': 'sent its message', 'used': 'began to check it', 'failed': 'failed at it',
            'died': 'died working on it', 'ended': 'ended before it was done'}
    lines = [f'  {output.text(entry.created_at, plain=True)}  decided']
    for step in story:
        what = str(step.get('what'))
        lines.append(f'  {step.get("at")}  engine {step.get("engine")} '
                     f'{told.get(what, f"closed it: {what}")}')
    return lines


def line(entry: Entry) -> str:
    """Tell an entry in one line that begins with its time."""
    return f'{output.text(entry.created_at, plain=True)}  {sentence(entry)}'


def sentence(entry: Entry) -> str:
    """Say what happened; what is not known by its kind is shown as it is."""
    tell = {'death': _death, 'takeover': _takeover, 'quarantine': _quarantine,
            'operator': _operator, 'resource': _resource, 'message': _message,
            'stack': _stack}.get(entry.kind)
    if tell is None:
        return f'{entry.kind} of {entry.subject}: {json.dumps(entry.detail)}'
    return tell(entry)


def _death(entry: Entry) -> str:
    detail = entry.detail
    evidence = str(detail.get('evidence'))
    how = {
        'kernel': f'its kernel has no such process any more (pid {detail.get("pid")})',
        'watched': f'it was watched for {detail.get("watched_seconds")} s without a beat',
        'operator': 'on command',
        'observed': f'its row in the service table of Heat was watched for '
                    f'{detail.get("watched_seconds")} s without a beat, and it answered no ping',
    }.get(evidence, evidence)
    blame = ('. So many were lost at once that its work is not blamed' if detail.get('mass')
             else '')
    return (f'Engine {entry.engine_id} on {detail.get("host")} was declared dead by '
            f'{_actor(entry)}: {how}{blame}.')


def _takeover(entry: Entry) -> str:
    names = [str(name) for name, *_ in stored.triples(entry.detail.get('locks'))]
    more = f' and {len(names) - _MOST_NAMES} more' if len(names) > _MOST_NAMES else ''
    locks = 'the lock' if entry.pieces == 1 else f'{entry.pieces} locks:'
    return (f'Engine {entry.taken_by} took over from engine {entry.engine_id} {locks} '
            f'{", ".join(names[:_MOST_NAMES])}{more}.')


def _quarantine(entry: Entry) -> str:
    return (f'The {_subject(entry)} was quarantined by engine {entry.taken_by}: its owners died '
            f'too often, the last of them engine {entry.engine_id}.')


def _operator(entry: Entry) -> str:
    detail = entry.detail
    reason = f': {detail["reason"]}' if detail.get('reason') else ''
    if detail.get('to') == 'in_progress':
        return f'An operator had the {_subject(entry)} ({detail.get("from")}) tried again.'
    return (f'An operator changed the {_subject(entry)} from {detail.get("from")} to '
            f'{detail.get("to")}{reason}.')


def _resource(entry: Entry) -> str:
    detail = entry.detail
    what = (f'resource {detail.get("resource")} of stack {detail.get("stack_name")} '
            f'({detail.get("stack_id")})')
    if detail.get('plan') == 'leave alone':
        return (f'The {what}, locked by engine {entry.engine_id}, was left alone: '
                f'{detail.get("reason")}.')
    left = (f' What was made of it, {detail.get("physical_id")}, may be left behind.'
            if detail.get('plan') == 'replace' and detail.get('physical_id') else '')
    return (f'The {what}, {detail.get("state")}, was taken over from engine {entry.engine_id}: '
            f'{detail.get("plan")}, as {detail.get("reason")}; {_outcome(entry)}.{left}')


def _message(entry: Entry) -> str:
    detail = entry.detail
    return (f'The message of {detail.get("resource")} of stack {detail.get("stack_name")} '
            f'({detail.get("stack_id")}) seemed lost, as {detail.get("reason")}: it is sent again; '
            f'{_outcome(entry)}.')


def _stack(entry: Entry) -> str:
    detail = entry.detail
    return (f'Stack {detail.get("stack_name")} ({detail.get("stack_id")}), '
            f'{detail.get("operation")}: {detail.get("plan")}, as {detail.get("reason")}; '
            f'{_outcome(entry)}.')


def _outcome(entry: Entry) -> str:
    """Say what became of an order, or who has it now."""
    waits = {'claimed': 'to be carried out by', 'sent': 'sent by', 'used': 'being checked by'}
    if entry.status in waits:
        return f'{waits[entry.status]} engine {entry.taken_by}'
    outcome = entry.detail.get('outcome')
    return f'{outcome} (engine {entry.taken_by})' if outcome else str(entry.status)


def _actor(entry: Entry) -> str:
    return 'an operator' if entry.taken_by == 'operator' else f'engine {entry.taken_by}'


def _subject(entry: Entry) -> str:
    return entry.subject.replace(':', ' ', 1)
