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

"""Each guard of the protocol, and the smallest world in which it is missed."""

import dataclasses

from tests.model.config import Config

_ALONE = {'engines': 1, 'observers': (), 'observed': (0,), 'workers': (0,), 'ticks': 0}
_PAIR = {'engines': 2, 'progress': False, 'observers': (1,), 'observed': (0,), 'workers': (0, 1)}
_ONE_MACHINE = (0, 0, 0, 0, 0)

LATE = Config(**_ALONE, faults=1, budgets={'unclear': 1}, acquires=True, again=True)
PROVED_LATE = Config(**{**_PAIR, 'machines': _ONE_MACHINE}, ticks=0, faults=2,
                     budgets={'unclear': 1, 'crash': 1})


@dataclasses.dataclass(frozen=True)
class Guard:
    """One guard: removing it from the protocol is to be noticed."""

    name: str
    where: str
    config: Config
    invariant: int | None
    """What its removal breaks; None for nothing that the model knows of."""
    reason: str = ''
    """Why it stays in spite of that."""


def _pair(**values: object) -> Config:
    return Config(**{**_PAIR, **values})


def _watched(**values: object) -> Config:
    """Engine a works, and meets with the faults; engine b watches it, and no more."""
    only = dict.fromkeys(('cut', 'stop', 'freeze', 'slow', 'unclear', 'crash', 'leave'), (0,))
    return Config(**{**_PAIR, 'workers': (0,), 'victims': only, **values})


# An observer is stopped while it reads, for longer than a read may last, and misses an outage.
READING = _watched(workers=(), fence=1, lag=2, longest_read=1, longest_silence=1, skew=1,
                   ticks=4, faults=5, order=('slow', 'look', 'outage', 'stop', 'slow'),
                   budgets={'outage': 1, 'stop': 1, 'look': 1, 'slow': 2},
                   victims={'stop': (1,), 'slow': (0,), 'outage': (1,)})


def _three(**values: object) -> Config:
    return Config(**{'observers': (1, 2), 'observed': (0, 1, 2), 'ticks': 0,
                     'machines': _ONE_MACHINE, **values})


_WRITE = '`db/locks.py` `write`'
_MOVE = '`db/locks.py` `_move`'
_DECLARE = '`db/members.py` `declare`'
_VIEW = '`detection.py` `View.look`'

GUARDS = (
    Guard('generation in each write', _WRITE, LATE, 3),
    Guard('owner in each write', _WRITE, LATE, 3),
    Guard('the actor is alive: write', _WRITE, PROVED_LATE, 7),
    Guard('the actor is alive: acquire', '`db/locks.py` `_acquire`, `_insert`',
          dataclasses.replace(PROVED_LATE, acquires=True, owners=(-1,)), 7),
    Guard('the actor is alive: declare', _DECLARE,
          _three(faults=3, budgets={'unclear': 1, 'crash': 2}), 7),
    Guard('the actor is alive: take over', _MOVE,
          _three(faults=3, budgets={'unclear': 1, 'crash': 2}, observed=(0, 1)), 7),
    Guard('the actor is alive: claim from itself', _MOVE,
          dataclasses.replace(PROVED_LATE, acquires=True, owners=(-1,), faults=3,
                              budgets={'unclear': 2, 'crash': 1}), 7),
    Guard('the actor is alive: purge', '`db/members.py` `purge`',
          _three(faults=3, budgets={'unclear': 1, 'crash': 2}, owners=(-1,), ticks=1,
                 purge_after=1, transaction=1, purges=True), 7),
    Guard('count in the declaration', _DECLARE,
          _pair(faults=2, budgets={'cut': 1, 'unclear': 1}), 4),
    Guard('live in the declaration', _DECLARE,
          _three(faults=2, budgets={'unclear': 1, 'crash': 1}, observed=(0,)), 18),
    Guard('live in the beat', '`db/members.py` `beat`',
          _watched(faults=1, budgets={'cut': 1, 'freeze': 1}), 6),
    Guard("the observer's own clock", '`detection.py` `Observer._watched`',
          _pair(faults=1, budgets={'step': 1}), 15),
    Guard('a candidate from the future', '`db/members.py` `look`, `detection.py` `_is_late`',
          _pair(faults=2, budgets={'step': 1, 'crash': 1}, ticks=1, converges=True), 8),
    Guard('a gap: a look that failed', _VIEW,
          _pair(workers=(), faults=2, budgets={'outage': 2}), None,
          'An own beat fails in the same outage. It is for one that falls between two beats.'),
    Guard('a gap: an own beat that failed', _VIEW,
          _pair(workers=(), faults=1, budgets={'outage': 1}), 11),
    Guard('a gap: an own beat that came late', '`membership.py` `_good`',
          _pair(workers=(), long_fence=(1,), faults=2, skew=1, victims={'stop': (1,)},
                budgets={'outage': 1, 'stop': 1}), 11),
    Guard('a gap: an own pause', _VIEW,
          _pair(workers=(), long_fence=(1,), faults=2, skew=1, victims={'stop': (1,)},
                budgets={'outage': 1, 'stop': 1}), 11),
    Guard('a gap: a pause while reading', _VIEW,
          dataclasses.replace(READING, when=(4, 3, 3, 3, 1)), 11),
    Guard('the verdict counts up to the start of the last look', '`detection.py` `Observer.scan`',
          _pair(workers=(), long_fence=(1,), faults=2, skew=1, victims={'stop': (1,)},
                budgets={'stop': 1, 'look': 1}), 5),
    Guard('settle after a gap', _VIEW,
          _pair(workers=(), fence=1, lag=0, window=2, settle=2, faults=2,
                budgets={'outage': 1, 'slow': 1}), 11),
    Guard('window begins when the first read has returned', _VIEW,
          _watched(faults=3, ticks=5, budgets={'look': 1, 'step': 1, 'stop': 1}), 6),
    Guard('a count that went down starts afresh', '`detection.py` `Observer._follow`',
          _pair(workers=(), skew=1, faults=2, budgets={'failover': 1, 'cut': 1}), 5),
    Guard("the candidate's own fence_time", '`detection.py` `Observer._window`',
          _watched(faults=2, budgets={'cut': 1, 'step': 1}, long_fence=(0,)), 6),
    Guard('fence before the limit', '`fence.py` `Gate.check`',
          _watched(faults=1, budgets={'cut': 1}), 6),
    Guard('fence counted from the start of the beat', '`membership.py` `_beat_once`',
          _watched(longest_read=3, faults=2, budgets={'slow': 1, 'stop': 1}), 6),
    Guard('the kernel timer', '`fence.py` `KernelTimer`',
          _watched(faults=1, budgets={'stop': 1}), 6),
    Guard('the kernel timer stays until the work has ended', '`agent.py` `stop`',
          _watched(faults=2, budgets={'leave': 1, 'stop': 1}), 6),
    Guard('a beat that took too long sets no timer', '`membership.py` `_good`',
          _watched(longest_read=3, faults=1, budgets={'slow': 1}), 11),
    Guard('who holds moves the kernel timer on', '`membership.py` `watch`',
          _pair(faults=1, budgets={'outage': 1}), 11),
    Guard('the gate is shut while joining is unclear', '`membership.py` `join`',
          _watched(fence=1, lag=0, window=2, ticks=4, faults=2, order=('unclear', 'cut'),
                   budgets={'unclear': 1, 'cut': 1}, unjoined=(0,), owners=(-1,),
                   acquires=True), 6),
    Guard('insert again only while the gate is open', '`membership.py` `_missing`',
          _pair(workers=(), owners=(-1,), ticks=7, faults=1, budgets={'cut': 1}, purges=True,
                purge_after=1, transaction=1), 14),
    Guard('insert again with a count', '`membership.py` `_missing`',
          _watched(fence=3, lag=0, window=4, ticks=4, beaten=0, skew=1, faults=3,
                   order=('cut', 'remove', 'cut'), budgets={'remove': 1, 'cut': 2}), 5),
    Guard('the count of attempts, not of answers', '`membership.py` `_beat_once`',
          _watched(fence=3, lag=0, window=4, ticks=4, skew=1, faults=4,
                   order=('unclear', 'cut', 'remove', 'cut'),
                   budgets={'remove': 1, 'cut': 2, 'unclear': 1}), 6),
    Guard('the fresh read after no row changed', '`membership.py` `_missing`',
          _watched(faults=2, budgets={'remove': 1, 'cut': 1, 'stop': 1}), None,
          'An engine whose row was removed would end, with its work, although it need not.'),
    Guard('journal in the transaction of the declaration', _DECLARE,
          _pair(faults=2, budgets={'crash': 2}, ticks=0, machines=_ONE_MACHINE), 18),
    Guard('the owner has ended, in the takeover', '`db/locks.py` `_lock`, `take_over`',
          _pair(faults=2, budgets={'cut': 1, 'failover': 1}, victims={'cut': (0,)}), 5),
    Guard('owner in the takeover', _MOVE,
          _pair(ticks=0, faults=3, budgets={'crash': 1, 'unclear': 2},
                machines=_ONE_MACHINE), 1),
    Guard('generation in the takeover', _MOVE,
          _pair(ticks=0, faults=4, budgets={'crash': 1, 'unclear': 3}, owners=(-1,),
                machines=_ONE_MACHINE, acquires=True), 2),
    Guard('a record without a reply claims the lock from itself', '`work/native.py` `write`',
          Config(**_ALONE, faults=1, budgets={'unclear': 1}, steps=2), 8),
    Guard('won counts only after COMMIT', '`work/native.py` `claim`',
          _pair(faults=2, budgets={'crash': 1, 'unclear': 1}, ticks=0,
                machines=_ONE_MACHINE), 1),
    Guard('the claim from itself', '`work/native.py` `reclaim`',
          _pair(faults=1, budgets={'unclear': 1}, ticks=0, acquires=True, owners=(-1,),
                converges=True), 8),
    Guard('claims from itself only what rests', '`work/native.py` `_idle`',
          Config(**_ALONE, faults=0), 9),
    Guard('claims from itself nothing that it is just acquiring', '`work/native.py` `_idle`',
          Config(**_ALONE, faults=1, budgets={'slow': 1}, acquires=True, owners=(-1,)), 9),
    Guard('the generation is read in the acquisition', '`db/locks.py` `_acquire`',
          Config(**_ALONE, faults=1, budgets={'behind': 1}, acquires=True, again=True), 9),
    Guard('owner in the claim from itself', _MOVE,
          Config(**_ALONE, faults=2, budgets={'unclear': 2}, acquires=True, owners=(-1,)), None,
          'The generation decides alone, as long as each change of owner raises it.'),
    Guard('generation in the claim from itself', _MOVE,
          Config(**_ALONE, faults=2, budgets={'unclear': 2}, acquires=True, owners=(-1,)), 2),
    Guard('owners relieved are asked about again', '`takeover.py` `_again`',
          _pair(faults=2, budgets={'unclear': 1, 'crash': 1}, ticks=0, acquires=True,
                owners=(-1,), machines=_ONE_MACHINE, converges=True), 8),
    Guard('the age of the purge', '`db/members.py` `purgeable`',
          _pair(faults=2, budgets={'unclear': 1, 'crash': 1}, ticks=0, acquires=True,
                purges=True, owners=(-1,), machines=_ONE_MACHINE, converges=True), 8),
    Guard('a second look before the purge', '`takeover.py` `forget`',
          _pair(faults=3, order=('unclear', 'crash', 'step'),
                budgets={'unclear': 1, 'crash': 1, 'step': 1}, ticks=3, transaction=1,
                acquires=True, purges=True, owners=(-1,), machines=_ONE_MACHINE, looks_apart=2,
                converges=True), 8),
    Guard('purge only what owns nothing', '`db/members.py` `purge`, `takeover.py` `forget`',
          _pair(faults=1, budgets={'crash': 1}, ticks=1, purge_after=1, transaction=1, purges=True,
                machines=_ONE_MACHINE, converges=True), 8),
    Guard('one at a time after a death', '`work/native.py` `_tainted`',
          Config(engines=4, locks=2, owners=(0, 0), poison=(0,), faults=0, ticks=0,
                 observers=(1, 2, 3), observed=(0, 1, 2), workers=(0, 1, 2, 3), progress=False,
                 machines=_ONE_MACHINE), 10),
    Guard('one at a time from itself, too', '`work/native.py` `_together`',
          Config(engines=4, locks=2, owners=(0, 0), poison=(0,), faults=1, ticks=0,
                 budgets={'unclear': 1}, observers=(1, 2, 3), observed=(0, 1, 2),
                 workers=(0, 1, 2, 3), progress=False, machines=(0, 0, 0, 0)), 10),
    Guard('no poison in the takeover', '`db/locks.py` `take_over`',
          Config(engines=4, max_takeovers=1, observers=(1, 2, 3), observed=(0, 1), ticks=0,
                 progress=False, workers=(0, 1, 2, 3), machines=_ONE_MACHINE, faults=3,
                 order=('crash', 'crash', 'unclear'), budgets={'crash': 2, 'unclear': 1}), 10),
    Guard('no blame for who has left', '`db/members.py` `ServiceRow.blamed`',
          Config(engines=3, max_takeovers=1, faults=2, budgets={'leave': 2}, ticks=2,
                 observed=(0, 1), progress=False), 10),
    Guard('no blame for a mass death', '`db/members.py` `ServiceRow.blamed`',
          _three(max_takeovers=1, faults=2, budgets={'crash': 2}, mass=True,
                 observed=(0, 1), progress=False), 10),
    Guard('the breaker', '`detection.py` `Observer._breaker`',
          Config(engines=4, observers=(3,), observed=(0, 1, 2), workers=(0,), ticks=5, faults=3,
                 fence=1, lag=0, window=2, order=('cut', 'cut', 'stop'),
                 budgets={'cut': 2, 'stop': 1}, victims={'cut': (1, 2), 'stop': (0,)},
                 progress=False), None,
          'It delays; what is declared without it has held as well. It keeps work from being '
          'blamed for a fault of the network, and a fleet from being restarted by one.'),
    Guard('the row leaves last', '`agent.py` `stop`',
          _pair(faults=1, budgets={'leave': 1}, ticks=0, progress=False), 13),
    Guard('the gate is shut before the row leaves', '`membership.py` `leave`',
          _pair(faults=2, budgets={'leave': 1, 'unclear': 1}, ticks=0, acquires=True,
                owners=(-1,)), 13),
    Guard('looks only at its own kind', '`db/members.py` `look`',
          _pair(kinds=(0, 1), faults=1, budgets={'crash': 1}, ticks=0,
                machines=_ONE_MACHINE), 8),
    Guard('takes over only work that it has a handler for', '`db/locks.py` `take_over`',
          _pair(handlers=(0,), faults=1, budgets={'crash': 1}, ticks=0,
                machines=_ONE_MACHINE), 8),
    Guard('no judgement of an unknown version', '`db/members.py` `ServiceRow.judged`',
          _pair(faults=0, foreign=(0,)), 5),
    Guard("a proof only on one's own machine", '`engine.py` `prove`',
          _pair(faults=0, ticks=0), 5),
    Guard('the gate before work', '`work/native.py` `_handle`',
          _watched(faults=1, budgets={'cut': 1}), 6),
    Guard('the gate before a write', '`work/native.py` `write`',
          _watched(faults=2, budgets={'cut': 1, 'stop': 1}), None,
          'The WHERE protects. Without it an engine goes on with work that may soon be of others.'),
    Guard('the gate before an acquisition', '`work/native.py` `acquire`',
          _watched(faults=2, budgets={'cut': 1, 'stop': 1}, acquires=True, owners=(-1,)), None,
          'The WHERE protects. Without it work is taken that cannot begin.'),
    Guard('the gate before a takeover', '`takeover.py` `_relieve`',
          _pair(faults=2, budgets={'cut': 1, 'crash': 1}, victims={'cut': (1,)},
                machines=_ONE_MACHINE, ticks=4), None,
          'The WHERE protects. Without it work is taken that cannot begin.'),
    Guard('the gate before a declaration', '`detection.py` `Observer._declare`',
          _pair(workers=(0,), fence=1, lag=0, window=2, ticks=4, faults=2,
                budgets={'cut': 2}), None,
          'The count and the WHERE protect. Without it an engine judges others while it may be '
          'judged itself.'),
)

OUTSIDE = {
    'the kernel timer is disarmed before an engine without work leaves (`agent.py` `stop`)':
        'Who leaves ends in one step of the model. Without it, an engine that waits to leave until '
        'a database comes back is ended by the kernel. It owns nothing by then, so nothing is '
        'lost; the others find it dead instead of left.',
    'a pause is no gap while own beats go on (`detection.py` `View.look`)':
        'In the model time passes only when each engine that is well has looked, so none pauses '
        'its looks alone. Without it, the last engine of a fleet that takes over for seconds at a '
        'time would never have seen for long enough to declare anybody.',
    'what runs already is not started again by a takeover (`work/native.py` `_start`)':
        'It takes a failover that undoes a takeover. The model has none that does: work would then '
        'go on under a lock that the table gives to another, which is what I1 forbids.',
}
"""Rules that the model cannot miss, each with the reason."""
