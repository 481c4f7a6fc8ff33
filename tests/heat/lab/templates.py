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

import json


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


WIDTH = 3


def layered(value: str = 'a', *, identity: str = 'a', last: str | None = None,
            seconds: float = 0) -> dict[str, object]:
    """Return a stack of three layers, and a handle for which Heat makes a project and a user.

    Parameters
    ----------
    value : str
        Of all resources; another one is an update in place.
    identity : str
        Of the middle layer; another one replaces it.
    last : str, optional
        The value of the last layer, if another.
    seconds : float
        How long the creation of one of the middle layer takes.
    """
    wide = {f'wide{number}': _counted(
        value, depends_on='first', identity=identity, late_id=bool(number % 2),
        create_seconds=seconds)
        for number in range(WIDTH)}
    return _template({
        'first': _counted(value), **wide,
        'last': _counted(last or value, depends_on=sorted(wide)),
        'handle': {'type': 'OS::Heat::WaitConditionHandle'}})


def grouped(value: str = 'a', kind: str = 'OS::Heat::ResourceGroup') -> dict[str, object]:
    """Return a stack of one resource, a group of some more, and one that depends on the group."""
    member = _counted(value)
    sizes = {'OS::Heat::ResourceGroup': {'count': WIDTH, 'resource_def': member},
             'OS::Heat::AutoScalingGroup': {
                 'min_size': WIDTH, 'max_size': WIDTH, 'resource': member}}
    return _template({
        'first': _counted(value),
        'group': {'type': kind, 'depends_on': 'first', 'properties': sizes[kind]},
        'last': _counted(value, depends_on='group')})


def with_a_file(value: str = 'a') -> dict[str, object]:
    """Return a stack with one nested stack, whose template is the file of ``files``."""
    return _template({
        'first': _counted(value),
        'group': {'type': 'nested.yaml', 'depends_on': 'first', 'properties': {'value': value}}})


def files() -> dict[str, str]:
    """Return the file that ``with_a_file`` names."""
    parameter = {'get_param': 'value'}
    return {'nested.yaml': json.dumps({
        **_template({f'wide{number}': _counted(parameter) for number in range(WIDTH)}),
        'parameters': {'value': {'type': 'string'}}})}


def single(kind: str = 'Liveness::Test::Counted', count: int = 1) -> dict[str, object]:
    """Return a stack of so many resources of one type that depend on nothing."""
    return _template({f'only{number}': {'type': kind} for number in range(count)})


def poisoned() -> dict[str, object]:
    """Return a stack of a killer, and of one resource beside it."""
    return _template({'beside': _counted('a'),
                      'killer': {'type': 'Liveness::Test::Killer'}})


def _counted(value: object, depends_on: object = None, **properties: object) -> dict[str, object]:
    found = {'type': 'Liveness::Test::Counted', 'properties': {'value': value, **properties}}
    return found if depends_on is None else {**found, 'depends_on': depends_on}


def _template(resources: dict[str, object]) -> dict[str, object]:
    return {'heat_template_version': '2018-08-31', 'resources': resources}
