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

"""The protocol holds in the model, no guard is idle, and the checker of real runs agrees."""

import random

import pytest

from tests.history import checker
from tests.model import table, telling, words, worlds
from tests.model.config import Config
from tests.model.explore import explore
from tests.model.guards import GUARDS, OUTSIDE, Guard
from tests.model.world import Label, World

# What a history alone does not show: that a beat could have come, that work would have been found
# later, what a taker believes, what work it can do, which work was the poison.
NOT_IN_HISTORIES = {
    'a candidate from the future', 'the owner has ended, in the takeover', 'the claim from itself',
    'claims from itself only what rests', 'claims from itself nothing that it is just acquiring',
    'generation in the claim from itself',
    'owners relieved are asked about again', 'the age of the purge',
    'a second look before the purge', 'purge only what owns nothing', 'one at a time after a death',
    'one at a time from itself, too', 'looks only at its own kind',
    'takes over only work that it has a handler for', 'no judgement of an unknown version'}


@pytest.mark.parametrize('guard', GUARDS, ids=lambda guard: guard.name)
def test_with_all_guards_nothing_is_broken_and_without_one_what_the_table_says(
        guard: Guard) -> None:
    whole = explore(guard.config)
    assert (whole.complete, whole.sentence) == (True, '')
    without = explore(guard.config, guard.name)
    assert without.invariant == guard.invariant
    assert (guard.invariant is None) == bool(guard.reason)
    page = table.PATH.read_text(encoding='utf-8')
    assert table.line(guard, whole, without) in page
    for step in words.story(without.trace):
        assert step in page
    if guard.invariant is not None:
        history = telling.history(guard.config, without.trace, frozenset({guard.name}))
        faults = checker.check(history, telling.rules(guard.config, strict=True))
        assert bool(faults) == (guard.name not in NOT_IN_HISTORIES), faults


def test_each_guard_stands_in_the_table_once() -> None:
    page = table.PATH.read_text(encoding='utf-8').splitlines()
    rows = [row.split(' | ')[0][2:] for row in page if row.startswith('| ')][1:]
    assert rows == [guard.name for guard in GUARDS]
    for name, reason in OUTSIDE.items():
        assert f'* **{name}**: {reason}' in page


@pytest.mark.parametrize('name', ['poison', 'leaving', 'claims', 'trouble'])
def test_histories_of_the_model_are_good_ones(name: str) -> None:
    """The checker finds nothing in what the model allows."""
    config = worlds.WORLDS[name]
    for seed in range(20):
        trace = _walk(config, random.Random(seed))
        history = telling.history(config, trace)
        faults = checker.check(history, telling.rules(config))
        assert not faults, '\n'.join([*map(str, faults), *words.story(trace)])


def _walk(config: Config, chance: random.Random, most_steps: int = 40) -> list[Label]:
    """Take steps at random, until there is none or they are many."""
    world = World(config)
    state, trace = world.beginning(), []
    for _ in range(most_steps):
        moves = list(world.moves(state))
        if not moves:
            break
        label, state, _ = chance.choice(moves)
        trace.append(label)
    return trace
