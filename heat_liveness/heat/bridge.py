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

"""How liveness enters heat-engine: one file, off unless ``[liveness] enabled``.

Heat calls ``is_available()`` on what it finds in the entry-point group ``heat.clients``, in
the parent, before it forks its workers; nothing happens at import.  When enabled, the bridge
then puts itself round fourteen methods:

* ``WorkerService.start``: the engine joins before its RPC server consumes;
* ``EngineService.stop``: it drains before, and leaves after whatever happens inside, which
  can raise midway;
* ``Resource._store_with_lock``, ``Resource.resource_id_set``, ``WorkerClient.check_resource``:
  the gate stands before each write under a lock, the one write that Heat does not fence, and
  each message.  What is to be worked on alone sends all its messages to its own engine, those of
  its replacement and of its dependents among them;
* ``WorkerService.check_resource``: a message with a token, or that was sent again with one, is
  acted on once (:mod:`.orders`).  One that its own check sends once more is no copy: Heat does
  that where the resource has changed before it could be locked;
* ``StackResource.handle_preempt``: a check that finds its resource locked interrupts the nested
  stack, so that a newer traversal need not wait for it.  Where a message of the *same* traversal
  was sent again, it may be its own work that it would interrupt, so it does not;
* ``Resource.update_convergence``, and the statement that makes a replacement: a resource is
  replaced once, though its message may have come twice; see :func:`.wraps.leave_replaced` and
  :func:`.wraps.replace_once`;
* ``Resource.suspend``: see :func:`.wraps.leave_behind`;
* ``EngineClient._create_stack``: see :func:`.wraps.find_nested`;
* ``Stack._delete_credentials``, and the creation of a stack's project and users in Keystone: see
  :func:`.wraps.authenticate_early`, :func:`.wraps.find_project`, :func:`.wraps.replace_user`.

A fault of ours never stops Heat.  The signatures are checked first, and where one differs
the bridge stays off with one ERROR.  Heat's loader lets a failed ``assert`` through, so
nothing gets out of ``is_available``.
"""

import functools
import importlib
import inspect
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from oslo_config import cfg

from heat_liveness import conf, errors
from heat_liveness.heat import lifecycle

LOG = logging.getLogger(__name__)

BINARY = 'heat-engine'
TOPIC = 'engine'
"""As in Heat's own service table, so that both tables say the same."""

Method = Callable[..., Any]

_KEYSTONE = 'heat.engine.clients.os.keystone.heat_keystoneclient:KsClientWrapper'


class _Wrap(NamedTuple):
    """A method of Heat's, and what is put round it."""

    path: str
    parameters: list[str]
    """Those that it has to have; some releases of Heat have more behind them."""
    wrapper: Callable[[Any, Method], Method]


def _wraps() -> tuple[_Wrap, ...]:
    """Return all that is wrapped.

    :raises ConfigError: this Heat is not one we know
    """
    try:
        # Imported here, as they import Heat, and nothing happens at import.
        from heat_liveness.heat import calls, wraps
    except ImportError as error:
        raise errors.ConfigError(
            f'this Heat has not all that is asked of it ({error}): use a release of heat-liveness '
            f'that knows this Heat.') from error

    return (
        _Wrap('heat.engine.worker:WorkerService.start', ['self'], _started),
        _Wrap('heat.engine.service:EngineService.stop', ['self'], _stopped),
        _Wrap('heat.engine.resource:Resource._store_with_lock', ['self', 'rs', 'lock'], _gated),
        _Wrap('heat.engine.resource:Resource.resource_id_set', ['self', 'inst'], _gated),
        _Wrap('heat.rpc.worker_client:WorkerClient.check_resource',
              ['self', 'ctxt', 'resource_id', 'current_traversal', 'data', 'is_update',
               'adopt_stack_data', 'converge'],
              functools.partial(_sent, calls.client)),
        _Wrap('heat.engine.worker:WorkerService.check_resource',
              ['self', 'cnxt', 'resource_id', 'current_traversal', 'data', 'is_update',
               'adopt_stack_data', 'converge'],
              functools.partial(_once, calls.TOKEN)),
        _Wrap('heat.engine.resources.stack_resource:StackResource.handle_preempt', ['self'],
              _unless_sent_twice),
        _Wrap('heat.engine.resource:Resource.update_convergence',
              ['self', 'template_id', 'new_requires', 'engine_id', 'timeout', 'new_stack'],
              wraps.leave_replaced),
        # Of the class, so there is no self.
        _Wrap('heat.objects.resource:Resource.replacement',
              ['context', 'existing_res_id', 'new_res_values', 'atomic_key'],
              wraps.replace_once),
        _Wrap('heat.engine.resource:Resource.suspend', ['self'], wraps.leave_behind),
        _Wrap('heat.rpc.client:EngineClient._create_stack', ['self', 'ctxt', 'stack_name'],
              wraps.find_nested),
        _Wrap('heat.engine.stack:Stack._delete_credentials',
              ['self', 'stack_status', 'reason', 'abandon'], wraps.authenticate_early),
        _Wrap(f'{_KEYSTONE}.create_stack_domain_project', ['self', 'stack_id'],
              wraps.find_project),
        _Wrap(f'{_KEYSTONE}.create_stack_domain_user',
              ['self', 'username', 'project_id', 'password'], wraps.replace_user),
    )


class LivenessBridge:
    """What the entry point names; it is never instantiated, and registers no client."""

    _entered = False

    @classmethod
    def is_available(cls) -> bool:
        """Enter Heat if that is switched on; always say that there is no client here."""
        try:
            if not cls._entered:
                cls._entered = enter(cfg.CONF)
        except errors.LivenessError as error:
            LOG.error('Liveness is off in this heat-engine: %s', error)
        except Exception:
            LOG.exception('Liveness is off in this heat-engine: it could not be put in place.')
        return False


def enter(config: cfg.ConfigOpts) -> bool:
    """Wrap Heat's methods if ``[liveness] enabled``; return whether that was done.

    :raises ConfigError: an option cannot be used, or this Heat is not one we know
    """
    conf.register(config)
    if not config.liveness.enabled:
        return False
    settings = conf.Settings.from_conf(config)
    wraps = _wraps()
    _check_signatures(wraps)
    _put_round(wraps, lifecycle.EngineLifecycle(config, settings))
    LOG.info('Liveness is on: each engine worker beats every %g s and is declared dead after '
             '%g s without a beat.', settings.report_interval, settings.service_down_time)
    return True


def _find(path: str) -> tuple[type, str]:
    module, _, attribute = path.partition(':')
    owner, _, name = attribute.partition('.')
    return getattr(importlib.import_module(module), owner), name


def _check_signatures(wraps: Iterable[_Wrap]) -> None:
    for path, expected, _ in wraps:
        try:
            owner, name = _find(path)
            found = list(inspect.signature(getattr(owner, name)).parameters)
        except (ImportError, AttributeError) as error:
            raise errors.ConfigError(
                f'this Heat has no {path} ({error}): use a release of heat-liveness that knows '
                f'this Heat.') from error
        if found[:len(expected)] != expected:
            raise errors.ConfigError(
                f'{path} of this Heat takes {", ".join(found)} instead of '
                f'{", ".join(expected)}: use a release of heat-liveness that knows this Heat.')


def _put_round(wraps: Iterable[_Wrap], life: lifecycle.EngineLifecycle) -> None:
    for path, _, wrapper in wraps:
        owner, name = _find(path)
        original = getattr(owner, name)
        setattr(owner, name, functools.wraps(original)(wrapper(life, original)))


def _started(life: lifecycle.EngineLifecycle, original: Method) -> Method:
    def start(self: Any) -> Any:
        life.starting(self.engine_id, self.host, socket.gethostname(), BINARY, TOPIC)
        return original(self)
    return start


def _stopped(life: lifecycle.EngineLifecycle, original: Method) -> Method:
    def stop(self: Any) -> Any:
        life.stopping()
        try:
            return original(self)
        finally:
            life.stopped()
    return stop


def _gated(life: lifecycle.EngineLifecycle, original: Method) -> Method:
    def pass_gate(*args: Any, **kwargs: Any) -> Any:
        life.gate()
        return original(*args, **kwargs)
    return pass_gate


def _sent(client: Method, life: lifecycle.EngineLifecycle, original: Method) -> Method:
    def check_resource(self: Any, ctxt: Any, resource_id: Any, current_traversal: Any, data: Any,
                       is_update: Any, *args: Any, **kwargs: Any) -> Any:
        life.gate()
        life.sends(resource_id, current_traversal, is_update=bool(is_update))
        receiver = life.receiver()
        return original(self if receiver is None else client(receiver), ctxt, resource_id,
                        current_traversal, data, is_update, *args, **kwargs)
    return check_resource


def _once(token_key: str, life: lifecycle.EngineLifecycle, original: Method) -> Method:
    def check_resource(self: Any, cnxt: Any, resource_id: Any, current_traversal: Any, data: Any,
                       is_update: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = (self, cnxt, resource_id, current_traversal, data, is_update, *args)
        token = data.get(token_key)
        if token is None:
            token = life.token(resource_id, current_traversal, is_update=bool(is_update))
        if token is None:
            return original(*arguments, **kwargs)
        if not life.received(token):
            return None
        try:
            result = original(*arguments, **kwargs)
        except BaseException as error:
            life.checked(token, error)
            raise
        life.checked(token, None)
        return result
    return check_resource


def _unless_sent_twice(life: lifecycle.EngineLifecycle, original: Method) -> Method:
    def handle_preempt(self: Any) -> Any:
        if life.sent_twice(self.stack.id, self.stack.current_traversal):
            LOG.info('The nested stack of %s is not interrupted: its check may be the second of '
                     'one traversal.', self.name)
            return None
        return original(self)
    return handle_preempt
