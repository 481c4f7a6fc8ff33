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

"""What the database does with a statement when it lands: the WHERE of each, guard by guard.

A statement is (kind, actor, first, second, third).  It may land when it is sent or later, and then
whatever it compares is compared as things stand then.  The one exception: under READ COMMITTED
a subselect locks nothing, so that an actor found alive may have been declared dead before the
statement commits (``found_alive``).

The invariants about what is committed are judged here, where it is committed.
"""

from typing import Any

from tests.model import state as at
from tests.model.config import Config
from tests.model.state import Frame

(ACQUIRE, WRITE, FINISH, DECLARE, TAKE_OVER, RECLAIM, PURGE, LEAVE, INSERT,
 JOURNAL) = range(1, 11)

WATCHED, KERNEL = range(2)
END = 255
"""Stands for a step of progress where the work ends."""

Fault = tuple[int, str]


class Statements:
    """The database, and the judge of what is committed in it."""

    def __init__(self, config: Config, removed: frozenset[str] = frozenset()) -> None:
        self.config = config
        self.at = at.Layout(config.engines, config.locks)
        self.engines = range(config.engines)
        self.locks = range(config.locks)
        self.removed = removed
        self.fault: Fault | None = None
        self.happened: list[tuple[Any, ...]] | None = None
        """What a checker of histories is told; kept only where a trace is told again."""
        self._land = {
            ACQUIRE: self._acquire, WRITE: self._write, FINISH: self._write,
            DECLARE: self._declare, TAKE_OVER: self._take_over, RECLAIM: self._reclaim,
            PURGE: self._purge, LEAVE: self._leave, INSERT: self._insert,
            JOURNAL: self._journal}

    def keeps(self, guard: str) -> bool:
        """Whether the protocol has this guard here."""
        return guard not in self.removed

    def broken(self, invariant: int, sentence: str) -> None:
        """Take note of the first invariant that does not hold."""
        if self.fault is None:
            self.fault = invariant, sentence

    def tell(self, *fact: Any) -> None:
        """Keep a fact for the checker of histories."""
        if self.happened is not None:
            self.happened.append(fact)

    def live(self, s: Frame, e: int) -> bool:
        """Whether the row of an engine is there and says that it is alive."""
        return s[self.at.row[e] + at.ROW] == at.UP

    def ended(self, s: Frame, e: int) -> bool:
        """Whether the row of an engine says that it is dead or has left."""
        return s[self.at.row[e] + at.ROW] >= at.DEAD

    def land(self, s: Frame, kind: int, actor: int, first: int = 0, second: int = 0,
             third: int = 0, *, found_alive: bool = False) -> bool:
        """Let a statement land; return whether it has changed what it was to change."""
        return self._land[kind](s, actor, first, second, third, found_alive)

    def _alive(self, s: Frame, actor: int, guard: str, found_alive: bool) -> bool:
        return found_alive or self.live(s, actor) or not self.keeps(guard)

    def _acted(self, s: Frame, actor: int, found_alive: bool, what: str) -> None:
        """Judge I7, of a statement that has changed something."""
        if not found_alive and not self.live(s, actor):
            self.broken(7, f'an engine that is not alive {what}')

    def _acquire(self, s: Frame, actor: int, lock: int, second: int, third: int,
                 found_alive: bool) -> bool:
        row = self.at.lock[lock]
        if s[row + at.OWNER] or s[row + at.STATUS] in {at.IN_PROGRESS, at.QUARANTINED}:
            return False
        if not self._alive(s, actor, 'the actor is alive: acquire', found_alive):
            return False
        self._acted(s, actor, found_alive, 'has acquired a lock')
        s[row + at.STATUS] = at.IN_PROGRESS
        s[row + at.OWNER] = actor + 1
        s[row + at.LOCK_GENERATION] += 1
        s[row + at.TAKEOVERS:row + at.TOLD + 1] = bytes(4)
        self.tell('Owned', lock, s[row + at.LOCK_GENERATION], actor, None, 'acquire')
        return True

    def _write(self, s: Frame, actor: int, lock: int, generation: int, step: int,
               found_alive: bool) -> bool:
        ends = step == END
        row = self.at.lock[lock]
        same = s[row + at.LOCK_GENERATION] == generation
        own = s[row + at.OWNER] == actor + 1
        if ((not own and self.keeps('owner in each write'))
                or (not same and self.keeps('generation in each write'))
                or not self._alive(s, actor, 'the actor is alive: write', found_alive)):
            return False
        if not same:
            self.broken(3, 'a write under an old generation is committed')
        elif not own:
            self.broken(3, 'a write is committed by an engine that does not own the lock')
        else:
            self._acted(s, actor, found_alive, 'has written under a lock')
        if not ends:
            if step < s[row + at.TOLD]:
                self.broken(8, 'progress is put back to what it was before')
            s[row + at.RECORDED] = step
        if ends:
            s[row + at.STATUS] = at.COMPLETE
            s[row + at.OWNER] = 0
        self.tell('Wrote', lock, generation, actor, 'complete' if ends else 'progress', step)
        return True

    def _declare(self, s: Frame, actor: int, other: int, count: int, evidence: int,
                 found_alive: bool) -> bool:
        row = self.at.row[other]
        same = s[row + at.ROW_COUNT] == count
        was_live = s[row + at.ROW] == at.UP
        if (s[row + at.ROW] == at.ABSENT
                or (not same and self.keeps('count in the declaration'))
                or (not was_live and self.keeps('live in the declaration'))
                or not self._alive(s, actor, 'the actor is alive: declare', found_alive)):
            return False
        mass = self.config.mass or bool(evidence & 2)
        self.tell('Declared', other, actor, count, s[row + at.ROW_COUNT],
                  'kernel' if evidence & 1 else 'watched', mass)
        self._judge_declaration(s, other, same, was_live, evidence & 1)
        self._acted(s, actor, found_alive, 'has declared another dead')
        s[row + at.ROW] = at.DEAD
        s[self.at.engine[other] + at.DECLARED] = s[self.at.engine[other] + at.PROCESS] != at.GONE
        s[row + at.ENDED_AGE] = 0
        s[row + at.MASS] = mass
        s[row + at.WATCHED_DEATH] = evidence & 1 == WATCHED
        if self.keeps('journal in the transaction of the declaration'):
            self._journal(s, actor, other, 0, 0, False)
        else:
            s[self.at.engine[actor] + at.UNWRITTEN] = other + 1
        return True

    def _judge_declaration(self, s: Frame, other: int, same: bool, was_live: bool,
                           evidence: int) -> None:
        target = self.at.engine[other]
        runs = s[target + at.PROCESS] != at.GONE
        if not same:
            self.broken(4, 'an engine is declared dead that has beaten since it was seen')
        elif not was_live:
            self.broken(18, 'an engine that had ended is declared dead, and journalled, again')
        elif evidence == KERNEL and runs:
            self.broken(5, 'the kernel is said to have proved dead an engine that runs')
        elif runs and s[target + at.CLEAN]:
            number = 11 if s[target + at.OUTAGE_SEEN] else 15 if s[at.BUDGET['step']] < (
                self.config.budgets.get('step', 0)) else 5
            self.broken(number, 'an engine is declared dead that has beaten whenever it could')

    def _journal(self, s: Frame, actor: int, other: int, second: int, third: int,
                 found_alive: bool) -> bool:
        s[self.at.row[other] + at.JOURNAL] += 1
        self.tell('Journalled', other, actor)
        return True

    def _take_over(self, s: Frame, actor: int, other: int, locks: int, generations: int,
                   found_alive: bool) -> bool:
        """Compare and swap a batch: all of it or nothing."""
        if not self.ended(s, other) and self.keeps('the owner has ended, in the takeover'):
            return False
        if not self._alive(s, actor, 'the actor is alive: take over', found_alive):
            return False
        batch = [k for k in self.locks if locks >> k & 1]
        for k in batch:
            row = self.at.lock[k]
            if s[row + at.OWNER] != other + 1 and self.keeps('owner in the takeover'):
                return False
            if (s[row + at.LOCK_GENERATION] != generations >> 4 * k & 15
                    and self.keeps('generation in the takeover')):
                return False
        for k in batch:
            self._move(s, k, actor, other, generations >> 4 * k & 15, 'takeover')
        self._acted(s, actor, found_alive, 'has taken work over')
        if (self.config.kinds[actor] != self.config.kinds[other]
                or actor not in self.config.handlers):
            self.broken(8, 'work is taken over by an engine that cannot do it')
        return True

    def _move(self, s: Frame, lock: int, actor: int, other: int, generation: int,
              how: str) -> None:
        row = self.at.lock[lock]
        if s[row + at.OWNER] != other + 1:
            self.broken(1, 'a lock is taken from an owner that has not ended')
        elif how == 'takeover' and not self.ended(s, other):
            self.broken(5, 'a lock is taken from an engine that lives')
        elif s[row + at.LOCK_GENERATION] != generation:
            self.broken(2, 'a lock is taken under another generation than the taker believes')
        if how == 'takeover':
            if self._died_alone(s, other) and s[row + at.DEATHS] >= self.config.max_takeovers:
                self.broken(10, f'work is taken over that {self.config.max_takeovers + 1} owners '
                                f'in a row have died of')
            s[row + at.TAKEOVERS] += self.blamed(s, other)
            s[row + at.DEATHS] += self._died_alone(s, other)
        s[row + at.STATUS] = at.IN_PROGRESS
        s[row + at.OWNER] = actor + 1
        s[row + at.LOCK_GENERATION] += 1
        self.tell('Owned', lock, s[row + at.LOCK_GENERATION], actor, other, how)

    def _died_alone(self, s: Frame, e: int) -> bool:
        row = self.at.row[e]
        return s[row + at.ROW] == at.DEAD and not s[row + at.MASS]

    def blamed(self, s: Frame, e: int) -> bool:
        """Whether the protocol believes that an engine's work may have killed it."""
        row = self.at.row[e]
        return (self._died_alone(s, e)
                or (bool(s[row + at.MASS]) and not self.keeps('no blame for a mass death'))
                or (s[row + at.ROW] == at.HAS_LEFT
                    and not self.keeps('no blame for who has left')))

    def _reclaim(self, s: Frame, actor: int, lock: int, generation: int, third: int,
                 found_alive: bool) -> bool:
        row = self.at.lock[lock]
        if s[row + at.OWNER] != actor + 1 and self.keeps('owner in the claim from itself'):
            return False
        if (s[row + at.LOCK_GENERATION] != generation
                and self.keeps('generation in the claim from itself')):
            return False
        if not self._alive(s, actor, 'the actor is alive: claim from itself', found_alive):
            return False
        self._move(s, lock, actor, actor, generation, 'reclaim')
        self._acted(s, actor, found_alive, 'has claimed from itself')
        return True

    def quarantine(self, s: Frame, lock: int, actor: int) -> None:
        """Set a lock aside, and judge I10."""
        row = self.at.lock[lock]
        if s[row + at.DEATHS] < self.config.max_takeovers:
            self.broken(10, f'work is quarantined whose owners died {s[row + at.DEATHS] + 1} '
                            f'times, blamed, not {self.config.max_takeovers + 1} times')
        elif self.config.poison and lock not in self.config.poison:
            self.broken(10, 'work is quarantined that was only beside the poison')
        s[row + at.STATUS] = at.QUARANTINED
        s[row + at.OWNER] = 0
        self.tell('Wrote', lock, s[row + at.LOCK_GENERATION], actor, 'quarantine', END)
        s[row + at.LOCK_GENERATION] += 1

    def _purge(self, s: Frame, actor: int, other: int, second: int, third: int,
               found_alive: bool) -> bool:
        owns = any(s[base + at.OWNER] == other + 1 for base in self.at.lock)
        if (not self.ended(s, other)
                or (owns and self.keeps('purge only what owns nothing'))
                or not self._alive(s, actor, 'the actor is alive: purge', found_alive)):
            return False
        self._acted(s, actor, found_alive, 'has purged a row')
        self.remove(s, other)
        self.tell('Purged', other, actor)
        return True

    def remove(self, s: Frame, e: int) -> None:
        """Remove a row, with all that it said."""
        row = self.at.row[e]
        s[row:row + at.WATCHED_DEATH + 1] = bytes(at.WATCHED_DEATH + 1)

    def _leave(self, s: Frame, actor: int, first: int, second: int, third: int,
               found_alive: bool) -> bool:
        if not self.live(s, actor):
            return False
        row = self.at.row[actor]
        s[row + at.ROW] = at.HAS_LEFT
        s[row + at.ENDED_AGE] = 0
        self.tell('Left', actor)
        return True

    def _insert(self, s: Frame, actor: int, count: int, second: int, third: int,
                found_alive: bool) -> bool:
        row = self.at.row[actor]
        if s[row + at.ROW] != at.ABSENT:
            return False
        if s[self.at.engine[actor] + at.DECLARED]:
            self.broken(14, 'an engine that was declared dead joins again')
        self.remove(s, actor)
        s[row + at.ROW] = at.UP
        s[row + at.ROW_COUNT] = count
        s[row + at.ROW_AGE] = at.ZERO
        self.beaten(s, actor)
        self.tell('Joined', actor)
        return True

    def beaten(self, s: Frame, e: int) -> None:
        """Take note, for the judge, that a sign of life is in the database."""
        base = self.at.engine[e]
        s[base + at.CLEAN] = 1
        s[base + at.OUTAGE_SEEN] = 0

    def beat(self, s: Frame, e: int) -> bool:
        """Let a beat land; return whether there was a row that it may raise."""
        row = self.at.row[e]
        if s[row + at.ROW] == at.ABSENT or (
                self.ended(s, e) and self.keeps('live in the beat')):
            return False
        s[row + at.ROW_COUNT] += 1
        s[row + at.ROW_AGE] = at.ZERO
        self.beaten(s, e)
        self.tell('Beat', e, s[row + at.ROW_COUNT])
        return True
