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

"""Ends an engine at one exact point of Heat's own code, where a test asks for it.

Heat reads this module as it reads a plug-in, and gets no resource from it: it puts itself
round the functions between which work can be lost.  As long as there is no file
``strike-<point>`` in the folder, nothing is changed.

Such a file says, as JSON, which stack and which resource (patterns; none is any), whether in
the update or in the clean-up (``is_update``) of that, at which passage (``nth``, counted in each
process), and how.  Of the engines that come there, the one
that can remove the file is struck, and writes so into ``struck``; with ``keep`` the file stays,
and everyone who comes there is struck.

==========  ==  ==============================================================================
``begun``   W0  the row of the stack is there, and nothing of its traversal
``stored``  W0  the stack is IN_PROGRESS, and has no graph yet
``pointed`` W0  the graph is stored; the ``nth`` sync point is not
``leaf``    W0  the message for the ``nth`` leaf is not sent
``taken``   W1  a message is taken, and its resource not locked
``done``    W3  the resource is done and unlocked, and nobody knows it
``broken``  W3  the resource has failed and is unlocked, and the stack not marked as failed
``ready``   W4  the sync point of the resource is complete, and its message not sent
``joined``  W4  all is done, and the stack not marked as complete
``marked``  W5  the stack is marked, and not cleaned up
``failed``  W5  the stack is marked as failed, and not rolled back
==========  ==  ==============================================================================
"""

import collections
import fnmatch
import functools
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from heat.common import context
from heat.db import api as db_api
from heat.engine import check_resource, stack, sync_point
from heat.objects import resource as resource_object
from heat.rpc import worker_client

FOLDER = 'COUNTED_FOLDER'

_passages: collections.Counter[str] = collections.Counter()
_thread = threading.local()

Name = Callable[[], str]


def _pass_by(point: str, stack_name: Name, resource_name: Name,
             is_update: bool | None = None) -> None:
    """Be struck here, if a test wants it."""
    order = pathlib.Path(os.environ.get(FOLDER, '/nonexistent')) / f'strike-{point}'
    try:
        wanted = json.loads(order.read_text())
    except FileNotFoundError:
        return
    if wanted.get('is_update', is_update) != is_update:
        return
    names = stack_name(), resource_name()
    if not all(fnmatch.fnmatchcase(name, wanted.get(kind) or '*')
               for name, kind in zip(names, ('stack', 'resource'), strict=True)):
        return
    _passages[point] += 1
    if _passages[point] < wanted.get('nth', 1):
        return
    if not wanted.get('keep'):
        try:
            order.unlink()
        except FileNotFoundError:
            return
    line = json.dumps({'time': time.time(), 'point': point, 'pid': os.getpid(),
                       'stack': names[0], 'resource': names[1]})
    with (order.parent / 'struck').open('a') as struck:
        struck.write(f'{line}\n')
    _strike(wanted.get('how', 'machine'))


def _strike(how: str) -> None:
    if how == 'worker':
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == 'machine':
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif how == 'freeze':
        os.killpg(os.getpgrp(), signal.SIGSTOP)
        return
    else:
        os.kill(os.getppid(), {'term': signal.SIGTERM, 'hup': signal.SIGHUP}[how])
    # The signal comes at once; or, where the engine waits for us, when its patience ends.
    threading.Event().wait()


def _before(owner: Any, name: str, look: Callable[..., None]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        look(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _no_name() -> str:
    return ''


def _at_stack(point: str) -> Callable[..., None]:
    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        _pass_by(point, lambda: self.name, _no_name)
    return look


def _at_sync_point(cnxt: Any, entity_id: Any, traversal_id: Any, is_update: Any,
                   stack_id: str) -> None:
    _pass_by('pointed', lambda: _stack_name(stack_id), _no_name)


def _at_check(self: Any, cnxt: Any, resource_id: Any, current_traversal: Any,
              resource_data: Any, is_update: Any, adopt_stack_data: Any, rsrc: Any,
              stack: Any, *args: Any, **kwargs: Any) -> None:
    _pass_by('taken', lambda: stack.name, lambda: rsrc.name, is_update)


def _at_propagation(self: Any, cnxt: Any, resource_id: Any, current_traversal: Any,
                    is_update: Any, rsrc: Any, stack: Any, *args: Any, **kwargs: Any) -> None:
    _pass_by('done', lambda: stack.name, lambda: rsrc.name, is_update)


def _at_failure(self: Any, cnxt: Any, is_update: Any, resource_id: Any, stack: Any,
                *args: Any, **kwargs: Any) -> None:
    _pass_by('broken', lambda: stack.name, _no_name)


def _at_message(self: Any, ctxt: Any, resource_id: Any, current_traversal: Any, data: Any,
                is_update: Any, *args: Any, **kwargs: Any) -> None:
    @functools.cache
    def row() -> Any:
        return resource_object.Resource.get_obj(context.get_admin_context(), resource_id)

    if kwargs.get('node_type', 'resource') != 'resource':
        return
    _pass_by('leaf' if getattr(_thread, 'triggers', False) else 'ready',
             lambda: _stack_name(row().stack_id), lambda: str(row().name), is_update)


def _stack_name(stack_id: str) -> str:
    found = db_api.stack_get(
        context.get_admin_context(), stack_id, show_deleted=True, eager_load=False)
    return str(found.name)


def _mark_trigger() -> None:
    """Let the messages to the leaves be told from those that follow upon a resource."""
    original = stack.Stack._converge_create_or_update

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _thread.triggers = True
        try:
            return original(*args, **kwargs)
        finally:
            _thread.triggers = False

    stack.Stack._converge_create_or_update = wrapped


def _put_in_place() -> None:
    _before(stack.Stack, 'converge_stack', _at_stack('begun'))
    _mark_trigger()
    _before(stack.Stack, '_converge_create_or_update', _at_stack('stored'))
    _before(sync_point, 'create', _at_sync_point)
    _before(check_resource.CheckResource, 'check', _at_check)
    _before(check_resource.CheckResource, '_initiate_propagate_resource', _at_propagation)
    _before(check_resource.CheckResource, '_handle_resource_failure', _at_failure)
    _before(worker_client.WorkerClient, 'check_resource', _at_message)
    _before(stack.Stack, 'mark_complete', _at_stack('joined'))
    _before(stack.Stack, 'purge_db', _at_stack('marked'))
    _before(stack.Stack, 'rollback', _at_stack('failed'))


# Heat imports a plug-in once, in the parent, before it starts its workers.
_put_in_place()
