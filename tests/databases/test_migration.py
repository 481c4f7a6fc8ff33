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

"""The migrations make the tables that the models describe, once, and beside Heat's."""

import pathlib
import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.db import migration, models, schema
from heat_liveness.db.database import Database
from tests.databases.conftest import at_once, skip_on_galera

TABLES = {*models.metadata.tables, models.VERSION_TABLE}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database."""
    found = Database(database_url, read_timeout=migration.LOCK_SECONDS + 10)
    yield found
    found.close()


def tables(database: Database) -> set[str]:
    with database.transaction() as connection:
        return set(sa.inspect(connection).get_table_names())


def described(database: Database) -> dict[str, object]:
    """Return what the server itself says of our tables."""
    with database.transaction() as connection:
        if database.backend == 'sqlite':
            rows = connection.exec_driver_sql(
                "SELECT name, sql FROM sqlite_master WHERE tbl_name LIKE 'liveness%'").all()
            return {row.name: re.sub(r'\s+', ' ', row.sql or '') for row in rows
                    if 'alembic' not in row.name}
        if database.backend == 'mysql':
            # The order of the indexes says nothing.
            return {name: sorted(
                line.strip().rstrip(',') for line in
                connection.exec_driver_sql(f'SHOW CREATE TABLE {name}').one()[1].splitlines())
                for name in models.metadata.tables}
        columns = connection.exec_driver_sql(
            'SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), '
            'a.attnotnull, pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a '
            'JOIN pg_class c ON c.oid = a.attrelid '
            'LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum '
            "WHERE c.relname LIKE 'liveness%%' AND c.relkind = 'r' AND a.attnum > 0 "
            'ORDER BY 1, 2').all()
        indexes = connection.exec_driver_sql(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'liveness%%' "
            'ORDER BY 1').all()
        constraints = connection.exec_driver_sql(
            'SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint '
            "WHERE conname LIKE 'liveness%%' ORDER BY 1").all()
        return {'columns': [tuple(row) for row in columns if 'alembic' not in row[0]],
                'indexes': [tuple(row) for row in indexes if 'alembic' not in row[0]],
                'constraints': [tuple(row) for row in constraints if 'alembic' not in row[0]]}


def test_the_models_are_what_the_migrations_make(database: Database) -> None:
    models.metadata.create_all(database.engine)
    by_models = described(database)
    models.metadata.drop_all(database.engine)
    migration.sync(database)
    assert described(database) == by_models
    assert by_models


def test_sync_makes_the_tables_and_says_from_where_to_where(database: Database) -> None:
    assert migration.version(database) is None
    with pytest.raises(errors.SchemaError, match='run "heat-liveness-manage db sync"'):
        migration.check(database)
    assert migration.sync(database) == (None, migration.head())
    assert tables(database) == TABLES
    migration.check(database)
    schema.require(database)
    assert migration.sync(database) == (migration.head(), migration.head())
    assert migration.head() == models.VERSION


def test_several_syncs_at_once_do_the_work_once(database: Database) -> None:
    skip_on_galera(database)
    others = [Database(database.url.render_as_string(hide_password=False),
                       read_timeout=migration.LOCK_SECONDS + 10) for _ in range(4)]
    results = at_once(*(lambda one=one: migration.sync(one) for one in others))  # type: ignore[misc]
    assert sorted(results, key=str) == sorted(
        [(None, migration.head()), *[(migration.head(), migration.head())] * 3], key=str)
    assert tables(database) == TABLES
    for one in others:
        one.close()


def test_a_sync_does_not_wait_for_another_for_ever(
        database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if database.backend != 'mysql':
        pytest.skip('Its wait is bounded like any other.')
    skip_on_galera(database)
    monkeypatch.setattr(migration, 'LOCK_SECONDS', 1)
    with database.transaction() as connection:
        connection.execute(sa.select(sa.func.get_lock('liveness_db_sync', 1)))
        with pytest.raises(errors.DatabaseError, match=r'Another "db sync" of .* 1 s: look for it'):
            migration.sync(database)
        connection.execute(sa.select(sa.func.release_lock('liveness_db_sync')))


def test_a_newer_schema_is_refused_and_left_alone(database: Database) -> None:
    migration.sync(database)
    with database.transaction() as connection:
        connection.exec_driver_sql(f"UPDATE {models.VERSION_TABLE} SET version_num = '9999'")
    for use in (migration.sync, migration.check, schema.require):
        with pytest.raises(errors.SchemaError, match='version 9999, which this release does not'):
            use(database)
    assert migration.version(database) == '9999'


def test_an_older_schema_is_told_apart(
        database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migration.sync(database)
    monkeypatch.setattr(migration, 'head', lambda: '0002')
    with pytest.raises(errors.SchemaError, match=r'of version 0001, but 0002 is needed: run'):
        migration.check(database)


def test_the_migrations_have_the_last_word_on_a_version(
        database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    migration.sync(database)
    monkeypatch.setattr(models, 'VERSION', '0000')
    schema.require(database)


def test_heats_own_tables_are_not_touched(database: Database) -> None:
    heats = {'alembic_version': 'version_num VARCHAR(32) NOT NULL',
             'service': 'id VARCHAR(36) NOT NULL', 'liveness': 'id INTEGER NOT NULL'}
    with database.transaction() as connection:
        for name, columns in heats.items():
            connection.exec_driver_sql(f'CREATE TABLE {name} ({columns})')
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('c6214ca60943')")
    migration.sync(database)
    assert tables(database) == {*TABLES, *heats}
    with database.transaction() as connection:
        assert connection.exec_driver_sql(
            'SELECT version_num FROM alembic_version').all() == [('c6214ca60943',)]
    assert migration.version(database) == migration.head()


def test_drop_removes_our_tables_and_no_others(database: Database) -> None:
    with database.transaction() as connection:
        connection.exec_driver_sql('CREATE TABLE stack (id INTEGER)')
    assert migration.drop(database) is False
    migration.sync(database)
    assert migration.drop(database) is True
    assert sa.inspect(database.engine).get_table_names() == ['stack']
    assert migration.version(database) is None
    assert migration.sync(database) == (None, migration.head())


def test_a_newer_schema_is_not_dropped(database: Database) -> None:
    migration.sync(database)
    with database.transaction() as connection:
        connection.exec_driver_sql(f"UPDATE {models.VERSION_TABLE} SET version_num = 'later'")
    with pytest.raises(errors.SchemaError, match='upgrade'):
        migration.drop(database)
    assert models.service.name in sa.inspect(database.engine).get_table_names()


def test_no_key_leads_into_anybodys_table(database: Database) -> None:
    migration.sync(database)
    with database.transaction() as connection:
        assert all(not sa.inspect(connection).get_foreign_keys(name) for name in TABLES)


@pytest.mark.sqlite
def test_migrations_that_are_not_installed_are_a_sentence(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, '__file__', str(tmp_path / 'a' / 'b' / 'migration.py'))
    with pytest.raises(errors.SchemaError, match='install heat-liveness again'):
        migration.head()
