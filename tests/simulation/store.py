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

"""A database in memory: READ COMMITTED, row locks, and Galera's certification.

A *statement* is a function of its transaction.  It runs at one moment, on what has been committed
by then and what its own transaction has written.  Like the servers', it reads first and
locks the row it is going to change; where another transaction has that row, the statement waits in
the server, and begins anew when the row is free.  What it asked of *other* rows stays as it
was first answered, as in PostgreSQL (``Transaction.once``); that is the weakest
that any of our servers promises.  A wait that is too long is a certain error; one that goes
round in a circle is :class:`~errors.Contended`, as the product calls it.

With several nodes, each has its own copy and its own row locks.  A COMMIT puts what was
written in the one order of the cluster, unless something before it in that order, which its
node has not applied yet, changed the same row: the first wins, and the other is Contended.  A node
that applies a change takes the row from whoever holds it there.  Reads see the node's copy, which
may be behind.

A failover to a standby that lacked the last commits is :meth:`Cluster.lose`: the rows are what they
were, and whatever was open is gone with the server.

What the database does is told to ``tell`` as facts, in the order of the commits.
"""

import bisect
import copy
from collections.abc import Callable
from typing import Any

from heat_liveness import errors
from tests.history.events import Event, Undone
from tests.simulation.scheduler import Hub

Key = tuple[str, Any]
Fact = Callable[[float], Event]

_LOCK_WAIT_SECONDS = 2.0
_GONE = errors.UnclearOutcome('Connection lost: the server has gone.')


class Blocked(Exception):
    """Another transaction has the row."""

    def __init__(self, key: Key) -> None:
        self.key = key


class Node:
    """One server's copy of the tables, its row locks and its clock."""

    def __init__(self, cluster: 'Cluster', number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.offset = 0.0
        self.lag = 0.0
        """Seconds until it has applied what another node has committed."""
        self.applied = 0
        self.rows: dict[str, dict[Any, Any]] = {'service': {}, 'lock': {}, 'journal': {}}
        self.locks: dict[Key, Transaction] = {}
        self.waiting: dict[Key, list[Request]] = {}

    def time(self) -> float:
        """Return the time by this node's clock."""
        return self.cluster.hub.now + self.offset

    def apply(self, number: int) -> None:
        """Apply all changes up to a number."""
        while self.applied < number:
            changes = self.cluster.log[self.applied]
            self.applied += 1
            for key, row in changes.items():
                holder = self.locks.get(key)
                if holder is not None:
                    holder.abort(errors.Contended('Another node was first (1213).'))
                self.put(key, row)

    def put(self, key: Key, row: Any) -> None:
        table, name = key
        if row is None:
            self.rows[table].pop(name, None)
        else:
            self.rows[table][name] = row

    def release(self, transaction: 'Transaction') -> None:
        """Let go what a transaction has locked, and let those run that waited."""
        for key in transaction.locked:
            del self.locks[key]
            for request in self.waiting.pop(key, ()):
                self.cluster.hub.after(0, request.again)
        transaction.locked = []


class Cluster:
    """The servers."""

    def __init__(self, hub: Hub, nodes: int, tell: Callable[[Event], None]) -> None:
        self.hub = hub
        self.tell = tell
        self.log: list[dict[Key, Any]] = []
        self.server = 0
        """Rises with each failover: no connection outlives it."""
        self._times: list[float] = []
        """When each of them was committed."""
        self.nodes = [Node(self, number) for number in range(nodes)]
        self._changed: dict[Key, int] = {}
        """The number of the last change of each row."""
        self._ids = 0

    def next_id(self) -> int:
        """Return a number that no row has."""
        self._ids += 1
        return self._ids

    def lose(self, since: float) -> None:
        """Let a standby take over that has not got what was committed after a time."""
        [node] = self.nodes
        self.server += 1
        for holder in list(dict.fromkeys(node.locks.values())):
            holder.abort(_GONE)
        kept = bisect.bisect_right(self._times, since)
        del self.log[kept:], self._times[kept:]
        self._changed = {key: number for number, changes in enumerate(self.log, 1)
                         for key in changes}
        node.rows = {table: {} for table in node.rows}
        node.applied = 0
        node.apply(kept)
        self.tell(Undone(at=self.hub.now, since=since))

    def commit(self, transaction: 'Transaction') -> None:
        """Put what a transaction wrote in the order, or raise."""
        node = transaction.node
        if any(self._changed.get(key, 0) > node.applied for key in transaction.changes):
            lost = errors.Contended('Certification failed (1213).')
            transaction.abort(lost)
            raise lost
        changes = transaction.changes
        node.release(transaction)
        self.log.append(changes)
        self._times.append(self.hub.now)
        number = len(self.log)
        self._changed.update(dict.fromkeys(changes, number))
        node.apply(number)
        for other in self.nodes:
            if other is not node:
                self.hub.after(other.lag, other.apply, number)
        for fact in transaction.facts:
            self.tell(fact(self.hub.now))


class Transaction:
    """What one transaction has locked and changed so far."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cluster = node.cluster
        self.changes: dict[Key, Any] = {}
        self.locked: list[Key] = []
        self.facts: list[Fact] = []
        self.begun: float | None = None
        self.over = False
        self._server = node.cluster.server
        self.committing = False
        """Its COMMIT has arrived: it lasts, or fails, whoever is there to learn of it."""
        self.waits_for: Key | None = None
        self._answers: dict[Any, Any] = {}
        self._aborted: errors.DatabaseError = errors.DatabaseError('The transaction is over.')

    def begin_statement(self) -> None:
        """Forget what earlier statements were answered."""
        self._answers = {}
        # What was visible on another node is not for this history to say.
        self.begun = self.cluster.hub.now if len(self.cluster.nodes) == 1 else None

    def once(self, question: Any, ask: Callable[[], Any]) -> Any:
        """Return the answer that this statement was given first."""
        if question not in self._answers:
            self._answers[question] = ask()
        return self._answers[question]

    def get(self, table: str, name: Any) -> Any:
        """Return a row as this transaction sees it, or None."""
        key = (table, name)
        if key in self.changes:
            return self.changes[key]
        return self.node.rows[table].get(name)

    def all(self, table: str) -> list[Any]:
        """Return all rows of a table as this transaction sees them."""
        rows = self.node.rows[table]
        if self.changes:
            rows = rows | {name: row for (where, name), row in self.changes.items()
                           if where == table}
            return [row for row in rows.values() if row is not None]
        return list(rows.values())

    def locked_elsewhere(self, table: str, name: Any) -> bool:
        """Whether another transaction has the row."""
        return self.node.locks.get((table, name), self) is not self

    def lock(self, table: str, name: Any) -> None:
        """Lock a row, or wait for it."""
        key = (table, name)
        holder = self.node.locks.get(key)
        if holder is None:
            self.node.locks[key] = self
            self.locked.append(key)
        elif holder is not self:
            raise Blocked(key)

    def put(self, table: str, name: Any, row: Any, fact: Fact | None = None) -> None:
        """Write a row that this transaction has locked; None removes it."""
        assert self.node.locks.get((table, name)) is self
        self.changes[table, name] = row
        if fact is not None:
            self.facts.append(fact)

    def time(self) -> float:
        return self.node.time()

    def commit(self) -> None:
        """Make it last, or raise a certain error."""
        self.check()
        if not self.changes:
            self.rollback()
            return
        self.over = True
        self.cluster.commit(self)

    def rollback(self) -> None:
        """Undo it."""
        self.over = True
        self.changes = {}
        self.facts = []
        self.node.release(self)

    def abort(self, why: errors.DatabaseError) -> None:
        """Undo it in the server's name; its client learns so from what it does next."""
        self._aborted = why
        self.rollback()

    def check(self) -> None:
        """Raise if it is over: undone by the server, with it, or by a client who has gone."""
        if not self.over and self._server != self.cluster.server:
            self.abort(_GONE)
        if self.over:
            raise self._aborted

    def in_a_circle(self, key: Key) -> bool:
        """Whether to wait for a row would be to wait for itself."""
        holder = self.node.locks.get(key)
        while holder is not None and holder is not self:
            if holder.waits_for is None:
                return False
            holder = self.node.locks.get(holder.waits_for)
        return holder is self


Statement = Callable[[Transaction], Any]


class Request:
    """A statement in the server: run at once, or when the row it needs is free."""

    def __init__(self, transaction: Transaction, statement: Statement,
                 answer: Callable[[Any], None]) -> None:
        self._transaction = transaction
        self._statement = statement
        self._answer = answer
        self._hub = transaction.cluster.hub
        self._blocked: Key | None = None
        self._timed = False
        transaction.begin_statement()

    def run(self) -> None:
        """Run the statement; ``answer`` gets what it returns, or the error."""
        transaction = self._transaction
        try:
            transaction.check()
            result = self._statement(transaction)
        except Blocked as blocked:
            self._wait(blocked.key)
        except errors.LockHeld as error:
            self._answer(error)
        except errors.DatabaseError as error:
            transaction.rollback()
            self._answer(error)
        else:
            self._answer(result)

    def _wait(self, key: Key) -> None:
        transaction = self._transaction
        if transaction.in_a_circle(key):
            self._refuse(errors.Contended('Deadlock found when trying to get a lock (1213).'))
            return
        if not self._timed:
            self._timed = True
            self._hub.after(_LOCK_WAIT_SECONDS, self._give_up)
        self._blocked = transaction.waits_for = key
        transaction.node.waiting.setdefault(key, []).append(self)

    def again(self) -> None:
        """Begin anew, as the row is free, unless it has waited for too long."""
        if self._blocked is not None:
            self._blocked = self._transaction.waits_for = None
            self.run()

    def _give_up(self) -> None:
        key = self._blocked
        if key is not None:
            self._blocked = self._transaction.waits_for = None
            waiting = self._transaction.node.waiting.get(key, [])
            if self in waiting:
                waiting.remove(self)
            self._refuse(errors.DatabaseError('Lock wait timeout exceeded (1205).'))

    def _refuse(self, why: errors.DatabaseError) -> None:
        self._transaction.abort(why)
        self._answer(why)


def changed(row: Any, **values: Any) -> Any:
    """Return a copy of a row that says something else."""
    new = copy.copy(row)
    for name, value in values.items():
        setattr(new, name, value)
    return new
