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

"""What is printed when a run is over: who died, what it cost, and the verdict."""

import signal
from collections.abc import Iterator

import prettytable

from heat_liveness.cmd.demo.run import Engine, Outcome
from heat_liveness.db import demo

MOST_FAULTS = 20
"""How many faults are printed in full."""


def render(outcome: Outcome, total: int, bound_seconds: float) -> str:
    """Return the report.

    :param total: how many resources the template has
    :param bound_seconds: the longest time from a death to its declaration
    """
    dead = [engine for engine in outcome.engines if engine.declared]
    parts = [str(_deaths(dead, bound_seconds)) if dead else 'Nobody died.',
             str(_counts(outcome, total)), *_verdict(outcome, total)]
    return '\n'.join(parts)


def _deaths(dead: list[Engine], bound_seconds: float) -> prettytable.PrettyTable:
    table = _table('death', 'noticed after', 'bound', 'by', 'its locks went to')
    for engine in dead:
        assert engine.row is not None
        seconds = engine.detection_seconds
        noticed = '' if seconds is None else f'{seconds:.2f} s'
        if seconds is not None and seconds > bound_seconds:
            noticed += ' (late)'
        table.add_row([
            f'{engine.name}, {_cause(engine)}', noticed, f'{bound_seconds:.1f} s',
            {'kernel': 'the kernel', 'watched': 'watching'}.get(engine.row.evidence or '', ''),
            ', '.join(f'{name}: {number}' for name, number in sorted(engine.gave.items()))
            or 'it held none'])
    return table


def _cause(engine: Engine) -> str:
    if engine.stroke is None:
        return 'ended by itself'
    return {signal.SIGKILL: 'kill -9', signal.SIGSTOP: 'stopped'}[engine.stroke.blow]


def _counts(outcome: Outcome, total: int) -> prettytable.PrettyTable:
    verdict = outcome.verdict
    applied = verdict.outcomes.get(demo.Outcome.APPLIED, 0)
    table = _table('what', 'number', 'of')
    for row in (
            ('resources done', outcome.done, total),
            ('steps applied by the cloud', applied, total * demo.STEPS),
            ('calls made again after a death, and recognised',
             verdict.outcomes.get(demo.Outcome.REPEATED, 0), ''),
            ('calls of an old generation, all refused',
             verdict.outcomes.get(demo.Outcome.REFUSED, 0), ''),
            ('locks moved', sum(sum(each.gave.values()) for each in outcome.engines), ''),
            ('lost', len(verdict.lost), ''),
            ('done twice', len(verdict.twice), ''),
            ('done in the name of the dead', len(verdict.by_the_dead), ''),
            ('done too early', len(verdict.too_early), '')):
        table.add_row(list(row))
    table.align['number'] = table.align['of'] = 'r'
    return table


def _verdict(outcome: Outcome, total: int) -> Iterator[str]:
    faults = outcome.verdict.faults
    yield from faults[:MOST_FAULTS]
    if len(faults) > MOST_FAULTS:
        yield f'... and {len(faults) - MOST_FAULTS} more.'
    after = f'after {outcome.seconds:.0f} s'
    if outcome.ok:
        yield f'Verdict: ok {after}. Nothing was lost, and nothing was done twice.'
    elif outcome.finished:
        yield f'Verdict: NOT OK {after}. See above for what went wrong.'
    else:
        yield (f'Verdict: NOT FINISHED {after}: {outcome.done} of {total} resources are done. '
               f'Give it more time with --time-limit, or a faster database.')


def _table(*names: str) -> prettytable.PrettyTable:
    table = prettytable.PrettyTable(names)
    table.set_style(prettytable.TableStyle.SINGLE_BORDER)
    table.align = 'l'
    return table
