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

"""What one state of the model consists of: bytes, each of which is one small number.

A state is hashed and copied hundreds of thousands of times, so it is a ``bytes`` object, worked on
as a ``bytearray``.  This module says which byte means what; nothing else does.

Times are ages in ticks, capped where nothing depends on a longer one.  An engine's own ages run
on its own clock, which stands still in a pause of its hypervisor; those of rows run with the
world.
"""

# One engine's process.
GONE, RUNNING, STOPPED, FROZEN = range(4)
# How far it has come, by its own knowledge.
NEW, JOINING, JOINED, LEFT = range(4)
# A service row.
ABSENT, UP, DEAD, HAS_LEFT = range(4)
# A lock.
FREE, IN_PROGRESS, COMPLETE, QUARANTINED = range(4)
# What an engine does with a lock it holds.
CLAIMED, ARMED, RUNS, ENDING, ACQUIRING = range(1, 6)
# What an observer's read has brought of another engine: a number from PRESENT on is a count.
NOTHING, WELL, ENDED, PRESENT = range(4)

NEVER = 200
"""The age of a beat that there never was."""
CAP = 20
"""The oldest age told apart."""
ZERO = 40
"""The byte for 0 where numbers may be negative."""

# Of the world.
TICKS, OUTAGE, FAULTS = range(3)
BUDGETS = ('crash', 'stop', 'freeze', 'cut', 'outage', 'unclear', 'slow', 'look', 'step',
           'failover', 'remove', 'leave', 'behind')
_WORLD = 3 + len(BUDGETS)
BUDGET = {name: 3 + number for number, name in enumerate(BUDGETS)}

# Of an engine.
(PROCESS, STATE, AGE, CUT, BEAT, BEAT_AGE, ATTEMPTS, BEAT_FAILED, LOOK, LOOK_AGE, GOOD_START,
 GOOD, SETTLE, SEEN_WELL, SINCE_LOOK, CLEAN, OUTAGE_SEEN, PAUSED, UNWRITTEN, DECLARED,
 DISARMED, LATE) = range(22)
_ENGINE = 22
# Of an engine about another.
COUNT, WATCHED, READ, RIPE, KNOWN_ENDED, RELIEVED, SEEN_OLD = range(7)
_PEER = 7
# Of an engine about a lock.
GENERATION, DOES, UNSURE, TAINTED, STEP = range(5)
_HELD = 5
# Of a service row.
ROW, ROW_COUNT, ROW_AGE, ENDED_AGE, MASS, JOURNAL, WATCHED_DEATH = range(7)
_ROW = 7
# Of a lock's row.
STATUS, OWNER, LOCK_GENERATION, TAKEOVERS, DEATHS, RECORDED, TOLD = range(7)
"""The last two: the progress that stands there, and the farthest that was answered for."""
_LOCK = 7
# Of a statement on its way.
KIND, ACTOR, FIRST, SECOND, THIRD, FOUND_ALIVE = range(6)
_MESSAGE = 6
MESSAGES = 2

Frame = bytearray


class Layout:
    """Where the parts of a state begin."""

    def __init__(self, engines: int, locks: int) -> None:
        numbers, names = range(engines), range(locks)
        self.width = _ENGINE + _PEER * engines + _HELD * locks
        self.engine = [_WORLD + self.width * e for e in numbers]
        self.peer = [[base + _ENGINE + _PEER * j for j in numbers] for base in self.engine]
        self.held = [[base + _ENGINE + _PEER * engines + _HELD * k for k in names]
                     for base in self.engine]
        rows = _WORLD + self.width * engines
        self.row = [rows + _ROW * e for e in numbers]
        locks_at = rows + _ROW * engines
        self.lock = [locks_at + _LOCK * k for k in names]
        messages = locks_at + _LOCK * locks
        self.message = [messages + _MESSAGE * m for m in range(MESSAGES)]
        self.size = messages + _MESSAGE * MESSAGES
