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

"""What psycopg lacks: bounded waits for a query, and patience with times that Python has not.

A frozen server goes on acknowledging packets, so neither keepalives nor
``tcp_user_timeout`` notice it, and ``statement_timeout`` is the server's to serve.  psycopg
waits in small steps and tells its generator each time that nothing came; this connection
looks at the clock then.

An infinite time, or one before the year 1 or after 9999, is read as None: see :mod:`.times`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import waiting
from psycopg.types import datetime as psycopg_datetime

from heat_liveness import clock as clocks


def connector(read_timeout: float) -> Callable[..., 'psycopg.Connection[Any]']:
    """Return what SQLAlchemy calls to connect; no wait lasts longer than ``read_timeout``."""

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
            try:
                return super().wait(_bounded(gen, read_timeout), *args, **options)
            except _TimedOut:
                # Its state is unknown, so it must not go back to a pool.
                self.close()
                raise

    def connect(dialect: object, record: object, arguments: Sequence[Any],
                options: Mapping[str, Any]) -> psycopg.Connection[Any]:
        connection = BoundedConnection.connect(*arguments, **options)
        connection.adapters.register_loader('timestamp', _TolerantLoader)
        return connection

    return connect


class _TolerantLoader(psycopg_datetime.TimestampLoader):
    def load(self, data: Any) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return None


class _TimedOut(psycopg.OperationalError):
    """The server did not answer in time."""


def _bounded(gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """Pass a generator of psycopg's on; end it when nothing came for so many seconds."""
    clock = clocks.BootClock()
    try:
        wanted = next(gen)
        since = clock.now()
        while True:
            ready = yield wanted
            if ready != waiting.Ready.NONE:
                since = clock.now()
            elif clock.now() - since > seconds:
                raise _TimedOut(f'the server did not answer within {seconds:g} s (timed out)')
            wanted = gen.send(ready)
    except StopIteration as stop:
        return stop.value
