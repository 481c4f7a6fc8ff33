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

"""Service rows, the native work store and the journal."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from heat_liveness.db import migration

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None

_MYSQL = {'mysql_engine': 'InnoDB', 'mysql_charset': 'utf8mb4', 'mysql_collate': 'utf8mb4_bin'}


def upgrade() -> None:
    time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')
    key = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')
    long_text = sa.Text().with_variant(mysql.MEDIUMTEXT(), 'mysql', 'mariadb')
    migration.create_table(
        'liveness_service',
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
        sa.Column('created_at', time, nullable=False),
        sa.Column('updated_at', time, nullable=False),
        sa.Column('pid', sa.BigInteger(), nullable=False),
        sa.Column('start_time', sa.BigInteger(), nullable=False),
        sa.Column('pid_namespace', sa.BigInteger(), nullable=False),
        sa.Column('time_namespace', sa.BigInteger(), nullable=False),
        sa.Column('boot_id', sa.String(36), nullable=False),
        sa.Column('declared_by', sa.String(36)),
        sa.Column('declared_at', time),
        sa.Column('evidence', sa.String(16)),
        sa.Column('mass', sa.Boolean(), nullable=False),
        indexes={'liveness_service_state_updated_at': ['state', 'updated_at'],
                 'liveness_service_boot_id': ['boot_id'],
                 'liveness_service_declared_at': ['declared_at']},
        **_MYSQL)
    migration.create_table(
        'liveness_lock',
        sa.Column('id', key, primary_key=True, autoincrement=True),
        sa.Column('name', sa.String(255), nullable=False),
        sa.Column('task', sa.String(255), nullable=False),
        sa.Column('arguments', long_text, nullable=False),
        sa.Column('progress', long_text, nullable=False),
        sa.Column('status', sa.String(16), nullable=False),
        sa.Column('reason', long_text),
        sa.Column('engine_id', sa.String(36)),
        sa.Column('generation', sa.BigInteger(), nullable=False),
        sa.Column('takeovers', sa.Integer(), nullable=False),
        sa.Column('history', long_text, nullable=False),
        sa.Column('created_at', time, nullable=False),
        sa.Column('updated_at', time, nullable=False),
        sa.UniqueConstraint('name', name='liveness_lock_name'),
        indexes={'liveness_lock_engine_id_id': ['engine_id', 'id']},
        **_MYSQL)
    migration.create_table(
        'liveness_takeover',
        sa.Column('id', key, primary_key=True, autoincrement=True),
        sa.Column('kind', sa.String(16), nullable=False),
        sa.Column('subject', sa.String(300), nullable=False),
        sa.Column('generation', sa.BigInteger(), nullable=False),
        sa.Column('engine_id', sa.String(36)),
        sa.Column('taken_by', sa.String(36), nullable=False),
        sa.Column('pieces', sa.Integer(), nullable=False),
        sa.Column('status', sa.String(16), nullable=False),
        sa.Column('detail', long_text, nullable=False),
        sa.Column('created_at', time, nullable=False),
        sa.Column('updated_at', time, nullable=False),
        sa.UniqueConstraint('subject', 'generation',
                            name='liveness_takeover_subject_generation'),
        indexes={'liveness_takeover_engine_id': ['engine_id'],
                 'liveness_takeover_status': ['status']},
        **_MYSQL)
