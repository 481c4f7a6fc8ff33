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

"""The larger worlds, each explored to its last state; what each is there for."""

from tests.model.config import Config
from tests.model.guards import READING

_ONE_MACHINE = (0, 0, 0)
_ANY = (0, 1, 2)

WORLDS = {
    # Who may beat, be stopped or paused, be cut off: three engines, two of which watch the first.
    'pauses': Config(ticks=5, faults=2, progress=False,
                     budgets={'crash': 1, 'stop': 1, 'freeze': 1, 'cut': 1}),
    # A pause while an observer reads, at any time.
    'reading': READING,
    # Unclear outcomes on the way of two locks from the dead to the living, two of them.
    'claims': Config(locks=2, owners=(0, 0), ticks=0, faults=3, machines=_ONE_MACHINE,
                     budgets={'crash': 2, 'unclear': 1}, progress=False, observed=_ANY,
                     converges=True),
    # One of each kind of trouble, any three of them, and two locks.
    'trouble': Config(locks=2, owners=(0, 0), ticks=5, faults=3, progress=False,
                      budgets={'crash': 1, 'stop': 1, 'unclear': 1, 'step': 1}),
    # Work that kills, beside work that does not.
    'poison': Config(engines=4, locks=2, owners=(0, 0), poison=(0,), faults=1, ticks=0,
                     budgets={'unclear': 1}, observers=(1, 2, 3), observed=(0, 1, 2),
                     workers=(0, 1, 2, 3), progress=False, machines=(0, 0, 0, 0)),
    # Planned ends: leaving, draining, giving up.
    'leaving': Config(ticks=1, faults=3, machines=_ONE_MACHINE, observed=_ANY, progress=False,
                      budgets={'leave': 2, 'unclear': 1}, converges=True),
}
