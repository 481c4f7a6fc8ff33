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

"""Stacks whose work a test can stop at one point and let go on at another."""


def gated(width: int) -> dict[str, object]:
    """Return a stack of one resource, and so many more that all wait for it and then at the gate.

    Heat triggers the resources that depend on nothing one by one, a second apart, and loses
    those it has not come to when it dies.  With one of them, and all others locked at one
    time, a test knows that nothing is on its way when it kills an engine.

    Each second one has its physical id from the beginning, each other one only at the end:
    what a dead engine leaves of them has to be resumed in two different ways.
    """
    wide = {
        f'wide{number:02}': {
            'type': 'Liveness::Test::Counted',
            'depends_on': 'first',
            'properties': {'gate': 'gate', 'late_id': bool(number % 2)},
        } for number in range(width)}
    first = {'type': 'Liveness::Test::Counted', 'properties': {'value': 'first'}}
    return {'heat_template_version': '2018-08-31', 'resources': {'first': first, **wide}}
