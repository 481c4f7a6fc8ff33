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

"""What an engine under the nemesis does, and what it tells of it.

It runs *errands*, a few at a time: short tasks that record how far they have come, and that
complete, fail or give their lock back; some under names of their own, some under names that all
engines want.  Each fact goes to a file, one line of JSON, in one write: what was told before a
SIGKILL is there.  Its connections carry its name, so that the database can tell who wrote.
"""

import contextlib
import ctypes
import json
import logging
import os
import pathlib
import random
import signal
import threading
import time
from typing import Any

import sqlalchemy as sa

from heat_liveness import errors, fence
from heat_liveness.work.native import Handler, NativeWork, Release, Task

AT_ONCE = 2
STEP_SECONDS = 0.15
SHARED = 6
_pause = threading.Event().wait


class Boy:
    """Runs the errands of one engine; none, where no file for the facts is named."""

    def __init__(self, engine_id: str, done: pathlib.Path, facts: str | None, seed: int) -> None:
        self.handlers: dict[str, Handler] = {'errand': self._run, 'poison': self._die}
        self._engine_id = engine_id
        self._done = done
        self._chance = random.Random(seed)
        self._facts = None
        if facts is None:
            return
        self._facts = os.open(facts, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.tell('Engine')
        sa.event.listen(sa.Engine, 'connect', self._sign)
        _count_unclear_outcomes(self)
        logging.getLogger('heat_liveness.membership').addHandler(_Holds(self))
        _go_by_true_durations()

    def tell(self, fact: str, **more: object) -> None:
        """Write a fact down; it is there when this has returned."""
        assert self._facts is not None
        line = {'at': time.clock_gettime(time.CLOCK_BOOTTIME), 'fact': fact,
                'engine': self._engine_id, **more}
        os.write(self._facts, json.dumps(line).encode() + b'\n')

    def begin(self, work: NativeWork, told: threading.Event) -> None:
        """Submit errands from now on, until the engine is told to end or all is done."""
        if self._facts is not None:
            threading.Thread(target=self._submit, args=(work, told), daemon=True).start()

    def _submit(self, work: NativeWork, told: threading.Event) -> None:
        number = 0
        while not told.wait(STEP_SECONDS) and not self._done.exists():
            if len(work._held) >= AT_ONCE:
                continue
            number += 1
            name = self._chance.choice([
                f'shared-{self._chance.randrange(SHARED)}', f'{self._engine_id[:8]}-{number}'])
            errand = {'steps': self._chance.randrange(2, 16), 'end': self._chance.choice(
                ['complete', 'complete', 'complete', 'fail', 'release'])}
            with contextlib.suppress(errors.LivenessError):
                work.submit(name, 'errand', errand)

    def _run(self, task: Task) -> None:
        def whose() -> dict[str, Any]:
            return {'lock': task.name, 'generation': task.generation}

        begin = (task.progress or {}).get('step', 0)
        self.tell('Started', step=begin, **whose())
        for step in range(begin, task.arguments['steps']):
            task.record({'step': step + 1, 'engine': self._engine_id, **whose()})
            self.tell('Recorded', step=step + 1, **whose())
            _pause(STEP_SECONDS)
            self.tell('Called', **whose())
        if task.arguments['end'] == 'fail':
            raise ValueError('As it was told to.')
        if task.arguments['end'] == 'release':
            raise Release

    def _die(self, task: Task) -> None:
        self.tell('Started', lock=task.name, generation=task.generation)
        self.tell('Killed')
        os.kill(os.getpid(), signal.SIGKILL)

    def _sign(self, connection: Any, record: object) -> None:
        """Let a connection say whose it is."""
        if type(connection).__module__.startswith('sqlite3'):
            connection.create_function('liveness_actor', 0, lambda: self._engine_id)
            return
        statement = ('SET @liveness_actor = %s' if 'pymysql' in type(connection).__module__
                     else "SELECT set_config('liveness.actor', %s, false)")
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement, (self._engine_id,))
        connection.commit()


class _Holds(logging.Handler):
    """Tells when the gate closes and opens."""

    def __init__(self, boy: Boy) -> None:
        super().__init__()
        self._boy = boy

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if ' holds: ' in text:
            self._boy.tell('Held')
        elif ' works again: ' in text:
            self._boy.tell('Opened')


def _count_unclear_outcomes(boy: Boy) -> None:
    def tell(error: errors.UnclearOutcome, *args: object) -> None:
        Exception.__init__(error, *args)
        boy.tell('Unclear')

    errors.UnclearOutcome.__init__ = tell  # type: ignore[assignment]


def _go_by_true_durations() -> None:
    """Undo what libfaketime does to more than the wall clock.

    It takes the absolute time of a timer, and of Python's ``time.sleep``, for one of the clock that
    it shifts, which no kernel does whose wall clock is stepped.
    """
    time.sleep = _pause  # type: ignore[assignment]
    libc = ctypes.CDLL('libc.so.6', use_errno=True)
    fence.ctypes = type('ctypes', (), {  # type: ignore[attr-defined]
        **vars(ctypes), 'CDLL': staticmethod(lambda *args, **options: libc)})
