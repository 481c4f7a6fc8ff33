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
"""The rights that docs/operator/security.md names: enough, and none too many.

The statements are read from that page and carried out on real servers.  Then all that the
account is for is done in its name, once with all of them, and once without each.
"""

import contextlib
import pathlib
import re
import secrets
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from heat_liveness import errors
from heat_liveness.cmd import manage
from heat_liveness.db import migration, models, schema
from heat_liveness.db.database import Database
from heat_liveness.heat import watcher
from heat_liveness.heat.graph import Node
from heat_liveness.heat.plans import Plan
from tests.bed.server import Server
from tests.databases import heat_tables as tables
from tests.databases.conftest import Bed
from tests.databases.heat_tables import Heat

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'operator' / 'security.md'
SYNC, NATIVE, HEAT, READER = (
    'For `db sync`', 'For engines with work of their own',
    "For engines with Heat's work, beside what Heat itself needs", 'For those who only look')

Right = tuple[str, str]
"""A verb, and what it is granted on."""


def rights(heading: str, backend: str) -> list[Right]:
    """Read a section of the page; each GRANT of several verbs is as many rights."""
    section = PAGE.read_text().partition(f'### {heading}\n')[2].partition('\n##')[0]
    grants = re.findall(r'^    GRANT (.+) ON (.+) TO (\S+);$', section, re.MULTILINE)
    assert grants
    return [(verb, target.removeprefix('heat.')) for verbs, target, account in grants
            for verb in verbs.split(', ') if ('@' in account) == (backend == 'mysql')]


class Account:
    """An account on a server that may do nothing but what it is granted."""

    def __init__(self, server: Server, owner_url: str) -> None:
        self.server = server
        self.owner = Database(owner_url, read_timeout=90)
        self.name = f'account_{secrets.token_hex(4)}'
        self.mysql = self.owner.backend == 'mysql'
        self.who = f"'{self.name}'@'%'" if self.mysql else self.name
        server.execute(f"CREATE USER {self.who} IDENTIFIED BY 'word'" if self.mysql
                       else f"CREATE ROLE {self.name} LOGIN PASSWORD 'word'")
        self.url = sa.make_url(owner_url).set(
            username=self.name, password='word').render_as_string(hide_password=False)

    def grant(self, rights: list[Right]) -> None:
        """Grant all rights on a table at once: MySQL must see CREATE among them."""
        for target in dict.fromkeys(target for _, target in rights):
            verbs = ', '.join(verb for verb, on in rights if on == target)
            self._do('GRANT {} ON {} TO {}', (verbs, target))

    def revoke(self, right: Right) -> None:
        self._do('REVOKE {} ON {} FROM {}', right)

    def _do(self, statement: str, right: Right) -> None:
        verb, target = right
        if self.mysql:
            self.server.execute(
                statement.format(verb, f'`{self.owner.url.database}`.`{target}`', self.who))
            return
        with self.owner.autocommit() as connection:
            connection.exec_driver_sql(statement.format(verb, target, self.who))

    def close(self) -> None:
        self.owner.close()


@pytest.fixture
def account(database_server: Server) -> Iterator[Account]:
    found = Account(database_server, database_server.create_database())
    yield found
    found.close()


def assert_exact(account: Account, granted: list[Right], reset: Callable[[], None],
                 work: Callable[[], None], checked: list[Right] | None = None) -> None:
    """Work with all the rights, and see that it cannot be done without any one of them."""
    account.grant(granted)
    reset()
    work()
    spare = []
    for right in granted if checked is None else checked:
        account.revoke(right)
        reset()
        try:
            with contextlib.suppress(errors.DatabaseError):
                work()
                spare.append(right)
        finally:
            account.grant(granted)
    assert spare == []
    reset()
    work()


def test_db_sync_needs_what_the_page_says(account: Account) -> None:
    def reset() -> None:
        if account.mysql:
            migration.drop(account.owner)

    def sync() -> None:
        database = Database(account.url, read_timeout=90)
        try:
            migration.sync(database)
            migration.check(database)
            if not account.mysql:
                # They are its own, so only it can remove them.
                migration.drop(database)
        finally:
            database.close()

    backend = account.owner.backend
    assert_exact(account, rights(SYNC, backend), reset, sync)


def native(bed: Bed) -> None:
    """Do each thing that an engine with work of its own does."""
    try:
        schema.require(bed.database)
        for name in ('e1', 'e2'):
            bed.engine(name)
        assert bed.members.beat('e1')
        task = bed.locks.acquire('lock', 'task', None, 'e2')
        assert bed.locks.write(task, progress=1)
        assert bed.members.look(bed.identity('e1'), 6, None)
        bed.members.silent(6)
        bed.members.machines(bed.identity('e1'), 6)
        row = bed.kill('e2', by='e1')
        assert bed.locks.take_over(row, 'e1', 10, tainted=False)
        assert bed.locks.reclaim(bed.locks.search(engine_id='e1'), 'e1')
        held = bed.locks.search(engine_id='e1')[0]
        assert bed.locks.write(held, status='failed', engine_id=None)
        failed = bed.locks.find('lock')
        assert failed is not None
        assert bed.locks.retry(failed, bed.identity('operator'))
        bed.members.purgeable(bed.identity('e1'), 0)
        assert bed.members.purge(['e2'], 'e1') == ['e2']
        assert bed.journal.search()
        assert bed.journal.purge(-1, 'e1') > 0
        assert bed.members.leave('e1')
    finally:
        bed.members.hang_up()


def emptied(account: Account) -> Callable[[], None]:
    def reset() -> None:
        with account.owner.transaction() as connection:
            for table in models.metadata.sorted_tables:
                connection.execute(table.delete())
    return reset


def test_an_engine_needs_what_the_page_says(account: Account) -> None:
    migration.sync(account.owner)
    bed = Bed(account.url)
    assert_exact(account, rights(NATIVE, account.owner.backend), emptied(account),
                 lambda: native(bed))
    migration.check(bed.database)
    bed.database.close()


class There(Heat):
    """Heat's tables, which are there already, as an account sees them."""

    def __init__(self, url: str) -> None:
        Bed.__init__(self, url, read_timeout=90)
        self.rows = tables.rows.HeatRows(self.database)
        self.orders, self.claims = self.rows.orders, self.rows.claims


def heat_work(owner: Heat, mine: Heat) -> None:
    """Do each thing that an engine with Heat's work does with the database by itself."""
    try:
        me, dead = mine.engine('me'), owner.ended('dead')
        owner.stack('s1')
        owner.run(tables.service.insert().values(
            id='1', engine_id='dead', binary='heat-engine', report_interval=60))
        owner.resource(1)
        owner.change(tables.stack, 's1', action='UPDATE')
        owner.change(tables.resource, 1, action='UPDATE')
        assert mine.claims.owners(['dead']) == {'dead'}
        mine.claims.unknown_holders([])
        mine.claims.consider(dead, tables.RULES)
        assert mine.decide(dead, me)
        order, = mine.orders.of(me, 10)
        mine.rows.revive(order, [], me)
        mine.rows.replaced(1, 2)
        mine.rows.untouched(order)
        assert mine.orders.sending(order, me, [])
        assert mine.orders.use(order.id, me)
        assert mine.orders.close(order.id, me, 'done')
        stack = mine.the_stack()
        assert mine.orders.message(stack, Node(2, is_update=True), 'r2', 'a test', me)
        assert mine.orders.stack(stack, Plan.RESTART, 'a test', me)
        mine.orders.abandoned()
        mine.orders.restarts(order)
        mine.rows.hooked([1])
        assert not mine.rows.exists(Node('n', is_update=False, kind='snapshot'))
        mine.rows.strangers()
        mine.rows.half_deleted()
        mine.rows.family('s1')
        mine.rows.hide_service('dead')
        mine.rows.candidates()
        mine.rows.prints(['s1'])
        watcher.observed(mine.database)
        assert mine.rows.fail(stack, 'a test')
    finally:
        for each in (mine, owner):
            each.members.hang_up()


def test_an_engine_with_heats_work_needs_what_the_page_says(account: Account) -> None:
    migration.sync(account.owner)
    tables._heat.create_all(account.owner.engine)
    owner = There(account.owner.url.render_as_string(hide_password=False))
    mine = There(account.url)

    def reset() -> None:
        emptied(account)()
        with account.owner.transaction() as connection:
            for table in tables._heat.sorted_tables:
                connection.execute(table.delete())

    backend = account.owner.backend
    assert_exact(account, rights(NATIVE, backend) + rights(HEAT, backend), reset,
                 lambda: heat_work(owner, mine), rights(HEAT, backend))
    for each in (owner, mine):
        each.database.close()


def test_the_page_names_each_table_of_heats_and_what_is_done_with_it() -> None:
    """Read the statements themselves: nothing stands in them that the page does not say."""
    found: set[Right] = set()
    bridge = ROOT / 'heat_liveness' / 'heat'
    source = ''.join(path.read_text() for path in sorted(bridge.glob('*.py')))
    for variable, table in re.findall(r"^(\w+) = sa\.table\(\s*'(\w+)'", source, re.MULTILINE):
        found.add(('SELECT', table))
        found.update((verb.upper(), table) for verb in re.findall(
            rf'(?<!\w)_?{variable}\.(update|insert|delete)\(\)', source))
    for backend in ('mysql', 'postgresql'):
        assert found == {(verb, table) for verb, table in rights(HEAT, backend)
                         if not table.startswith('liveness_')}


def test_who_only_looks_needs_what_the_page_says(
        account: Account, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    migration.sync(account.owner)
    (tmp_path / 'c.conf').write_text(f'[database]\nconnection = {account.url}\n')

    def run(*command: str) -> None:
        if manage.main(['--config-file', str(tmp_path / 'c.conf'), *command]):
            raise errors.DatabaseError(capfd.readouterr().err)

    def look() -> None:
        for command in (['service', 'list'], ['service', 'list', '--all', '--long'],
                        ['lock', 'list'], ['takeover', 'list']):
            run(*command)

    def nothing() -> None:
        pass

    granted = rights(READER, account.owner.backend)
    assert_exact(account, granted, nothing, look)
    for right in granted[2:]:
        account.revoke(right)
    run('service', 'list')
    capfd.readouterr()
    assert manage.main(['--config-file', str(tmp_path / 'c.conf'), 'lock', 'list']) == 1
    complaint = capfd.readouterr().err
    assert re.search('denied', complaint)
    assert complaint.count('\n') == 1
