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

"""What the protocol costs, on databases of our own: ``python -m benchmarks``.

A figure means little by itself: the machine, its disk and its neighbours are in it.  So each
way of doing a thing is measured beside a plain one, *in turns and in one run*, and what is
reported is the median of the ratios, turn by turn.  Nothing here passes or fails on time.
``docs/contributor/benchmarks.md`` says what is measured and what came out.
"""
