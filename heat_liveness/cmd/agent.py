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

"""``heat-liveness-agent``: engines that run the tasks of a service, under oslo.service.

The handlers of the tasks are entry points in the group ``heat_liveness.tasks``: the name is
the task's, the object is called with a :class:`heat_liveness.work.native.Task`.

The master checks everything that can be wrong before the first fork, as a worker that ends
at once would be started again at once.  Each worker is an engine of its own, with a fresh
``engine_id``: whatever restarts a worker (a crash, SIGHUP, its own death) makes a new one.

=========  ==========================================================================
signal     what happens
=========  ==========================================================================
SIGTERM    each worker drains (it beats until its last task has ended) and leaves
SIGHUP     the options are read again; each worker drains, leaves, and a new one starts.
           Options that cannot be used are told in an ERROR, and those of before stay
SIGKILL    of a worker: the master starts another; of the master: the workers drain and
           leave
=========  ==========================================================================

To systemd it says READY when an engine has joined, and WATCHDOG while its heart beats or
holds; the unit needs ``Type=notify`` and ``NotifyAccess=all``.
"""

import functools
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oslo_config import cfg
from oslo_log import log as oslo_log

import heat_liveness
from heat_liveness import agent, conf, errors, fence
from heat_liveness import engine as engines
from heat_liveness.db import migration

LOG = logging.getLogger(__name__)

PROGRAM = 'heat-liveness-agent'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until it is told to stop; return the exit status."""
    # oslo.service brings eventlet along although nothing here uses it; its farewell is not ours.
    warnings.filterwarnings('ignore', module='futurist')
    # Whatever imports oslo_service.service before this would choose eventlet.
    from oslo_service import backend
    backend.init_backend(backend.BackendType.THREADING)

    config = cfg.ConfigOpts()
    oslo_log.register_options(config)
    oslo_log.set_defaults(
        # An error of the database is told once, by us, in a sentence.
        default_log_levels=[*oslo_log.get_default_log_levels(), 'alembic=WARN',
                            'oslo_db.sqlalchemy.exc_filters=CRITICAL'])
    try:
        conf.load(config, sys.argv[1:] if arguments is None else arguments, PROGRAM,
                  heat_liveness.__version__)
        _set_up_log(config)
        settings = conf.Settings.from_conf(config)
        handlers = _handlers()
        driver = _driver(settings.work)
        _check(config, settings, driver)
        # It reads options of oslo.service, which may be out of range as well.
        _serve(Worker(config, settings, driver, handlers))
    except (errors.LivenessError, cfg.Error) as error:
        print(f'{PROGRAM}: {error}', file=sys.stderr)
        return 1
    return 0


def _set_up_log(config: cfg.ConfigOpts) -> None:
    try:
        oslo_log.setup(config, PROGRAM, heat_liveness.__version__)
    except Exception as error:
        # A file, a facility, a level: oslo.log raises what each of them happens to raise.
        raise errors.ConfigError(f'The log cannot be set up: {error}') from error


def _handlers() -> dict[str, Any]:
    from stevedore import extension

    def refuse(manager: object, entry: Any, error: BaseException) -> None:
        raise errors.ConfigError(
            f'The handler {entry.name} of heat_liveness.tasks cannot be loaded: {error}')

    found: Any = extension.ExtensionManager('heat_liveness.tasks', on_load_failure_callback=refuse)
    return {handler.name: handler.plugin for handler in found}


def _driver(name: str) -> Any:
    from stevedore import driver, exception

    try:
        return driver.DriverManager('heat_liveness.work', name).driver
    except exception.NoMatches as error:
        raise errors.ConfigError(
            f'[{conf.GROUP}] work names the driver {name!r}, which is not installed in '
            f'heat_liveness.work.') from error


def _check(config: cfg.ConfigOpts, settings: conf.Settings, driver: Any) -> None:
    """Refuse what would end each worker; a database that is away may come back.

    :raises LivenessError: the schema, the kernel, an option or the driver does not fit
    """
    if (check := getattr(driver, 'check', None)) is not None:
        check(config)
    try:
        fence.KernelTimer()
    except OSError as error:
        raise errors.ConfigError(f'This kernel gives no timer on CLOCK_BOOTTIME: {error}.') from (
            error)
    database = agent.database(config, settings)
    try:
        migration.check(database)
    except errors.DatabaseError as error:
        LOG.warning('The workers start without the database and join when it is there: %s', error)
    finally:
        # No connection may cross the fork.
        database.close()


def _serve(worker: 'Worker') -> None:
    from oslo_service import service

    # A class inside a function cannot be pickled, so oslo.service before 4.8 forks its workers
    # instead of spawning them; a spawned one would start without the configuration.
    class AgentService(service.Service):
        """What oslo.service starts and stops in each worker."""

        def start(self) -> None:
            super().start()
            worker.start(functools.partial(self.tg.add_timer_args, stop_on_exception=False))

        def stop(self, graceful: bool = True) -> None:
            worker.stop()
            super().stop(graceful=True)

    service.launch(worker.config, AgentService(), workers=worker.settings.workers,
                   restart_method='mutate').wait()


class Worker:
    """One worker's engine; made in the master, started in the worker."""

    def __init__(self, config: cfg.ConfigOpts, settings: conf.Settings, driver: Any,
                 handlers: Mapping[str, Any]) -> None:
        self.config = config
        self.settings = settings
        self._driver = driver
        self._handlers = handlers
        # oslo.service's own READY comes before any worker exists, so we say it ourselves.
        self._notify = Notifier(os.environ.pop('NOTIFY_SOCKET', None),
                                os.environ.pop('WATCHDOG_USEC', None))
        self._live: agent.Liveness | None = None

    def start(self, every: Callable[[float, Callable[[], None]], object]) -> None:
        """Begin as a new engine.

        :param every: starts a periodic task: called with its seconds and what it calls
        """
        settings = conf.reloaded(self.config, self.settings)
        identity = engines.Identity.new(host=settings.host, hostname=socket.gethostname(),
                                        binary=settings.binary, topic=settings.topic)
        live = agent.Liveness(identity, settings, agent.database(self.config, settings),
                              lambda context: self._driver(context, self._handlers),
                              configuration=self.config)
        self._live = live

        def joined() -> None:
            every(settings.scan_interval, live.periodic_scan)
            self._notify.send('READY=1')

        def still_well() -> None:
            if live.well:
                self._notify.send('WATCHDOG=1')

        live.begin(joined)
        if self._notify.watchdog_seconds:
            every(self._notify.watchdog_seconds / 3, still_well)

    def stop(self) -> None:
        """Drain and leave."""
        if self._live is not None:
            self._live.leave_within(self.config.graceful_shutdown_timeout)
            self._live.stop()


class Notifier:
    """What systemd is told."""

    def __init__(self, address: str | None, watchdog_microseconds: str | None) -> None:
        self._address = address
        self.watchdog_seconds = int(watchdog_microseconds or 0) / 1e6

    def send(self, message: str) -> None:
        """Tell systemd, where there is one that listens."""
        if not self._address:
            return
        # A leading @ stands for an abstract address.
        address = '\0' + self._address[1:] if self._address[0] == '@' else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.sendto(message.encode(), address)
        except OSError as error:
            LOG.debug('systemd was not told %s: %s', message, error)


if __name__ == '__main__':
    sys.exit(main())
