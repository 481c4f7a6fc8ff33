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

# ruff: noqa: INP001 - it is run where Heat is, apart from the other tests

"""Heat's own bench for convergence, with engines that can die in it.

Heat's code is real, and so is ours: the tables of both in one SQLite file, messages in the
bench's queue of workers, everything in one thread.  Beside what the bench replaces already
(the message queue, threads), only Keystone is replaced, by the fake client that Heat ships.

An engine that is to die works in a process of its own, which kills itself at the chosen *window*.
So it leaves what a real one leaves: whatever it has committed, locks among it, and none of
its messages.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import oslo_messaging
import sqlalchemy as sa
from heat.common import context, messaging
from heat.db import api as db_api
from heat.db import migration as heat_migration
from heat.engine import resource, scheduler, service, worker
from heat.engine.clients.os import keystone
from heat.engine.clients.os.keystone import fake_keystoneclient
from heat.rpc import worker_client
from heat.tests import utils
from heat.tests.convergence.framework import (
    engine_wrapper,
    fake_resource,
    processes,
    worker_wrapper,
)
from oslo_config import cfg

from heat_liveness import clock as clocks
from heat_liveness import conf, fence
from heat_liveness import engine as engines
from heat_liveness.db import migration, models
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members
from heat_liveness.heat import bridge, lifecycle, orders
from heat_liveness.heat.work import HeatWork
from heat_liveness.work import Context

Window = Callable[[], None]
"""Arranges, in the process of the engine that is to die, that it dies there."""

CONVERGENT = hasattr(resource.Resource, 'suspend_convergence')
"""Whether suspend, resume, check and snapshot are done by traversals: from Heat 26 on."""

EngineLifecycle = lifecycle.EngineLifecycle


class Lives:
    """Stands where the bridge has put the lifecycle: for whichever engine is at work."""

    current: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


LIVES = Lives()


class Clock(clocks.BootClock):
    """A clock that can be put forward."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class Counted(fake_resource.TestResource):
    """The bench's resource, which notes what is done to it, and can be where an engine dies."""

    bench: 'Bench'

    def handle_create(self) -> None:
        self.bench.note('create', self)
        super().handle_create()
        self.bench.note('created', self)

    def handle_update(self, json_snippet: Any = None, tmpl_diff: Any = None,
                      prop_diff: Any = None) -> None:
        self.bench.note('update', self)
        if 'fail' in prop_diff.values():
            raise ValueError('it was told to')
        super().handle_update(json_snippet, tmpl_diff, prop_diff)
        self.bench.note('updated', self)

    def handle_delete(self) -> None:
        self.bench.note('delete', self)

    def handle_suspend(self) -> None:
        self.bench.note('suspend', self)

    def handle_resume(self) -> None:
        self.bench.note('resume', self)

    def handle_check(self) -> None:
        self.bench.note('check', self)
        if self.properties['c'] == 'sick':
            raise ValueError('it is sick')

    def handle_snapshot(self) -> None:
        self.bench.note('snapshot', self)

    def handle_delete_snapshot(self, snapshot: Any) -> None:
        self.bench.note('delete snapshot', self)

    def handle_adopt(self, resource_data: Mapping[str, Any]) -> None:
        self.bench.note('adopt', self)
        self.resource_id_set(resource_data['resource_id'])


class Keystone(fake_keystoneclient.FakeKeystoneClient):
    """Heat's own fake, with what a real one has beside: a trust is one for a project."""

    domain_admin_auth = None

    def create_trust_context(self) -> Any:
        trust = super().create_trust_context()
        trust.project_id = 'test_tenant_id'
        return trust

    regenerate_trust_context = create_trust_context


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """Prepare Heat, once in a process; return a database with the tables of both, and no rows."""
    file = folder / 'pristine.sqlite'
    cfg.CONF([], project='heat', prog='heat-engine', default_config_files=[],
             default_config_dirs=[])
    cfg.CONF.set_override('connection', f'sqlite:///{folder}/bench.sqlite', 'database')
    cfg.CONF.set_override('sqlite_synchronous', False, 'database')
    messaging.setup('fake://')
    keystone.KeystoneClientPlugin._create = lambda *_: Keystone()
    # It would ask Keystone for the roles of the trust; the rest of a stored context is real.
    context.StoredContext._load_keystone_data = _no_roles
    worker_client.WorkerClient.cast = _cast
    # Messages are worked on as the engine that is at work, and what they start, is done at once.
    worker_wrapper.worker = type('Module', (), {'WorkerService': staticmethod(
        lambda *_: worker.WorkerService('host', 'topic', Counted.bench.at_work.name,
                                        engine_wrapper.SynchronousThreadGroupManager()))})
    cfg.CONF.set_override('error_wait_time', None)
    scheduler.ENABLE_SLEEP = False
    conf.register(cfg.CONF)
    cfg.CONF.set_override('enabled', True, conf.GROUP)
    lifecycle.EngineLifecycle = lambda *_: LIVES
    # Here Heat loads its plug-ins, and with them the bridge.
    service.EngineService('host', 'engine')
    resource._register_class('OS::Heat::TestResource', Counted)
    heat_migration.db_sync()
    database = Database(cfg.CONF.database.connection, read_timeout=90)
    migration.sync(database)
    database.close()
    db_api.get_engine().dispose()
    shutil.copy(folder / 'bench.sqlite', file)
    return file


def _no_roles(stored: Any) -> None:
    stored._keystone_loaded = True
    stored.roles = []


def _cast(client: Any, ctxt: Any, message: Any, version: str | None = None) -> None:
    """Put a message into the bench's queue, as far as it would go through a real one."""
    name, arguments = message
    assert name == 'check_resource'
    assert version is not None
    serializer = messaging.RequestContextSerializer(oslo_messaging.JsonPayloadSerializer())
    received = serializer.deserialize_context(_wired(serializer.serialize_context(ctxt)))
    Counted.bench.sent.append((client._client.target.server, arguments))
    processes.worker.check_resource(received, **{
        key: _wired(serializer.serialize_entity(ctxt, value))
        for key, value in arguments.items()})


def _wired(value: Any) -> Any:
    return json.loads(json.dumps(value))


class Engine:
    """An engine: its row, and its part of recovery; it has no threads, and beats when told to."""

    joined = True

    def __init__(self, bench: 'Bench', name: str) -> None:
        self.name = name
        self.bench = bench
        self.identity = engines.Identity.new(
            engine_id=name, host='host', hostname='host.domain', binary=bridge.BINARY,
            topic=bridge.TOPIC)
        bench.members.insert(self.identity, 4, 20)
        self.gate = fence.Gate(3600, bench.clock)
        self.gate.good_beat(bench.clock.now())
        self.work = HeatWork(Context(
            identity=self.identity, settings=bench.settings, database=bench.database,
            members=bench.members, gate=self.gate, clock=bench.clock))
        self.life = EngineLifecycle(cfg.CONF, bench.settings)
        self.life._live, self.life._work = self, self.work

    def look(self) -> None:
        """Take over, sweep and send, once."""
        assert self.bench.members.beat(self.name)
        self.bench.members.hang_up()
        for row in self.bench.members.look(self.identity, models.FOREVER_SECONDS, None):
            if row.ended:
                while self.work.claim(row).pieces:
                    pass
        self.work.search()
        # The orders are carried out on threads.
        for _ in range(1000):
            if not self.work.delivery.running:
                return
            time.sleep(0.01)
        raise AssertionError('an order is not carried out')


@dataclasses.dataclass(frozen=True)
class Row:
    """A resource's row, as tests look at it."""

    id: int
    name: str
    state: str
    physical_id: str | None
    replaces: int | None
    engine_id: str | None


class Bench:
    """Heat and its database, the engines there, and one stack."""

    def __init__(self, folder: pathlib.Path, pristine: pathlib.Path) -> None:
        self.folder = folder
        self._kept = pristine.parent
        self.file = pathlib.Path(cfg.CONF.database.connection.removeprefix('sqlite:///'))
        db_api.get_engine().dispose()
        shutil.copy(pristine, self.file)
        self.database = Database(cfg.CONF.database.connection)
        self.members = Members(self.database)
        self.clock = Clock()
        self.settings = conf.Settings(max_takeovers=3, sweep_interval=1.0)
        self.orders = orders.Orders(self.database)
        self.sent: list[tuple[str | None, Mapping[str, Any]]] = []
        """Each message, with the engine that it was sent to, if to one."""
        self._fatal: tuple[str, str] | None = None
        self.log = folder / 'calls'
        self.log.touch()
        Counted.bench = self
        processes.engine.clear()
        processes.worker.clear()
        self.survivor = self.at_work = self.join('survivor')

    def close(self) -> None:
        self.survivor.work.drain()
        self._hang_up()

    def _hang_up(self) -> None:
        self.members.hang_up()
        self.database.close()
        db_api.get_engine().dispose()

    # Engines.

    def join(self, name: str) -> Engine:
        """Let an engine join, and be the one that is at work."""
        self.at_work = Engine(self, name)
        LIVES.current = self.at_work.life
        return self.at_work

    def api(self) -> service.EngineService:
        """Return the engine at work as one that takes a call of the API."""
        called = service.EngineService('host', 'engine')
        called.engine_id = self.at_work.name
        called.thread_group_mgr = engine_wrapper.SynchronousThreadGroupManager()
        called.worker_service = processes.worker
        return called

    def work(self) -> None:
        """Work on messages until there are no more."""
        processes.event_loop()

    def dies(self, window: Window, begin: Callable[['Bench'], object] | None = None,
             name: str = 'doomed') -> None:
        """Let a new engine begin something, or work on what there is, and die in a window."""
        trace = self.folder / 'trace'
        self._hang_up()
        child = os.fork()
        if child == 0:
            try:
                self.join(name)
                window()
                if begin is not None:
                    begin(self)
                self.work()
                trace.write_text('it did not get to the window')
            except BaseException:  # noqa: BLE001 - the parent reads it
                trace.write_text(traceback.format_exc())
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, trace.read_text()
        # Its messages were acknowledged, and are gone.
        processes.worker.clear()
        row = self.members.read(name)
        assert row is not None
        assert self.members.declare(row, self.survivor.name, 'watched', mass=False, detail={})

    def recover(self, looks: int = 12) -> None:
        """Let the survivor do what it does in a while, and work on the messages, until it ends."""
        for _ in range(looks):
            self.survivor.look()
            self.work()
            self.clock.ahead += 25.0
            if self.ended:
                break

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be done."""
        return not (self.open_orders or self.locks or 'IN_PROGRESS' in self.state
                    or self.rows('SELECT * FROM sync_point'))

    # Windows.

    def note(self, what: str, of: Any) -> None:
        with self.log.open('a') as file:
            file.write(f'{self.at_work.name} {what} {of.name}\n')
        if self._fatal == (what, of.name):
            os.kill(os.getpid(), signal.SIGKILL)

    def at(self, what: str, name: str) -> Window:
        """In the handler of a resource."""
        def arrange() -> None:
            self._fatal = (what, name)
        return arrange

    def calls(self, what: str, name: str | None = None) -> list[str]:
        """Return the names of the engines that called a handler, of one resource or of any."""
        lines = [line.split(' ') for line in self.log.read_text().splitlines()]
        return [engine for engine, *said, of in lines
                if ' '.join(said) == what and name in {None, of}]

    # The stack.

    def prepare(self, name: str, how: Callable[['Bench'], object]) -> None:
        """Bring the stack to where a test begins; what was done once is kept for the others."""
        kept = self._kept / f'{name}.sqlite'
        if not kept.exists():
            how(self)
            self.work()
        self._hang_up()
        shutil.copy(*((kept, self.file) if kept.exists() else (self.file, kept)))

    def create(self, template: Any = None, **arguments: Any) -> None:
        self.api().create_stack(
            utils.dummy_context(), 'stack', template or chain('a', 'b'), params={}, files={},
            args={'disable_rollback': True, **arguments})

    def update(self, template: Any, **arguments: Any) -> None:
        self.api().update_stack(
            utils.dummy_context(), self.identity, template, params={}, files={},
            args={'disable_rollback': True, **arguments})

    def do(self, action: str, *arguments: Any) -> None:
        """Call the API by the method's name: ``stack_suspend``, ``delete_stack`` and so on."""
        getattr(self.api(), action)(utils.dummy_context(), self.identity, *arguments)

    @property
    def stack_id(self) -> str:
        return str(self.one('SELECT id FROM stack ORDER BY created_at LIMIT 1'))

    @property
    def identity(self) -> dict[str, str]:
        return {'stack_name': 'stack', 'stack_id': self.stack_id, 'tenant': 'test_tenant_id',
                'path': ''}

    def rows(self, sql: str) -> list[Any]:
        with self.database.autocommit() as connection:
            return list(connection.execute(sa.text(sql)).all())

    def one(self, sql: str) -> Any:
        return self.rows(sql)[0][0]

    def run(self, sql: str) -> None:
        with self.database.transaction() as connection:
            connection.execute(sa.text(sql))

    @property
    def state(self) -> str:
        """The stack's action and status; what has become of it, where it is gone."""
        found = self.rows('SELECT action, status, deleted_at FROM stack')
        return ' '.join(f'{action}_{status}{" deleted" if gone else ""}'
                        for action, status, gone in found)

    @property
    def reason(self) -> str:
        return str(self.one('SELECT status_reason FROM stack'))

    def resources(self, name: str | None = None) -> list[Row]:
        return [Row(row.id, row.name, f'{row.action}_{row.status}', row.nova_instance,
                    row.replaces, row.engine_id)
                for row in self.rows('SELECT * FROM resource ORDER BY id')
                if name in {None, row.name}]

    @property
    def live(self) -> dict[str, Row]:
        """The rows that are well, by name; no resource may have two."""
        rows = [row for row in self.resources() if row.state.endswith('_COMPLETE')
                and row.state not in {'INIT_COMPLETE', 'DELETE_COMPLETE'}]
        found = {row.name: row for row in rows}
        assert len(found) == len(rows), rows
        return found

    def value(self, name: str, key: str = 'a') -> str:
        """Return what was made of a resource's property."""
        return str(self.one(f'SELECT value FROM resource_data WHERE key = {key!r} '
                            f'AND resource_id = {self.live[name].id}'))

    @property
    def locks(self) -> dict[str, str]:
        return {row.name: row.engine_id for row in self.resources() if row.engine_id}

    def shift(self, seconds: int) -> None:
        """Let the stack's operation have begun so much earlier."""
        self.run(f"UPDATE stack SET created_at = datetime(created_at, '-{seconds} seconds'), "
                 f"updated_at = datetime(updated_at, '-{seconds} seconds')")

    def strange(self) -> None:
        """Let an engine run that knows nothing of this package."""
        self.run("INSERT INTO service (id, engine_id, host, hostname, \"binary\", topic, "
                 "report_interval, created_at) VALUES ('strange', 'strange', 'host', 'host', "
                 "'heat-engine', 'engine', 60, datetime('now'))")

    def wait(self, seconds: int) -> None:
        """Let time pass, and the survivor look once more."""
        self.clock.ahead += seconds
        for table, column in (('takeover', 'updated_at'), ('service', 'declared_at')):
            self.run(f"UPDATE liveness_{table} "
                     f"SET {column} = datetime({column}, '-{seconds} seconds')")
        self.survivor.look()

    def outcomes(self) -> list[str]:
        """Return what became of the orders that are closed."""
        return [json.loads(detail).get('outcome', '') for detail, in self.rows(
            "SELECT detail FROM liveness_takeover WHERE status = 'done' ORDER BY id")]

    def journal(self) -> list[tuple[str, str, str]]:
        """Return kind, plan and status of all orders."""
        return [(row.kind, json.loads(row.detail).get('plan'), row.status)
                for row in self.rows(
                    'SELECT * FROM liveness_takeover WHERE kind IN '
                    "('resource', 'message', 'stack') ORDER BY id")]

    @property
    def open_orders(self) -> list[tuple[str, str, str]]:
        return [each for each in self.journal() if each[2] != orders.DONE]


def chain(*names: str, **properties: Any) -> dict[str, Any]:
    """Return a template of resources of which each requires the one before."""
    return {'heat_template_version': '2013-05-23', 'resources': {
        name: {'type': 'OS::Heat::TestResource', 'properties': properties,
               **({'depends_on': names[number - 1]} if number else {})}
        for number, name in enumerate(names)}}


def _found(path: str) -> tuple[Any, str]:
    module, _, attribute = path.partition(':')
    owner: Any = importlib.import_module(module)
    *inner, name = attribute.split('.')
    for each in inner:
        owner = getattr(owner, each)
    return owner, name


def before(path: str, nth: int = 1, when: Callable[..., bool] = lambda *_, **__: True) -> Window:
    """Before a function of Heat's is called for the nth time: ``module:owner.name``.

    :param when: tells from its arguments which calls count
    """
    def arrange() -> None:
        owner, name = _found(path)
        original = getattr(owner, name)
        calls = itertools.count(1)

        def fatal(*args: Any, **kwargs: Any) -> Any:
            if when(*args, **kwargs) and next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        setattr(owner, name, functools.wraps(original)(fatal))
    return arrange


def once_in(path: str, window: Window) -> Window:
    """Arrange a window only when a function of Heat's is called."""
    def arrange() -> None:
        owner, name = _found(path)
        original = getattr(owner, name)

        def reached(*args: Any, **kwargs: Any) -> Any:
            window()
            return original(*args, **kwargs)
        setattr(owner, name, reached)
    return arrange


def benches(folder: pathlib.Path, pristine: pathlib.Path) -> Iterator[Bench]:
    found = Bench(folder, pristine)
    yield found
    found.close()
