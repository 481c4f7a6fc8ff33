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

"""The interface that Heat itself should one day offer: an engine starts, acts, stops.

``starting`` before any work can reach the engine, ``gate`` before each thing it does,
``received`` and ``checked`` round a message that we have sent, ``stopping`` and ``stopped`` round
its end.  None of them ever raises: a fault here must not become a fault of Heat's.

**An engine that is not done in time.**  oslo.service ends a worker that has not stopped within
``graceful_shutdown_timeout``, at whatever it is doing.  Shortly before that the engine leaves:
its gate closes, so that it writes nothing more, and its work is taken over at the next look of
the others, not when they have watched it for long enough.

If the database is away or the tables are missing when the engine starts, Heat starts
anyway, one ERROR says what to do, and the join is tried again until it succeeds.  Until
then the engine has no row: the others call it unknown, and nobody judges it.

``gate`` blocks while the engine holds.  It must not raise: Heat takes an exception there for
a failure of the resource and marks the whole stack FAILED.  For the same reason it never
returns once the engine is dead; the heart ends the process.
"""

import functools
import logging
import threading
from typing import Any

from oslo_config import cfg

from heat_liveness import agent, conf, errors
from heat_liveness import engine as engines

LOG = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 1.0


class EngineLifecycle:
    """One heat-engine's liveness.  Made in the parent; everything else happens in a worker."""

    def __init__(self, config: cfg.ConfigOpts, settings: conf.Settings) -> None:
        self._config = config
        self._settings = settings
        self._live: agent.Liveness | None = None
        self._work: Any = None
        self._scans: Any = None
        self._stopped = threading.Event()

    def starting(self, engine_id: str, host: str, hostname: str, binary: str,
                 topic: str) -> None:
        """Join, before any work can reach the engine; or go on trying beside it."""
        try:
            identity = engines.Identity.new(engine_id=engine_id, host=host, hostname=hostname,
                                            binary=binary, topic=topic)
            # Heat's side is imported where Heat runs, not in the parent.
            from heat_liveness.heat.work import HeatWork
            self._settings = conf.reloaded(self._config, self._settings)
            self._stopped = threading.Event()
            self._live = agent.Liveness(identity, self._settings,
                                        agent.database(self._config, self._settings), HeatWork)
            self._work = self._live.work
            self._live.begin(functools.partial(self._start_scans, self._live))
        except errors.LivenessError as error:
            LOG.error('Liveness is off in engine %s: %s', engine_id, error)
        except Exception:
            LOG.exception('Liveness is off in engine %s.', engine_id)

    def _start_scans(self, live: agent.Liveness) -> None:
        # oslo.service is imported in the worker only: importing it chooses a threading model,
        # which is Heat's to choose.
        from oslo_service import loopingcall

        scans = loopingcall.FixedIntervalLoopingCall(live.periodic_scan)
        scans.start(interval=self._settings.scan_interval, stop_on_exception=False)
        self._scans = scans
        LOG.info('The periodic task liveness-scan runs every %g s in engine %s.',
                 self._settings.scan_interval, live.identity.engine_id)

    def gate(self) -> None:
        """Return when the engine may act; never, when it is dead."""
        if self._live is None or not self._live.joined:
            return
        try:
            self._live.gate.wait()
        except errors.EngineDead as error:
            LOG.error('Nothing more is done here: %s', error)
            threading.Event().wait()

    def token(self, resource_id: Any, traversal: str, *, is_update: bool) -> int | None:
        """Return the token of a message that has none, if it was sent again meanwhile.

        It had only seemed lost: RabbitMQ gives out again what a dead engine had not acted on.
        So it may come together with its copy, and one of them is enough.
        """
        if self._live is None or not self._live.joined:
            return None
        try:
            found: int | None = self._work.delivery.again(
                resource_id, traversal, is_update=is_update)
        except Exception as error:
            LOG.warning('Whether the message of resource %s was sent again is not known; it is '
                        'acted on. %s', resource_id, error)
            return None
        return found

    def received(self, order_id: int) -> bool:
        """Return whether a message with this token is to be acted on: once, of all its copies."""
        if self._live is None:
            # Liveness is off here for good, so it is a message like any other: for whoever sent
            # it this is an engine that knows no tokens.
            return True
        if not self._live.joined:
            # It would wait at the gate for as long as joining fails, and others need not.
            LOG.warning('Message %s is not acted on, as this engine has not joined; it is sent '
                        'again, and hangs while no other engine takes it.', order_id)
            return False
        try:
            self._live.gate.wait()
            used = bool(self._work.delivery.use(order_id))
        except errors.EngineDead as error:
            LOG.error('Nothing more is done here: %s', error)
            threading.Event().wait()
        except Exception as error:
            LOG.warning('Whether message %s was acted on is not known, so it is not; it is sent '
                        'again. %s', order_id, error)
            return False
        if not used:
            LOG.info('Message %s came more than once; it is acted on once.', order_id)
        return used

    def checked(self, order_id: int, failure: BaseException | None) -> None:
        """Note that the check of a message has ended."""
        if self._live is None:
            return
        try:
            self._work.delivery.used(order_id, failure)
        except Exception as error:
            LOG.warning('What became of message %s could not be noted; that is tried again. %s',
                        order_id, error)

    def sends(self, resource_id: Any, traversal: str, *, is_update: bool) -> None:
        """Note that this thread is to send a message; it may be the one that it is acting on."""
        if self._live is None:
            return
        try:
            self._work.delivery.sends(resource_id, traversal, is_update=is_update)
        except Exception as error:
            LOG.warning('The check of resource %s is sent once more, and may be taken for a copy '
                        'and not be acted on; then it is found to be lost. %s', resource_id, error)

    def receiver(self) -> str | None:
        """Return the engine that must get what this thread sends; None if any engine may."""
        if self._live is None or not self._work.delivery.stays:
            return None
        return self._live.identity.engine_id

    def sent_twice(self, stack_id: str, traversal: str) -> bool:
        """Return whether a message of this traversal was sent again because it seemed lost."""
        if self._live is None or not self._live.joined:
            return False
        try:
            return bool(self._work.resent(stack_id, traversal))
        except Exception as error:
            LOG.warning('Whether messages of stack %s were sent twice is not known, so its nested '
                        'stacks are not interrupted: %s', stack_id, error)
            return True

    def replaced(self, resource_id: int, template_id: int) -> bool:
        """Return whether another row has taken a resource's place, made to this template.

        It waits until the database says so: either guess would be wrong for good.
        """
        if self._live is None or not self._live.joined:
            return False
        while True:
            self.gate()
            try:
                return bool(self._work.replaced(resource_id, template_id))
            except errors.DatabaseError as error:
                LOG.warning('Whether resource %s was replaced already is not known; it is asked '
                            'again in %g s, and its check waits. %s', resource_id,
                            _ASK_AGAIN_SECONDS, error)
                self._stopped.wait(_ASK_AGAIN_SECONDS)
            except Exception:
                LOG.exception('Whether resource %s was replaced already cannot be told.',
                              resource_id)
                return False

    def stopping(self) -> None:
        """Tell the others that the engine takes no new work; it beats on."""
        try:
            if self._live is not None and self._live.joined:
                self._live.drain()
                self._work.stopping()
                self._live.leave_within(self._config.graceful_shutdown_timeout)
        except Exception:
            LOG.exception('The others were not told that this engine stops.')

    def stopped(self) -> None:
        """Leave: the last lock is released."""
        try:
            if self._scans is not None:
                self._scans.stop()
            if self._live is not None:
                self._live.stop()
        except Exception:
            LOG.exception('This engine ends without having left; the others will find it dead.')
        finally:
            self._stopped.set()
