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

"""Runs the revisions on the connection that :mod:`heat_liveness.db.migration` hands over."""

from alembic import context

from heat_liveness.db import models

context.configure(
    connection=context.config.attributes['connection'],
    target_metadata=models.metadata,
    version_table=models.VERSION_TABLE,
    # Heat's tables may stand beside ours: none of them is looked at.
    include_name=lambda name, kind, parents: kind != 'table' or str(name) in models.metadata.tables,
)
with context.begin_transaction():
    context.run_migrations()
