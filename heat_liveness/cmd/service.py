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

"""``service``: who works, who does not, and the rows of those that nobody needs any more.

*up* is an engine that lives and beats.  *down* is one that has ended, or whose last beat is
so old, by the database's clock, that the others may call it dead: older than
``service_down_time``, or than its own ``fence_time`` asks for where that is longer.
"""

import dataclasses
import math
from collections.abc import Collection
from importlib import metadata
from typing import Any

from heat_liveness import clock as clocks
from heat_liveness import conf, errors
from heat_liveness.cmd import output
from heat_liveness.conf import Settings
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members, ServiceRow

_LAYOUT = '%-16s %-16s %-36s %-10s %-10s %-10s %-10s'
"""That of ``heat-manage service list``: scripts that read one can read the other."""
_COLUMNS = ('hostname', 'binary', 'engine_id', 'host', 'topic', 'status', 'updated_at')
_LONG = (*_COLUMNS, 'state', 'beat_age_seconds', 'report_count', 'report_interval', 'fence_time',
         'pid', 'created_at', 'declared_by', 'declared_at', 'evidence', 'mass')

_OWNERS = 'heat_liveness.owners'


def shown(database: Database, settings: Settings, options: Any) -> str:
    """List the engines."""
    rows = [row for row in Members(database).all() if row.live or options.all]
    records = [_record(row, settings) for row in rows]
    if options.long or options.form:
        return output.several(options.form or 'table', _LONG if options.long else _COLUMNS,
                              records)
    lines = [[output.title(name) for name in _COLUMNS]]
    lines += [[output.text(record[name], plain=True) for name in _COLUMNS] for record in records]
    return '\n'.join(_LAYOUT % tuple(line) for line in lines)


def show(database: Database, settings: Settings, options: Any) -> str:
    """Show all that is known of one engine."""
    row = Members(database).read(options.engine_id)
    if row is None:
        raise errors.NotFound(
            f'There is no engine {options.engine_id}; see "service list --all".')
    record = _record(row, settings)
    first = {name: record.pop(name) for name in _LONG}
    return output.one(options.form or 'table', first | record)


def clean(database: Database, settings: Settings, options: Any) -> str:
    """Remove the rows of ended engines that own nothing."""
    members = Members(database)
    ended = [row for row in members.all() if row.ended]
    ripe = [row for row in ended if _ended_seconds(row) >= _landing_seconds(settings)]
    owners = _owners(database, [row.engine_id for row in ripe])
    idle = [row.engine_id for row in ripe if row.engine_id not in owners]
    gone = set(idle if options.dry_run else members.purge(idle, None))
    verb = 'Would remove' if options.dry_run else 'Removed'
    lines = [f'{verb} {_told(row)}.' if row.engine_id in gone
             else f'Kept {_told(row)}: {_why(row, settings)}.' for row in ended]
    return '\n'.join(lines) or 'There is no row of an ended engine.'


def _record(row: ServiceRow, settings: Settings) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    record.update(record.pop('process'))
    record['status'] = status(row, settings)
    age = record.pop('age')
    record['beat_age_seconds'] = round(age, 3) if math.isfinite(age) else None
    if row.ended_seconds is not None:
        record['ended_seconds'] = round(row.ended_seconds, 3)
    return record


def status(row: ServiceRow, settings: Settings) -> str:
    """Return ``up`` or ``down``; see the top of this module."""
    silence = max(settings.service_down_time,
                  settings.candidate_age + conf.window_for(row.fence_time))
    return 'up' if row.live and row.age <= silence else 'down'


def _told(row: ServiceRow) -> str:
    return f'engine {row.engine_id} on {row.host} ({row.binary}, {row.state})'


def _ended_seconds(row: ServiceRow) -> float:
    """Return how long ago an engine ended: the least that the database's clock or ours allows.

    A clock that was set forward has let no statement land.  An end that was written by hand, and
    no time with it, may be a moment old, whenever the last beat was.
    """
    if row.ended_seconds is None or row.declared_at is None:
        return 0.0
    return min(row.ended_seconds, (clocks.wall() - row.declared_at).total_seconds())


def _landing_seconds(settings: Settings) -> float:
    """Return how long a statement may still land that an engine had sent before its end."""
    return conf.LOCK_WAIT_SECONDS + 10 * settings.service_down_time


def _why(row: ServiceRow, settings: Settings) -> str:
    if row.ended_seconds is None:
        return ('nobody has written down when it ended; engines remove it after purge_after, by '
                'its last beat, if it has one')
    ago, landing = _ended_seconds(row), _landing_seconds(settings)
    if ago < landing:
        return (f'it ended {max(0.0, ago):.0f} s ago, and for {landing:g} s a statement that it '
                f'had sent may still gain it work')
    return 'it owns work that is not taken over yet'


def _owners(database: Database, engine_ids: Collection[str]) -> set[str]:
    """Return those of the engines that own work still, in any of the stores installed."""
    stores = metadata.entry_points(group=_OWNERS)
    if not stores:
        raise errors.ConfigError(
            f'No entry point of {_OWNERS} is installed, so nobody can tell who owns work: '
            f'install heat-liveness again.')
    return set[str]().union(*(store.load()(database).owners(engine_ids) for store in stores))
