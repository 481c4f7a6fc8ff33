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

"""What lies between an engine and the database, and what can go wrong there.

Each call is a round trip: the request travels, the statement runs in the server, an
autocommit statement commits, the reply travels.  The server goes on by itself: what
has been sent may run, wait for a row and commit although its sender has given up or has ended.
A fault, drawn once a call, is one of :data:`CALL_FAULTS`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from heat_liveness import errors
from tests.simulation import rooms
from tests.simulation.scheduler import TIMEOUT, Process, current, resume
from tests.simulation.store import Node, Request, Statement, Transaction

if TYPE_CHECKING:
    from tests.simulation.world import World

CALL_FAULTS = {
    'refused': 'it cannot be sent: nothing has happened',
    'lost': 'it is sent and never arrives',
    'late': 'it arrives long after its sender has given up',
    'late_commit': 'it runs at once and commits long after, holding its rows until then',
    'reply_lost': 'it is done and the reply is lost',
    'slow': 'it takes nearly as long as its sender waits',
    'deadlock': 'the server undoes it, and says so',
    'crash_before': 'its sender ends before it is sent',
    'crash_sent': 'its sender ends while it is under way',
    'crash_done': 'its sender ends after it was done, before the reply',
}
LONGEST_LATE = 50.0
_RESET = errors.UnclearOutcome('The database gave no clear answer: connection reset.')


class Connections:
    """One engine's way to the database; what the product's rooms take for a Database."""

    def __init__(self, world: 'World', process: Process, slot: int, node: Node,
                 timeouts: tuple[float, float]) -> None:
        self.guards: rooms.Guards = world.guards
        self._world = world
        self._hub = world.hub
        self._chance = world.hub.chance
        self._process = process
        self._slot = slot
        self._node = node
        self._connect_timeout, self._read_timeout = timeouts
        self._open: set[Transaction] = set()
        process.at_end.append(self._hang_up)

    def close(self) -> None:
        """Close what nobody uses."""

    def autocommit(self, statement: Statement) -> Any:
        return self._ask(self._begin(), statement, commit=True)

    def read(self, statement: Statement, *, fresh: bool = False) -> Any:
        transaction = self._begin()
        if fresh:
            def caught_up(tx: Transaction) -> Any:
                tx.node.apply(len(tx.cluster.log))
                return statement(tx)
            return self._ask(transaction, caught_up, commit=False)
        return self._ask(transaction, statement, commit=False)

    def transaction(self, body: Callable[[rooms.Session], Any]) -> Any:
        transaction = self._begin()
        self._open.add(transaction)
        try:
            result = body(lambda statement: self._ask(transaction, statement, commit=False))
            self._ask(transaction, None, commit=True)
        except rooms.Rollback as rollback:
            transaction.rollback()
            return rollback.args[0]
        except errors.UnclearOutcome:
            raise
        except errors.LivenessError:
            if not transaction.over:
                transaction.rollback()
            raise
        finally:
            self._open.discard(transaction)
        return result

    def _begin(self) -> Transaction:
        node = self._node
        if self._world.plan.roaming:
            node = self._chance.choice(self._world.cluster.nodes)
        if self._world.unreachable(self._slot, node) and not self._world.frozen:
            current().wait(self._chance.random() * self._connect_timeout)
            raise errors.DatabaseError('The database cannot be reached: connection refused.')
        return Transaction(node)

    def _latency(self) -> float:
        return self._world.plan.latency * self._chance.random() ** 3

    def _ask(self, transaction: Transaction, statement: Statement | None, *, commit: bool) -> Any:
        thread = current()
        fault = self._world.call_fault()
        if fault == 'crash_before':
            self._world.crash_engine(self._process)
            thread.wait()
        elif fault == 'crash_sent':
            self._hub.after(self._latency(), self._world.crash_engine, self._process)
        elif fault == 'refused':
            thread.wait(self._latency())
            self._drop(transaction)
            raise errors.DatabaseError('The database refused: connection lost before it was sent.')
        elif fault == 'deadlock':
            thread.wait(self._latency())
            lost = errors.Contended('Deadlock found when trying to get a lock (1213).')
            transaction.abort(lost)
            raise lost
        travel = self._latency()
        if fault == 'late':
            travel = self._chance.random() * LONGEST_LATE
        elif fault == 'slow':
            travel = self._read_timeout * (0.5 + 0.5 * self._chance.random())
        call = _Call(self, transaction, statement, commit=commit, fault=fault)
        if fault != 'lost':
            self._hub.after(travel, call.arrive)
        if fault in {'lost', 'late', 'late_commit', 'reply_lost'} and self._chance.random() < 0.5:
            self._hub.after(self._latency(), resume, thread, thread.token, _RESET)
        reply = thread.wait(self._read_timeout)
        if reply is TIMEOUT or reply is _RESET:
            if not (commit and fault != 'lost'):
                self._drop(transaction)
            raise errors.UnclearOutcome('The database gave no clear answer: timed out.')
        if isinstance(reply, Exception):
            raise reply
        return reply[0]

    def _drop(self, transaction: Transaction) -> None:
        """Let the server find out, some time, that nobody is there for a transaction any more."""
        self._open.discard(transaction)
        self._hub.after(self._chance.random() ** 3 * 20, _undo, transaction)

    def _hang_up(self) -> None:
        for transaction in list(self._open):
            if not transaction.committing:
                self._drop(transaction)


def _undo(transaction: Transaction) -> None:
    if not transaction.over and not transaction.committing:
        transaction.abort(errors.UnclearOutcome('Connection lost.'))


class _Call:
    """A statement under way."""

    def __init__(self, connections: Connections, transaction: Transaction,
                 statement: Statement | None, *, commit: bool, fault: str | None) -> None:
        self._connections = connections
        self._world = connections._world
        self._transaction = transaction
        self._statement = statement
        self._commit = commit
        self._fault = fault
        self._thread = current()
        self._token = self._thread.token

    def arrive(self) -> None:
        """Reach the server, or what holds it up."""
        if self._world.unreachable(self._connections._slot, self._transaction.node):
            if self._world.frozen:
                self._world.thawing.append(self.arrive)
            elif self._commit:
                self._connections._drop(self._transaction)
            return
        if self._statement is None:
            self._ran(None)
        else:
            Request(self._transaction, self._statement, self._ran).run()

    def _ran(self, result: object) -> None:
        if self._commit and isinstance(result, Exception):
            self._transaction.rollback()
        if not self._commit or isinstance(result, Exception):
            self._answer(result)
            return
        self._transaction.committing = True
        if self._fault == 'late_commit':
            # Its rows are locked: until it lands its sender may be unable to beat.
            self._world.hinder(self._connections._process.name)
            late = self._connections._chance.random() * LONGEST_LATE
            self._connections._hub.after(late, self._land, result)
        else:
            self._land(result)

    def _land(self, result: object) -> None:
        try:
            self._transaction.commit()
        except errors.DatabaseError as error:
            self._answer(error)
        else:
            self._answer(result)

    def _answer(self, result: object) -> None:
        connections = self._connections
        if self._fault == 'crash_done':
            self._world.crash_engine(connections._process)
        if self._fault == 'reply_lost' or self._world.unreachable(
                connections._slot, self._transaction.node):
            return
        reply = result if isinstance(result, Exception) else (result,)
        connections._hub.after(connections._latency(), resume, self._thread, self._token, reply)
