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

"""What Heat can do with a stack, each prepared so that a test can disturb it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from tests.heat.lab import templates
from tests.heat.lab.fleet import Fleet
from tests.heat.lab.patience import wait_until
from tests.heat.lab.stacks import GONE, Stack

LOCK_SECONDS = 120.0


def _nothing(fleet: Fleet, stack: Stack) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing that Heat does, from what to what, and where it can be held.

    ``prepare`` and ``stage`` bring a stack to where ``begin`` can ask for the action; while one
    stack is staged, no other is worked on.  It is held in
    ``handler`` of the resources that ``held`` matches; if these are in a nested stack,
    ``inner`` matches the name of that, and else that of the stack itself.  Heat is at ``width``
    of them at a time.
    """

    name: str
    handler: str
    end: str
    prepare: Callable[[Fleet, Stack], None]
    begin: Callable[[Fleet, Stack], None]
    template: Callable[..., Mapping[str, object]] = templates.layered
    held: str = 'wide?'
    inner: str = ''
    width: int = templates.WIDTH
    stage: Callable[[Fleet, Stack], None] = _nothing

    @property
    def is_update(self) -> bool:
        """Whether Heat does it in the update of each resource, and not in its clean-up."""
        return self.handler not in {'delete', 'suspend'}

    def serve(self, stack: Stack) -> None:
        """Have a normal update done, and a suspend where something was left behind."""
        suspended = self.end == 'SUSPEND_COMPLETE'
        if not suspended and any(row['status'] == 'FAILED' for row in stack.resources):
            stack.suspend()
            stack.wait_for('SUSPEND_COMPLETE')
            suspended = True
        if suspended:
            stack.resume()
            stack.wait_for('RESUME_COMPLETE')
        stack.update(self.template('served'))
        stack.wait_for('UPDATE_COMPLETE')


def _create(fleet: Fleet, stack: Stack) -> None:
    stack.create(templates.layered())


def _created(fleet: Fleet, stack: Stack) -> None:
    stack.create(templates.layered())
    stack.wait_for('CREATE_COMPLETE')


def _update(fleet: Fleet, stack: Stack) -> None:
    stack.update(templates.layered('b'))


def _replace(fleet: Fleet, stack: Stack) -> None:
    stack.update(templates.layered(identity='b'))


def _failing(fleet: Fleet, stack: Stack) -> None:
    """Update all but the last resource, which will fail once it is not held any longer."""
    fleet.hold('update', 'last')
    stack.update(templates.layered('b', last='fail'), disable_rollback=False)
    wait_until(lambda: (stack.id, 'last') in fleet.working_on(), LOCK_SECONDS,
               'A lock on the last resource')


def _fail(fleet: Fleet, stack: Stack) -> None:
    # Where the resources in the middle shall be held, the last one is no longer.
    if fleet.held('update') == 'last':
        fleet.release('update')


def _suspended(fleet: Fleet, stack: Stack) -> None:
    _created(fleet, stack)
    stack.suspend()
    stack.wait_for('SUSPEND_COMPLETE')


def _kept(fleet: Fleet, stack: Stack) -> None:
    _created(fleet, stack)
    stack.snapshot()
    stack.wait_for('SNAPSHOT_COMPLETE')
    stack.update(templates.layered('b'))
    stack.wait_for('UPDATE_COMPLETE')


def _restore(fleet: Fleet, stack: Stack) -> None:
    stack.restore(str(fleet.sql('SELECT id FROM snapshot WHERE stack_id = %s', stack.id)[0]['id']))


_FLAT = [
    Action('create', 'create', 'CREATE_COMPLETE', _nothing, _create),
    Action('update', 'update', 'UPDATE_COMPLETE', _created, _update),
    Action('replace', 'create', 'UPDATE_COMPLETE', _created, _replace),
    Action('delete', 'delete', GONE, _created, lambda fleet, stack: stack.delete()),
    Action('rollback', 'update', 'ROLLBACK_COMPLETE', _created, _fail,
           stage=_failing),
    Action('suspend', 'suspend', 'SUSPEND_COMPLETE', _created,
           lambda fleet, stack: stack.suspend()),
    Action('resume', 'resume', 'RESUME_COMPLETE', _suspended, lambda fleet, stack: stack.resume()),
    Action('check', 'check', 'CHECK_COMPLETE', _created, lambda fleet, stack: stack.check()),
    Action('snapshot', 'snapshot', 'SNAPSHOT_COMPLETE', _created,
           lambda fleet, stack: stack.snapshot() and None),
    Action('restore', 'update', 'RESTORE_COMPLETE', _kept, _restore),
]


def _nested(prefix: str, template: Callable[..., Mapping[str, object]], held: str,
            updates: int = templates.WIDTH) -> list[Action]:
    """Return the actions of a stack whose held resources are in a stack nested in it.

    :param updates: how many of these are updated at a time
    """
    def create(fleet: Fleet, stack: Stack) -> None:
        stack.create(template())

    def created(fleet: Fleet, stack: Stack) -> None:
        create(fleet, stack)
        stack.wait_for('CREATE_COMPLETE')

    def update(fleet: Fleet, stack: Stack) -> None:
        stack.update(template('b'))

    new = functools.partial(Action, template=template, held=held, inner='*-group-*')
    return [
        new(f'{prefix}-create', 'create', 'CREATE_COMPLETE', _nothing, create),
        new(f'{prefix}-update', 'update', 'UPDATE_COMPLETE', created, update,
            width=updates),
        new(f'{prefix}-delete', 'delete', GONE, created, lambda fleet, stack: stack.delete()),
        new(f'{prefix}-check', 'check', 'CHECK_COMPLETE', created,
            lambda fleet, stack: stack.check()),
    ]


ACTIONS = {action.name: action for action in [
    *_FLAT,
    *_nested('group', templates.grouped, '[0-2]'),
    *_nested('scaling', functools.partial(
        templates.grouped, kind='OS::Heat::AutoScalingGroup'), '????????????', updates=1),
]}
