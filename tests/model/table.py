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

"""The table of guards in docs/contributor/guards.md: written from what the model finds."""

import pathlib

from tests.model import words
from tests.model.explore import Result, explore
from tests.model.guards import GUARDS, OUTSIDE, Guard

PATH = pathlib.Path(__file__).parents[2] / 'docs' / 'contributor' / 'guards.md'

_HEAD = """\
# Guards

Written by `python -m tests.model --guards`; a test keeps it true.

A guard is a condition without which the protocol would be simpler. For each, the model in
`tests/model` explores a small world twice: with all guards, where nothing may be broken in any
state, and without this one. What is broken then, and by the shortest way, stands below. The
invariants are: I1 one owner, I2 generations, I3 no write under an old generation, I4 the count
that was seen, I5 nobody robbed, I6 the dead start nothing, I7 the dead change nothing, I8 no work
lost, I9 no work begun twice, I10 poison, I11 an outage robs and ends nobody, I13 who leaves has
stopped, I14 nobody comes back under an old name, I15 no clock robs, I18 one row in the journal
for each death.

The last column says how many states the world has with all guards; each is explored to its last.

Engines are a, b, c, locks x, y. Time passes in ticks; engines that are well beat in each.
"""


def line(guard: Guard, whole: Result, result: Result) -> str:
    """Return the row of the table that says what the removal of a guard breaks.

    :param whole: what was found with all guards
    :param result: and without this one
    """
    breaks = 'nothing' if result.invariant is None else f'I{result.invariant}'
    steps = len(result.trace) if result.invariant is not None else ''
    return f'| {guard.name} | {guard.where} | {breaks} | {steps} | {whole.states} |'


def page() -> str:
    """Explore the world of each guard, with it and without it, and return the whole page."""
    results = {guard.name: explore(guard.config, guard.name) for guard in GUARDS}
    rows = [line(guard, explore(guard.config), results[guard.name]) for guard in GUARDS]
    parts = [_HEAD, '| guard | where | its removal breaks | steps | states |',
             '|---|---|---|---|---|', *rows]
    parts += ['', '## Guards that break nothing in the model', '']
    parts += [f'* **{guard.name}**: {guard.reason}' for guard in GUARDS if guard.invariant is None]
    parts += ['', '## Rules outside the model', '']
    parts += [f'* **{name}**: {reason}' for name, reason in OUTSIDE.items()]
    parts += ['', '## Shortest counterexamples', '']
    for guard in GUARDS:
        result = results[guard.name]
        if result.invariant is not None:
            parts += [f'### Without: {guard.name}', '',
                      f'I{result.invariant}: {result.sentence}.', '']
            parts += [f'{number}. {step}'
                      for number, step in enumerate(words.story(result.trace), 1)]
            parts.append('')
    return '\n'.join(parts)
