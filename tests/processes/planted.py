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

"""Bugs that an engine may be started with, to see that a history with them is found out.

Each takes one guard away, as a careless change could.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from heat_liveness import detection, fence
from heat_liveness.db import locks, models
from heat_liveness.db.locks import HeldLock, LockRow, Locks
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.membership import Membership
from heat_liveness.work.native import NativeWork


def _open_the_gate() -> None:
    """Work on without beats, for ever, and deaf to what the row says."""
    fence.Gate.held = property(lambda gate: False)  # type: ignore[assignment,method-assign]
    fence.KernelTimer.set = lambda timer, due: None  # type: ignore[assignment,method-assign]
    Membership._missing = lambda membership: None  # type: ignore[method-assign]


def _write_unguarded() -> None:
    """Write under a lock whoever owns it, without the gate."""
    _open_the_gate()

    def write(store: Locks, row: LockRow, **values: Any) -> bool:
        if 'progress' in values:
            values['progress'] = json.dumps(values['progress'])
        with store._database.autocommit() as connection:
            connection.execute(
                models.lock.update().where(models.lock.c.id == row.id).values(**values))
        return True

    Locks.write = write  # type: ignore[method-assign]


def _believe_the_clock() -> None:
    """Call dead whose beat is old by the database's clock."""
    detection.Observer._watched = (  # type: ignore[method-assign]
        lambda observer, row, seen: row.age)


def _do_not_quarantine() -> None:
    """Pass work on however many died of it."""
    take_over = Locks.take_over

    def quarantine(store: Locks, *args: object) -> list[Any]:
        return []

    def take_poison_too(store: Locks, *args: Any, **kw: Any) -> list[HeldLock]:
        return take_over(store, *args, **kw | {'poison': None})

    Locks.quarantine = quarantine  # type: ignore[assignment,method-assign]
    Locks.take_over = take_poison_too  # type: ignore[method-assign]


def _declare_unseen() -> None:
    """Declare without a look at the count, and from the first suspicion on."""
    declare = Members.declare

    def hasty(members: Members, row: ServiceRow, *args: Any, **kw: Any) -> bool:
        return declare(members, members.read(row.engine_id) or row, *args, **kw)

    Members.declare = hasty  # type: ignore[method-assign]
    detection.Observer._watched = (  # type: ignore[method-assign]
        lambda observer, row, seen: float('inf'))


def _relieve_the_living() -> None:
    """Take work over whoever owns it."""
    scan = detection.Observer.scan
    locks.ended = lambda engine_id: sa.true()

    def all_ended(observer: detection.Observer) -> detection.Scan:
        others = [dataclasses.replace(row, state='left') for row in observer._members.all()
                  if row.engine_id != observer._me.engine_id]
        return dataclasses.replace(scan(observer), ended=others)

    detection.Observer.scan = all_ended  # type: ignore[method-assign]


def _write_over_what_may_be_on_its_way() -> None:
    """Write again under the same generation, though a copy of the last write may come late."""
    NativeWork._renewed = lambda work, task: task.row  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    'the gate is always open': _open_the_gate,
    'a write names no owner': _write_unguarded,
    'the clock is believed': _believe_the_clock,
    'nothing is quarantined': _do_not_quarantine,
    'the living are relieved': _relieve_the_living,
    'nobody is watched': _declare_unseen,
    'a record without a reply is only sent again': _write_over_what_may_be_on_its_way,
}
