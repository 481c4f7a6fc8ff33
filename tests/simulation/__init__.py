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

"""The simulation: many engines in one thread, on a virtual clock, in trouble.

**What is real.**  Each engine is the product's own :class:`~heat_liveness.agent.Liveness` with its
threads, and all that it is made of: membership, fence, detection, takeover and the native work
store.  Nothing in the product knows of the simulation.

**What is not.**  :mod:`scheduler` stands for :mod:`threading`: a thread is a greenlet, which
runs until it waits.  :mod:`rooms` stands for the classes of ``heat_liveness.db`` with the same
methods, statement by statement, on :mod:`store`, a database in memory with READ COMMITTED, row
locks and, with several nodes, Galera's certification and stale reads;
``tests/databases/test_simulated_store.py`` demands of the real databases what these rooms do.
The kernel's timer and its proof of death are a few lines in :mod:`world`.

**What goes wrong** is drawn from a seed (:mod:`plan`): engines crash at each point of a round trip
(:mod:`network`) or at any time, stop for any time, are cut off, are not well, give up, leave and
come back, perhaps with other options; machines reboot, and are paused with all their clocks;
replies are lost, statements and COMMITs land long after their sender has given up; the database is
away or frozen, or a standby takes over that lacks the last commits; nodes lag, part, and have
clocks that differ and are stepped; scans come late; work kills whoever does it; operators give
commands, and remove and change rows by hand.  Each run has only some of it, at rates of its own.

**What is demanded.**  The history of each run goes to :mod:`tests.history.checker`.  In the end all
faults heal, and then each piece of work must end and each death must be declared.

**Why one can trust it.**  ``test_planted.py`` takes guards away, one after the other, and
demands that the simulation misses each of them.  The same seed gives the same history; a seed that
fails is made smaller by :mod:`shrink`.

**Its limits.**  Between two waits of a thread nothing else runs, so races between two
threads of one process show only where one waits for the database, the clock or, in runs that
preempt, at a lock.  The SQL itself is the business of ``tests/databases``.
"""
