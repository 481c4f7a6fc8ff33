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

"""One stack: what a user can ask heat-api to do with it, and what Heat's database says of it."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tests.heat.lab.patience import wait_until
from tests.heat.lab.place import LabError

if TYPE_CHECKING:
    from tests.heat.lab.fleet import Fleet

GONE = 'gone'
STATE_SECONDS = 240.0
WRONG_SECONDS = 45.0
"""How long a stack may stand in a state that is neither wanted nor in progress.

An agent sees a delete that failed at its project in its next sweep, and then asks Keystone.
"""


class Stack:
    """A stack in a fleet; ``create`` or ``adopt`` makes it.

    The options of ``create``, ``update`` and ``adopt`` are those of the interface:
    ``disable_rollback`` (true), ``timeout_mins`` (60), ``environment``, ``files``.
    """

    def __init__(self, fleet: 'Fleet', name: str) -> None:
        self.name = name
        self._fleet = fleet
        self._id = ''

    @property
    def id(self) -> str:
        """Its id, also where nobody told it to the user."""
        if not self._id:
            self._id = str(self._rows('id')[0]['id'])
        return self._id

    def create(self, template: Mapping[str, object], **options: object) -> None:
        self._ask('POST', 'stacks', self._body(template, options))

    def adopt(self, data: str, template: Mapping[str, object], **options: object) -> None:
        self._ask('POST', 'stacks', {**self._body(template, options), 'adopt_stack_data': data})

    def update(self, template: Mapping[str, object], **options: object) -> None:
        self._ask('PUT', self._path, self._body(template, options))

    def delete(self) -> None:
        self._ask('DELETE', self._path)

    def suspend(self) -> None:
        self._act('suspend')

    def resume(self) -> None:
        self._act('resume')

    def check(self) -> None:
        self._act('check')

    def cancel(self, *, rollback: bool = True) -> None:
        self._act('cancel_update' if rollback else 'cancel_without_rollback')

    def snapshot(self) -> str:
        """Begin a snapshot and return its id."""
        return str(self._ask('POST', f'{self._path}/snapshots', {})['id'])

    def restore(self, snapshot_id: str) -> None:
        self._ask('POST', f'{self._path}/snapshots/{snapshot_id}/restore')

    def abandon(self) -> Any:
        """Abandon it and return what an adoption needs."""
        return self._ask('DELETE', f'{self._path}/abandon')

    def abandon_unheard(self) -> None:
        """Abandon it through an engine that may not live to answer."""
        unheard(self.abandon)

    def export(self) -> Any:
        return self._ask('GET', f'{self._path}/export')

    @property
    def row(self) -> dict[str, Any]:
        """Heat's row, be it soft-deleted."""
        return self._fleet.sql('SELECT * FROM stack WHERE id = %s', self.id)[0]

    @property
    def state(self) -> str:
        """Action and status, or ``gone``; nothing, if it never was."""
        rows = self._rows('action, status, deleted_at')
        return state_of(rows[0]) if rows else ''

    @property
    def family(self) -> list[str]:
        """Its id and those of the stacks nested in it."""
        found = [self.id]
        for each in found:
            found += [row['id'] for row in self._fleet.sql(
                'SELECT id FROM stack WHERE owner_id = %s', each)]
        return found

    @property
    def resources(self) -> list[dict[str, Any]]:
        """Heat's rows of its resources, and of those of the stacks nested in it."""
        family = self.family
        return [row for row in self._fleet.resources if row['stack_id'] in family]

    def wait_for(self, state: str, timeout_seconds: float = STATE_SECONDS) -> None:
        """Wait until it has a state.

        Raises
        ------
        AssertionError
            The time is over, or it has long had another state in which nothing happens.
        """
        since: tuple[str, float] = ('', 0.0)

        def arrived() -> bool:
            nonlocal since
            now = self.state
            if now == state:
                return True
            # Heat is still at it, and asks Keystone, when a stack is already DELETE_COMPLETE.
            if now.endswith('_IN_PROGRESS') or now == 'DELETE_COMPLETE' or now != since[0]:
                since = now, time.monotonic()
            assert time.monotonic() < since[1] + WRONG_SECONDS, (
                f'{self.name} is {now}, not {state}: {self.row["status_reason"]}')
            return False

        try:
            wait_until(arrived, timeout_seconds, f'{state} of {self.name}')
        except AssertionError as late:
            raise AssertionError(f'{late} {self.describe()}') from late

    def describe(self) -> str:
        """Say how it stands, for whoever reads that a test failed."""
        lines = [f'It is {self.state or "nowhere"}']
        if self.state:
            lines[0] += f': {self.row["status_reason"]}'
            lines += [' '.join(str(row[each]) for each in (
                'id', 'name', 'action', 'status', 'engine_id', 'atomic_key', 'replaces',
                'replaced_by')) for row in self.resources]
        return '\n  '.join(lines)

    @property
    def _path(self) -> str:
        return f'stacks/{self.name}/{self.id}'

    def _act(self, action: str) -> None:
        self._ask('POST', f'{self._path}/actions', {action: None})

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        return self._fleet.lab.ask(method, path, body)

    def _body(self, template: Mapping[str, object],
              options: Mapping[str, object]) -> dict[str, object]:
        return {'stack_name': self.name, 'template': template, 'timeout_mins': 60,
                'disable_rollback': True, **options}

    def _rows(self, columns: str) -> list[dict[str, Any]]:
        # Heat makes the name of a deleted stack free; within a fleet no name is used twice.
        return self._fleet.sql(f'SELECT {columns} FROM stack WHERE name = %s '
                               f'ORDER BY created_at DESC LIMIT 1', self.name)


def state_of(row: Mapping[str, Any]) -> str:
    """Return what a row of Heat's says: action and status, or ``gone``."""
    state = f'{row["action"]}_{row["status"]}'
    return GONE if row['deleted_at'] and state == 'DELETE_COMPLETE' else state


def unheard(request: Callable[[], object]) -> None:
    """Send a request whose answer may never come, as its engine may be struck first."""
    def send() -> None:
        with contextlib.suppress(LabError, OSError):
            request()

    threading.Thread(target=send, daemon=True).start()
