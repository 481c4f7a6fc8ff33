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

"""Which URLs are taken, and what an error of a driver means."""

import pathlib
import sqlite3
from typing import Any

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception

from heat_liveness import errors
from heat_liveness.db import database
from heat_liveness.db.database import Database, again_if_contended, parse_url


@pytest.mark.parametrize(('text', 'driver'), [
    ('mysql://u@h/d', 'mysql+pymysql'),
    ('mysql+mysqldb://u@h/d', 'mysql+pymysql'),
    ('mariadb://u@h/d', 'mariadb+pymysql'),
    ('postgresql://u@h/d', 'postgresql+psycopg'),
    ('postgresql+psycopg2://u@h/d', 'postgresql+psycopg'),
    ('sqlite:////tmp/x', 'sqlite+pysqlite')])
def test_the_driver_is_one_whose_waits_can_be_bounded(text: str, driver: str) -> None:
    assert parse_url(text).drivername == driver


def test_the_operators_parameters_are_kept() -> None:
    url = parse_url('mysql://u@h/d?charset=utf8mb4', 'ssl_ca=/ca.pem&ssl_verify_cert=true')
    assert dict(url.query) == {
        'charset': 'utf8mb4', 'ssl_ca': '/ca.pem', 'ssl_verify_cert': 'true'}


@pytest.mark.parametrize(('text', 'sentence'), [
    (None, 'There is no database: set .* connection'),
    ('', 'There is no database'),
    ('not a url', 'is not a database URL'),
    ('mysql://u:secret@h:port/d', 'is not a database URL'),
    ('mysql://u:pass@secret@h/d', r'an @ too many: write one in a password as %40'),
    ('oracle://u:secret@h/d', "names the database 'oracle': use mysql, postgresql or sqlite"),
    ('sqlite://', 'SQLite database in memory'),
    ('sqlite:///:memory:', 'SQLite database in memory')])
def test_a_url_that_cannot_be_used_is_a_sentence_without_its_password(
        text: str | None, sentence: str) -> None:
    with pytest.raises(errors.ConfigError, match=sentence) as caught:
        parse_url(text)
    assert 'secret' not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_driver_that_is_not_installed_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **named: Any) -> Any:
        raise ImportError("No module named 'pymysql'")

    monkeypatch.setattr(sa, 'create_engine', missing)
    with pytest.raises(errors.ConfigError, match='install PyMySQL') as caught:
        Database('mysql://u:secret@h/d')
    assert 'secret' not in str(caught.value)


def test_two_names_of_one_database_are_one_backend() -> None:
    assert Database('mariadb://u@h/d').backend == Database('mysql://u@h/d').backend == 'mysql'


def test_the_server_gives_up_a_row_lock_before_a_read_is_given_up() -> None:
    assert Database('mysql://u@h/d', read_timeout=8)._lock_wait == 7
    assert Database('mysql://u@h/d', read_timeout=.3)._lock_wait == 1


def wrapped(cause: BaseException) -> sa.exc.DBAPIError:
    return sa.exc.OperationalError('UPDATE', {}, cause)


def postgresql(sqlstate: str) -> psycopg.Error:
    error = psycopg.OperationalError('it says no')
    error.sqlstate = sqlstate  # type: ignore[misc]
    return error


def sqlite(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError('it says no')
    error.sqlite_errorname = name
    return error


def raised(error: BaseException) -> type[errors.LivenessError]:
    with pytest.raises(errors.LivenessError) as caught, \
            Database('mysql://u:secret@h/d').outcome():
        raise error
    assert 'secret' not in str(caught.value)
    assert str(caught.value).endswith(('.', 'sync".'))
    return type(caught.value)


@pytest.mark.parametrize('cause', [
    pymysql.err.OperationalError(1290, 'read-only'), pymysql.err.OperationalError(1792, 'read'),
    pymysql.err.OperationalError(1142, 'denied'), pymysql.err.OperationalError(1054, 'column'),
    postgresql('55P03'), postgresql('25006'),
    postgresql('42501'), postgresql('22001'), postgresql('23514'),
    sqlite('SQLITE_BUSY'), sqlite('SQLITE_BUSY_SNAPSHOT'),
    sqlite('SQLITE_LOCKED'), sqlite('SQLITE_READONLY')])
def test_a_certain_refusal_has_changed_nothing(cause: Exception) -> None:
    """I16."""
    assert raised(wrapped(cause)) in {errors.DatabaseError, errors.DataRefused}


@pytest.mark.parametrize('cause', [
    pymysql.err.OperationalError(1213, 'Deadlock found'), postgresql('40001'),
    postgresql('40P01')])
def test_who_was_contended_may_try_again(cause: Exception) -> None:
    """I16."""
    assert raised(wrapped(cause)) is errors.Contended
    calls = iter([cause, cause, None])

    @again_if_contended
    def once() -> str:
        if (error := next(calls)) is not None:
            with Database('mysql://u:secret@h/d').outcome():
                raise wrapped(error)
        return 'done'

    assert once() == 'done'


def test_nobody_is_tried_again_for_ever_nor_after_an_unclear_outcome() -> None:
    """I16."""
    for error, tries in (errors.Contended('x'), 5), (errors.UnclearOutcome('x'), 1):
        calls = []

        @again_if_contended
        def once(error: Exception = error, calls: list[int] = calls) -> None:
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            once()
        assert len(calls) == tries


@pytest.mark.parametrize('error', [
    db_exception.DBDeadlock(), db_exception.DBConstraintError('t', 'c'),
    db_exception.DBDataError(), sa.exc.TimeoutError('the pool is empty')])
def test_so_has_what_the_layers_between_call_certain(error: Exception) -> None:
    """I16."""
    assert raised(error) in {errors.DatabaseError, errors.DataRefused}


@pytest.mark.parametrize('cause', [
    pymysql.err.OperationalError(2013, 'Lost connection'),
    pymysql.err.OperationalError(1180, 'Got error during COMMIT'),
    pymysql.err.OperationalError(1047, 'WSREP has not yet prepared node'),
    pymysql.err.OperationalError(9999, 'a proxy says something of its own'),
    pymysql.err.InterfaceError(0, ''), pymysql.err.InternalError(),
    postgresql('57P01'), postgresql('XX000'), psycopg.OperationalError('connection lost'),
    sqlite('SQLITE_IOERR'), sqlite('SQLITE_FULL')])
def test_every_other_error_leaves_the_fate_of_the_statement_open(cause: Exception) -> None:
    """I16: only a short list is certain."""
    assert raised(wrapped(cause)) is errors.UnclearOutcome


@pytest.mark.parametrize('error', [
    ConnectionResetError(104, 'reset'), db_exception.DBConnectionError(), db_exception.DBError()])
def test_a_lost_connection_leaves_it_open_too(error: Exception) -> None:
    """I16."""
    assert raised(error) is errors.UnclearOutcome


@pytest.mark.parametrize('error', [
    wrapped(pymysql.err.ProgrammingError(1146, "Table doesn't exist")),
    wrapped(postgresql('42P01')),
    db_exception.DBNonExistentTable('liveness_service')])
def test_missing_tables_are_a_sentence_with_the_command(error: Exception) -> None:
    assert raised(error) is errors.SchemaError


@pytest.mark.parametrize(('text', 'ours'), [
    ('no such table: liveness_service', True), ('no such table: stack', False),
    ("Table 'heat.liveness_service' doesn't exist (1146).", True),
    ("Table 'liveness_heat.stack' doesn't exist (1146).", False),
    ('relation "liveness_service" does not exist LINE 1: SELECT 1 FROM liveness_service', True),
    ('relation "stack" does not exist LINE 1: SELECT liveness_service FROM stack', False),
    ('La table existe pas', True)])
def test_whose_table_is_missing_is_told(text: str, *, ours: bool) -> None:
    told = database._missing(text, 'mysql://host/heat')
    assert ('db sync' in told) is ours
    assert ('The table stack is missing in mysql://host/heat' in told) is not ours


def test_a_duplicate_is_a_lock_that_is_held() -> None:
    assert raised(db_exception.DBDuplicateEntry()) is errors.LockHeld


def test_what_is_no_error_of_the_database_passes() -> None:
    with pytest.raises(ZeroDivisionError), Database('mysql://u@h/d').outcome():
        raise ZeroDivisionError


def test_a_sentence_names_the_drivers_own_words_and_no_password() -> None:
    cause = pymysql.err.OperationalError(1045, 'Access denied\n  for mysql://u:secret@h/d.')
    error = db_exception.DBError(wrapped(cause))
    assert database.sentence(error) == 'Access denied for mysql://***@h/d. (1045).'
    assert database.sentence(OSError('no route')) == 'no route.'


def test_an_error_that_wraps_itself_ends() -> None:
    error = db_exception.DBError()
    error.inner_exception = error
    assert database.sentence(error).endswith('.')


def test_sqlite_waits_for_its_lock_as_long_as_a_read_may_take(tmp_path: pathlib.Path) -> None:
    """I11: what tells an outage from a death reckons with that."""
    database = Database(f'sqlite:///{tmp_path}/x.sqlite', read_timeout=.7)
    with database.autocommit() as connection:
        assert connection.exec_driver_sql('PRAGMA busy_timeout').scalar() == 700
    database.close()
