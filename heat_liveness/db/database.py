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

"""Connections to the database, and what their errors mean.

The operator's URL and TLS settings are taken as they are; everything else about a
connection is this module's own, because the protocol rests on it:

* each connect, read and write is bounded, on every driver, so a frozen server costs an
  engine a few seconds and not its life;
* READ COMMITTED: a re-read must see what others have committed meanwhile;
* the wait for a row lock is shorter than a read, so that the server has given up before
  we have;
* SQLite begins its transactions with the write lock: one that reads first and writes
  later fails without waiting for its turn;
* Galera lets a node catch up with the others before each statement: an engine may have its
  connections on several nodes, and still sees what it has written itself.

An error is either *certain*, and nothing has happened (:class:`~errors.DatabaseError`), or
the fate of the statement is unknown (:class:`~errors.UnclearOutcome`).  Only a short list
is certain; everything else, known or not, is unclear.

On Galera no row lock reaches another node.  Of two transactions that change the same row
on two nodes the first to commit wins, and the other is rolled back whole, at its COMMIT or at
any statement before: :class:`~errors.Contended`, as for a deadlock.  Only written rows are
compared, so what a WHERE says of *another* row holds as of a moment ago; all that we say there
(an engine has ended, an engine is alive) may be late without harm.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from oslo_db import exception as db_exception
from oslo_db.sqlalchemy import exc_filters
from sqlalchemy import event

from heat_liveness import errors

_DRIVERS = {'mysql': 'mysql+pymysql', 'mariadb': 'mariadb+pymysql',
            'postgresql': 'postgresql+psycopg', 'sqlite': 'sqlite+pysqlite'}
_IDLE_SECONDS = 10
"""How long a server waits for the next statement of a transaction.

The rows that a machine has locked when it loses its power are free again after that, and not when
the server's TCP finds out, which is hours later.
"""

# The last is no DBError: a text with half a character in it, which no database takes.
_ERRORS = (sa.exc.SQLAlchemyError, db_exception.DBError, OSError,
           db_exception.DBInvalidUnicodeParameter)

_CERTAIN = (db_exception.DBDeadlock, db_exception.DBDuplicateEntry,
            db_exception.DBReferenceError, db_exception.DBConstraintError,
            db_exception.DBDataError, db_exception.DBInvalidUnicodeParameter,
            db_exception.DBNonExistentTable, db_exception.DBNonExistentDatabase)
# PostgreSQL: lock not available, privileges, read-only; and what begins with 22 or 23: data
# that does not fit a column or a constraint.
_CERTAIN_SQLSTATES = ('55P03', '42501', '25006', '22', '23')
# MySQL: privileges on a table or column, read-only server, no such table, unknown column.
_CERTAIN_MYSQL = {1142, 1143, 1290, 1792, 1146, 1054}
_CONTENDED_MYSQL = 1213
_CONTENDED_SQLSTATES = {'40001', '40P01'}
# A node without a quorum, before and amid a transaction, and a server that only reads: a proxy
# has a better one, for those who connect again.
_MISPLACED_MYSQL = {1047, 1180, 1290, 1792}
_MISPLACED_SQLSTATE = '25006'

_TRIES = 5
P = ParamSpec('P')
T = TypeVar('T')


def again_if_contended(transaction: Callable[P, T]) -> Callable[P, T]:
    """Let a function that is one transaction be called again when another one was first.

    The database has rolled it back whole.  On Galera that is how those wait for each other
    who elsewhere would wait for a row lock; somebody has won each time, so it ends.
    """
    @functools.wraps(transaction)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(_TRIES - 1):
            with contextlib.suppress(errors.Contended):
                return transaction(*args, **kwargs)
        return transaction(*args, **kwargs)
    return call


def parse_url(text: str | None, parameters: str | None = None) -> sa.URL:
    """Check an operator's database URL and choose the driver whose waits can be bounded.

    :param parameters: what oslo.db's ``connection_parameters`` adds, as in ``ssl_ca=/ca.pem``
    :raises ConfigError: no URL, one that cannot be parsed, or a database not supported
    """
    if not text:
        raise errors.ConfigError(
            'There is no database: set [database] connection to its URL, or give the '
            'configuration file that holds it with --config-file.')
    try:
        url = sa.make_url(text).update_query_string(parameters or '')
    except (sa.exc.ArgumentError, ValueError):
        raise errors.ConfigError(
            '[database] connection is not a database URL; it should look like '
            'mysql+pymysql://USER:PASSWORD@HOST/DATABASE.') from None
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise errors.ConfigError(
            f'[database] connection names the database {backend!r}: use mysql, postgresql or '
            f'sqlite.')
    if backend == 'sqlite' and url.database in {None, '', ':memory:'}:
        raise errors.ConfigError(
            '[database] connection names an SQLite database in memory, which engines cannot '
            'share: name a file, as in sqlite:////var/lib/liveness.db.')
    if backend != 'sqlite' and '@' in f'{url.host}{url.database}':
        # The part behind it would be shown as the host's name.
        raise errors.ConfigError(
            '[database] connection has an @ too many: write one in a password as %40.')
    return url.set(drivername=_DRIVERS[backend])


class Database:
    """One database, as one process uses it.  No connection is made before the first use."""

    def __init__(self, url: str | None, *, parameters: str | None = None,
                 connect_timeout: float = 2.0, read_timeout: float = 3.0,
                 connections: int = 20) -> None:
        """Prepare connections.

        :param parameters: more of the URL's query
        :param connect_timeout: seconds one connect may take
        :param read_timeout: seconds one read or write may take
        :param connections: the most that may be open at a time in each of two pools
        :raises ConfigError: the URL cannot be used, or its driver is not installed
        """
        self.url = parse_url(url, parameters)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self.name = self.url.set(query={}).render_as_string(hide_password=True)
        self.backend = self.url.get_backend_name().replace('mariadb', 'mysql')
        # Two pools, as changing a connection from one use to the other costs round trips.
        pool: dict[str, Any] = {} if self.backend == 'sqlite' else {
            'pool_size': connections, 'max_overflow': 0,
            'pool_timeout': connect_timeout + read_timeout}
        self.engine = self._create_engine(**pool)
        self._autocommit = self._create_engine(isolation_level='AUTOCOMMIT', **pool)
        # What is dedicated must be had when all others are in use.
        self._dedicated = self._create_engine(isolation_level='AUTOCOMMIT', poolclass=sa.NullPool)
        if self.backend == 'sqlite':
            event.listen(self.engine, 'begin', _begin_immediate)
        self.galera = False
        """Whether the server that was connected to last is a node of Galera."""

    def _create_engine(self, **options: Any) -> sa.Engine:
        try:
            engine = sa.create_engine(
                self.url, pool_pre_ping=True, hide_parameters=True,
                connect_args=self._connect_args(), **options)
        except ImportError as error:
            raise errors.ConfigError(
                f'The database {self.name} cannot be used: {error}. For PostgreSQL install '
                f'psycopg, for MySQL and MariaDB install PyMySQL.') from error
        except (sa.exc.ArgumentError, TypeError, ValueError) as error:
            raise errors.ConfigError(
                f'The database {self.name} cannot be used: {sentence(error)} See to what stands '
                f'behind the ? in [database] connection, and to connection_parameters.') from error
        # Before those of oslo.db, the first of which that raises ends the row.
        event.listen(engine, 'handle_error', _drop_if_misplaced)
        exc_filters.register_engine(engine)
        if self.backend == 'postgresql':
            # Imported here, as psycopg is there only where PostgreSQL is used.
            from heat_liveness.db import postgresql
            event.listen(engine, 'do_connect', postgresql.connector(self._read_timeout))
        else:
            event.listen(engine, 'connect', getattr(self, f'_set_up_{self.backend}'))
        return engine

    @property
    def _lock_wait(self) -> int:
        """Seconds a statement waits for a row lock: the server gives up before we do."""
        return max(1, math.floor(self._read_timeout) - 1)

    def _connect_args(self) -> dict[str, Any]:
        if self.backend == 'mysql':
            return {'charset': 'utf8mb4', 'connect_timeout': self._connect_timeout,
                    'read_timeout': self._read_timeout, 'write_timeout': self._read_timeout}
        if self.backend == 'postgresql':
            return {'connect_timeout': math.ceil(self._connect_timeout),
                    'options': f'-c lock_timeout={self._lock_wait}s '
                               f'-c idle_in_transaction_session_timeout={_IDLE_SECONDS}s '
                               f'-c default_transaction_isolation=read\\ committed'}
        return {'timeout': self._read_timeout}

    def _set_up_mysql(self, connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute('SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED')
            # Strict, whatever the server's default: a text that does not fit is refused, not cut.
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {self._lock_wait}, "
                           f"sql_mode = 'TRADITIONAL'")
            cursor.execute("SHOW VARIABLES WHERE Variable_name IN "
                           "('wsrep_on', 'idle_transaction_timeout')")
            found = dict(cursor.fetchall())
            if 'idle_transaction_timeout' in found:
                cursor.execute(f'SET SESSION idle_transaction_timeout = {_IDLE_SECONDS}')
            self.galera = found.get('wsrep_on') == 'ON'
            if self.galera:
                # All but the statements that change the schema.
                cursor.execute('SET SESSION wsrep_sync_wait = 7, wsrep_retry_autocommit = 4')

    def _set_up_sqlite(self, connection: Any, record: object) -> None:
        connection.isolation_level = None
        # One text that is no UTF-8 must not keep all others from being read.
        connection.text_factory = lambda text: text.decode('utf-8', 'replace')
        connection.execute('PRAGMA journal_mode = WAL')
        connection.execute('PRAGMA synchronous = FULL')

    @contextlib.contextmanager
    def autocommit(self) -> Iterator[sa.Connection]:
        """Lend a connection on which each statement is a transaction of its own."""
        with self._lend(self._autocommit) as connection, self.outcome():
            yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Lend a connection inside one transaction; it has committed when the block has ended.

        Any exception rolls it back.

        :raises DatabaseError: nothing has happened
        :raises UnclearOutcome: the transaction may have committed, or may do so yet
        """
        with self._lend(self.engine) as connection, self.outcome(), connection.begin():
            yield connection

    def dedicated(self) -> sa.Connection:
        """Open a connection that the caller keeps: autocommit, of no pool, no ping before use.

        :raises DatabaseError: the database cannot be reached
        """
        with self._connecting():
            return self._dedicated.connect()

    def close(self) -> None:
        """Close the connections that are in nobody's hands."""
        self.engine.dispose()
        self._autocommit.dispose()

    @contextlib.contextmanager
    def _lend(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        with self._connecting():
            connection = engine.connect()
        try:
            yield connection
        finally:
            _give_back(connection)

    @contextlib.contextmanager
    def _connecting(self) -> Iterator[None]:
        """Whatever goes wrong before the first statement is certain: nothing was sent."""
        try:
            yield
        except (*_ERRORS,
                # What PyMySQL says of a parameter in the URL that it does not know, or of a value.
                TypeError, ValueError, AttributeError, LookupError) as error:
            raise errors.DatabaseError(
                f'The database {self.name} cannot be reached: {sentence(error)}') from error

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Turn an error of the database into one that says whether something may have happened.

        :raises DatabaseError: nothing has happened
        :raises Contended: and it may be done again at once
        :raises DataRefused: nor will it, with this value
        :raises UnclearOutcome: nothing is known
        :raises SchemaError: the tables are missing
        """
        try:
            yield
        except _ERRORS as error:
            text = sentence(error)
            if _is_missing_table(error):
                raise errors.SchemaError(_missing(text, self.name)) from error
            if _is_contended(error):
                raise errors.Contended(
                    f'Another transaction in {self.name} was first: {text}') from error
            if isinstance(error, db_exception.DBDuplicateEntry):
                raise errors.LockHeld(f'The row exists already in {self.name}.') from error
            if _is_about_data(error):
                raise errors.DataRefused(
                    f'The database {self.name} refused a value: {text}') from error
            if _is_certain(error):
                raise errors.DatabaseError(
                    f'The database {self.name} refused: {text}') from error
            raise errors.UnclearOutcome(
                f'The database {self.name} gave no clear answer: {text}') from error


def _give_back(connection: sa.Connection) -> None:
    """Return a connection to its pool, if its server is there still.

    What became of the statements is known by now: an error of the rollback that closing makes says
    nothing about them, and nobody could tell it from one of theirs.  SQLAlchemy has dropped the
    connection when it raises.
    """
    with contextlib.suppress(sa.exc.SQLAlchemyError, db_exception.DBError, OSError):
        connection.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql('BEGIN IMMEDIATE')


def _cause(error: BaseException) -> BaseException:
    """Return the driver's own exception behind those of the layers above it."""
    inner = getattr(error, 'inner_exception', None) or getattr(error, 'orig', None)
    return _cause(inner) if inner is not None and inner is not error else error


def _is_missing_table(error: BaseException) -> bool:
    cause = _cause(error)
    return (isinstance(error, db_exception.DBNonExistentTable)
            or getattr(cause, 'sqlstate', None) == '42P01'
            or (bool(cause.args) and cause.args[0] == 1146))


def _missing(text: str, name: str) -> str:
    """Say what to do about a missing table, which each database names in its own way."""
    table = re.search(r"""(?:no such table: |Table '|relation ")(?:[^'"\s]*\.)?(\w+)""", text)
    if table is None or table[1].startswith('liveness_'):
        return f'The tables are missing in {name}: run "heat-liveness-manage db sync".'
    return (f'The table {table[1]} is missing in {name}: it belongs to the service whose work this '
            f'is. Give the configuration of that service, or have it create its tables.')


def _drop_if_misplaced(context: sa.engine.ExceptionContext) -> None:
    cause = _cause(context.original_exception)
    if ((bool(cause.args) and cause.args[0] in _MISPLACED_MYSQL)
            or getattr(cause, 'sqlstate', None) == _MISPLACED_SQLSTATE):
        context.is_disconnect = True


def _is_contended(error: BaseException) -> bool:
    cause = _cause(error)
    return (getattr(cause, 'sqlstate', None) in _CONTENDED_SQLSTATES
            or (bool(cause.args) and cause.args[0] == _CONTENDED_MYSQL))


def _is_about_data(error: BaseException) -> bool:
    state = getattr(_cause(error), 'sqlstate', None) or ''
    return (isinstance(error, db_exception.DBDataError | db_exception.DBInvalidUnicodeParameter)
            or state.startswith('22'))


def _is_certain(error: BaseException) -> bool:
    cause = _cause(error)
    return (isinstance(error, (*_CERTAIN, sa.exc.TimeoutError, sa.exc.ArgumentError))
            or (getattr(cause, 'sqlstate', None) or '').startswith(_CERTAIN_SQLSTATES)
            or (bool(cause.args) and cause.args[0] in _CERTAIN_MYSQL)
            or getattr(cause, 'sqlite_errorname', '').startswith(('SQLITE_BUSY', 'SQLITE_READONLY',
                                                                  'SQLITE_LOCKED')))


def sentence(error: BaseException) -> str:
    """Say in one line, without passwords, what a driver has to say."""
    cause = _cause(error)
    args = cause.args
    text = f'{args[1]} ({args[0]})' if len(args) == 2 and isinstance(args[0], int) else str(cause)
    if isinstance(cause, FileNotFoundError):
        # Python's ssl does not say which one.
        text = f'A file that the URL or connection_parameters name is not there: {text}'
    text = re.sub(r'://[^@\s]*@', '://***@', ' '.join(text.split()))
    text = re.sub(r'\b(password|passwd)=[^&\s]*', r'\1=***', text)
    return text.rstrip('.') + '.'
