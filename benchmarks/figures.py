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

"""What a measurement reports, and how it is shown."""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import prettytable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """How one way of doing something has done, beside the way it is compared with."""

    measurement: str
    database: str
    way: str
    per_second: float
    """Median of the turns."""
    ratio: float
    """Median, turn by turn, of this way's rate by that of the first way."""
    ratios: tuple[float, float]
    """The lowest and the highest of these."""
    turns: int
    notes: Mapping[str, Any]


def compare(measurement: str, database: str, rates: Mapping[str, Sequence[float]],
            notes: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Compare each way with the first.

    Parameters
    ----------
    rates : mapping of sequences of float
        Of each way, its rate in each turn.
    notes : mapping of mappings
        Of some of the ways, what else there is to say.
    """
    first = next(iter(rates.values()))
    figures = []
    for way, each in rates.items():
        ratios = [rate / base for rate, base in zip(each, first, strict=True)]
        figures.append(Figure(
            measurement=measurement, database=database, way=way,
            per_second=statistics.median(each), ratio=statistics.median(ratios),
            ratios=(min(ratios), max(ratios)), turns=len(each), notes=notes.get(way, {})))
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Draw the figures, a block for each measurement on each database."""
    drawn = prettytable.PrettyTable(
        ['measurement', 'database', 'way', 'per second', 'ratio', 'lowest', 'highest', 'notes'])
    drawn.set_style(prettytable.TableStyle.MARKDOWN)
    drawn.align = 'r'
    for column in ('measurement', 'database', 'way', 'notes'):
        drawn.align[column] = 'l'
    for figure in figures:
        drawn.add_row([
            figure.measurement, figure.database, figure.way, _short(figure.per_second),
            *map(_short, (figure.ratio, *figure.ratios)),
            ', '.join(f'{key} {_told(value)}' for key, value in figure.notes.items())])
    return drawn.get_string()


def write(path: pathlib.Path, figures: Sequence[Figure], servers: Mapping[str, str]) -> None:
    """Write the figures, and what they were taken on, as JSON."""
    path.write_text(json.dumps({
        'processors': os.cpu_count(), 'machine': platform.machine(),
        'python': platform.python_version(), 'databases': servers,
        'figures': [dataclasses.asdict(figure) for figure in figures]}, indent=2) + '\n')


def _short(number: float) -> str:
    return f'{number:,.0f}'.replace(',', ' ') if number >= 100 else f'{number:.2f}'


def _told(value: object) -> str:
    if isinstance(value, float):
        return f'{value:g}'
    return '/'.join(map(str, value)) if isinstance(value, list) else str(value)
