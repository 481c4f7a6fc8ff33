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

"""How the commands show what they found: for eyes, or for programs.

``json`` and ``csv`` name the columns as the database does; ``table`` gives them titles;
``value`` has no names, one line a row.  Times are UTC, in ISO 8601 for programs.
"""

import csv
import datetime
import io
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

FORMATS = ('table', 'json', 'csv', 'value')

Record = Mapping[str, Any]


def several(form: str, columns: Sequence[str], records: Collection[Record]) -> str:
    """Render rows, of each only ``columns``."""
    if form == 'json':
        return _json([{name: record[name] for name in columns} for record in records])
    plain = form == 'table'
    rows = [[text(record[name], plain=plain) for name in columns] for record in records]
    if form == 'csv':
        return _csv([columns, *rows])
    if form == 'value':
        return '\n'.join(' '.join(row).replace('\n', ' ') for row in rows)
    return _table([title(name) for name in columns], rows)


def one(form: str, record: Record) -> str:
    """Render one row with all that it has."""
    if form == 'json':
        return _json(record)
    if form == 'csv':
        return several(form, list(record), [record])
    if form == 'value':
        return '\n'.join(text(value) for value in record.values())
    return _table(['Field', 'Value'], [[title(name), text(value, plain=True)]
                                       for name, value in record.items()])


def warn_of_limit(limit: int, records: Collection[object], which: str) -> None:
    """Say on stderr that there may be more than what is shown."""
    if len(records) >= limit:
        print(f'Only {which} {limit} are shown; see --limit.', file=sys.stderr)


def title(name: str) -> str:
    """Return the title of a column, as Heat writes it."""
    return 'Engine_Id' if name == 'engine_id' else name.replace('_', ' ').title()


def text(value: object, *, plain: bool = False) -> str:
    """Write one value; ``plain`` as Heat does, without the fractions of a second."""
    if value is None:
        return '-'
    if isinstance(value, datetime.datetime):
        return str(value.replace(microsecond=0)) if plain else _iso(value)
    if isinstance(value, str):
        return value
    return json.dumps(value, default=_iso)


def _iso(value: datetime.datetime) -> str:
    return value.isoformat(timespec='microseconds') + 'Z'


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=_iso)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator='\n').writerows(rows)
    return buffer.getvalue().rstrip('\n')


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    import prettytable
    table = prettytable.PrettyTable(titles, align='l')
    table.add_rows([list(row) for row in rows])
    return str(table)
