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

"""Resources that write down each run of their handlers, and wait where a test wants them to.

What Heat's database says in the end is the same whether a handler ran once or twice; what
the handlers themselves wrote down is not.  ``Liveness::Test::Counted`` does nothing else;
``Liveness::Test::Killer`` ends the process that creates it.

A file ``hold-<handler>`` in the folder holds all resources in that handler whose name matches
the pattern that it contains: the handler has begun, the resource is locked, and it is not
complete before the file is gone or says something else.
"""

import fnmatch
import json
import os
import pathlib
import time
import uuid
from typing import Any

from heat.common import exception
from heat.engine import attributes, properties, resource

FOLDER = 'COUNTED_FOLDER'
"""The variable that names the folder for the file ``runs``, for the gates and for the holds."""

POISON = 'poison'
FAIL = 'fail'
"""The value with which a resource can be neither created nor updated."""


class Counted(resource.Resource):
    """A resource that takes its time and counts."""

    PROPERTIES = (VALUE, CREATE_SECONDS, GATE, LATE_ID, IDENTITY) = (
        'value', 'create_seconds', 'gate', 'late_id', 'identity')
    ATTRIBUTES = (OUTPUT,) = ('output',)

    properties_schema = {  # noqa: RUF012 - Heat's own form
        VALUE: properties.Schema(
            properties.Schema.STRING, 'Anything; a new one is an update in place.',
            default='', update_allowed=True),
        CREATE_SECONDS: properties.Schema(
            properties.Schema.NUMBER, 'How long its creation takes.',
            default=0, update_allowed=True),
        GATE: properties.Schema(
            properties.Schema.STRING,
            'Its creation is not complete before a file of this name is there.',
            update_allowed=True),
        LATE_ID: properties.Schema(
            properties.Schema.BOOLEAN,
            'Whether it has its physical id only when its creation is complete.',
            default=False, update_allowed=True),
        IDENTITY: properties.Schema(
            properties.Schema.STRING, 'Anything; a new one replaces the resource.', default=''),
    }
    attributes_schema = {  # noqa: RUF012
        OUTPUT: attributes.Schema('The value.'),
    }

    def handle_create(self) -> float:
        self._count('create')
        if not self.properties[self.LATE_ID]:
            self.resource_id_set(str(uuid.uuid4()))
        return time.monotonic() + float(self.properties[self.CREATE_SECONDS])

    def check_create_complete(self, deadline: float) -> bool:
        gate = self.properties[self.GATE]
        if (time.monotonic() < deadline or (gate and not (_folder() / gate).exists())
                or self._held('create')):
            return False
        self._fail_if_asked(self.properties[self.VALUE])
        if self.resource_id is None:
            self.resource_id_set(str(uuid.uuid4()))
        self._count('complete')
        return True

    def handle_update(self, json_snippet: Any, tmpl_diff: Any, prop_diff: Any) -> Any:
        self._count('update')
        return prop_diff

    def check_update_complete(self, prop_diff: Any) -> bool:
        if self._held('update'):
            return False
        self._fail_if_asked(prop_diff.get(self.VALUE))
        return self._complete('update')

    def handle_delete(self) -> None:
        self._count('delete')

    def check_delete_complete(self, cookie: Any) -> bool:
        return self._complete('delete')

    def handle_suspend(self) -> None:
        self._count('suspend')

    def check_suspend_complete(self, cookie: Any) -> bool:
        return self._complete('suspend')

    def handle_resume(self) -> None:
        self._count('resume')

    def check_resume_complete(self, cookie: Any) -> bool:
        return self._complete('resume')

    def handle_check(self) -> None:
        self._count('check')

    def check_check_complete(self, cookie: Any) -> bool:
        return self._complete('check')

    def handle_snapshot(self) -> None:
        self._count('snapshot')

    def check_snapshot_complete(self, cookie: Any) -> bool:
        return self._complete('snapshot')

    def handle_delete_snapshot(self, snapshot: Any) -> None:
        self._count('delete_snapshot')

    def handle_restore(self, defn: Any, restore_data: Any) -> Any:
        self._count('restore')
        return defn

    def handle_adopt(self, resource_data: Any = None) -> Any:
        self._count('adopt')
        return super().handle_adopt(resource_data)

    def check_adopt_complete(self, cookie: Any) -> bool:
        return self._complete('adopt')

    def handle_create_cancel(self, cookie: Any) -> None:
        self._count('create-cancel')

    def handle_update_cancel(self, cookie: Any) -> None:
        self._count('update-cancel')

    def handle_delete_cancel(self, cookie: Any) -> None:
        self._count('delete-cancel')

    def _resolve_attribute(self, name: str) -> Any:
        return self.properties[self.VALUE]

    def _held(self, handler: str) -> bool:
        try:
            pattern = (_folder() / f'hold-{handler}').read_text()
        except FileNotFoundError:
            return False
        return fnmatch.fnmatchcase(self.name, pattern)

    def _complete(self, handler: str) -> bool:
        if self._held(handler):
            return False
        self._count(f'{handler}-complete')
        return True

    @staticmethod
    def _fail_if_asked(value: str | None) -> None:
        if value == FAIL:
            raise exception.Error('The template asks it to fail')

    def _count(self, handler: str) -> None:
        line = json.dumps({
            'time': time.time(), 'pid': os.getpid(), 'engine_id': self._calling_engine_id,
            'stack': self.stack.id, 'name': self.name, 'row': self.id, 'uuid': self.uuid,
            'physical_id': self.resource_id, 'handler': handler})
        # One write of one short line to a file opened for appending: engines do not mix theirs.
        file = os.open(_folder() / 'runs', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f'{line}\n'.encode())
        finally:
            os.close(file)


class Killer(Counted):
    """A resource whose creation ends the process, as long as a file ``poison`` has its name."""

    def handle_create(self) -> float:
        deadline = super().handle_create()
        if (_folder() / POISON).exists() and fnmatch.fnmatchcase(
                self.name, (_folder() / POISON).read_text()):
            os._exit(1)
        return deadline


def _folder() -> pathlib.Path:
    return pathlib.Path(os.environ[FOLDER])


def resource_mapping() -> dict[str, type[resource.Resource]]:
    return {'Liveness::Test::Counted': Counted, 'Liveness::Test::Killer': Killer}
