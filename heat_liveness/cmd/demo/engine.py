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

"""One engine of the demo: ``python -m heat_liveness.cmd.demo.engine``.

A process like any other engine's: it joins, beats, watches the others and takes their work
over.  What it does beside that is to look for resources whose requirements are done, and to
make them, each under its lock, in a few calls to the cloud.

Its orders come as one line of JSON on its standard input: there they show neither in the
process list nor in the environment.  When the input ends, whoever started it wants it to
leave, or has died.
"""

import dataclasses
import functools
import json
import logging
import random
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from heat_liveness import agent, conf, errors
from heat_liveness import engine as engines
from heat_liveness.db import demo
from heat_liveness.db.database import Database
from heat_liveness.work import Context
from heat_liveness.work.native import NativeWork, Task

LOG = logging.getLogger(__name__)

BINARY = 'heat-liveness-demo'
STEP_SECONDS = (0.2, 0.6)
"""How long the cloud takes for a step, from and to."""
SEEK_SECONDS = 0.3
"""How often an engine looks for more to do."""

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Orders:
    """What an engine is told when it is started."""

    url: str
    run: str
    engine_id: str
    name: str
    """For people: engine-1."""
    settings: dict[str, Any]

    def dump(self) -> bytes:
        """Return the line that the engine reads."""
        return json.dumps(dataclasses.asdict(self)).encode() + b'\n'


class Worker:
    """Looks for resources to make, and makes them."""

    def __init__(self, context: Context, run: str) -> None:
        self.store = NativeWork(context, {'create': self._create})
        self._me = context.identity.engine_id
        self._retry_seconds = context.settings.beat_retry
        self._gate = context.gate
        self._clock = context.clock
        self._run = run
        self._cloud = demo.Cloud(context.database, run)
        self._chance = random.Random()  # noqa: S311 - it spreads the engines over the work

    def seek(self) -> None:
        """Begin with what can be begun, and there is room for.

        :raises LivenessError: not now; seek again
        """
        resources = self._cloud.resources()
        done = {resource.name for resource in resources if resource.done}
        ready = [resource.name for resource in resources
                 if not resource.done and resource.engine_id is None and resource.requires <= done]
        self._chance.shuffle(ready)
        for name in ready:
            if not self.store.room():
                break
            try:
                self.store.submit(demo.lock_name(self._run, name), 'create', {'name': name})
            except errors.LockHeld:
                LOG.debug('Somebody else was quicker to take %s.', name)

    def _create(self, task: Task) -> None:
        name = task.arguments['name']
        # Between our look and our lock another engine may have made it.
        if self._surely(functools.partial(self._cloud.is_done, name)):
            return
        for step in range((task.progress or 0) + 1, demo.STEPS + 1):
            self._clock.wait(threading.Event(), self._chance.uniform(*STEP_SECONDS))
            outcome = self._surely(functools.partial(
                self._cloud.call, name, step, task.generation, self._me))
            if outcome is demo.Outcome.REFUSED:
                raise errors.LockLost(f'The cloud knows a later owner of {name}.')
            task.record(step)

    def _surely(self, question: Callable[[], T]) -> T:
        """Ask until there is an answer; nothing is begun while the engine holds."""
        while True:
            self._gate.wait()
            try:
                return question()
            except errors.DatabaseError as error:
                LOG.info('A call is made again: %s', error)
                self._clock.wait(threading.Event(), self._retry_seconds)


def main() -> int:
    """Live until the standard input ends; return the exit status."""
    orders = Orders(**json.loads(sys.stdin.readline()))
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(threadName)s %(message)s')
    leave = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(leave,), daemon=True).start()
    settings = conf.Settings(**orders.settings)
    identity = engines.Identity.new(
        host=settings.host, hostname=orders.name, binary=BINARY, topic=orders.run,
        engine_id=orders.engine_id)
    database = Database(orders.url, connect_timeout=settings.connect_timeout,
                        read_timeout=settings.read_timeout, connections=settings.max_tasks + 4)
    workers: list[Worker] = []

    def work(context: Context) -> NativeWork:
        workers.append(Worker(context, orders.run))
        return workers[0].store

    liveness = agent.Liveness(identity, settings, database, work)
    while not _try(liveness.join) and not leave.wait(settings.beat_retry):
        pass
    liveness.start()
    while not leave.is_set():
        _try(workers[0].seek)
        leave.wait(SEEK_SECONDS)
    liveness.stop()
    return 0


def _try(step: Callable[[], None]) -> bool:
    """Take a step; return whether it could be taken."""
    try:
        step()
    except errors.EngineDead as error:
        agent.end_process(str(error))
    except errors.LivenessError as error:
        LOG.info('That is tried again: %s', error)
        return False
    return True


def _wait_for_the_end(leave: threading.Event) -> None:
    sys.stdin.read()
    leave.set()


if __name__ == '__main__':
    sys.exit(main())
