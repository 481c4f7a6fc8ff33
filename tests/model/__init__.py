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

"""The protocol as a small explicit-state model, explored breadth first to its last state.

What engines, their processes, their statements and the database may do is written down once
more, guard by guard (:mod:`statements`, :mod:`engines`, :mod:`world`), and small enough that all
orders in which it may happen can be tried.  That is worth something in two directions: with all
guards, nothing that a configuration allows breaks an invariant; without one of them, something
does, and the shortest way there is the reason for the guard (:mod:`guards`,
docs/contributor/guards.md).

What is left out.  Time is discrete, and a tick is long beside everything that is not a fault.
Between the gate and the step behind it, a thread of a process that runs is never as slow as a
tick; a process that is stopped may be.  Who drains is one that works; who leaves or gives up is
gone at the next tick.  Statements of one transaction are one step, and no node is behind, except
where that is the fault.  A statement lands within ``transaction`` ticks or never; a hypervisor's
pause is shorter than ``purge_after``.  Clocks run at one rate.  Heat's own tables are not in it,
nor what the kernel says of processes.
"""
