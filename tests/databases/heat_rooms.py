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

"""The rooms of the bridge that ask something of Heat's code, where there is no Heat."""

import importlib
import sys
import types
from typing import Any

import pytest

import heat_liveness.heat as house

_WITH_HEAT = ('delivery', 'work', 'observed', 'recover')


class Rooms:
    """These rooms, and an answer to each thing that they ask, which a test may replace."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Any = types.ModuleType('heat_liveness.heat.calls')
        self.calls.GRAPHLESS = frozenset()
        self.calls.OUTAGES = (ConnectionError,)
        self.calls.ping = lambda engine_id: True
        self.calls.load = lambda stack_id: None
        self.calls.wait_for_traversals = lambda: None
        monkeypatch.setitem(sys.modules, self.calls.__name__, self.calls)
        monkeypatch.setattr(house, 'calls', self.calls, raising=False)
        for name in _WITH_HEAT:
            monkeypatch.delitem(sys.modules, f'heat_liveness.heat.{name}', raising=False)
            monkeypatch.setattr(house, name, None, raising=False)
            monkeypatch.setattr(house, name, importlib.import_module(f'heat_liveness.heat.{name}'))
        found: Any = house
        self.delivery, self.work = found.delivery, found.work
        self.observed, self.recover = found.observed, found.recover
        options = types.SimpleNamespace(enable_stack_abandon=False, stack_action_timeout=3600,
                                        action_retry_limit=5)
        monkeypatch.setattr(self.work.cfg, 'CONF', options)

    @staticmethod
    def close() -> None:
        """Whoever comes behind imports the rooms with calls of his own."""
        for name in _WITH_HEAT:
            sys.modules.pop(f'heat_liveness.heat.{name}', None)
