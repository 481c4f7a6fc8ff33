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

"""A real Heat on one machine: MariaDB, RabbitMQ, Keystone, heat-api, and fleets of engines.

Nothing is faked.  MariaDB and RabbitMQ are the distribution's, all else comes from pip under
``tests/heat/constraints.txt``.  The servers are started once; each test gets a *fleet*: a
database of its own, a heat.conf of its own, and as many engines as it starts.  A fleet that
has ended leaves nothing to the next one, not even a stuck stack.

All of it listens on loopback only, and runs as ``nobody`` where the tests run as root.
"""
