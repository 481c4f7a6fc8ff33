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

"""What an engine does: its gate, its beats, its view of the others, its work.

Each function takes one step of one engine, in a state that it changes.  It is written beside the
product's code: ``membership`` and ``fence``, ``detection``, ``takeover`` and ``work.native``.
"""

from tests.model import state as at
from tests.model import statements
from tests.model.state import Frame

_LONGER = 3
"""How much longer a long ``fence_time`` is, in ticks."""


class Engines(statements.Statements):
    """The engines, each by its number."""

    def fence_of(self, e: int) -> int:
        """Return an engine's own ``fence_time``."""
        return self.config.fence + _LONGER * (e in self.config.long_fence)

    def open(self, s: Frame, e: int, guard: str) -> bool:
        """Whether the gate lets an engine pass, at the place that the guard names."""
        base = self.at.engine[e]
        if s[base + at.STATE] == at.JOINING:
            return not self.keeps('the gate is shut while joining is unclear')
        if s[base + at.STATE] != at.JOINED:
            return False
        return (s[base + at.AGE] < self.fence_of(e) or e in self.config.foreign
                or not self.keeps('fence before the limit') or not self.keeps(guard))

    # The process

    def end(self, s: Frame, e: int, why: str = 'dead') -> None:
        """End a process: all that it knew is gone with it."""
        base = self.at.engine[e]
        unwritten = s[base + at.UNWRITTEN]
        s[base:base + self.at.width] = bytes(self.at.width)
        if unwritten:
            self.broken(18, 'a death was declared that no journal will tell of')
        self.tell('Killed', e, why)

    def good_beat(self, s: Frame, e: int, started: int) -> None:
        """Open the gate for ``fence_time``, counted from an age: the beat's start."""
        base = self.at.engine[e]
        if (s[base + at.AGE] - started > self.config.longest_silence
                and self.keeps('a gap: an own beat that came late')):
            s[base + at.LATE] = 1
        if not self.keeps('fence counted from the start of the beat'):
            started = 0
        if (started >= self.fence_of(e) + self.config.lag
                and not self.keeps('a beat that took too long sets no timer')):
            self.ended_holding(s, e)
            return
        s[base + at.AGE] = min(s[base + at.AGE], started)

    def ended_holding(self, s: Frame, e: int) -> None:
        """Let the kernel timer end a process that runs; it holds, and need not end."""
        self.end(s, e, 'fence')
        self.broken(11, 'an engine that holds is ended, though it could beat again')

    def beat_now(self, s: Frame, e: int) -> None:
        """Beat; the reply comes at once."""
        base = self.at.engine[e]
        s[base + at.ATTEMPTS] += 1
        if self.beat(s, e):
            self.good_beat(s, e, 0)
            if self.live(s, e):
                s[base + at.PAUSED] = 0
        else:
            self.missing(s, e)

    def beat_failed(self, s: Frame, e: int) -> None:
        """No answer: nothing is known, and nobody is dead."""
        base = self.at.engine[e]
        s[base + at.BEAT] = s[base + at.BEAT_AGE] = 0
        s[base + at.BEAT_FAILED] = 1
        if not self.keeps('the count of attempts, not of answers'):
            s[base + at.ATTEMPTS] -= 1

    def missing(self, s: Frame, e: int) -> None:
        """No row has changed: look why."""
        base = self.at.engine[e]
        if self.ended(s, e) or not self.keeps('the fresh read after no row changed'):
            self.end(s, e)
            return
        if self.live(s, e):
            return
        held = s[base + at.AGE] >= self.fence_of(e)
        if held and self.keeps('insert again only while the gate is open'):
            self.end(s, e)
            return
        count = s[base + at.ATTEMPTS] if self.keeps('insert again with a count') else 0
        if self.land(s, statements.INSERT, e, count):
            self.good_beat(s, e, 0)

    def joined(self, s: Frame, e: int, done: bool | None) -> None:
        """Take the answer to a join; a row that is there already is one's own."""
        base = self.at.engine[e]
        s[base + at.AGE] = 0
        if done is None:
            s[base + at.STATE] = at.JOINING
            return
        if not done:
            s[base + at.ATTEMPTS] += 1
        if done or self.beat(s, e):
            s[base + at.STATE] = at.JOINED
        else:
            self.end(s, e)

    # The view

    def see(self, s: Frame, o: int) -> None:
        """Judge what a look has brought: whom to watch on, and whose time has come."""
        base = self.at.engine[o]
        gap = self._gap(s, base)
        during = s[base + at.LOOK_AGE]
        paused = (during > self.config.longest_read
                  and self.keeps('a gap: a pause while reading'))
        s[base + at.BEAT_FAILED] = s[base + at.LATE] = 0
        added = 0
        if gap:
            settle = self.config.settle if self.keeps('settle after a gap') else 0
            s[base + at.GOOD] = max(0, during - settle)
            s[base + at.SETTLE] = max(0, settle - during)
        else:
            added = s[base + at.GOOD_START]
            s[base + at.GOOD] -= added
        since = 0 if paused or not self.keeps(
            'window begins when the first read has returned') else s[base + at.GOOD]
        s[base + at.SEEN_WELL] = not paused
        s[base + at.SINCE_LOOK] = 0
        self._follow(s, o, added, since)
        s[base + at.LOOK] = s[base + at.LOOK_AGE] = s[base + at.GOOD_START] = 0

    def _gap(self, s: Frame, base: int) -> bool:
        return ((not s[base + at.SEEN_WELL] and self.keeps('a gap: a look that failed'))
                or (bool(s[base + at.BEAT_FAILED]) and self.keeps('a gap: an own beat that failed'))
                or (s[base + at.SINCE_LOOK] > 1 + s[base + at.LOOK_AGE]
                    and (s[base + at.LATE] or s[base + at.AGE] - s[base + at.LOOK_AGE]
                         > self.config.longest_silence)
                    and self.keeps('a gap: an own pause')))

    def _follow(self, s: Frame, o: int, added: int, since: int) -> None:
        counts = {}
        for j in self.config.observed:
            if j == o:
                continue
            peer = self.at.peer[o][j]
            read, s[peer + at.READ] = s[peer + at.READ], 0
            s[peer + at.RIPE] = 0
            if read < at.PRESENT:
                s[peer + at.COUNT] = s[peer + at.WATCHED] = 0
                if read == at.ENDED:
                    s[peer + at.KNOWN_ENDED] = 1
                continue
            counts[j] = count = read - at.PRESENT + 1
            same = s[peer + at.COUNT] == count or (
                0 < count < s[peer + at.COUNT]
                and not self.keeps('a count that went down starts afresh'))
            if same:
                s[peer + at.WATCHED] = min(s[peer + at.WATCHED] + added, at.ZERO + at.CAP)
            else:
                s[peer + at.COUNT] = count
                s[peer + at.WATCHED] = at.ZERO - since
        self._judge(s, o, counts)

    def _window(self, j: int) -> int:
        longer = _LONGER * (j in self.config.long_fence)
        return self.config.window + (longer if self.keeps("the candidate's own fence_time") else 0)

    def _judge(self, s: Frame, o: int, counts: dict[int, int]) -> None:
        reading = 0 if self.keeps('the verdict counts up to the start of the last look') else (
            s[self.at.engine[o] + at.GOOD])
        watched = {j: s[self.at.peer[o][j] + at.WATCHED] - at.ZERO + reading for j in counts}
        tripped = self._tripped(s, watched)
        for j, seconds in watched.items():
            window = self._window(j) + (self.config.breaker_delay if tripped else 0)
            peer = self.at.peer[o][j]
            by_the_database = s[self.at.row[j] + at.ROW_AGE] - at.ZERO
            own_clock = self.keeps("the observer's own clock")
            if (seconds if own_clock else by_the_database) >= window:
                s[peer + at.RIPE] = counts[j] + (128 if tripped else 0)

    def _tripped(self, s: Frame, watched: dict[int, int]) -> bool:
        if not watched or not self.keeps('the breaker'):
            return False
        machine = self.config.machines
        recent = {machine[j] for j in self.engines
                  if s[self.at.row[j] + at.ROW] == at.DEAD and s[self.at.row[j] + at.WATCHED_DEATH]
                  and s[self.at.row[j] + at.ENDED_AGE] <= self.config.window}
        known = {machine[j] for j in self.engines if self.live(s, j)} | recent
        suspect = recent | {machine[j] for j in watched}
        return len(suspect) > max(2, len(known) / 2)

    def looks_at(self, o: int, j: int) -> bool:
        """Whether an engine is of the observer's binary and topic."""
        return (self.config.kinds[o] == self.config.kinds[j]
                or not self.keeps('looks only at its own kind'))

    def read(self, s: Frame, o: int) -> None:
        """Take what a look reads: candidates by the database's time, and who has ended."""
        for j in self.config.observed:
            if j == o or not self.looks_at(o, j):
                continue
            row = self.at.row[j]
            age = s[row + at.ROW_AGE] - at.ZERO + self.config.skew
            found = at.WELL
            if self.ended(s, j):
                found = at.ENDED
            elif (self.live(s, j) and (j not in self.config.foreign or not self.keeps(
                    'no judgement of an unknown version'))
                    and (age > 0 or (age < 0 and self.keeps('a candidate from the future')))):
                found = at.PRESENT + s[row + at.ROW_COUNT]
            s[self.at.peer[o][j] + at.READ] = found

    # The work

    def hold(self, s: Frame, e: int, lock: int, generation: int, tainted: int) -> None:
        """Take note that a lock is held, its work not yet begun."""
        held = self.at.held[e][lock]
        found = s[self.at.lock[lock] + at.RECORDED]
        s[held:held + at.STEP + 1] = bytes((generation, at.CLAIMED, 0, min(1, tainted), found))

    def let_go(self, s: Frame, e: int, lock: int) -> None:
        """Forget a lock."""
        held = self.at.held[e][lock]
        s[held:held + at.STEP + 1] = bytes(at.STEP + 1)

    def room(self, s: Frame, e: int) -> int:
        """Return how many more locks an engine may hold."""
        return self.config.room - sum(1 for held in self.at.held[e] if s[held])

    def call(self, s: Frame, e: int, lock: int) -> None:
        """Do something outside the database, behind the gate; judge it."""
        held = self.at.held[e][lock]
        row = self.at.lock[lock]
        generation = s[held + at.GENERATION]
        self.tell('Called', lock, generation, e)
        paused = s[self.at.engine[e] + at.PAUSED]
        owns = s[row + at.OWNER] == e + 1
        same = s[row + at.LOCK_GENERATION] == generation
        if self.ended(s, e):
            if not paused:
                left = s[self.at.row[e] + at.ROW] == at.HAS_LEFT
                self.broken(13 if left else 6,
                            f'an engine that {"has left" if left else "was declared dead"} acts')
        elif not owns and self.live(s, e):
            self.broken(1, 'an engine does work under a lock that it does not own')
        elif not same and self.live(s, e):
            self.broken(9, 'work is done under a generation that earlier work had')
        s[held + at.DOES] = at.RUNS
        if lock in self.config.poison:
            self.end(s, e, 'crash')

    def wrote(self, s: Frame, e: int, lock: int, done: bool | None, ends: bool) -> None:
        """Take the answer to a write: whether a row has changed, or None where that is unclear."""
        held = self.at.held[e][lock]
        row = self.at.lock[lock]
        if done is None:
            s[held + at.UNSURE] = 1
            s[held + at.DOES] = at.ENDING if ends else s[held + at.DOES]
            return
        if done and not ends:
            s[held + at.UNSURE] = 0
            if self.config.steps:
                s[held + at.STEP] += 1
                s[row + at.TOLD] = s[held + at.STEP]
                self.tell('Recorded', lock, s[held + at.GENERATION], e, s[held + at.STEP])
            return
        after_all = (s[held + at.UNSURE]
                     and s[row + at.LOCK_GENERATION] == s[held + at.GENERATION]
                     and s[row + at.STATUS] == at.COMPLETE)
        if not done and not after_all and self.live(s, e) and s[row + at.OWNER] == e + 1 and (
                s[row + at.LOCK_GENERATION] == s[held + at.GENERATION]):
            self.broken(16, 'an engine gives up a lock that is its own')
        self.let_go(s, e, lock)
