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

"""The database's time, in SQL.

All times are UTC, in microseconds, without a zone.  They are the *statement's* time: a
volatile one could not be compared by index.  SQLite counts milliseconds and writes text,
padded here to the width in which SQLAlchemy writes and compares it.

What others have written may be no time at all (MySQL's zero date, PostgreSQL's infinity, any
text in SQLite).  It is read as None and has no age: one such row must not keep all others
from being read.
"""

import datetime
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import functions


class Time(sa.TypeDecorator[datetime.datetime]):
    """A column of microseconds; MySQL's plain DATETIME would drop them."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        if dialect.name in {'mysql', 'mariadb'}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any]:
        process = super().result_processor(dialect, coltype)

        def tolerant(value: Any) -> datetime.datetime | None:
            try:
                found = value if process is None else process(value)
            except (TypeError, ValueError):
                return None
            # PyMySQL hands on the text of what is no date.
            return found if isinstance(found, datetime.datetime) else None

        return tolerant


_POSTGRESQL_NOW = "(statement_timestamp() AT TIME ZONE 'UTC')"
_SQLITE_FORMAT = "'%Y-%m-%d %H:%M:%f'"


class now(functions.GenericFunction[Any]):  # noqa: N801 - it is a function of SQL
    """The database's present time."""

    type = sa.DateTime()
    inherit_cache = True
    package = 'liveness'


class ago(functions.GenericFunction[Any]):  # noqa: N801
    """The database's time so many seconds ago: ``ago(sa.bindparam('seconds'))``."""

    type = sa.DateTime()
    inherit_cache = True
    package = 'liveness'


class age(functions.GenericFunction[Any]):  # noqa: N801
    """Seconds from a stored time to now; negative for a time in the future, NULL for no time."""

    type = sa.Float()
    inherit_cache = True
    package = 'liveness'


@compiles(now, 'mysql', 'mariadb')
def _now_mysql(element: now, compiler: Any, **kw: Any) -> str:
    return 'UTC_TIMESTAMP(6)'


@compiles(now, 'postgresql')
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    return _POSTGRESQL_NOW


@compiles(now, 'sqlite')
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return f"(strftime({_SQLITE_FORMAT}, 'now') || '000')"


@compiles(ago, 'mysql', 'mariadb')
def _ago_mysql(element: ago, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f'(UTC_TIMESTAMP(6) - INTERVAL CAST({seconds} * 1000000 AS SIGNED) MICROSECOND)'


@compiles(ago, 'postgresql')
def _ago_postgresql(element: ago, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f'({_POSTGRESQL_NOW} - make_interval(secs => CAST({seconds} AS double precision)))'


@compiles(ago, 'sqlite')
def _ago_sqlite(element: ago, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime({_SQLITE_FORMAT}, 'now', CAST(-({seconds}) AS TEXT) || ' seconds') || '000')"


@compiles(age, 'mysql', 'mariadb')
def _age_mysql(element: age, compiler: Any, **kw: Any) -> str:
    then = compiler.process(element.clauses, **kw)
    return f'(TIMESTAMPDIFF(MICROSECOND, {then}, UTC_TIMESTAMP(6)) / 1e6)'


@compiles(age, 'postgresql')
def _age_postgresql(element: age, compiler: Any, **kw: Any) -> str:
    then = compiler.process(element.clauses, **kw)
    # To subtract an infinite time is an error.
    return (f'(CASE WHEN isfinite({then}) THEN CAST(EXTRACT(EPOCH FROM {_POSTGRESQL_NOW} - {then})'
            f' AS double precision) END)')


@compiles(age, 'sqlite')
def _age_sqlite(element: age, compiler: Any, **kw: Any) -> str:
    then = compiler.process(element.clauses, **kw)
    return f"((julianday('now') - julianday({then})) * 86400.0)"
