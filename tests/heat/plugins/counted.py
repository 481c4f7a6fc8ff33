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

"""``Liveness::Test::Counted``: a resource that writes down each run of its handlers.

What Heat's database says in the end is the same whether a handler ran once or twice; what
the handlers themselves wrote down is not.
"""

import json
import os
import pathlib
import time
import uuid
from typing import Any

from heat.engine import attributes, properties, resource

FOLDER = 'COUNTED_FOLDER'
"""The variable that names the folder for the file ``runs`` and for the gates."""


class Counted(resource.Resource):
    """A resource that takes its time and counts."""

    PROPERTIES = (VALUE, CREATE_SECONDS, GATE, LATE_ID) = (
        'value', 'create_seconds', 'gate', 'late_id')
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
        if time.monotonic() < deadline or (gate and not (_folder() / gate).exists()):
            return False
        if self.resource_id is None:
            self.resource_id_set(str(uuid.uuid4()))
        self._count('complete')
        return True

    def handle_update(self, json_snippet: Any, tmpl_diff: Any, prop_diff: Any) -> None:
        self._count('update')

    def handle_delete(self) -> None:
        self._count('delete')

    def _resolve_attribute(self, name: str) -> Any:
        return self.properties[self.VALUE]

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


def _folder() -> pathlib.Path:
    return pathlib.Path(os.environ[FOLDER])


def resource_mapping() -> dict[str, type[resource.Resource]]:
    return {'Liveness::Test::Counted': Counted}
