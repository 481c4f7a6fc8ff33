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

"""A database with small copies of Heat's tables, and engines of Heat that are nothing but rows.

The tables have the columns of Heat's that the statements use, in Heat's own types; the tests
in tests/heat run the same statements on Heat's own schema.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from heat_liveness.db import models, times
from heat_liveness.db.journal import Entry
from heat_liveness.db.members import ServiceRow
from heat_liveness.heat import claims, rows
from heat_liveness.heat.graph import Node
from heat_liveness.heat.orders import Order
from heat_liveness.heat.plans import Decision, Plan, Resource, Stack
from tests.databases.conftest import Bed

_heat = sa.MetaData()
stack = sa.Table(
    'stack', _heat, sa.Column('id', sa.String(36), primary_key=True),
    *(sa.Column(name, sa.String(255)) for name in (
        'name', 'action', 'status', 'status_reason', 'current_traversal', 'owner_id',
        'parent_resource_name')),
    *(sa.Column(name, sa.Integer) for name in (
        'raw_template_id', 'prev_raw_template_id', 'timeout')),
    *(sa.Column(name, sa.DateTime) for name in ('created_at', 'updated_at', 'deleted_at')),
    sa.Column('current_deps', sa.Text), sa.Column('convergence', sa.Boolean))
resource = sa.Table(
    'resource', _heat, sa.Column('id', sa.Integer, primary_key=True),
    *(sa.Column(name, sa.String(255)) for name in (
        'name', 'action', 'status', 'status_reason', 'engine_id', 'nova_instance')),
    *(sa.Column(name, sa.Integer) for name in (
        'atomic_key', 'replaces', 'replaced_by', 'current_template_id')),
    sa.Column('stack_id', sa.String(36)), sa.Column('updated_at', sa.DateTime))
point = sa.Table(
    'sync_point', _heat,
    *(sa.Column(name, sa.String(36), primary_key=True) for name in (
        'entity_id', 'traversal_id')),
    sa.Column('is_update', sa.Boolean, primary_key=True),
    sa.Column('atomic_key', sa.Integer, nullable=False), sa.Column('stack_id', sa.String(36)),
    sa.Column('input_data', sa.Text))
data = sa.Table(
    'resource_data', _heat, sa.Column('id', sa.Integer, primary_key=True),
    sa.Column('resource_id', sa.Integer), sa.Column('key', sa.String(255)),
    sa.Column('value', sa.Text))
snapshot = sa.Table('snapshot', _heat, sa.Column('id', sa.String(36), primary_key=True))
service = sa.Table(
    'service', _heat, sa.Column('id', sa.String(36), primary_key=True),
    sa.Column('engine_id', sa.String(36)), sa.Column('report_interval', sa.Integer),
    *(sa.Column(name, sa.String(255)) for name in ('host', 'hostname', 'binary', 'topic')),
    *(sa.Column(name, sa.DateTime) for name in ('created_at', 'updated_at', 'deleted_at')))

RULES = claims.Rules(max_takeovers=3)


def ago(seconds: float) -> sa.ColumnElement[Any]:
    """Say in SQL when something was."""
    return sa.func.liveness.ago(sa.literal(seconds, sa.Float()))


class Heat(Bed):
    """Heat's tables with one stack in progress, and engines of which one is dead.

    The stack ``s1`` has a graph of nodes that do not wait for each other, one for each
    resource from 1 to 9.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, read_timeout=90)
        models.metadata.create_all(self.database.engine)
        _heat.create_all(self.database.engine)
        self.rows = rows.HeatRows(self.database)
        self.orders, self.claims = self.rows.orders, self.rows.claims
        self.me, self.other = self.engine('me'), self.engine('other')
        self.dead = self.ended('dead')
        self.stack('s1')

    def close(self) -> None:
        self.members.hang_up()
        self.database.close()

    def ended(self, name: str, *, left: bool = False, mass: bool = False) -> ServiceRow:
        """Return the row of an engine that was there and has ended."""
        self.engine(name)
        if left:
            assert self.members.leave(name)
            return self.row(name)
        return self.kill(name, mass=mass)

    def stranger(self) -> None:
        """Let an engine run that has nothing of this package."""
        self.run(service.insert().values(
            id='stranger', engine_id='stranger', binary='heat-engine', report_interval=60,
            created_at=times.now()))

    def run(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        with self.database.transaction() as connection:
            return connection.execute(statement)

    def stack(self, stack_id: str, pairs: Iterable[tuple[Node, Node | None]] | None = None, *,
              written: bool = True, **values: Any) -> None:
        """Put a stack there, with its graph and its sync points."""
        traversal = values.setdefault('current_traversal', f't1 of {stack_id}')
        pairs = [(Node(number, is_update=True), None) for number in range(1, 10)
                 ] if pairs is None else list(pairs)
        self.run(stack.insert().values({
            'id': stack_id, 'name': f'name of {stack_id}', 'action': 'CREATE',
            'status': 'IN_PROGRESS', 'convergence': True,
            'raw_template_id': 2, 'prev_raw_template_id': 1, 'created_at': times.now(),
            'current_deps': json.dumps({'edges': pairs}) if written else None, **values}))
        if written:
            nodes = {each for pair in pairs for each in pair if each is not None}
            self.points(stack_id, [*nodes, Node(stack_id, is_update=True)], traversal)

    def points(self, stack_id: str, nodes: Collection[Node], traversal: str) -> None:
        self.run(point.insert().values([{
            'entity_id': str(each.id), 'traversal_id': traversal, 'is_update': each.is_update,
            'atomic_key': 0, 'stack_id': stack_id, 'input_data': '{"input_data": {}}'}
            for each in nodes]))

    def report(self, sender: Node, *receivers: Node) -> None:
        """Let a node report, as Heat writes it."""
        with self.database.transaction() as connection:
            for each in receivers:
                this = sa.and_(point.c.entity_id == str(each.id),
                               point.c.is_update == each.is_update)
                found = json.loads(connection.scalar(sa.select(point.c.input_data).where(this)))
                found['input_data'][f'tuple:{tuple(sender)}'] = None
                connection.execute(point.update().where(this).values(
                    input_data=json.dumps(found), atomic_key=point.c.atomic_key + 1))

    def resource(self, resource_id: int, **values: Any) -> None:
        """Put a resource there, by default one that the dead engine was creating."""
        self.run(resource.insert().values({
            'id': resource_id, 'name': f'r{resource_id}', 'action': 'CREATE',
            'status': 'IN_PROGRESS', 'engine_id': 'dead', 'atomic_key': 1, 'stack_id': 's1',
            # A replacement is made to the stack's present template.
            'current_template_id': 2 if 'replaces' in values else 1, 'updated_at': times.now(),
            **values}))

    def change(self, table: sa.Table, subject: object, **values: Any) -> None:
        self.run(table.update().where(table.c.id == subject).values(values))

    def read(self, resource_id: int) -> Mapping[str, Any]:
        with self.database.autocommit() as connection:
            return connection.execute(sa.select(resource).where(
                resource.c.id == resource_id)).mappings().one()

    def state(self, resource_id: int) -> tuple[Any, ...]:
        row = self.read(resource_id)
        return row['action'], row['status'], row['engine_id'], row['atomic_key']

    def decide(self, owner: ServiceRow | None = None, taker: str = 'me', limit: int = 10,
               known: Collection[tuple[int, int]] = (), rules: claims.Rules = RULES,
               ) -> list[tuple[Resource, Decision]]:
        return self.claims.take_over(owner or self.dead, taker, limit, known, rules)

    def take_over(self, owner: ServiceRow | None = None, **more: Any) -> dict[int, Plan]:
        return {row.id: decision.plan for row, decision in self.decide(owner, **more)}

    def order(self, resource_id: int = 1, **more: Any) -> Order:
        """Give an order: have the lock of a dead engine taken over."""
        self.resource(resource_id, **more)
        self.take_over()
        return next(order for order in self.orders.of('me', 1000)
                    if order.resource_id == resource_id)

    def found(self, order: Order) -> Order:
        """Return an order as it stands now."""
        now = self.orders.find(order.id)
        assert now is not None
        return now

    def entries(self, kind: str = 'resource') -> list[Entry]:
        return self.journal.search(kind=kind)

    def the_stack(self, stack_id: str = 's1') -> Stack:
        view = self.rows.view(stack_id)
        assert view is not None
        return view.stack
