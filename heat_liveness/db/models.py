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

"""The tables, as they stand now; ``migrations/`` is how they came to be so.

They may live beside Heat's own tables, so each name begins with ``liveness_`` and no
foreign key leads to a table of Heat's.  Names compare by their bytes (``utf8mb4_bin``):
two locks whose names differ in case are two locks on each database.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from heat_liveness.db.times import Time

VERSION_TABLE = 'liveness_alembic_version'
VERSION = '0001'
"""The newest revision in ``migrations/``: these tables."""

FOREVER_SECONDS = 10 * 366 * 86400.0

LIVE = ('up', 'draining')
ENDED = ('dead', 'left')

metadata = sa.MetaData()

_MYSQL: dict[str, Any] = {
    'mysql_engine': 'InnoDB', 'mysql_charset': 'utf8mb4', 'mysql_collate': 'utf8mb4_bin'}
_Key = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')
_LongText = sa.Text().with_variant(mysql.MEDIUMTEXT(), 'mysql', 'mariadb')

service = sa.Table(
    'liveness_service', metadata,
    sa.Column('engine_id', sa.String(36), primary_key=True),
    sa.Column('host', sa.String(255), nullable=False),
    sa.Column('hostname', sa.String(255), nullable=False),
    sa.Column('binary', sa.String(255), nullable=False),
    sa.Column('topic', sa.String(255), nullable=False),
    sa.Column('report_interval', sa.Float(53), nullable=False),
    sa.Column('fence_time', sa.Float(53), nullable=False),
    sa.Column('protocol', sa.Integer(), nullable=False),
    sa.Column('state', sa.String(16), nullable=False),
    sa.Column('report_count', sa.BigInteger(), nullable=False),
    sa.Column('created_at', Time, nullable=False),
    sa.Column('updated_at', Time, nullable=False),
    sa.Column('pid', sa.BigInteger(), nullable=False),
    sa.Column('start_time', sa.BigInteger(), nullable=False),
    sa.Column('pid_namespace', sa.BigInteger(), nullable=False),
    sa.Column('time_namespace', sa.BigInteger(), nullable=False),
    sa.Column('boot_id', sa.String(36), nullable=False),
    sa.Column('declared_by', sa.String(36)),
    sa.Column('declared_at', Time),
    sa.Column('evidence', sa.String(16)),
    sa.Column('mass', sa.Boolean(), nullable=False),
    sa.Index('liveness_service_state_updated_at', 'state', 'updated_at'),
    sa.Index('liveness_service_boot_id', 'boot_id'),
    sa.Index('liveness_service_declared_at', 'declared_at'),
    **_MYSQL)
"""What engines write of themselves, and what others declared of them."""

lock = sa.Table(
    'liveness_lock', metadata,
    sa.Column('id', _Key, primary_key=True, autoincrement=True),
    sa.Column('name', sa.String(255), nullable=False),
    sa.Column('task', sa.String(255), nullable=False),
    sa.Column('arguments', _LongText, nullable=False),
    sa.Column('progress', _LongText, nullable=False),
    sa.Column('status', sa.String(16), nullable=False),
    sa.Column('reason', _LongText),
    sa.Column('engine_id', sa.String(36)),
    sa.Column('generation', sa.BigInteger(), nullable=False),
    sa.Column('takeovers', sa.Integer(), nullable=False),
    sa.Column('history', _LongText, nullable=False),
    sa.Column('created_at', Time, nullable=False),
    sa.Column('updated_at', Time, nullable=False),
    sa.UniqueConstraint('name', name='liveness_lock_name'),
    # (engine_id) alone would let PostgreSQL walk the primary key for ORDER BY id.
    sa.Index('liveness_lock_engine_id_id', 'engine_id', 'id'),
    **_MYSQL)
"""The native work store.  ``engine_id`` is set exactly while ``status`` is in_progress."""

takeover = sa.Table(
    'liveness_takeover', metadata,
    sa.Column('id', _Key, primary_key=True, autoincrement=True),
    sa.Column('kind', sa.String(16), nullable=False),
    # The name of a lock, and 'lock:' before it.
    sa.Column('subject', sa.String(300), nullable=False),
    sa.Column('generation', sa.BigInteger(), nullable=False),
    sa.Column('engine_id', sa.String(36)),
    sa.Column('taken_by', sa.String(36), nullable=False),
    sa.Column('pieces', sa.Integer(), nullable=False),
    sa.Column('status', sa.String(16), nullable=False),
    sa.Column('detail', _LongText, nullable=False),
    sa.Column('created_at', Time, nullable=False),
    sa.Column('updated_at', Time, nullable=False),
    sa.UniqueConstraint('subject', 'generation', name='liveness_takeover_subject_generation'),
    sa.Index('liveness_takeover_engine_id', 'engine_id'),
    sa.Index('liveness_takeover_status', 'status'),
    **_MYSQL)
"""The journal: one row per death, per batch taken over, per quarantine, per command."""
