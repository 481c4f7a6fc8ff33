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

"""What a run looks like while it goes on: a live view, or plain lines."""

import dataclasses
import sys
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

EVENTS = 7
"""How many of the latest events the live view shows."""
BAR_COLUMNS = 44
LONGEST_HOLDS_COLUMNS = 30

_COLOURS = {'up': 'green', 'draining': 'green', 'starting': 'cyan', 'left': 'bright_black',
            'stopped': 'yellow', 'killed': 'red', 'ended': 'red', 'dead': 'red'}


@dataclasses.dataclass(frozen=True)
class EngineLine:
    """One engine, as it looks now."""

    name: str
    pid: int
    state: str
    beat_age_seconds: float | None
    holds: Sequence[str]
    taken: int
    """Locks it has taken over so far."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """The run, as it looks now."""

    seconds: float
    done: int
    total: int
    engines: Sequence[EngineLine]

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1."""
        return self.done / self.total


class View(Protocol):
    """Shows a run."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Leave the last picture standing."""

    def say(self, seconds: float, text: str, style: str = '') -> None:
        """Tell what has happened.

        :param seconds: since the run began
        :param style: ``bad``, ``good`` or none
        """

    def show(self, picture: Picture) -> None:
        """Show how it looks now."""


def create(title: str, *, live: bool) -> View:
    """Return the live view if it is wanted and can be shown, else plain lines."""
    if live and sys.stdout.isatty():
        try:
            return Live(title)
        except ImportError:
            print('For the live view install rich: pip install heat-liveness[demo]')
    return Lines(title)


class Lines:
    """One line for each event, and for each tenth of the work."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._tenths = 0

    def __enter__(self) -> Self:
        """Print the title."""
        print(self._title, flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Do nothing: what is printed stays."""

    def say(self, seconds: float, text: str, style: str = '') -> None:
        print(f'{seconds:6.1f} s  {text}', flush=True)

    def show(self, picture: Picture) -> None:
        tenths = int(picture.fraction * 10)
        if tenths > self._tenths:
            self._tenths = tenths
            self.say(picture.seconds,
                     f'{picture.done} of {picture.total} resources are done '
                     f'({picture.fraction:.0%}).')


class Live:
    """Who is up, who holds what, how far it is, and what happened last.

    :raises ImportError: rich is not installed
    """

    def __init__(self, title: str) -> None:
        from rich import live
        self._title = title
        self._events: deque[tuple[float, str, str]] = deque(maxlen=EVENTS)
        self._live = live.Live(auto_refresh=False)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Give the terminal back."""
        self._live.__exit__(kind, error, trace)

    def say(self, seconds: float, text: str, style: str = '') -> None:
        self._events.append((seconds, text, {'bad': 'red', 'good': 'green'}.get(style, '')))

    def show(self, picture: Picture) -> None:
        from rich import console, padding, text
        parts = console.Group(
            text.Text(self._title, style='bold'), '', self._bar(picture),
            self._engines(picture.engines), self._latest())
        self._live.update(padding.Padding(parts, (1, 2)), refresh=True)

    @staticmethod
    def _bar(picture: Picture) -> Any:
        from rich import progress_bar, table, text
        row = table.Table.grid(padding=(0, 2))
        row.add_row(
            progress_bar.ProgressBar(picture.total, picture.done, width=BAR_COLUMNS,
                                     complete_style='green', finished_style='green'),
            text.Text(f'{picture.done} of {picture.total} resources'),
            text.Text(f'{picture.seconds:.0f} s', style='bright_black'))
        return row

    @staticmethod
    def _engines(lines: Sequence[EngineLine]) -> Any:
        from rich import box, table, text
        grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style='bright_black',
                           padding=(0, 2, 0, 0))
        grid.add_column('engine', no_wrap=True, min_width=9)
        grid.add_column('pid', justify='right', style='bright_black', no_wrap=True, min_width=7)
        grid.add_column('state', min_width=9)
        grid.add_column('last beat', justify='right', min_width=9)
        grid.add_column('taken', justify='right')
        grid.add_column('holds', min_width=LONGEST_HOLDS_COLUMNS, no_wrap=True,
                        overflow='ellipsis')
        for line in lines:
            colour = _COLOURS.get(line.state, '')
            gone = line.state in {'dead', 'left'}
            age = '' if line.beat_age_seconds is None or gone else f'{line.beat_age_seconds:.1f} s'
            grid.add_row(
                text.Text(line.name, style='bright_black' if gone else 'bold'), str(line.pid),
                text.Text(f'● {line.state}', style=colour), age,
                str(line.taken) if line.taken else '', text.Text(', '.join(line.holds)))
        return grid

    def _latest(self) -> Any:
        from rich import table, text
        grid = table.Table.grid(padding=(0, 2))
        grid.add_column(justify='right', style='bright_black', no_wrap=True, min_width=7)
        grid.add_column(no_wrap=True, overflow='ellipsis')
        for seconds, event, colour in self._events:
            grid.add_row(f'{seconds:.1f} s', text.Text(event, style=colour))
        for _ in range(EVENTS - len(self._events)):
            grid.add_row('', '')
        return grid
