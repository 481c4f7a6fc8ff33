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

"""Heat's own tables, as far as they are read or written here.

No column of Heat's is joined with one of ours; their collations may differ.
"""

import sqlalchemy as sa

from heat_liveness.db import times

stack = sa.table('stack', *map(sa.column, (
    'id', 'name', 'action', 'status', 'convergence', 'current_traversal', 'current_deps',
    'deleted_at', 'owner_id', 'parent_resource_name', 'raw_template_id',
    'prev_raw_template_id', 'timeout', 'status_reason')),
    sa.column('created_at', times.Time()), sa.column('updated_at', times.Time()))
resource = sa.table('resource', *map(sa.column, (
    'id', 'name', 'action', 'status', 'status_reason', 'engine_id', 'atomic_key', 'stack_id',
    'nova_instance', 'replaces', 'replaced_by', 'current_template_id')),
    sa.column('updated_at', times.Time()))
point = sa.table('sync_point', *map(sa.column, (
    'entity_id', 'traversal_id', 'atomic_key', 'stack_id', 'input_data')),
    sa.column('is_update', sa.Boolean()))
data = sa.table('resource_data', *map(sa.column, ('resource_id', 'key', 'value')))
snapshot = sa.table('snapshot', sa.column('id'))
service = sa.table(
    'service', *map(sa.column, (
        'engine_id', 'host', 'hostname', 'binary', 'topic', 'report_interval', 'deleted_at')),
    sa.column('created_at', sa.DateTime()), sa.column('updated_at', sa.DateTime()))
