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

"""``python -m benchmarks``: measure, and show a table."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import beats, beds, figures, load, looks, sweeps, takeovers
from heat_liveness import conf, errors
from tests.bed import server

MEASUREMENTS = ('beats', 'looks', 'sweeps', 'takeovers')
ALONE = 'load'
"""It wants the machine to itself, for long: only where it is asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    beats: int = 200
    beat_turns: int = 25
    engines: Sequence[int] = (100, 10_000)
    look_turns: int = 15
    stacks: Sequence[int] = (100, 1_000)
    sweep_turns: int = 3
    locks: int = 100_000
    survivors: Sequence[int] = (1, 4, 16)
    takeover_turns: int = 3
    load: 'load.Load' = dataclasses.field(default_factory=load.Load)


# Such that even a busy machine keeps these times.
_QUICK = conf.Settings(
    report_interval=1, fence_time=8, service_down_time=13, scan_interval=0.5, beat_retry=0.2,
    connect_timeout=1, read_timeout=2, database_stall_time=0, breaker_delay=5)
QUICK = Sizes(beats=20, beat_turns=3, engines=(500,), look_turns=3, stacks=(50,),
              sweep_turns=2, locks=2_000,
              survivors=(1, 4), takeover_turns=1,
              load=load.Load(engines=112, observers=3, seconds=13, kill_seconds=1, turn_seconds=1,
                             settings=_QUICK))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for; return the exit status."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('--quick', action='store_true',
                        help='small sizes, under a minute: whether it runs, not what it costs')
    parser.add_argument('--only', choices=(*MEASUREMENTS, ALONE), action='append',
                        help='one of the measurements; may be given again. All but load')
    parser.add_argument('--on', choices=beds.NAMES, action='append',
                        help='one of the databases; may be given again')
    parser.add_argument('--minutes', type=float, help='how long the load lasts; 10')
    parser.add_argument('--json', type=pathlib.Path, metavar='FILE',
                        help='write the figures there as well')
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    if options.minutes is not None:
        sizes = dataclasses.replace(
            sizes, load=dataclasses.replace(sizes.load, seconds=60 * options.minutes))
    if not load.deaths(sizes.load):
        parser.error('Nobody is killed before the observers have settled: give more --minutes.')
    found: list[figures.Figure] = []
    servers = {}
    try:
        for name in options.on or beds.NAMES:
            with beds.bed(name) as bed:
                servers[name] = f'{bed.version}; {beds.SETTINGS[name]}'
                print(f'{name} {servers[name]}', file=sys.stderr)
                found += _measure(bed, sizes, options.only or MEASUREMENTS)
        print(figures.table(found))
        if options.json is not None:
            figures.write(options.json, found, servers)
    except (errors.LivenessError, server.MissingProgram, server.DoesNotStart, OSError) as error:
        print(f'The measurements ended early: {error}', file=sys.stderr)
        return 1
    return 0


def _measure(bed: beds.Bed, sizes: Sizes, wanted: Sequence[str]) -> list[figures.Figure]:
    found: list[figures.Figure] = []
    if 'beats' in wanted:
        found += beats.measure(bed, sizes.beats, sizes.beat_turns)
    if 'looks' in wanted:
        for engines in sizes.engines:
            found += looks.measure(bed, engines, sizes.look_turns)
    if 'sweeps' in wanted:
        for stacks in sizes.stacks:
            found += sweeps.measure(bed, stacks, sizes.sweep_turns)
    if 'takeovers' in wanted:
        found += takeovers.measure(bed, sizes.locks, sizes.survivors, sizes.takeover_turns)
    # SQLite lets one engine write at a time: no fleet shares it.
    if ALONE in wanted and bed.name != 'sqlite':
        found += load.measure(bed, sizes.load)
    return found


if __name__ == '__main__':
    sys.exit(main())
