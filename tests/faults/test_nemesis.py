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

"""Whatever befalls engines and databases: nothing is lost, doubled or robbed.

Each run draws its faults from a seed, which its name and its failure tell; ``SEED`` runs another.
"""

import os
import pathlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.faults import nemesis
from tests.faults.databases import Bed
from tests.history import checker, events

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

SEED = int(os.environ.get('SEED', '1'))
SECONDS = 10.0
# The most telling ones of each database, and two at a time.
FEW = {
    'sqlite': ['killed+stopped past the limit', 'database locked+clock an hour ahead'],
    'mariadb': ['cut past the limit+requests late', 'database killed+stopped past the limit',
                'database clock an hour ahead+clock an hour behind'],
    'postgresql': ['black hole past the limit+replies swallowed', 'database frozen+told to end',
                   'database clock an hour behind+killed'],
    'galera': ['node killed+killed', 'quorum lost+stopped',
               'node clock an hour ahead+replies lost'],
}


def _cells() -> Iterator[object]:
    for database, faults in nemesis.FAULTS.items():
        for fault in FEW[database]:
            yield pytest.param(database, fault, SEED)
        for fault in faults:
            yield pytest.param(database, fault, SEED, marks=pytest.mark.long)
        yield pytest.param(database, '+'.join(faults), SEED, marks=pytest.mark.long,
                           id=f'{database}-everything-{SEED}')


@pytest.mark.parametrize(('database', 'fault', 'seed'), [*_cells()])
def test_the_promises_hold(
        database: str, fault: str, seed: int, open_bed: Callable[[str], Bed],
        tmp_path: pathlib.Path, count: Callable[..., None]) -> None:
    faults = fault.split('+')
    crew = nemesis.Crew(open_bed(database), tmp_path, seed)
    # Not the hash of the text, which is another in each process.
    blows = nemesis.schedule(random.Random(f'{database} {fault} {seed}'), faults,
                             SECONDS * max(1, len(faults) / 3))
    try:
        crew.begin()
        nemesis.carry_out(crew, blows)
        crew.converge()
        history = crew.history()
        found = nemesis.judge(crew, history)
        count(database, 'everything' if len(faults) > 3 else fault, {
            **figures(history, found), 'unclear outcomes': crew.unclear(),
            'starved': int(crew.starved)})
    finally:
        crew.close()
    assert not found, verdict(found, seed, blows)
    assert not unfinished(history)
    assert Counter(type(event) for event in history)[events.Declared]


def figures(history: Sequence[events.Event],
            found: Sequence[checker.Fault]) -> dict[str, int]:
    """Return the figures of one run, by the names of the columns."""
    broken = Counter(fault.invariant for fault in found)
    return {
        'runs': 1,
        'deaths declared': sum(isinstance(event, events.Declared) for event in history),
        'takeovers': sum(isinstance(event, events.Owned) and event.how == 'takeover'
                         for event in history),
        'false deaths': broken[5] + broken[11],
        'lost': len(unfinished(history)) + broken[8],
        'doubles': broken[1] + broken[2] + broken[9],
        'zombie writes': broken[3],
        'pieces of work': sum(isinstance(event, events.Owned) and event.how == 'acquire'
                              for event in history),
    }


def unfinished(history: Sequence[events.Event]) -> set[str]:
    """Return the locks that were acquired another number of times than their work ended."""
    balance: Counter[str] = Counter()
    for event in history:
        if isinstance(event, events.Owned) and event.how == 'acquire':
            balance[event.lock] += 1
        elif isinstance(event, events.Wrote) and event.what != 'progress':
            balance[event.lock] -= 1
    return {lock for lock, left in balance.items() if left}


def verdict(found: Sequence[checker.Fault], seed: int, blows: Sequence[nemesis.Blow]) -> str:
    happened = '\n'.join(f'{blow.at:6.2f} s  {blow.fault}, place {blow.place}' for blow in blows)
    sentences = '\n'.join(map(str, found[:20]))
    return f'{len(found)} faults; SEED={seed} makes the same schedule.\n{sentences}\n{happened}'
