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

"""All that can happen in a state: what engines do, what befalls them, and the passing of time.

Time passes for all at once, and only when each engine that is well has looked; those that are
well then beat, too.  So whoever does neither has met with a fault, and faults are counted.
Between two ticks all else may happen in any order.
"""

from collections.abc import Iterator

from tests.model import state as at
from tests.model import statements
from tests.model.engines import Engines
from tests.model.state import Frame
from tests.model.statements import Fault

Label = tuple[object, ...]
Move = tuple[Label, Frame]

_STEP = 20
"""How far the database's clock is stepped: farther than any window is long."""
_LOST = 4
"""How many beats a failover loses."""


class World(Engines):
    """The model: a beginning, and what may follow each state."""

    def beginning(self) -> bytes:
        """Return the first state."""
        c = self.config
        s = bytearray(self.at.size)
        s[at.TICKS], s[at.FAULTS] = c.ticks, c.faults
        for name, number in c.budgets.items():
            s[at.BUDGET[name]] = number
        for e in self.engines:
            base, row = self.at.engine[e], self.at.row[e]
            s[base + at.PROCESS] = at.RUNNING
            s[base + at.SEEN_WELL] = 1
            s[base + at.SINCE_LOOK] = c.skew
            if e in c.unjoined:
                s[base + at.AGE] = at.NEVER
                continue
            self.tell('Joined', e)
            s[base + at.STATE] = at.JOINED
            s[base + at.CLEAN] = 1
            s[base + at.ATTEMPTS] = s[row + at.ROW_COUNT] = c.beaten
            s[row + at.ROW], s[row + at.ROW_AGE] = at.UP, at.ZERO
        for lock, owner in enumerate(c.owners):
            if owner >= 0:
                row = self.at.lock[lock]
                s[row:row + 3] = bytes((at.IN_PROGRESS, owner + 1, 1))
                self.hold(s, owner, lock, 1, 0)
                s[self.at.held[owner][lock] + at.DOES] = at.RUNS
                self.tell('Owned', lock, 1, owner, None, 'acquire')
                self.tell('Started', lock, 1, owner)
        return bytes(s)

    def moves(self, state: bytes) -> Iterator[tuple[Label, bytes, Fault | None]]:
        """Return each thing that can happen next, what comes of it, and what it breaks."""
        self.fault = None
        for label, after in self._all(state):
            yield label, bytes(after), self.fault
            self.fault = None

    def _all(self, state: bytes) -> Iterator[Move]:
        if state[at.TICKS] and self._all_have_looked(state):
            yield ('tick',), self.tick(bytearray(state))
        yield from self._landings(state)
        if state[at.FAULTS]:
            yield from self._faults(state)
        yield from self._ends_of_faults(state)
        for e in self.engines:
            if state[self.at.engine[e] + at.PROCESS] == at.RUNNING:
                yield from self._life(state, e)

    # Time

    def _looks(self, s: bytes | Frame, e: int) -> bool:
        """Whether an engine looks at the others, and nothing hinders it."""
        base = self.at.engine[e]
        return (e in self.config.observers and s[base + at.PROCESS] == at.RUNNING
                and s[base + at.STATE] == at.JOINED and not s[base + at.CUT]
                and s[at.OUTAGE] != 1)

    def _all_have_looked(self, s: bytes) -> bool:
        return all(not s[self.at.engine[e] + at.SINCE_LOOK] or s[self.at.engine[e] + at.LOOK]
                   or not self._looks(s, e) for e in self.engines)

    def tick(self, s: Frame) -> Frame:
        """Let time pass, then let those beat that are well."""
        s[at.TICKS] -= 1
        self.tell('tick')
        for e in self.engines:
            row = self.at.row[e]
            if s[row + at.ROW] != at.ABSENT:
                s[row + at.ROW_AGE] = min(at.ZERO + at.CAP, s[row + at.ROW_AGE] + 1)
                s[row + at.ENDED_AGE] += self.ended(s, e) and s[row + at.ENDED_AGE] < at.CAP
        for base in self.at.message:
            if s[base + at.KIND]:
                s[base + at.FOUND_ALIVE] += 2
                if s[base + at.FOUND_ALIVE] >> 1 > self.config.transaction:
                    s[base:base + at.FOUND_ALIVE + 1] = bytes(at.FOUND_ALIVE + 1)
        self._sort_messages(s)
        for e in self.engines:
            if s[self.at.engine[e] + at.PROCESS]:
                self._age(s, e)
        for e in self.engines:
            if s[self.at.engine[e] + at.PROCESS]:
                self._beat_in_time(s, e)
        return s

    def _age(self, s: Frame, e: int) -> None:
        base = self.at.engine[e]
        process = s[base + at.PROCESS]
        if process == at.FROZEN:
            return
        if s[base + at.STATE] == at.LEFT:
            self.end(s, e, 'exit')
            return
        for field in (at.AGE, at.SINCE_LOOK):
            if s[base + field] < at.CAP:
                s[base + field] += 1
        for peer in self.at.peer[e]:
            s[peer + at.SEEN_OLD] += 0 < s[peer + at.SEEN_OLD] <= self.config.looks_apart
        s[base + at.BEAT_AGE] += s[base + at.BEAT] > 0
        s[base + at.LOOK_AGE] += s[base + at.LOOK] > 0
        if s[base + at.SETTLE]:
            s[base + at.SETTLE] -= 1
        else:
            s[base + at.GOOD] = min(at.CAP, s[base + at.GOOD] + 1)
        if process == at.RUNNING:
            self._time_out(s, e)
        joined = s[base + at.STATE] != at.NEW
        if joined and s[base + at.AGE] >= self.fence_of(e) + self.config.lag:
            armed = self.keeps('the kernel timer') and not s[base + at.DISARMED]
            if process == at.STOPPED and armed:
                self.end(s, e, 'fence')
            elif process == at.RUNNING and s[at.OUTAGE] and not self.keeps(
                    'who holds moves the kernel timer on'):
                self.ended_holding(s, e)

    def _time_out(self, s: Frame, e: int) -> None:
        """What an engine that runs cannot do for longer than one tick, or than its timeouts."""
        base = self.at.engine[e]
        for lock, held in enumerate(self.at.held[e]):
            if s[held + at.DOES] == at.ARMED:
                s[held + at.DOES] = at.RUNS
            elif s[held + at.DOES] == at.ACQUIRING:
                self.let_go(s, e, lock)
        for peer in self.at.peer[e]:
            s[peer + at.RIPE] = 0
        longest = self.config.longest_read
        if s[base + at.LOOK_AGE] > longest or (not s[base + at.LOOK] and not self._looks(s, e)):
            s[base + at.LOOK] = s[base + at.LOOK_AGE] = s[base + at.GOOD_START] = 0
            s[base + at.SEEN_WELL] = 0
            for peer in self.at.peer[e]:
                s[peer + at.READ] = 0
        if s[base + at.BEAT_AGE] > longest:
            self.beat_failed(s, e)
            s[base + at.CLEAN] = 0

    def _beat_in_time(self, s: Frame, e: int) -> None:
        base = self.at.engine[e]
        if s[base + at.PROCESS] != at.RUNNING:
            s[base + at.CLEAN] = 0
        elif ((s[base + at.BEAT] and not s[at.OUTAGE])
              or s[base + at.STATE] in {at.NEW, at.LEFT} or e in self.config.foreign):
            return
        elif s[base + at.CUT]:
            s[base + at.CLEAN] = 0
            s[base + at.ATTEMPTS] += 1
            self.beat_failed(s, e)
        elif s[at.OUTAGE]:
            s[base + at.OUTAGE_SEEN] = 1
            s[base + at.ATTEMPTS] += not s[base + at.BEAT]
            self.beat_failed(s, e)
        elif s[base + at.STATE] == at.JOINING:
            self.joined(s, e, self.land(s, statements.INSERT, e, 0))
        else:
            self.beat_now(s, e)

    # Statements on their way

    def _sort_messages(self, s: Frame) -> None:
        base, end = self.at.message[0], self.at.size
        width = (end - base) // at.MESSAGES
        s[base:end] = b''.join(sorted(
            (bytes(s[first:first + width]) for first in self.at.message), reverse=True))

    def _landings(self, state: bytes) -> Iterator[Move]:
        if state[at.OUTAGE]:
            return
        for base in self.at.message:
            if state[base + at.KIND]:
                s = bytearray(state)
                message = tuple(s[base:base + at.FOUND_ALIVE])
                self.land_message(s, base)
                yield ('land', *message), s

    def land_message(self, s: Frame, base: int) -> None:
        """Let a statement that is on its way land; nobody waits for an answer."""
        kind, actor, first, second, third, flags = s[base:base + at.FOUND_ALIVE + 1]
        s[base:base + at.FOUND_ALIVE + 1] = bytes(at.FOUND_ALIVE + 1)
        self._sort_messages(s)
        self.land(s, kind, actor, first, second, third, found_alive=bool(flags & 1))

    def send(self, state: bytes, kind: int, actor: int, first: int = 0, second: int = 0,
             third: int = 0) -> Iterator[tuple[str, Frame, bool | None]]:
        """Send a statement; return each way that may go, and the answer: None is no clear one."""
        base = self.at.engine[actor]
        if state[at.OUTAGE] or state[base + at.CUT]:
            return
        s = bytearray(state)
        done = self.land(s, kind, actor, first, second, third)
        yield '', s, done
        if not self._may(state, 'unclear', actor):
            return
        if done:
            s = self._spend(state, 'unclear')
            self.land(s, kind, actor, first, second, third)
            yield 'lost', s, None
        last = self.at.message[-1]
        if state[last + at.KIND]:
            return
        for found_alive in (0, 1)[:1 + self.live(bytearray(state), actor)]:
            s = self._spend(state, 'unclear')
            s[last:last + at.FOUND_ALIVE + 1] = bytes(
                (kind, actor, first, second, third, found_alive))
            self._sort_messages(s)
            yield ('late', 'half')[found_alive], s, None

    # Faults

    def _may(self, state: bytes, kind: str, e: int | None = None) -> bool:
        c = self.config
        return bool(state[at.FAULTS] and state[at.BUDGET[kind]]
                    and (not c.order or c.order[-state[at.FAULTS]] == kind)
                    and (not c.when or c.when[-state[at.FAULTS]] == state[at.TICKS])
                    and (e is None or e in c.victims.get(kind, self.engines)))

    def _spend(self, state: bytes, kind: str) -> Frame:
        s = bytearray(state)
        s[at.FAULTS] -= 1
        s[at.BUDGET[kind]] -= 1
        return s

    def _faults(self, state: bytes) -> Iterator[Move]:
        for e in self.engines:
            base = self.at.engine[e]
            process = state[base + at.PROCESS]
            if process and self._may(state, 'crash', e):
                s = self._spend(state, 'crash')
                self.end(s, e, 'crash')
                yield ('crash', e), s
            if process == at.RUNNING:
                for kind, into in (('stop', at.STOPPED), ('freeze', at.FROZEN)):
                    if self._may(state, kind, e):
                        s = self._spend(state, kind)
                        s[base + at.PROCESS] = into
                        s[base + at.PAUSED] |= into == at.FROZEN
                        self.tell('Stopped', e)
                        yield (kind, e), s
            if process and not state[base + at.CUT] and self._may(state, 'cut', e):
                s = self._spend(state, 'cut')
                s[base + at.CUT] = 1
                self.tell('Cut', e, True)
                yield ('cut', e), s
        if not state[at.OUTAGE] and self._may(state, 'outage'):
            for kind in self.config.victims.get('outage', (1, 2)):
                s = self._spend(state, 'outage')
                s[at.OUTAGE] = kind
                self.tell('Outage', True)
                yield ('outage', kind), s
        yield from self._faults_of_rows(state)

    def _faults_of_rows(self, state: bytes) -> Iterator[Move]:
        if self._may(state, 'step'):
            for by in (_STEP, -_STEP):
                s = self._spend(state, 'step')
                for row in self.at.row:
                    if s[row + at.ROW] != at.ABSENT:
                        s[row + at.ROW_AGE] = min(max(s[row + at.ROW_AGE] + by, at.ZERO - at.CAP),
                                                  at.ZERO + at.CAP)
                    if s[row + at.ROW] >= at.DEAD:
                        s[row + at.ENDED_AGE] = min(max(s[row + at.ENDED_AGE] + by, 0), at.CAP)
                self.tell('Stepped', by)
                yield ('step', by), s
        for e in self.config.observed:
            row = self.at.row[e]
            if state[row + at.ROW] == at.UP and self._may(state, 'remove', e):
                s = self._spend(state, 'remove')
                self.remove(s, e)
                yield ('remove', e), s
            if not self._may(state, 'failover', e):
                continue
            if state[row + at.ROW] == at.UP:
                s = self._spend(state, 'failover')
                s[row + at.ROW_COUNT] -= _LOST
                yield ('failover', e), s
            owns = any(state[lock + at.OWNER] == e + 1 for lock in self.at.lock)
            if state[row + at.ROW] == at.DEAD and owns:
                s = self._spend(state, 'failover')
                s[row + at.ROW] = at.UP
                s[row + at.ENDED_AGE] = s[row + at.JOURNAL] = s[row + at.MASS] = 0
                yield ('undone', e), s

    def _ends_of_faults(self, state: bytes) -> Iterator[Move]:
        for e in self.engines:
            base = self.at.engine[e]
            if state[base + at.PROCESS] in {at.STOPPED, at.FROZEN}:
                s = bytearray(state)
                s[base + at.PROCESS] = at.RUNNING
                self.tell('Continued', e)
                yield ('continue', e), s
            if state[base + at.CUT]:
                s = bytearray(state)
                s[base + at.CUT] = 0
                self.tell('Cut', e, False)
                yield ('reconnect', e), s
        if state[at.OUTAGE]:
            s = bytearray(state)
            s[at.OUTAGE] = 0
            self.tell('Outage', False)
            yield ('outage over',), s

    # What one engine does

    def _life(self, state: bytes, e: int) -> Iterator[Move]:
        base = self.at.engine[e]
        state_of = state[base + at.STATE]
        if state_of in {at.NEW, at.JOINING}:
            yield from self._join(state, e)
        if state[base + at.UNWRITTEN]:
            s = bytearray(state)
            other, s[base + at.UNWRITTEN] = s[base + at.UNWRITTEN] - 1, 0
            self.land(s, statements.JOURNAL, e, other)
            yield ('journal', e, other), s
        if state_of == at.JOINED:
            yield from self._beats(state, e)
            yield from self._looks_round(state, e)
            yield from self._declares(state, e)
            if self._may(state, 'leave', e):
                yield from self._leaves(state, e)
        if self.config.purges and state_of == at.JOINED:
            yield from self._purges(state, e)
        if e in self.config.workers:
            yield from self._claims(state, e)
            for lock in self.locks:
                yield from self._works(state, e, lock)

    def _join(self, state: bytes, e: int) -> Iterator[Move]:
        for how, s, done in self.send(state, statements.INSERT, e, 0):
            self.joined(s, e, done)
            yield ('join', e, how), s

    def _beats(self, state: bytes, e: int) -> Iterator[Move]:
        base = self.at.engine[e]
        reaches = not state[at.OUTAGE] and not state[base + at.CUT]
        if state[base + at.BEAT]:
            s = bytearray(state)
            if s[base + at.BEAT] == 1 and reaches:
                s[base + at.BEAT] = 2 if self.beat(s, e) else 3
                yield ('beat lands', e), s
            elif s[base + at.BEAT] == 2:
                self.good_beat(s, e, s[base + at.BEAT_AGE])
                s[base + at.BEAT] = s[base + at.BEAT_AGE] = 0
                yield ('beat answered', e), s
            elif s[base + at.BEAT] == 3 and reaches:
                s[base + at.BEAT] = s[base + at.BEAT_AGE] = 0
                self.missing(s, e)
                yield ('beat answered', e), s
            return
        if not reaches or e in self.config.foreign:
            return
        if state[base + at.AGE] or not self.live(bytearray(state), e):
            s = bytearray(state)
            self.beat_now(s, e)
            yield ('beat', e), s
        if self._may(state, 'slow', e):
            s = self._spend(state, 'slow')
            s[base + at.ATTEMPTS] += 1
            s[base + at.BEAT] = 1
            yield ('slow beat', e), s
        if self._may(state, 'unclear', e) and self.live(bytearray(state), e):
            s = self._spend(state, 'unclear')
            s[base + at.ATTEMPTS] += 1
            self.beat(s, e)
            self.beat_failed(s, e)
            yield ('beat unanswered', e), s

    def _looks_round(self, state: bytes, o: int) -> Iterator[Move]:
        base = self.at.engine[o]
        if not self._looks(state, o):
            return
        s = bytearray(state)
        phase = s[base + at.LOOK]
        if phase == 1:
            self.read(s, o)
            s[base + at.LOOK] = 2
            yield ('look reads', o), s
        elif phase == 2:
            self.see(s, o)
            yield ('look returns', o), s
        elif s[base + at.SINCE_LOOK]:
            s[base + at.GOOD_START] = s[base + at.GOOD]
            self.read(s, o)
            self.see(s, o)
            yield ('look', o), s
            if self._may(state, 'look', o):
                s = self._spend(state, 'look')
                s[base + at.GOOD_START] = s[base + at.GOOD]
                s[base + at.LOOK] = 1
                yield ('slow look', o), s

    def _declares(self, state: bytes, o: int) -> Iterator[Move]:
        if not self.open(bytearray(state), o, 'the gate before a declaration'):
            return
        for j in self.config.observed:
            if j == o:
                continue
            ripe = state[self.at.peer[o][j] + at.RIPE]
            if ripe:
                yield from self._declare_by(state, o, j, (ripe & 127) - 1,
                                            2 * (ripe >> 7) | statements.WATCHED)
            if self._proves(state, o, j):
                yield from self._declare_by(state, o, j, state[self.at.row[j] + at.ROW_COUNT],
                                            statements.KERNEL)

    def _proves(self, state: bytes, o: int, j: int) -> bool:
        """Whether the kernel tells this observer that the process of another is gone."""
        machine = self.config.machines
        if not self.looks_at(o, j):
            return False
        same = machine[o] == machine[j]
        gone = state[self.at.engine[j] + at.PROCESS] == at.GONE
        return state[self.at.row[j] + at.ROW] == at.UP and o in self.config.observers and (
            gone if same else not self.keeps("a proof only on one's own machine"))

    def _declare_by(self, state: bytes, o: int, j: int, count: int,
                    evidence: int) -> Iterator[Move]:
        peer = self.at.peer[o][j]
        for how, s, done in self.send(state, statements.DECLARE, o, j, count, evidence):
            s[peer + at.RIPE] = 0
            if done:
                s[peer + at.KNOWN_ENDED] = 1
            yield ('declare', o, j, how), s

    def _leaves(self, state: bytes, e: int) -> Iterator[Move]:
        base = self.at.engine[e]
        works = any(state[held] for held in self.at.held[e])
        if not works or not self.keeps('the row leaves last'):
            for how, s, _ in self.send(self._spend(state, 'leave'), statements.LEAVE, e):
                if self.keeps('the gate is shut before the row leaves'):
                    s[base + at.STATE] = at.LEFT
                yield ('leave', e, how), s
        else:
            # Given up: the process ends with the statement.
            s = self._spend(state, 'leave')
            if not s[at.OUTAGE] and not s[base + at.CUT]:
                self.land(s, statements.LEAVE, e)
                self.end(s, e, 'exit')
                yield ('give up', e), s
            # An engine that drains does nothing that one which works does not, but for this.
            if not self.keeps('the kernel timer stays until the work has ended'):
                s = self._spend(state, 'leave')
                s[base + at.DISARMED] = 1
                yield ('disarm', e), s

    def _purges(self, state: bytes, e: int) -> Iterator[Move]:
        for j in self.config.observed:
            row = self.at.row[j]
            old = state[row + at.ENDED_AGE] >= self.config.purge_after
            seen = self.at.peer[e][j] + at.SEEN_OLD
            owns = any(state[base + at.OWNER] == j + 1 for base in self.at.lock)
            if j == e or state[row + at.ROW] < at.DEAD:
                continue
            if old and not state[seen] and self.config.looks_apart:
                s = bytearray(state)
                s[seen] = 1
                yield ('sees old', e, j), s
            if (state[seen] <= self.config.looks_apart and self.config.looks_apart
                    and self.keeps('a second look before the purge')):
                continue
            if (old or not self.keeps('the age of the purge')) and (
                    not owns or not self.keeps('purge only what owns nothing')):
                for how, s, _ in self.send(state, statements.PURGE, e, j):
                    yield ('purge', e, j, how), s

    def _claims(self, state: bytes, e: int) -> Iterator[Move]:
        if state[self.at.engine[e] + at.STATE] != at.JOINED:
            return
        for lock in self.locks:
            row, held = self.at.lock[lock], self.at.held[e][lock]
            mine = state[row + at.OWNER] == e + 1 and state[row + at.STATUS] == at.IN_PROGRESS
            if mine and self.keeps('the claim from itself') and self._rests(state, held) and (
                    not state[row + at.TAKEOVERS] or not self._runs_tainted(state, e)
                    or not self.keeps('one at a time from itself, too')):
                yield from self._reclaims(state, e, lock)
        if not self.open(bytearray(state), e, 'the gate before a takeover'):
            return
        for j in self.engines:
            if j != e and state[self.at.peer[e][j] + at.KNOWN_ENDED]:
                yield from self._relieves(state, e, j)

    def _rests(self, state: bytes, held: int) -> bool:
        """Whether an engine neither runs a lock's work nor is just acquiring it, as it believes."""
        if state[held + at.DOES] == at.ACQUIRING:
            return not self.keeps('claims from itself nothing that it is just acquiring')
        return not state[held] or not self.keeps('claims from itself only what rests')

    def _reclaims(self, state: bytes, e: int, lock: int) -> Iterator[Move]:
        generation = state[self.at.lock[lock] + at.LOCK_GENERATION]
        for how, s, done in self.send(state, statements.RECLAIM, e, lock, generation):
            if done:
                does = s[self.at.held[e][lock] + at.DOES]
                if does:
                    self.broken(9, 'work is begun again that its engine ' + (
                        'is about to begin' if does == at.ACQUIRING else 'does already'))
                self.hold(s, e, lock, generation + 1, s[self.at.lock[lock] + at.TAKEOVERS])
            yield ('reclaim', e, lock, how), s

    def _relieves(self, state: bytes, e: int, j: int) -> Iterator[Move]:
        """Take over what there is room for; work whose owners died before, one at a time."""
        peer = self.at.peer[e][j]
        if state[peer + at.RELIEVED]:
            return
        theirs = [k for k in self.locks if state[self.at.lock[k] + at.OWNER] == j + 1]
        if not self.ended(bytearray(state), j) and self.keeps(
                'the owner has ended, in the takeover'):
            return
        room = self.room(bytearray(state), e)
        if not theirs and not self.keeps('owners relieved are asked about again'):
            s = bytearray(state)
            s[peer + at.RELIEVED] = 1
            yield ('nothing more', e, j), s
        if not theirs or not room:
            return
        first = [k for k in theirs if not state[self.at.lock[k] + at.TAKEOVERS]]
        batch = first or self._next_tainted(state, e, j, theirs)
        if not self.keeps('one at a time after a death'):
            batch = [k for k in theirs if k not in self._poisonous(state, j, theirs)]
        poisonous = [] if first else self._poisonous(state, j, theirs)
        if poisonous and not state[at.OUTAGE] and not state[self.at.engine[e] + at.CUT]:
            s = bytearray(state)
            for k in poisonous:
                self.quarantine(s, k, e)
            yield ('quarantine', e, j), s
            if self._may(state, 'unclear', e) and not self.keeps('no poison in the takeover'):
                # Another's quarantine has it locked, and is undone.
                spent = bytes(self._spend(state, 'unclear'))
                for _, s in self._takes(spent, e, j, poisonous):
                    yield ('passes', e, j), s
        elif batch and (e in self.config.handlers or not self.keeps(
                'takes over only work that it has a handler for')):
            yield from self._takes(state, e, j, batch[:room])

    def _poisonous(self, state: bytes, j: int, theirs: list[int]) -> list[int]:
        return [k for k in theirs if self.blamed(bytearray(state), j) and
                state[self.at.lock[k] + at.TAKEOVERS] >= self.config.max_takeovers]

    def _next_tainted(self, state: bytes, e: int, j: int, theirs: list[int]) -> list[int]:
        return [] if self._runs_tainted(state, e) else theirs[:1]

    def _runs_tainted(self, state: bytes, e: int) -> bool:
        return any(state[held] and state[held + at.TAINTED] for held in self.at.held[e])

    def _takes(self, state: bytes, e: int, j: int, batch: list[int]) -> Iterator[Move]:
        locks = sum(1 << k for k in batch)
        generations = sum(state[self.at.lock[k] + at.LOCK_GENERATION] << 4 * k for k in batch)
        for how, s, done in self.send(state, statements.TAKE_OVER, e, j, locks, generations):
            if done or (done is None and not self.keeps('won counts only after COMMIT')):
                for k in batch:
                    row = self.at.lock[k]
                    self.hold(s, e, k, (generations >> 4 * k & 15) + 1,
                              s[row + at.TAKEOVERS])
            yield ('take over', e, j, locks, how), s

    def _works(self, state: bytes, e: int, lock: int) -> Iterator[Move]:
        held = self.at.held[e][lock]
        does = state[held + at.DOES]
        if not does:
            if self.config.acquires and state[self.at.engine[e] + at.STATE] != at.NEW:
                yield from self._acquires(state, e, lock)
            return
        if does == at.ACQUIRING:
            s = bytearray(state)
            s[held + at.DOES] = at.CLAIMED
            yield ('acquired', e, lock), s
            return
        if does == at.ARMED:
            s = bytearray(state)
            self.call(s, e, lock)
            yield ('call', e, lock), s
            return
        recording = does == at.RUNS and state[held + at.UNSURE]
        if does != at.ENDING and not recording and self.open(
                bytearray(state), e, 'the gate before work'):
            s = bytearray(state)
            if does == at.CLAIMED:
                self.tell('Started', lock, s[held], e)
            s[held + at.DOES] = at.ARMED
            yield ('gate', e, lock), s
        if does == at.CLAIMED or not self.open(bytearray(state), e, 'the gate before a write'):
            return
        if self.config.progress and does == at.RUNS:
            yield from self._writes(state, e, lock, statements.WRITE)
        if not recording:
            yield from self._writes(state, e, lock, statements.FINISH)

    def _acquires(self, state: bytes, e: int, lock: int) -> Iterator[Move]:
        row = self.at.lock[lock]
        status = state[row + at.STATUS]
        if (status in {at.IN_PROGRESS, at.QUARANTINED}
                or (status == at.COMPLETE and not self.config.again)
                or state[row + at.LOCK_GENERATION] > 5
                or not self.open(bytearray(state), e, 'the gate before an acquisition')
                or not self.room(bytearray(state), e)):
            return
        for how, s, done in self.send(state, statements.ACQUIRE, e, lock):
            if done or (done is None and not self.keeps('won counts only after COMMIT')):
                self.hold(s, e, lock, state[row + at.LOCK_GENERATION] + 1, 0)
            yield ('acquire', e, lock, how), s
            if done:
                yield from self._acquires_with_trouble(state, e, lock)

    def _acquires_with_trouble(self, state: bytes, e: int, lock: int) -> Iterator[Move]:
        """Return what else may come of an acquisition that goes well."""
        generation = state[self.at.lock[lock] + at.LOCK_GENERATION]
        troubles = [('slow', at.ACQUIRING, generation + 1)]
        if not self.keeps('the generation is read in the acquisition'):
            troubles.append(('behind', at.CLAIMED, generation))
        for kind, does, told in troubles:
            if self._may(state, kind, e):
                s = self._spend(state, kind)
                self.land(s, statements.ACQUIRE, e, lock)
                self.hold(s, e, lock, told, 0)
                s[self.at.held[e][lock] + at.DOES] = does
                yield ('acquire', e, lock, kind), s

    def _writes(self, state: bytes, e: int, lock: int, kind: int) -> Iterator[Move]:
        held = self.at.held[e][lock]
        ends = kind == statements.FINISH
        if not ends and state[held + at.UNSURE] and self.keeps(
                'a record without a reply claims the lock from itself'):
            yield from self._renews(state, e, lock)
            return
        step = state[held + at.STEP] + 1 if self.config.steps else 0
        if not ends and step > self.config.steps:
            return
        step = statements.END if ends else step
        for how, s, done in self.send(state, kind, e, lock, state[held + at.GENERATION], step):
            self.wrote(s, e, lock, done, ends)
            yield ('finish' if ends else 'write', e, lock, how), s

    def _renews(self, state: bytes, e: int, lock: int) -> Iterator[Move]:
        """Claim a lock from itself, so that no copy of a write that had no answer fits it."""
        row, held = self.at.lock[lock], self.at.held[e][lock]
        generation = state[row + at.LOCK_GENERATION]
        if state[row + at.OWNER] != e + 1:
            s = bytearray(state)
            self.let_go(s, e, lock)
            yield ('lost', e, lock), s
            return
        for how, s, done in self.send(state, statements.RECLAIM, e, lock, generation):
            if done:
                s[held + at.GENERATION] = generation + 1
                s[held + at.UNSURE] = 0
            yield ('renew', e, lock, how), s
