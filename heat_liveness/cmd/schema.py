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

"""``db``: the tables."""

from typing import Any

from heat_liveness import errors
from heat_liveness.conf import Settings
from heat_liveness.db import migration
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members


def sync(database: Database, settings: Settings, options: Any) -> str:
    """Create the tables or upgrade them."""
    before, after = migration.sync(database)
    if before == after:
        return f'The tables in {database.name} are of version {after} already.'
    if before is None:
        return f'The tables are made in {database.name}, version {after}.'
    return f'The tables in {database.name} are upgraded from version {before} to {after}.'


def drop(database: Database, settings: Settings, options: Any) -> str:
    """Remove the tables, unless an engine needs them."""
    if migration.version(database) is None:
        return f'There are no tables in {database.name}.'
    beating = [row.engine_id for row in Members(database).all()
               if row.live and row.age < settings.service_down_time]
    if beating:
        raise errors.Refused(
            f'{len(beating)} engines beat in these tables, {beating[0]} among them, and would '
            f'work no more without them: set enabled in [liveness] to false, restart them, and '
            f'try again.')
    migration.drop(database)
    return f'The tables are removed from {database.name}.'


def version(database: Database, settings: Settings, options: Any) -> str:
    """Show the version of the tables."""
    found = migration.version(database)
    if found is None:
        raise errors.SchemaError(
            f'The tables are missing in {database.name}: run "heat-liveness-manage db sync".')
    return found


def check(database: Database, settings: Settings, options: Any) -> str:
    """Fail if the tables are not of the version that this release needs."""
    migration.check(database)
    return f'The tables in {database.name} are of version {migration.head()}, as needed.'
