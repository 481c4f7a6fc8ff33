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

"""An engine as a process of its own: ``python -m tests.processes.engine_process FILE``.

FILE holds JSON: the database's URL, the settings, the locks to work on, a path whose
appearance ends each task, and whether this engine is to look as if on another machine.

Where FILE names a path for *facts*, the engine also runs errands all the time and tells there what
it does; see :mod:`tests.processes.errands`.  *Planted* names a bug that it is to have.
"""

import dataclasses
import json
import logging
import pathlib
import signal
import sys
import threading
import time
import uuid

from heat_liveness import agent, conf
from heat_liveness import engine as engines
from heat_liveness.db.database import Database
from heat_liveness.errors import LockHeld
from heat_liveness.work.native import NativeWork, Task
from tests.processes import errands, planted

LOG = logging.getLogger(__name__)


def pretend_to_be_elsewhere() -> None:
    """Give this process another boot id: the kernel can then prove nothing about it."""
    boot_id, current = str(uuid.uuid4()), engines.Process.current
    engines.Process.current = classmethod(  # type: ignore[assignment]
        lambda cls: dataclasses.replace(current(), boot_id=boot_id))


def main(path: str) -> None:
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(threadName)s %(message)s')
    order = json.loads(pathlib.Path(path).read_text())
    settings = conf.Settings(**order['settings'])
    done = pathlib.Path(order['done'])
    if order['elsewhere']:
        pretend_to_be_elsewhere()
    if order.get('planted'):
        planted.BUGS[order['planted']]()

    def wait(task: Task) -> None:
        begun = [*(task.progress or {}).get('begun', []), identity.engine_id]
        while not done.exists():
            task.record({'engine_id': identity.engine_id, 'begun': begun, 'at': time.time()})
            time.sleep(0.05)

    identity = engines.Identity.new(host='host', hostname='host', binary='test', topic='test')
    boy = errands.Boy(identity.engine_id, done, order.get('facts'), order.get('seed', 0))
    live = agent.Liveness(
        identity, settings, Database(order['url'], connect_timeout=settings.connect_timeout,
                                     read_timeout=settings.read_timeout),
        lambda context: NativeWork(context, {'wait': wait, **boy.handlers}))
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    joined = threading.Event()
    live.begin(joined.set)
    joined.wait()
    for name in order['locks']:
        try:
            live.work.submit(name, order.get('task', 'wait'))
        except LockHeld:
            LOG.info('%s is held by another.', name)
    boy.begin(live.work, told)
    while not told.wait(settings.scan_interval):
        live.periodic_scan()
    live.stop()


if __name__ == '__main__':
    main(sys.argv[1])
