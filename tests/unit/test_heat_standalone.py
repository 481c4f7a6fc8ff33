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

"""What is refused before agent or command begin: what of Heat's they cannot use."""

import sys
import types
from typing import Any

import pytest
from oslo_config import cfg

from heat_liveness import errors
from heat_liveness.heat import standalone


class MessagingError(Exception):
    """As oslo.messaging's own."""


class Queue:
    """Heat's way to the message queue."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.is_set_up = False

    def setup(self) -> None:
        if self.error is not None:
            raise self.error
        self.is_set_up = True

    def cleanup(self) -> None:
        self.is_set_up = False


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    found: Any = Queue()
    for name, content in {
            'oslo_messaging': {'MessagingException': MessagingError}, 'heat': {},
            'heat.common': {'config': None, 'messaging': found},
            'heat.engine': {'resources': types.SimpleNamespace(initialise=lambda: None)}}.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(standalone, 'cfg', types.SimpleNamespace(
        CONF=lambda *arguments, **more: None, Error=cfg.Error))
    return found


CONFIGURATION = types.SimpleNamespace(config_file=[], config_dir=[])


@pytest.mark.parametrize('error', [
    MessagingError('No scheme in u:geheim@h'), ValueError('u:geheim@h:port')])
def test_a_message_queue_that_cannot_be_used_is_one_sentence(
        queue: Queue, error: Exception) -> None:
    queue.error = error
    with pytest.raises(errors.ConfigError, match='see to transport_url') as refused:
        standalone.check(CONFIGURATION)
    assert 'geheim' not in str(refused.value)


def test_nothing_of_it_crosses_the_fork(queue: Queue) -> None:
    standalone.check(CONFIGURATION)
    assert not queue.is_set_up
    standalone._prepare(CONFIGURATION)
    assert queue.is_set_up
