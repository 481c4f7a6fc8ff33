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

"""Looks: what watching a fleet that is well costs, beside reading all of its rows.

The plain way is Heat's: each row of the service table becomes an object, and Python compares
the times.
"""

import datetime
import time

import sqlalchemy as sa
from sqlalchemy import orm

from benchmarks import beds, figures
from heat_liveness import conf
from heat_liveness import engine as engines
from heat_liveness.db import models, times
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members

HEATS, ALL, OURS = 'ORM, every row', 'Members.all', 'Members.look'
ENGINES_PER_MACHINE = 16
KIND = 'bench'
"""The binary and the topic of the fleet."""
# The fleet does not beat while it is looked at, and is well all the same.
CANDIDATE_AGE_SECONDS = 3600.0

_t = models.service


class _Service:
    """Heat's way: a row is an object."""

    engine_id: str
    updated_at: datetime.datetime


orm.registry().map_imperatively(_Service, _t)


def measure(bed: beds.Bed, engines_up: int, turns: int) -> list[figures.Figure]:
    """Look at a fleet of so many engines, in turns."""
    with beds.connected(bed.url) as database:
        observer = populate(database, engines_up, conf.Settings())
        bed.rest()
        members = Members(database)

        def look() -> int:
            return len(members.look(observer, CANDIDATE_AGE_SECONDS, 60))

        ways = {HEATS: lambda: _compare_all(database), ALL: lambda: len(members.all()),
                OURS: look}
        found = {way: ask() for way, ask in ways.items()}
        assert found[HEATS] == 0, 'The fleet should be well.'
        assert found[ALL] == engines_up
        assert found[OURS] == min(ENGINES_PER_MACHINE, engines_up)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, ask in ways.items():
                started = time.perf_counter()
                ask()
                rates[way].append(1 / (time.perf_counter() - started))
    notes = {ALL: {'rows': found[ALL]}, OURS: {'rows': found[OURS]}, HEATS: {'rows': engines_up}}
    return figures.compare(f'look at {engines_up} engines', bed.name, rates, notes)


def engine_id(number: int) -> str:
    """Return the name of one engine of the fleet."""
    return f'bench-{number:030}'


def populate(database: Database, engines_up: int, settings: conf.Settings) -> engines.Identity:
    """Replace the fleet; return one engine of it."""
    row = {'binary': KIND, 'topic': KIND, 'report_interval': settings.report_interval,
           'fence_time': settings.asked_fence_time, 'protocol': engines.PROTOCOL_VERSION,
           'state': 'up', 'report_count': 1000, 'pid': 1, 'start_time': 1, 'pid_namespace': 1,
           'time_namespace': 1, 'mass': False}
    rows = [{**row, 'engine_id': engine_id(number), 'host': f'host-{machine}',
             'hostname': f'host-{machine}', 'boot_id': f'boot-{machine:031}'}
            for number in range(engines_up) for machine in [number // ENGINES_PER_MACHINE]]
    with database.transaction() as connection:
        connection.execute(_t.delete())
        now = connection.scalar(sa.select(times.now()))
        for each in rows:
            each.update(created_at=now, updated_at=now)
        connection.execute(_t.insert(), rows)
    process = engines.Process(1, 1, 1, 1, str(rows[0]['boot_id']))
    return engines.Identity(str(rows[0]['engine_id']), 'host-0', 'host-0', KIND, KIND,
                            process)


def _compare_all(database: Database) -> int:
    with orm.Session(database.engine) as session:
        late = session.scalar(sa.select(times.ago(sa.literal(CANDIDATE_AGE_SECONDS, sa.Float()))))
        assert late is not None
        return sum(service.updated_at < late for service in session.query(_Service))
