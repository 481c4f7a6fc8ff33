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

"""A look into the databases of the lab, past Heat and past the package under test."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pymysql
import sqlalchemy as sa
from pymysql import cursors


@contextlib.contextmanager
def connect(url: str) -> Iterator[cursors.DictCursor]:
    """Open a connection that commits each statement, and lend its cursor."""
    where = sa.make_url(url)
    connection = pymysql.connect(
        host=where.host, port=where.port or 0, user=where.username, password=where.password or '',
        database=where.database, autocommit=True, connect_timeout=5, read_timeout=30,
        ssl_disabled=True, cursorclass=cursors.DictCursor)
    with connection, connection.cursor() as cursor:
        yield cursor


def query(url: str, statement: str, arguments: Sequence[object] = ()) -> list[dict[str, Any]]:
    """Run one statement and return its rows."""
    with connect(url) as cursor:
        cursor.execute(statement, arguments or None)
        return list(cursor.fetchall())
