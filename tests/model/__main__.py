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

"""``python -m tests.model``: explore the larger worlds; with ``--guards`` write the table."""

import argparse
import sys

from tests.model import table, words, worlds
from tests.model.explore import explore


def main() -> int:
    """Explore, print what was found, and say by the exit status whether it was nothing."""
    parser = argparse.ArgumentParser(prog='python -m tests.model', description=__doc__)
    parser.add_argument('--guards', action='store_true', help='write docs/contributor/guards.md')
    parser.add_argument('names', nargs='*', help=f'worlds: {", ".join(worlds.WORLDS)}')
    arguments = parser.parse_args()
    if arguments.guards:
        table.PATH.write_text(table.page(), encoding='utf-8')
        return 0
    found = 0
    for name in arguments.names or worlds.WORLDS:
        result = explore(worlds.WORLDS[name])
        whole = 'all' if result.complete else 'NOT ALL'
        print(f'{name}: {result.states} states, {whole} of them, at most {result.depth} steps '
              f'deep, {result.seconds:.0f} s')
        if result.invariant is not None:
            found = 1
            print(f'  I{result.invariant}: {result.sentence}')
            print(*(f'  {number}. {step}' for number, step in
                    enumerate(words.story(result.trace), 1)), sep='\n')
    return found


if __name__ == '__main__':
    sys.exit(main())
