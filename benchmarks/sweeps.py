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

"""Sweeps: what looking for lost messages costs while none is lost, beside reading every graph.

The plain way reads graph, sync points and resources of each stack in progress; so would
whoever walks the graphs at each sweep.
"""

import json
import time

import sqlalchemy as sa

from benchmarks import beds, figures
from heat_liveness import clock as clocks
from heat_liveness.db import times
from heat_liveness.db.database import Database
from heat_liveness.heat import graph, rows, sweep

PLAIN, OURS = 'every graph', 'Sweep.look'
RESOURCES_PER_STACK = 20
ENDED_PER_STACK_IN_PROGRESS = 4
_POLICY = sweep.Policy(lost_message_time=3600.0, sweep_interval=10.0, stack_timeout=86400.0)

# The columns of Heat's that count here, and its indexes.
_heat = sa.MetaData()
_stack = sa.Table(
    'stack', _heat, sa.Column('id', sa.String(36), primary_key=True),
    *(sa.Column(name, sa.String(255)) for name in (
        'name', 'action', 'status', 'status_reason', 'parent_resource_name')),
    *(sa.Column(name, sa.String(36)) for name in ('current_traversal', 'owner_id')),
    *(sa.Column(name, sa.Integer) for name in (
        'raw_template_id', 'prev_raw_template_id', 'timeout')),
    *(sa.Column(name, sa.DateTime) for name in ('created_at', 'updated_at', 'deleted_at')),
    sa.Column('current_deps', sa.Text), sa.Column('convergence', sa.Boolean),
    sa.Index('ix_stack_owner_id', 'owner_id'))
_resource = sa.Table(
    'resource', _heat, sa.Column('id', sa.Integer, primary_key=True),
    *(sa.Column(name, sa.String(255)) for name in (
        'name', 'action', 'status', 'status_reason', 'nova_instance')),
    sa.Column('engine_id', sa.String(36)),
    *(sa.Column(name, sa.Integer) for name in (
        'atomic_key', 'replaces', 'replaced_by', 'current_template_id')),
    sa.Column('stack_id', sa.String(36), sa.ForeignKey('stack.id')),
    sa.Column('updated_at', sa.DateTime))
_point = sa.Table(
    'sync_point', _heat,
    *(sa.Column(name, sa.String(36), primary_key=True) for name in (
        'entity_id', 'traversal_id')),
    sa.Column('is_update', sa.Boolean, primary_key=True),
    sa.Column('atomic_key', sa.Integer, nullable=False),
    sa.Column('stack_id', sa.String(36), sa.ForeignKey('stack.id')),
    sa.Column('input_data', sa.Text))


def measure(bed: beds.Bed, in_progress: int, turns: int) -> list[figures.Figure]:
    """Look at so many stacks in progress, in turns."""
    with beds.connected(bed.url) as database:
        stack_ids = _populate(database, in_progress)
        heat = rows.HeatRows(database)
        look = sweep.Sweep(heat, clocks.BootClock())

        def every_graph() -> int:
            return sum(heat.view(stack_id) is not None for stack_id in stack_ids)

        def ours() -> int:
            assert not look.look(_POLICY), 'Nothing should hang.'
            return in_progress

        ways = {PLAIN: every_graph, OURS: ours}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, ask in ways.items():
                started = time.perf_counter()
                assert ask() == in_progress
                rates[way].append(1 / (time.perf_counter() - started))
        _heat.drop_all(database.engine)
    notes = {way: {'stacks': in_progress} for way in ways}
    return figures.compare(f'sweep of {in_progress} stacks', bed.name, rates, notes)


def _populate(database: Database, in_progress: int) -> list[str]:
    """Put stacks there that are half done, and more that have ended; return the former."""
    _heat.create_all(database.engine)
    edges = [[[number, True], [number - 1, True] if number else None]
             for number in range(RESOURCES_PER_STACK)]
    stack_ids = [f'in-progress-{number:024}' for number in range(in_progress)]
    ended_ids = [f'complete-{number:027}'
                 for number in range(in_progress * ENDED_PER_STACK_IN_PROGRESS)]
    with database.transaction() as connection:
        now = connection.scalar(sa.select(times.now()))
        connection.execute(_stack.insert(), [{
            'id': stack_id, 'name': stack_id, 'action': 'CREATE', 'convergence': True,
            'status': 'COMPLETE' if stack_id.startswith('complete') else 'IN_PROGRESS',
            'current_traversal': stack_id, 'raw_template_id': 1, 'created_at': now,
            'current_deps': json.dumps({'edges': edges})}
            for stack_id in [*stack_ids, *ended_ids]])
        for stack_id in [*stack_ids, *ended_ids]:
            connection.execute(_resource.insert(), [{
                'name': f'resource-{number}', 'action': 'CREATE', 'status': 'IN_PROGRESS',
                'engine_id': None, 'atomic_key': 2, 'stack_id': stack_id,
                'current_template_id': 1} for number in range(RESOURCES_PER_STACK)])
        for stack_id in stack_ids:
            connection.execute(_point.insert(), [
                {'entity_id': entity, 'traversal_id': stack_id, 'is_update': True,
                 'atomic_key': 1, 'stack_id': stack_id, 'input_data': _input(number)}
                for number in range(RESOURCES_PER_STACK) for entity in [str(number)]
            ] + [{'entity_id': stack_id, 'traversal_id': stack_id, 'is_update': True,
                  'atomic_key': 0, 'stack_id': stack_id, 'input_data': '{}'}])
    return stack_ids


def _input(number: int) -> str:
    """Return what the resource before this one has reported, where it has."""
    reporter = graph.Node(number - 1, is_update=True)
    data = {'id': number - 1, 'name': f'resource-{number - 1}', 'reference_id': 'x' * 36,
            'attrs': {'show': 'y' * 400}, 'action': 'CREATE', 'status': 'COMPLETE',
            'uuid': 'z' * 36}
    return json.dumps({'input_data': {f'tuple:{tuple(reporter)}': data}} if number else {})
