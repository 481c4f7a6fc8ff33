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

"""The demo's own tables: the resources of a run, and the cloud that they are made in.

The cloud stands for what lies outside the database of a real service, where no WHERE
protects.  It protects itself by the generation that each call carries: it refuses a lower
one than it has seen for the resource, and does each step of a resource once, however often
it is asked for.  It writes down every call, so that the demo can judge the run by what the
cloud has seen and not by what engines say.
"""

import dataclasses
import datetime
import enum
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness.db import models, times
from heat_liveness.db.database import Database

STEPS = 4
"""Calls to the cloud that make one resource."""

_metadata = sa.MetaData()
_MYSQL: dict[str, Any] = {
    'mysql_engine': 'InnoDB', 'mysql_charset': 'utf8mb4', 'mysql_collate': 'utf8mb4_bin'}

_resource = sa.Table(
    'liveness_demo_resource', _metadata,
    sa.Column('run', sa.String(36), primary_key=True),
    sa.Column('name', sa.String(255), primary_key=True),
    sa.Column('requires', sa.Text(), nullable=False),
    sa.Column('generation', sa.BigInteger(), nullable=False),
    sa.Column('done_at', times.Time),
    **_MYSQL)

_call = sa.Table(
    'liveness_demo_call', _metadata,
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), primary_key=True),
    sa.Column('run', sa.String(36), nullable=False),
    sa.Column('name', sa.String(255), nullable=False),
    sa.Column('step', sa.Integer(), nullable=False),
    sa.Column('generation', sa.BigInteger(), nullable=False),
    sa.Column('engine_id', sa.String(36), nullable=False),
    sa.Column('outcome', sa.String(16), nullable=False),
    sa.Column('called_at', times.Time, nullable=False),
    # No unique constraint: a step done twice must be seen, not prevented here.
    sa.Index('liveness_demo_call_run_name', 'run', 'name'),
    **_MYSQL)


class Outcome(enum.StrEnum):
    """What the cloud did with a call."""

    APPLIED = 'applied'
    REPEATED = 'repeated'
    """Nothing: it had done this step already."""
    REFUSED = 'refused'
    """Nothing: it had seen a higher generation."""


@dataclasses.dataclass(frozen=True)
class Resource:
    """One resource of a run, as the database has it."""

    name: str
    requires: frozenset[str]
    done: bool
    engine_id: str | None
    """The engine that holds its lock."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call that reached the cloud; a later one has a higher id."""

    id: int
    name: str
    step: int
    generation: int
    engine_id: str
    outcome: Outcome
    called_at: datetime.datetime


def lock_name(run: str, name: str) -> str:
    """Return the name of a resource's lock."""
    return f'{run}/{name}'


class Cloud:
    """One run's resources, and the cloud."""

    def __init__(self, database: Database, run: str) -> None:
        self._database = database
        self._run = run
        self._mine = _resource.c.run == run

    def create_tables(self) -> None:
        """Create the demo's tables where they are missing."""
        with self._database.transaction() as connection:
            _metadata.create_all(connection)

    def now(self) -> datetime.datetime:
        """Return the database's time."""
        with self._database.autocommit() as connection:
            return connection.execute(
                sa.select(sa.type_coerce(times.now(), times.Time))).scalar_one()

    def add(self, requires: Mapping[str, frozenset[str]]) -> None:
        """Write all resources of the run, none of them done."""
        with self._database.transaction() as connection:
            connection.execute(_resource.insert(), [
                {'run': self._run, 'name': name, 'requires': json.dumps(sorted(needs)),
                 'generation': 0} for name, needs in requires.items()])

    def resources(self) -> list[Resource]:
        """Return all resources of the run, and who holds them.  One statement."""
        locks = models.lock
        held = locks.c.name == sa.literal(lock_name(self._run, '')) + _resource.c.name
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(_resource.c.name, _resource.c.requires, _resource.c.done_at,
                          locks.c.engine_id)
                .select_from(_resource.outerjoin(locks, held)).where(self._mine)).all()
        return [Resource(row.name, frozenset(json.loads(row.requires)), row.done_at is not None,
                         row.engine_id) for row in rows]

    def is_done(self, name: str) -> bool:
        """Whether a resource is made."""
        with self._database.autocommit() as connection:
            return connection.scalar(
                sa.select(_resource.c.done_at).where(self._mine, _resource.c.name == name)
            ) is not None

    def call(self, name: str, step: int, generation: int, engine_id: str) -> Outcome:
        """Do one step of a resource; the last one makes it done.

        One transaction, begun by the compare-and-swap of the generation, which keeps other
        calls for the resource out until it ends.  It may be sent again after any error.
        """
        resource = (self._mine, _resource.c.name == name)
        applied = (_call.c.run == self._run, _call.c.name == name, _call.c.step == step,
                   _call.c.outcome == Outcome.APPLIED.value)
        with self._database.transaction() as connection:
            accepted = connection.execute(
                _resource.update().where(*resource, _resource.c.generation <= generation)
                .values(generation=generation)).rowcount
            if not accepted:
                outcome = Outcome.REFUSED
            elif connection.scalar(sa.select(sa.func.count()).where(*applied)):
                outcome = Outcome.REPEATED
            else:
                outcome = Outcome.APPLIED
            connection.execute(_call.insert().values(
                run=self._run, name=name, step=step, generation=generation,
                engine_id=engine_id, outcome=outcome.value, called_at=times.now()))
            if outcome is Outcome.APPLIED and step == STEPS:
                connection.execute(
                    _resource.update().where(*resource).values(done_at=times.now()))
        return outcome

    def calls(self) -> list[Call]:
        """Return all calls of the run in the order in which the cloud did them."""
        columns = [_call.c[field.name] for field in dataclasses.fields(Call)]
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(*columns).where(_call.c.run == self._run).order_by(_call.c.id)).all()
        return [Call(**{**row._mapping, 'outcome': Outcome(row.outcome)}) for row in rows]

    def forget(self) -> None:
        """Remove all that the run, whose engines have ended, has left in the database."""
        service, journal = models.service, models.takeover
        ours = sa.select(service.c.engine_id).where(service.c.topic == self._run)
        with self._database.transaction() as connection:
            connection.execute(journal.delete().where(
                sa.or_(journal.c.engine_id.in_(ours), journal.c.taken_by.in_(ours))))
            connection.execute(models.lock.delete().where(
                models.lock.c.name.startswith(lock_name(self._run, ''), autoescape=True)))
            connection.execute(service.delete().where(service.c.topic == self._run))
            for table in (_call, _resource):
                connection.execute(table.delete().where(table.c.run == self._run))
