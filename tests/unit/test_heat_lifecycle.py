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


"""What Heat's threads are told by the lifecycle, however the engine stands; it never raises."""

import types
from collections.abc import Callable
from typing import Any

import pytest
from oslo_config import cfg

from heat_liveness import conf, errors
from heat_liveness.heat import lifecycle
from heat_liveness.heat.lifecycle import EngineLifecycle


class Work:
    """A work store that answers, or fails."""

    def __init__(self, answer: Callable[..., bool]) -> None:
        self.replaced = answer
        self.delivery = types.SimpleNamespace(
            use=answer, again=lambda resource_id, traversal, is_update: answer(resource_id),
            sends=lambda resource_id, traversal, is_update: answer(resource_id))


def life(answer: Callable[..., bool] = lambda *_: True, *, joined: bool = True,
         waits: Callable[[], object] = lambda: None) -> EngineLifecycle:
    found = EngineLifecycle(cfg.ConfigOpts(), conf.Settings())
    live: Any = types.SimpleNamespace(joined=joined, gate=types.SimpleNamespace(wait=waits))
    found._live, found._work = live, Work(answer)
    return found


def fail(error: Exception) -> Callable[..., bool]:
    def answer(*arguments: object) -> bool:
        raise error
    return answer


AWAY = fail(errors.DatabaseError('The database is away.'))
NO_TABLES = fail(errors.SchemaError('There are no tables.'))


# A message that we have sent.

@pytest.mark.parametrize('used', [True, False])
def test_a_message_is_acted_on_where_its_token_is_used(used: bool) -> None:
    assert life(lambda order_id: used).received(1) == used


def test_a_message_of_which_nothing_is_known_is_not_acted_on() -> None:
    assert not life(AWAY).received(1)


def test_a_message_that_was_sent_again_gets_its_token() -> None:
    assert life(lambda resource_id: 7).token(1, 't1', is_update=True) == 7


def test_a_message_of_which_nothing_is_known_is_one_like_any_other() -> None:
    for engine in (life(AWAY), life(NO_TABLES), life(lambda _: 7, joined=False)):
        assert engine.token(1, 't1', is_update=True) is None


def test_a_message_is_sent_though_it_is_not_known_to_be_no_copy(
        caplog: pytest.LogCaptureFixture) -> None:
    life(AWAY).sends(1, 't1', is_update=True)
    record, = caplog.records
    assert 'may be taken for a copy' in record.getMessage()
    life().sends(1, 't1', is_update=True)
    EngineLifecycle(cfg.ConfigOpts(), conf.Settings()).sends(1, 't1', is_update=True)
    assert caplog.records == [record]


def test_an_engine_that_has_not_joined_acts_on_no_message_and_waits_for_nothing(
        caplog: pytest.LogCaptureFixture) -> None:
    """It is sent again, and may come to another then."""
    gate = fail(AssertionError('It waits at the gate.'))
    assert not life(joined=False, waits=gate).received(1)
    record, = caplog.records
    assert record.levelname == 'WARNING'
    assert 'this engine has not joined' in record.message


def test_an_engine_in_which_liveness_is_off_acts_on_each_message(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the only one, the order would otherwise hang for ever."""
    off = EngineLifecycle(cfg.ConfigOpts(), conf.Settings())

    def no_timer(*_: object) -> None:
        raise errors.ConfigError('The kernel gives no timer.')

    monkeypatch.setattr(conf, 'reloaded', no_timer)
    off.starting('me', 'host', 'host', 'heat-engine', 'engine')
    assert off.received(1)
    off.checked(1, None)


# What was replaced.

@pytest.mark.parametrize('answer', [True, False])
def test_it_is_told_what_was_replaced(answer: bool) -> None:
    assert life(lambda *_: answer).replaced(1, 2) == answer


@pytest.mark.parametrize('answer', [True, False])
def test_while_the_database_is_away_it_waits_at_the_gate_and_asks_again(
        monkeypatch: pytest.MonkeyPatch, *, answer: bool) -> None:
    """Its check is used up where it ends, and replaces once more where it goes on."""
    monkeypatch.setattr(lifecycle, '_ASK_AGAIN_SECONDS', 0)
    said = []

    def away_twice(*_: object) -> bool:
        said.append('asked')
        return answer if said.count('asked') == 3 else AWAY()

    assert life(away_twice, waits=lambda: said.append('waited')).replaced(1, 2) == answer
    assert said == ['waited', 'asked'] * 3


def test_a_fault_of_ours_hinders_no_replacement() -> None:
    assert not life(NO_TABLES).replaced(1, 2)
    assert not life(fail(ValueError('a fault'))).replaced(1, 2)
    assert not life(joined=False).replaced(1, 2)
