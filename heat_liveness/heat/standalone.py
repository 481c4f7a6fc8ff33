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

"""The two ways in for processes that are no heat-engine: the agent, and ``recover --once``.

Importing this imports nothing of Heat; that needs some preparation first.
"""

from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from heat_liveness import conf, errors
from heat_liveness.work import Context, WorkStore


def observed_work(context: Context, handlers: object) -> WorkStore:
    """Make the work store of an agent beside Heat; see :mod:`.observed`.

    :raises ConfigError: Heat is not installed here, or its configuration cannot be used
    """
    _prepare(context.configuration)
    from heat_liveness.heat.observed import ObservedWork
    return ObservedWork(context)


def check(configuration: Any) -> None:
    """Read Heat's own options, and see whether Heat can use them.

    :raises ConfigError: Heat is not installed here, or its configuration cannot be used
    """
    _set_up(configuration)
    from heat.common import messaging
    # Whoever goes on sets it up by himself, after the fork, with the options as they are then.
    messaging.cleanup()


def _set_up(configuration: Any) -> None:
    """Let Heat read the files that our configuration was read from, and reach the message queue."""
    try:
        # Importing Heat's engine would choose eventlet.
        from oslo_service import backend
        backend.init_backend(backend.BackendType.THREADING)
        # Imported, it registers Heat's options.
        import oslo_messaging
        from heat.common import config, messaging  # noqa: F401
        from heat.engine import resources  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(
            f'Heat cannot be imported ({error}): install this package into the environment of '
            f'heat-engine.') from error
    try:
        cfg.CONF([], project='heat', prog='heat-engine',
                 default_config_files=list(configuration.config_file or ()),
                 default_config_dirs=list(configuration.config_dir or ()))
    except cfg.Error as error:
        raise errors.ConfigError(f'The configuration of Heat cannot be read: {error}') from error
    try:
        messaging.setup()
    except (oslo_messaging.MessagingException, ValueError, cfg.Error) as error:
        # Its text may have the password in it.
        raise errors.ConfigError(
            f'The message queue of Heat cannot be used ({type(error).__name__}): see to '
            f'transport_url in the configuration of Heat, which should look like '
            f'rabbit://USER:PASSWORD@HOST:5672/.') from error


observed_work.check = check  # type: ignore[attr-defined]


def recover(configuration: Any, settings: conf.Settings, *, dry_run: bool, only: str | None,
            say: Callable[[str], None]) -> str:
    """Recover once, or say what would be done; return what to print.  See :mod:`.recover`.

    :param only: the id of the one stack to recover
    :param say: tells whoever waits what is being waited for
    :raises LivenessError: it could not be done
    """
    _prepare(configuration)
    from heat_liveness.heat import recover as command
    return (command.tell if dry_run else command.do)(configuration, settings, only, say)


def _prepare(configuration: Any) -> None:
    """Set Heat up as its engines do, and load its plug-ins."""
    _set_up(configuration)
    from heat.engine import resources
    resources.initialise()
