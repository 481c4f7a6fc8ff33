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

"""What is asked of Heat itself: to check a node, to begin, end or fail a traversal.

All of it is Heat's own code, called as Heat calls it, with the credentials of the stack's owner
(the trust that is stored with the stack), so nothing here knows what a resource is.

A message goes out as Heat would send it, with the input that is stored in the node's sync
point.  Two things are added: the token, in a place of ``data`` where Heat does not look; and
where one engine is to receive it, the name of that engine.
"""

import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import oslo_messaging
from heat.common import context as heat_context
from heat.common import exception as heat_exception
from heat.common import messaging
from heat.engine import check_resource, sync_point, worker
from heat.engine import resource as heat_resource
from heat.engine import stack as heat_stack
from heat.objects import stack as stack_objects
from heat.rpc import listener_client, worker_api, worker_client
from keystoneauth1 import exceptions as keystone_auth
from keystoneauth1 import loading
from oslo_config import cfg
from oslo_db import exception as db_exception

from heat_liveness.heat import graph

LOG = logging.getLogger(__name__)

TOKEN = 'liveness_order'  # noqa: S105 - of a message, and no secret
"""The key of the token in a message's ``data``; Heat reads ``input_data`` there, and no more."""

# Heat 25 does these in one go, under a lock of the stack.
GRAPHLESS = frozenset() if hasattr(heat_resource.Resource, 'suspend_convergence') else frozenset({
    'SUSPEND', 'RESUME', 'CHECK', 'SNAPSHOT'})

NotFound = heat_exception.NotFound

OUTAGES = (keystone_auth.ClientException, heat_exception.AuthorizationFailure,
           oslo_messaging.MessagingException, db_exception.DBConnectionError)
"""Raised where Keystone, the message queue or the database is away, or refuses."""

_ROLLED_BACK = ('CREATE', 'UPDATE', 'RESTORE')
_NOT_ROLLED_BACK = '. It is not rolled back: that would delete everything'

_KEYSTONE_SECONDS = 60.0
"""How long an answer of Keystone's is waited for; in Heat, for ever, if the connection holds."""

_threads: list[threading.Thread] = []


class _Threads:
    """Stands in for Heat's thread groups: a thread for each traversal that is written out.

    That takes a second for each leaf.  If the process ends meanwhile, the sweep finds it.
    """

    def start(self, stack_id: str, function: Callable[..., Any], *args: Any,
              **kwargs: Any) -> None:
        def run() -> None:
            try:
                function(*args, **kwargs)
            except Exception:
                LOG.exception('The traversal of stack %s could not be written out.', stack_id)

        thread = threading.Thread(target=run, daemon=True, name='liveness-traversal')
        _threads[:] = [each for each in _threads if each.is_alive()]
        _threads.append(thread)
        thread.start()


def wait_for_traversals() -> None:
    """Return when all traversals that were begun here are written out."""
    while _threads:
        _threads.pop().join()


def load(stack_id: str) -> heat_stack.Stack | None:
    """Load a stack with its owner's credentials, as far as it has any; None if it is gone."""
    try:
        context = heat_context.get_admin_context()
        found = stack_objects.Stack.get_by_id(context, stack_id, show_deleted=True)
        stack = heat_stack.Stack.load(
            context, stack_id, use_stored_context=found is None or _has_credentials(found))
    except heat_exception.NotFound:
        return None
    stack.thread_group_mgr = _Threads()
    stack.context._keystone_session.timeout = _KEYSTONE_SECONDS
    return stack


def _has_credentials(stack: stack_objects.Stack) -> bool:
    """Return whether a stack's credentials are there; they go before it does.

    Those of a nested stack are its parent's, who may be gone as soon as it is deleted itself.
    """
    if stack.owner_id:
        return (stack.action, stack.status) != (heat_stack.Stack.DELETE,
                                                heat_stack.Stack.COMPLETE)
    return bool(stack.user_creds_id)


def send(stack: heat_stack.Stack, node: graph.Node, resource_id: int | str, token: int,
         receiver: str | None = None) -> bool:
    """Send the check of a node to any engine, or to the one that is named.

    :param resource_id: the row to be checked: the node's own, or its replacement's
    :return: whether the node is still waited for
    """
    try:
        point = sync_point.get(stack.context, node.id, stack.current_traversal, node.is_update)
    except heat_exception.EntityNotFound:
        return False
    data = {**(point.input_data or sync_point.serialize_input_data({})), TOKEN: token}
    # Heat 25 has no more than these.
    more: dict[str, Any] = {'converge': stack.converge}
    if 'node_type' in inspect.signature(worker_client.WorkerClient.check_resource).parameters:
        extra = sync_point.deserialize_extra_data(point.extra_data or {})
        more.update(node_type=node.kind, skip_propagate=extra.get('skip_propagate', False),
                    accumulated_failures=extra.get('resource_failures') or None)
    client(receiver).check_resource(stack.context, resource_id, stack.current_traversal, data,
                                    node.is_update, None, **more)
    return True


def client(receiver: str | None = None) -> worker_client.WorkerClient:
    """Return a client whose messages reach any engine, or the one that is named."""
    found = worker_client.WorkerClient()
    if receiver is not None:
        # Heat has a client for each of its topics, and none for one engine.
        found._client = messaging.get_rpc_client(
            topic=worker_api.TOPIC, version=found.BASE_RPC_API_VERSION, server=receiver)
    return found


def report(stack: heat_stack.Stack, node: graph.Node) -> None:
    """Report a node whose row is gone, and that nobody could check any more, as Heat does."""
    deps = stack.convergence_dependencies
    sender = _heats(node)
    try:
        for other in sorted(deps.required_by(sender), key=lambda each: each.is_update):
            check_resource.propagate_check_resource(
                stack.context, worker_client.WorkerClient(), other.rsrc_id,
                stack.current_traversal, set(deps.graph()[other]), sender, None, other.is_update,
                None)
        kind = {} if node.kind == graph.RESOURCE else {'node_type': node.kind}
        check_resource.check_stack_complete(
            stack.context, stack, stack.current_traversal, node.id, deps, node.is_update, **kind)
    except heat_exception.EntityNotFound as error:
        LOG.debug('Stack %s has gone on: %s', stack.id, error)


def _heats(node: graph.Node) -> heat_stack.ConvergenceNode:
    fields = (node.id, node.is_update, node.kind)
    return heat_stack.ConvergenceNode(*fields[:len(heat_stack.ConvergenceNode._fields)])


def write_out(stack: heat_stack.Stack, traversal: str) -> None:
    """Write the traversal of a stack out under the id that it was given in place of its own."""
    old, stack.current_traversal = stack.current_traversal, traversal
    sync_point.delete_all(stack.context, stack.id, old)
    # A delete begins with stopping who still works on the stack, and Heat does not store that.
    stop = functools.partial(_stop_workers, stack) if stack.action == stack.DELETE else None
    stack.thread_group_mgr.start(stack.id, stack._converge_create_or_update, pre_converge=stop)


def _stop_workers(stack: heat_stack.Stack) -> None:
    # It has no name, so it takes nobody for itself: each engine is sent a message.
    worker.WorkerService('', worker_api.TOPIC, '', None).stop_all_workers(stack)


def fail(stack: heat_stack.Stack, reason: str) -> bool:
    """Fail a stack's traversal, as Heat does when a resource fails; return whether it was we.

    It is rolled back where it asks for that, and where that deletes nothing that was there before.
    """
    if _rollback_deletes_all(stack):
        return _fail_without_rollback(stack, reason)
    return bool(stack.mark_failed(reason))


def _fail_without_rollback(stack: heat_stack.Stack, reason: str) -> bool:
    """Fail a stack, or let one that has failed say why it stays as it is; return whether it was we.

    It is harmless to do so twice.
    """
    reason = reason.removesuffix(_NOT_ROLLED_BACK) + _NOT_ROLLED_BACK
    if not stack.state_set(stack.action, stack.FAILED, reason):
        return False
    stack.purge_db()
    return True


def _rollback_deletes_all(stack: heat_stack.Stack) -> bool:
    """Return whether a rollback would delete what was there before the operation.

    What was adopted was there before.  An update without its previous template would be rolled
    back to an empty one; so a rollback leaves it that was begun and did not get far.
    """
    return not stack.disable_rollback and (stack.action == stack.ADOPT or (
        stack.action in {stack.UPDATE, stack.RESTORE} and stack.prev_raw_template_id is None))


def ping(engine_id: str) -> bool:
    """Return whether an engine answers over the message queue.

    :raises Exception: the queue is away
    """
    return bool(listener_client.EngineListenerClient(engine_id).is_alive(
        heat_context.get_admin_context()))


def finish(stack: heat_stack.Stack, *, roll_back: bool) -> None:
    """Carry the end of a traversal through that somebody began and did not finish.

    :param roll_back: whether a stack that has failed is rolled back where it asks for that
    """
    if stack.action == stack.DELETE and stack.status == stack.COMPLETE:
        # The trust by which it would ask may be gone already.
        stack.context = _service_context()
        # A stack keeps the clients of the context that it was loaded with.
        stack.clients = stack.context.clients
        stack.purge_db()
    elif stack.status == stack.IN_PROGRESS:
        stack.mark_complete()
    elif roll_back and stack.status == stack.FAILED and _rollback_deletes_all(stack):
        _fail_without_rollback(stack, stack.status_reason)
    elif (roll_back and stack.status == stack.FAILED and not stack.disable_rollback
            and stack.action in _ROLLED_BACK):
        stack.rollback()
    else:
        if stack.action == stack.SNAPSHOT:
            with contextlib.suppress(heat_exception.NotFound):
                stack.update_snapshot(stack.status_reason, stack.CREATE, stack.status)
        stack.purge_db()


def end_delete(stack: heat_stack.Stack) -> None:
    """Delete a stack whose resources are gone, and with them the trust of its owner.

    It had failed only at the project of its users, as the trust was what it asked with.
    """
    context = _service_context()
    if stack.stack_user_project_id:
        context.clients.client('keystone').delete_stack_domain_project(
            project_id=stack.stack_user_project_id)
    stack.context = context
    if stack.state_set(stack.DELETE, stack.COMPLETE, 'Stack DELETE completed successfully'):
        stack_objects.Stack.delete(context, stack.id)


def _service_context() -> Any:
    """Return the account of Heat's own service, for use in this process; no message carries it.

    :raises Exception: Keystone is away, or there is no such account in ``[trustee]``
    """
    context = heat_context.get_admin_context()
    context._keystone_session.timeout = _KEYSTONE_SECONDS
    context._auth_plugin = loading.load_auth_from_conf_options(cfg.CONF, 'trustee')
    # Asked now: what it is wanted for fails for good where it cannot be had.
    context.clients.client('keystone').domain_admin_auth  # noqa: B018
    return context
