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

"""Whether the tables are those that this code knows: the quick question.

:mod:`.migration` answers it in full and imports alembic, which takes longer than most
commands; it is asked only when the quick answer is no.
"""

import sqlalchemy as sa

from heat_liveness.db import models
from heat_liveness.db.database import Database

_version = sa.table(models.VERSION_TABLE, sa.column('version_num'))


def require(database: Database) -> None:
    """Pass if the tables are of the version that this code needs.

    :raises SchemaError: they are not; the message says what to run
    """
    with database.autocommit() as connection:
        found = connection.scalars(sa.select(_version.c.version_num)).all()
    if list(found) != [models.VERSION]:
        from heat_liveness.db import migration
        migration.check(database)
