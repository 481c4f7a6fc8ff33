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

"""Run many seeds: ``python -m tests.simulation --seeds N --from S [--minutes M]``.

A seed that fails is run again, to see that it fails the same way, shrunk, and printed with its
history.  The exit status says whether one failed.
"""

import argparse
import dataclasses
import sys
import time

from tests.history.events import Beat
from tests.simulation import plan as plans
from tests.simulation import world
from tests.simulation.shrink import shrink

PROGRESS = 1000
"""After how many runs it is told how far it has come."""


def report(outcome: world.Outcome, events: int) -> None:
    """Print a run that failed."""
    print(f'Plan: {outcome.plan}\n')
    for event in [each for each in outcome.events if not isinstance(each, Beat)][-events:]:
        print(f'{event.at:10.3f}', type(event).__name__, *(
            f'{field.name}={getattr(event, field.name)}' for field in dataclasses.fields(event)
            if field.name != 'at'))
    for fault in outcome.faults:
        print(f'\n{fault}')


def shrunk(outcome: world.Outcome, attempts: int) -> world.Outcome:
    """Return a smaller run that breaks the same invariant first."""
    number = outcome.faults[0].invariant

    def fails(plan: plans.Plan) -> list[int] | None:
        found = world.run(plan)
        same = any(fault.invariant == number for fault in found.faults)
        return found.injected if same else None
    return world.run(shrink(outcome.plan, outcome.injected, fails, attempts))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.simulation', description=__doc__)
    parser.add_argument('--seeds', type=int, default=1000)
    parser.add_argument('--from', type=int, default=0, dest='first')
    parser.add_argument('--minutes', type=float, default=60.0, help='end after so long')
    parser.add_argument('--attempts', type=int, default=400, help='runs to shrink one that fails')
    parser.add_argument('--events', type=int, default=200, help='of its history to print')
    options = parser.parse_args(arguments)
    started = time.monotonic()
    runs = calls = 0
    seconds = 0.0
    failed = []
    for seed in range(options.first, options.first + options.seeds):
        if time.monotonic() - started > options.minutes * 60:
            break
        outcome = world.run(plans.draw(seed))
        runs += 1
        calls += outcome.calls
        seconds += outcome.seconds
        if outcome.faults:
            failed.append(seed)
            print(f'Seed {seed} fails: {outcome.faults[0]}', flush=True)
            if world.run(plans.draw(seed)).events != outcome.events:
                print('It is not the same when it is run again.', flush=True)
            if options.attempts:
                report(shrunk(outcome, options.attempts), options.events)
        if runs % PROGRESS == 0:
            print(f'{runs} runs, up to seed {seed}; {len(failed)} failed.', flush=True)
    spent = time.process_time()
    print(f'{runs} runs from seed {options.first}, {seconds / 3600:.1f} hours of virtual time, '
          f'{calls} round trips, {spent:.0f} s of processor time ({runs / spent:.1f} runs a '
          f'second); {len(failed)} failed: {failed}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
