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

"""Statements about the journal: what was declared, taken over, quarantined and commanded."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness.db import models, stored, times
from heat_liveness.db.database import Database
from heat_liveness.db.members import alive

_t = models.takeover


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the journal."""

    id: int
    kind: str
    """death, takeover, quarantine or operator; a driver may add its own."""
    subject: str
    """``engine:ID``, ``batch:ID``, ``lock:NAME``, or what a driver calls its work."""
    generation: int
    engine_id: str | None
    """The engine that ended."""
    taken_by: str
    """The engine that declared it or took its work over, or ``operator``."""
    pieces: int
    status: str
    detail: Mapping[str, Any]
    created_at: datetime.datetime
    updated_at: datetime.datetime


def _entry(row: sa.Row[Any]) -> Entry:
    values = dict(row._mapping)
    return Entry(**{**values, 'detail': stored.mapping(values['detail'])})


class Journal:
    """The journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def search(self, engine_id: str | None = None, kind: str | None = None,
               subject: str | None = None, limit: int = 1000) -> list[Entry]:
        """Return the newest entries, oldest first."""
        where: list[sa.ColumnElement[bool]] = [sa.true()]
        if engine_id is not None:
            where.append(sa.or_(_t.c.engine_id == engine_id, _t.c.taken_by == engine_id))
        if kind is not None:
            where.append(_t.c.kind == kind)
        if subject is not None:
            where.append(_t.c.subject == subject)
        with self._database.autocommit() as connection:
            rows = connection.execute(
                sa.select(_t).where(*where).order_by(_t.c.id.desc()).limit(limit)).all()
        return [_entry(row) for row in reversed(rows)]

    def find(self, entry_id: int) -> Entry | None:
        """Return one entry, or None."""
        with self._database.autocommit() as connection:
            row = connection.execute(sa.select(_t).where(_t.c.id == entry_id)).first()
        return None if row is None else _entry(row)

    def purge(self, after: float, actor_id: str) -> int:
        """Remove entries that were done with ``after`` seconds ago; return how many."""
        with self._database.autocommit() as connection:
            return connection.execute(_t.delete().where(
                _t.c.status == 'done',
                _t.c.updated_at < times.ago(sa.literal(after, sa.Float())),
                alive(actor_id))).rowcount
