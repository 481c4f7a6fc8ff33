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

"""Brings the ``liveness_`` tables to the version that this code needs.

The tables keep a version table of their own, so in Heat's database Heat's ``alembic_version``
is not touched.  Several ``sync`` at once do the work once: MySQL and PostgreSQL have named
locks for that, and SQLite's transaction begins with the write lock.

Galera's named locks stay on one node, and MySQL cannot roll a CREATE back.  So each step makes
only what is missing, and a sync that was crossed by another on a second node begins again: both
go through all steps, the version is written last, and whoever finds it there is done.  What a
sync leaves behind that was killed is completed in the same way by the next.
"""

import contextlib
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import command, config, migration, op, script, util

from heat_liveness import clock as clocks
from heat_liveness import errors
from heat_liveness.db import models
from heat_liveness.db.database import Database

_LOCK_NAME = 'liveness_db_sync'
_LOCK_NUMBER = 0x6C697665
LOCK_SECONDS = 60
"""How long one sync waits for another."""
_TRIES = 10
_PAUSE_SECONDS = 0.5


def sync(database: Database) -> tuple[str | None, str]:
    """Create the tables or upgrade them; return the version before and after.

    :param database: with a ``read_timeout`` longer than :data:`LOCK_SECONDS`
    :raises SchemaError: the database is of a version that this code does not know
    :raises DatabaseError: the database could not be reached, or refused
    """
    for _ in range(_TRIES - 1):
        try:
            return _sync(database)
        except errors.DatabaseError:
            if not database.galera:
                raise
            clocks.BootClock().wait(threading.Event(), _PAUSE_SECONDS)
    return _sync(database)


def _sync(database: Database) -> tuple[str | None, str]:
    with _alone(database) as connection:
        before = _current(connection)
        _refuse_newer(database, before)
        alembic = config.Config()
        alembic.set_main_option('script_location', str(_script_location()))
        alembic.attributes['connection'] = connection
        try:
            command.upgrade(alembic, 'head')
        except util.CommandError as error:
            # What it says where another has written the version meanwhile.
            raise errors.DatabaseError(
                f'The tables in {database.name} could not be upgraded: {error}') from error
    return before, head()


def create_table(name: str, *items: sa.schema.SchemaItem,
                 indexes: Mapping[str, Sequence[str]], **options: Any) -> None:
    """Create what is missing of a table and its indexes; for revisions.

    :param indexes: the columns of each index
    """
    if not sa.inspect(op.get_bind()).has_table(name):
        op.create_table(name, *items, **options)
    present = {index['name'] for index in sa.inspect(op.get_bind()).get_indexes(name)}
    for index, columns in indexes.items():
        if index not in present:
            op.create_index(index, name, columns)


def drop(database: Database) -> bool:
    """Remove the tables with all that is in them, and nothing else; return whether any was there.

    :raises SchemaError: the tables are of a version that this code does not know
    :raises DatabaseError: the database could not be reached, or refused
    """
    with _alone(database) as connection:
        before = _current(connection)
        _refuse_newer(database, before)
        models.metadata.drop_all(connection)
        sa.Table(models.VERSION_TABLE, sa.MetaData()).drop(connection, checkfirst=True)
    return before is not None


def version(database: Database) -> str | None:
    """Return the version of the tables, or None where there are none."""
    with database.transaction() as connection:
        return _current(connection)


def check(database: Database) -> None:
    """Pass if the tables are of the version that this code needs.

    :raises SchemaError: they are not; the message says what to run
    """
    current = version(database)
    _refuse_newer(database, current)
    if current is None:
        raise errors.SchemaError(
            f'The tables are missing in {database.name}: run "heat-liveness-manage db sync".')
    if current != head():
        raise errors.SchemaError(
            f'The tables in {database.name} are of version {current}, but {head()} is needed: '
            f'run "heat-liveness-manage db sync".')


def head() -> str:
    """Return the newest version this code knows."""
    return str(_scripts().get_current_head())


def _current(connection: sa.Connection) -> str | None:
    context = migration.MigrationContext.configure(
        connection, opts={'version_table': models.VERSION_TABLE})
    found = context.get_current_heads()
    if len(found) > 1:
        raise errors.SchemaError(
            f'The table {models.VERSION_TABLE} names several versions ({", ".join(sorted(found))})'
            f', so nobody can tell which one the tables are of: leave one row in it.')
    return found[0] if found else None


def _refuse_newer(database: Database, current: str | None) -> None:
    known = {revision.revision for revision in _scripts().walk_revisions()}
    if current is not None and current not in known:
        raise errors.SchemaError(
            f'The tables in {database.name} are of version {current}, which this release does '
            f'not know: upgrade heat-liveness.')


def _scripts() -> script.ScriptDirectory:
    return script.ScriptDirectory(str(_script_location()))


def _script_location() -> pathlib.Path:
    """Find the revisions: inside the installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parents[1]
    for place in (package / 'migrations', package.parent / 'migrations'):
        if (place / 'env.py').is_file():
            return place
    raise errors.SchemaError(
        f'The migrations are not installed beside {package}: install heat-liveness again.')


@contextlib.contextmanager
def _alone(database: Database) -> Iterator[sa.Connection]:
    """Lend a transaction that has ended when another sync begins its own."""
    with _named_lock(database), database.transaction() as connection:
        if database.backend == 'postgresql':
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_NUMBER)))
        yield connection


@contextlib.contextmanager
def _named_lock(database: Database) -> Iterator[None]:
    """Hold MySQL's lock on a connection of its own, as it has to outlast the COMMIT."""
    if database.backend != 'mysql':
        yield
        return
    with database.autocommit() as connection:
        if not connection.scalar(sa.select(sa.func.get_lock(_LOCK_NAME, LOCK_SECONDS))):
            raise errors.DatabaseError(
                f'Another "db sync" of {database.name} has not ended within {LOCK_SECONDS} s: '
                f'look for it, and try again.')
        try:
            yield
        finally:
            connection.execute(sa.select(sa.func.release_lock(_LOCK_NAME)))
