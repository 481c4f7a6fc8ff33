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

"""A trace in words, one line a step."""

from collections.abc import Sequence

from tests.model import statements
from tests.model.world import Label

_STATEMENTS = {
    statements.ACQUIRE: 'its acquisition of lock {first}',
    statements.WRITE: 'its write of progress under lock {first}, generation {second}',
    statements.FINISH: 'its end of the work under lock {first}, generation {second}',
    statements.DECLARE: 'its declaration of {engine}, at beat {second}',
    statements.TAKE_OVER: 'its takeover from {engine}',
    statements.RECLAIM: 'its claim from itself of lock {first}, generation {second}',
    statements.PURGE: 'its purge of {engine}',
    statements.LEAVE: 'its leave',
    statements.INSERT: 'its insertion of its row',
}
_HOW = {'': '', 'lost': '; the answer is lost', 'late': '; no answer, and it is on its way',
        'half': '; no answer: it has found its actor alive and is yet to commit',
        'slow': '; the answer takes its time',
        'behind': '; a node that is behind tells the generation'}
_WORDS = {
    'tick': 'time passes',
    'crash': '{0} crashes',
    'stop': '{0} is stopped',
    'freeze': 'the hypervisor pauses {0}',
    'cut': '{0} loses the database',
    'outage over': 'the outage is over',
    'remove': 'an operator removes the row of {0}',
    'failover': 'a failover loses the last beats of {0}',
    'undone': 'a failover loses the declaration of {0}',
    'continue': '{0} goes on',
    'reconnect': '{0} reaches the database again',
    'beat': '{0} beats',
    'slow beat': '{0} sends a beat',
    'beat lands': 'the beat of {0} lands',
    'beat answered': 'the beat of {0} is answered',
    'beat unanswered': '{0} beats; the answer is lost',
    'look': '{0} looks',
    'slow look': '{0} begins a look',
    'look reads': 'the look of {0} reads',
    'look returns': 'the look of {0} returns',
    'nothing more': '{0} finds nothing more to take from {1}',
    'quarantine': '{0} quarantines poison of {1}',
    'sees old': '{0} sees that {1} ended long ago',
    'passes': '{0} passes by what another has locked, who is undone, and takes poison of {1} over',
    'disarm': '{0} drains, its kernel timer disarmed',
    'give up': '{0} leaves with its work unfinished, and ends',
    'journal': '{0} journals the death of {1}',
}
_WORLD = {
    ('outage', '1'): 'the database goes away',
    ('outage', '2'): 'the database takes no more writes',
    ('step', '20'): 'the clock of the database is stepped forward',
    ('step', '-20'): 'the clock of the database is stepped back',
}
_LOCKS = {'lost': '{0} finds that lock {1} is not its own any more',
          'call': '{0} acts outside the database for lock {1}',
          'gate': '{0} passes the gate, to work under lock {1}',
          'acquired': '{0} hears that it has acquired lock {1}'}
_SENT = {
    'join': '{0} joins',
    'declare': '{0} declares {1} dead',
    'leave': '{0} leaves',
    'purge': '{0} purges {1}',
    'take over': '{0} takes over from {1}',
}
_SENT_LOCKS = {
    'renew': '{0}, which got no answer, claims lock {1} from itself',
    'reclaim': '{0} claims lock {1} from itself',
    'acquire': '{0} acquires lock {1}',
    'write': '{0} writes progress under lock {1}',
    'finish': '{0} ends the work under lock {1}',
}


def engine(number: object) -> str:
    """Return an engine's name."""
    return 'abcde'[int(str(number))]


def lock(number: object) -> str:
    """Return a lock's name."""
    return 'xyz'[int(str(number))]


def sentence(label: Label) -> str:
    """Say one step."""
    kind, *rest = label
    name = str(kind)
    if name == 'land':
        number, actor, first, second, _ = (int(str(value)) for value in rest)
        what = _STATEMENTS[number].format(first=lock(first % 3), engine=engine(first % 5),
                                          second=second)
        return f'of {engine(actor)}, {what} lands'
    if name in {'outage', 'step'}:
        return _WORLD[name, str(rest[0])]
    if name in _WORDS:
        return _WORDS[name].format(*map(engine, rest))
    if name in _LOCKS:
        return _LOCKS[name].format(engine(rest[0]), lock(rest[1]))
    if name in _SENT:
        said = _SENT[name].format(*map(engine, rest[:-1][:2]))
    else:
        said = _SENT_LOCKS[name].format(engine(rest[0]), lock(rest[1]))
    return said + _HOW[str(rest[-1])]


def story(trace: Sequence[Label]) -> list[str]:
    """Say all steps, with ticks in a row on one line."""
    return [sentence(label) for label in trace]
