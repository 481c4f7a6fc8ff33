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

"""The locks of Heat's resources, and how those of a dead engine are taken over.

The lock of a resource is its ``engine_id`` with ``atomic_key`` as generation.  Heat's own
workers expect it to be NULL when they acquire it, so a takeover *clears* it; what is to
happen then stands in the journal (:mod:`.orders`), written in the same transaction.

Nothing here scans ``resource``, which has no index on its owner: stacks first, then their
resources by ``stack_id``.
"""

import dataclasses
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db.database import Database, again_if_contended
from heat_liveness.db.members import ServiceRow, alive, ended
from heat_liveness.heat import orders, plans, tables, views
from heat_liveness.heat.plans import Decision, Plan, Resource, Stack
from heat_liveness.heat.views import View

_stack, _resource = tables.stack, tables.resource

_AT_WORK = (_stack.c.status.in_(('IN_PROGRESS', 'FAILED')), _stack.c.convergence.is_(sa.true()),
            _stack.c.deleted_at.is_(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides beside the rows themselves."""

    max_takeovers: int
    abandons: bool = False
    """Whether this Heat lets stacks be abandoned, so that a DELETE may be an abandon."""
    only: Collection[str] | None = None
    """The stacks that are recovered; all for None."""
    tokened: bool = True
    """Whether all who may receive a message know tokens."""
    fenced: bool = True
    """Whether the engines that are recovered cannot come back and write."""


class Claims:
    """The resources that engines hold."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._orders = orders.Orders(database)

    def owners(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that own work of Heat's still.

        These hold a resource, or an order.  Where Heat's tables are not in this database, no
        engine does.
        """
        if not engine_ids:
            return set()
        try:
            holders = self.holders(engine_ids)
        except errors.SchemaError:
            holders = set()
        return holders | self._orders.claimers(engine_ids)

    def holders(self, engine_ids: Collection[str]) -> set[str]:
        """Return those of the engines that hold a resource of a stack in progress, or failed."""
        return self._holders(_resource.c.engine_id.in_(engine_ids))

    def unknown_holders(self, known: Collection[str]) -> set[str]:
        """Return the engines beside the known ones that hold a resource.

        Of a stack in progress, or failed.
        """
        return self._holders(_resource.c.engine_id.is_not(None)) - set(known)

    def _holders(self, which: sa.ColumnElement[bool]) -> set[str]:
        found: set[str] = set()
        with self._database.autocommit() as connection:
            stack_ids = sorted(connection.scalars(sa.select(_stack.c.id).where(*_AT_WORK)))
            for ids in views.chunks(stack_ids):
                found.update(connection.scalars(
                    sa.select(_resource.c.engine_id).distinct().where(
                        _resource.c.stack_id.in_(ids), which)))
        return found

    @again_if_contended
    def take_over(self, owner: ServiceRow, taker_id: str, limit: int,
                  known: Collection[tuple[int, int]], rules: Rules,
                  ) -> list[tuple[Resource, Decision]]:
        """Clear at most ``limit`` locks of an ended engine and write what is to be done.

        The UPDATE decides: owner and atomic_key as read, owner ended, taker alive.  State and
        journal commit together, so between the claim and the resumption there is always a row
        that says so.

        :param known: (id, generation) of what was left alone before
        :return: what this call has decided; wins count, as it has committed
        """
        decided: list[tuple[Resource, Decision]] = []
        stacks: dict[str, tuple[View, Mapping[str, list[str]]]] = {}
        cleared = 0
        with self._database.transaction() as connection:
            for row in _held(connection, owner.engine_id, limit, rules.only, taker_id):
                if (row.id, row.generation) in known:
                    continue
                if row.stack.id not in stacks:
                    stacks[row.stack.id] = (views.read(connection, row.stack),
                                            self._orders.deaths(connection, row.stack))
                decision = _decide(row, *stacks[row.stack.id], owner, rules)
                if self._write(connection, row, decision, owner, taker_id, rules):
                    decided.append((row, decision))
                    cleared += decision.clears
                if cleared >= limit:
                    break
        return decided

    def _write(self, connection: sa.Connection, row: Resource, decision: Decision,
               owner: ServiceRow, taker_id: str, rules: Rules) -> bool:
        """Write what was decided, if anything; return False if somebody else was first."""
        if decision.plan is Plan.WAIT:
            return True
        if decision.plan is Plan.LEAVE_ALONE:
            if not self._orders.left_alone(connection, row):
                self._orders.write(connection, row, decision, owner, taker_id)
            return True
        revives = rules.tokened and _is_revived(row, decision)
        if not _clear(connection, row, decision, owner, taker_id, revives=revives):
            return False
        self._orders.overtake(connection, row)
        self._orders.write(connection, row, decision, owner, taker_id, revives=revives)
        return True

    def consider(self, owner: ServiceRow, rules: Rules) -> list[tuple[Resource, Decision]]:
        """Return what a takeover would decide, and change nothing."""
        with self._database.autocommit() as connection:
            return [(row, _decide(row, views.read(connection, row.stack),
                                  self._orders.deaths(connection, row.stack), owner, rules))
                    for row in _held(connection, owner.engine_id, None, rules.only)]


def _at_work(connection: sa.Connection) -> dict[str, Stack]:
    """Return the convergence stacks in which locks matter, nested ones among them, by id.

    A stack that has failed lets what it had begun go on; it is no more than looked at.
    """
    rows: Iterable[sa.Row[Any]] = connection.execute(sa.select(*views.STACK).where(*_AT_WORK))
    return {row.id: views.as_stack(row) for row in rows}


def _held(connection: sa.Connection, engine_id: str, page: int | None,
          only: Collection[str] | None, reader_id: str = '') -> Iterator[Resource]:
    """Lock resources that an engine holds, page by page, passing by what others have locked.

    For None they are read, and not locked.  Each reader has an order of its own: between the
    nodes of Galera nobody sees what others have locked.
    """
    stacks = {stack_id: stack for stack_id, stack in _at_work(connection).items()
              if only is None or stack_id in only}
    ordered = sorted(stacks, key=lambda each: zlib.crc32(f'{reader_id} {each}'.encode()))
    going = [each for each in ordered if stacks[each].status == 'IN_PROGRESS']
    rest = [each for each in ordered if stacks[each].status != 'IN_PROGRESS']
    for ids in (*views.chunks(going), *views.chunks(rest)):
        last = 0
        while True:
            statement = sa.select(_resource).where(
                _resource.c.stack_id.in_(ids), _resource.c.engine_id == engine_id,
                _resource.c.id > last).order_by(_resource.c.id)
            if page is not None:
                statement = statement.limit(page).with_for_update(skip_locked=True)
            found = connection.execute(statement).all()
            yield from (views.as_resource(row, stacks[row.stack_id]) for row in found)
            if page is None or len(found) < page:
                break
            last = found[-1].id


def _decide(row: Resource, view: View, deaths: Mapping[str, list[str]], owner: ServiceRow,
            rules: Rules) -> Decision:
    if view.problem:
        return Decision(Plan.LEAVE_ALONE, view.problem)
    decision = plans.decide(row, view.node(row), view.child(row), abandons=rules.abandons,
                            fenced=rules.fenced)
    dead = dict.fromkeys(deaths.get(row.name, []))
    if owner.blamed:
        dead[owner.engine_id] = None
    if decision.plan not in {Plan.WAIT, Plan.RELEASE} and len(dead) >= rules.max_takeovers:
        return plans.poisoned(row, list(dead))
    return decision


def _is_revived(row: Resource, decision: Decision) -> bool:
    """Return whether a row that stays as it is must not be met so by another traversal.

    Heat takes a resource that is in progress, and not locked, for done where its template did
    not change, though it was half updated or deleted.  Until its own check begins it is FAILED.
    """
    return decision.plan is Plan.RUN_AGAIN and decision.status is None and (
        row.status == 'IN_PROGRESS')


def _clear(connection: sa.Connection, row: Resource, decision: Decision, owner: ServiceRow,
           taker_id: str, *, revives: bool) -> bool:
    status = 'FAILED' if revives else decision.status
    values: dict[str, Any] = {
        'action': decision.action, 'status': status, 'nova_instance': decision.physical_id}
    values = {name: value for name, value in values.items() if value is not None}
    if status is not None:
        values['status_reason'] = (
            f'Engine {owner.engine_id} ended during {row.action}; {taker_id} took over')
    return bool(connection.execute(
        _resource.update()
        .where(_resource.c.id == row.id, _resource.c.engine_id == owner.engine_id,
               _resource.c.atomic_key == row.atomic_key, ended(owner.engine_id),
               alive(taker_id))
        .values(engine_id=None, atomic_key=row.generation + 1, **values)).rowcount == 1)
