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

"""Engines on a database of their own, and what a test wants to know of them."""

import collections
import dataclasses
import datetime
import json
import os
import re
import signal
from collections.abc import Mapping
from concurrent import futures
from typing import TYPE_CHECKING, Any, Self

from tests.heat.lab import sql
from tests.heat.lab.environments import Environment
from tests.heat.lab.patience import wait_until
from tests.heat.lab.place import Program
from tests.heat.lab.stacks import Stack, state_of

if TYPE_CHECKING:
    from tests.heat.lab.heat import Lab

START_SECONDS = 90.0
REPORT_SECONDS = 30.0
STACKS_SECONDS = 240.0
GATE = 'gate'

_STARTED = re.compile(
    r'^\S+ \S+ (\d+) INFO heat\.engine\.worker .*'
    r'Starting engine_worker \(.*\) in engine ([-0-9a-f]{36})', re.MULTILINE)
_ERROR = re.compile(r'^\S+ \S+ \d+ (?:ERROR|CRITICAL) .*$', re.MULTILINE)
_SERVICE = re.compile(r'\s([-0-9a-f]{36})\s.*\s(up|down)\s')


@dataclasses.dataclass(frozen=True)
class Run:
    """One line that a ``Liveness::Test::Counted`` wrote: a handler began, or a create completed."""

    time: float
    pid: int
    engine_id: str | None
    stack: str
    name: str
    row: int
    uuid: str
    physical_id: str | None
    handler: str


class Engine:
    """One heat-engine with one worker; a worker that ends is replaced, under a new engine_id."""

    def __init__(self, program: Program) -> None:
        self.program = program

    @property
    def workers(self) -> list[tuple[int, str]]:
        """Each worker that ever began to take messages, as its process and its engine_id.

        Taken from the log: the database may be away, or be what is in doubt.
        """
        return [(int(pid), engine_id)
                for pid, engine_id in _STARTED.findall(self.program.log.read_text())]

    @property
    def pid(self) -> int:
        """The process of the newest worker."""
        return self.workers[-1][0]

    @property
    def engine_id(self) -> str:
        """The engine_id of the newest worker."""
        return self.workers[-1][1]

    @property
    def errors(self) -> list[str]:
        """What it logged as errors, one line each."""
        return _ERROR.findall(self.program.log.read_text())

    def kill_worker(self) -> None:
        """Kill the worker only; its master starts another."""
        os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end in an orderly way, as a service manager does that stops it."""
        os.kill(self.program.pid, signal.SIGTERM)

    def reload(self) -> None:
        """Ask it to replace its worker in an orderly way, as a service manager does."""
        os.kill(self.program.pid, signal.SIGHUP)

    def threads(self) -> str:
        """Return Heat's own report on what each thread of the worker is doing."""
        before = self.program.log.stat().st_size
        os.kill(self.pid, signal.SIGUSR2)

        def report() -> str:
            _, threads, rest = self._since(before).partition('Threads')
            text, end, _ = rest.partition('Configuration')
            return text if threads and end else ''

        return wait_until(report, REPORT_SECONDS, 'A report of heat-engine')

    def _since(self, position: int) -> str:
        return self.program.log.read_bytes()[position:].decode()


class Fleet:
    """Engines that share a database and a heat.conf; made by ``Lab.fleet``.

    As a context manager it ends with its engines killed: nothing that they might still do
    reaches the next test.
    """

    def __init__(self, lab: 'Lab', name: str, liveness: Mapping[str, object] | None,
                 options: Mapping[str, object]) -> None:
        self.lab = lab
        self.name = name
        self._environment = lab.stock if liveness is None else lab.liveness
        self.folder = lab.place.directory(name)
        self.database = lab.clone_database()
        self._configuration = lab.configure(name, self.database, liveness or {}, options)
        self.engines: dict[str, Engine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for engine in self.engines.values():
            engine.program.kill()

    def start_engine(self, name: str, environment: Environment | None = None, *,
                     host: str | None = None) -> Engine:
        """Start a heat-engine and wait until it takes messages; the database may be away.

        Parameters
        ----------
        name : str
            Its name here, which no other has or had.
        environment : Environment, optional
            Another one than the fleet's.
        host : str, optional
            Its host, as Heat shall name it; its name, if not given.
        """
        own = self.lab.place.write(
            f'{self.name}-{name}.conf', f'[DEFAULT]\nhost = {host or name}\n')
        engine = Engine(self.lab.place.start(f'{self.name}-{name}', [
            *(environment or self._environment).command('heat-engine'),
            '--config-file', self._configuration, '--config-file', own,
        ], {'COUNTED_FOLDER': self.folder}))
        self.engines[name] = engine
        wait_until(lambda: engine.workers or not engine.program.running,
                   START_SECONDS, f'The start of heat-engine {name}')
        assert engine.program.running, engine.errors
        return engine

    def start_engines(self, *names: str) -> list[Engine]:
        """Start several heat-engines at one time."""
        with futures.ThreadPoolExecutor(len(names)) as pool:
            return list(pool.map(self.start_engine, names))

    def engine_of(self, pid: int) -> Engine:
        """Return the engine one of whose workers has, or had, this process id."""
        return next(engine for engine in self.engines.values()
                    if pid in [worker for worker, _ in engine.workers])

    def create_stacks(self, count: int, template: Mapping[str, object]) -> list[Stack]:
        """Ask heat-api for so many stacks of one template."""
        return [self.create(f'{number}', template) for number in range(count)]

    def create(self, name: str, template: Mapping[str, object], **options: object) -> Stack:
        """Ask heat-api for a stack; see :class:`Stack` for the options."""
        stack = Stack(self, f'{self.name}-{name}')
        stack.create(template, **options)
        return stack

    def open_gate(self) -> None:
        """Let the resources complete that wait at the gate."""
        (self.folder / GATE).touch()

    def hold(self, handler: str, pattern: str = '*') -> None:
        """Hold the resources of such a name in a handler, once they come there; no others."""
        new = self.folder / 'hold-new'
        new.write_text(pattern)
        new.rename(self.folder / f'hold-{handler}')

    def held(self, handler: str) -> str:
        """Return the pattern of what is held in a handler."""
        path = self.folder / f'hold-{handler}'
        return path.read_text() if path.exists() else ''

    def release(self, handler: str) -> None:
        """Let all resources go on that are held in a handler."""
        (self.folder / f'hold-{handler}').unlink()

    def strike(self, point: str, **order: object) -> None:
        """Have an engine struck when it comes to a point; see the plug-in of this name."""
        (self.folder / f'strike-{point}').write_text(json.dumps(order))

    @property
    def struck(self) -> list[dict[str, Any]]:
        """Where and when an engine was struck, the oldest first."""
        path = self.folder / 'struck'
        return [json.loads(line) for line in path.read_text().splitlines()] if (
            path.exists()) else []

    @property
    def runs(self) -> list[Run]:
        """What the resources wrote so far, the oldest first."""
        path = self.folder / 'runs'
        lines = path.read_text().splitlines() if path.exists() else []
        return [Run(**json.loads(line)) for line in lines]

    @property
    def creates(self) -> collections.Counter[tuple[str, str]]:
        """How often the creation of each resource began, by stack and name."""
        return collections.Counter(
            (run.stack, run.name) for run in self.runs if run.handler == 'create')

    def states(self) -> dict[str, str]:
        """Return the state of each stack that no other owns, by its name."""
        return {row['name']: state_of(row) for row in self.sql(
            'SELECT name, action, status, deleted_at FROM stack WHERE owner_id IS NULL '
            'ORDER BY created_at')}

    @property
    def now(self) -> datetime.datetime:
        """The database's time."""
        now: datetime.datetime = self.sql('SELECT UTC_TIMESTAMP(6) AS now')[0]['now']
        return now

    def sql(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Run one statement on the fleet's database and return its rows."""
        return sql.query(self.database, statement, arguments)

    @property
    def resources(self) -> list[dict[str, Any]]:
        """Heat's rows of all resources of the fleet."""
        return self.sql(
            'SELECT id, stack_id, name, action, status, engine_id, atomic_key, replaces, '
            'replaced_by, nova_instance AS physical_id FROM resource ORDER BY id')

    def working_on(self) -> dict[tuple[str, str], str]:
        """Return which engine has locked which resource, by stack and name."""
        return {(row['stack_id'], row['name']): row['engine_id']
                for row in self.resources if row['engine_id'] and row['status'] == 'IN_PROGRESS'}

    @property
    def stacks(self) -> list[tuple[str, str]]:
        """Action and status of each stack."""
        return [(row['action'], row['status'])
                for row in self.sql('SELECT action, status FROM stack ORDER BY created_at')]

    def wait_until_working_on(self, count: int) -> dict[tuple[str, str], str]:
        """Wait until just so many resources are locked, and return by whom."""
        def working() -> dict[tuple[str, str], str]:
            found = self.working_on()
            return found if len(found) == count else {}

        return wait_until(working, STACKS_SECONDS, f'A lock on {count} resources')

    def wait_until_complete(self, timeout_seconds: float = STACKS_SECONDS) -> None:
        """Wait until no stack is in progress; then all must be complete."""
        wait_until(
            lambda: all(status != 'IN_PROGRESS' for _, status in self.stacks),
            timeout_seconds, 'The end of the stacks')
        assert set(self.stacks) == {('CREATE', 'COMPLETE')}, self.stacks

    def members(self) -> dict[str, dict[str, Any]]:
        """Return this package's own rows of the engines, by engine_id."""
        return {row['engine_id']: row for row in self.sql(
            'SELECT engine_id, host, state, report_count, declared_by, declared_at, evidence '
            'FROM liveness_service')}

    def heat_services(self) -> dict[str, str]:
        """Return what ``heat-manage service list`` says: a status for each engine_id."""
        return dict(_SERVICE.findall(self.heat_manage('service', 'list')))

    def openstack_services(self) -> dict[str, str]:
        """Return what ``openstack orchestration service list`` says."""
        return {row['Engine ID']: row['Status']
                for row in self.lab.openstack('orchestration', 'service', 'list')}

    def liveness_services(self) -> dict[str, str]:
        """Return what ``heat-liveness-manage service list`` says."""
        return dict(_SERVICE.findall(self.liveness_manage('service', 'list')))

    def liveness_manage(self, *words: str) -> str:
        """Run ``heat-liveness-manage`` and return what it prints."""
        return self._manage('heat-liveness-manage', *words)

    def heat_manage(self, *words: str, answer: str = '') -> str:
        """Run ``heat-manage``, answer what it asks, and return what it prints."""
        return self._manage('heat-manage', *words, answer=answer)

    def poison(self, pattern: str) -> None:
        """Have the ``Killer`` resources of such a name kill whoever creates them."""
        (self.folder / 'poison').write_text(pattern)

    def _manage(self, name: str, *words: str, answer: str = '') -> str:
        return self.lab.place.run(name, [
            *self._environment.command(name), '--config-file', self._configuration, *words],
            answer=answer)
