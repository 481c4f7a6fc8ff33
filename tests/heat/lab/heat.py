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

"""Heat itself: the servers that every fleet shares, and heat-api in front of the fleets."""

import contextlib
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Self

import sqlalchemy as sa

from tests.bed import mariadb, server
from tests.heat.lab import environments, fleet, servers, sql
from tests.heat.lab.place import LabError, Place

PLUGINS = pathlib.Path(__file__).parents[1] / 'plugins'

WORKER_THREADS = 128
"""What each engine may work on at once.

What it has taken from the queue beyond that would wait unlocked inside it, and be lost.
"""


class Lab:
    """The servers, and the fleets that come and go before them.

    Parameters
    ----------
    root : pathlib.Path
        The folder for configuration, logs and what the programs store.
    """

    def __init__(self, root: pathlib.Path) -> None:
        started = time.monotonic()
        self.stock = environments.stock()
        with contextlib.ExitStack() as ends:
            self.place = ends.enter_context(Place(root))
            self._check_python()
            self.mariadb = mariadb.MariaDB.create()
            ends.callback(self.mariadb.destroy)
            self.rabbitmq = servers.RabbitMQ(self.place)
            self._port = server.free_port()
            self.keystone = servers.Keystone(self.place, self.stock, self.mariadb, self._port)
            self._template = self.mariadb.create_database()
            self._start_api()
            self._ends = ends.pop_all()
        self._numbers = itertools.count(1)
        self.start_seconds = time.monotonic() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    def _check_python(self) -> None:
        try:
            self.place.run('python', [self.stock.python, '-c', ''])
        except OSError as error:
            raise LabError(
                f'The programs of the lab, which are not root, cannot run {self.stock.python}: '
                f'set HEAT_LAB_CACHE to a folder that is open to all, and use a Python that '
                f'is.') from error

    def _start_api(self) -> None:
        self.place.directory('plugins')
        for plugin in PLUGINS.glob('[!_]*.py'):
            self.place.write(f'plugins/{plugin.name}', plugin.read_text())
        configuration = self.configure('heat-api', self._template, {})
        self.place.run('heat-manage', [
            *self.stock.command('heat-manage'), '--config-file', configuration, 'db_sync'])
        api = self.place.start('heat-api', [
            self.stock.python, self.place.bring(servers.WSGI), self._port, 'heat.wsgi.api',
            '--config-file', configuration])
        api.wait_until(lambda: servers.listens(self._port), servers.START_SECONDS,
                       'An answer of heat-api')

    @functools.cached_property
    def liveness(self) -> environments.Environment:
        """The environment with this checkout in it, made when the first test asks for it."""
        return environments.liveness(self.stock)

    def fleet(self, liveness: Mapping[str, object] | None = None, *, synced: bool = True,
              options: Mapping[str, object] | None = None) -> fleet.Fleet:
        """Return a fleet without engines.

        Parameters
        ----------
        liveness : mapping, optional
            The options of ``[liveness]``; None is a Heat in whose environment this package
            is not even installed.
        synced : bool
            Whether this package's tables are made before the first engine starts.
        options : mapping, optional
            Further options of ``[DEFAULT]``.
        """
        found = fleet.Fleet(self, f'fleet{next(self._numbers)}', liveness, options or {})
        if liveness is not None and synced:
            found.liveness_manage('db', 'sync')
        return found

    def clone_database(self) -> str:
        """Return the URL of a new database as Heat's own migrations leave it, but sooner."""
        url = self.mariadb.create_database()
        source, target = (sa.make_url(each).database for each in (self._template, url))
        with sql.connect(self._template) as template, sql.connect(url) as copy:
            copy.execute('SET foreign_key_checks = 0')
            template.execute('SHOW TABLES')
            for table in [name for row in template.fetchall() for name in row.values()]:
                template.execute(f'SHOW CREATE TABLE {table}')
                copy.execute(template.fetchall()[0]['Create Table'])
        self.mariadb.execute(
            f'INSERT INTO {target}.alembic_version SELECT * FROM {source}.alembic_version')
        return url

    def configure(self, name: str, database: str, liveness: Mapping[str, object],
                  options: Mapping[str, object] | None = None) -> pathlib.Path:
        """Write a heat.conf, as the installation guide has it."""
        etc = self.stock.prefix / 'etc' / 'heat'
        account = {'auth_type': 'password', 'auth_url': self.keystone.url, 'username': 'heat',
                   'password': servers.PASSWORD, 'user_domain_id': 'default'}
        sections: dict[str, Mapping[str, object]] = {
            'DEFAULT': {
                'use_stderr': 'true',
                'transport_url': self.rabbitmq.url,
                'auth_encryption_key': '0123456789abcdef0123456789abcdef',
                'stack_user_domain_id': self.keystone.stack_domain,
                'stack_domain_admin': 'heat_domain_admin',
                'stack_domain_admin_password': servers.PASSWORD,
                'region_name_for_services': 'RegionOne',
                'environment_dir': etc / 'environment.d',
                'template_dir': etc / 'templates',
                'plugin_dirs': self.place.root / 'plugins',
                'num_engine_workers': 1,
                'executor_thread_pool_size': WORKER_THREADS,
                **(options or {}),
            },
            'database': {'connection': database},
            'paste_deploy': {'api_paste_config': etc / 'api-paste.ini'},
            'keystone_authtoken': {
                **account, 'www_authenticate_uri': self.keystone.url, 'project_name': 'service',
                'project_domain_id': 'default'},
            'trustee': account,
            'clients_keystone': {'auth_uri': self.keystone.url},
            'oslo_concurrency': {'lock_path': self.place.home},
        }
        if liveness:
            sections['liveness'] = liveness
        return self.place.write(f'{name}.conf', servers.ini(sections))

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask heat-api as the administrator and return its answer; see ``servers.request``."""
        answer, _ = servers.request(
            method, f'http://127.0.0.1:{self._port}/v1/{self.keystone.project}/{path}', body,
            self.keystone.token)
        return answer

    def openstack(self, *words: str) -> Any:
        """Run ``openstack`` as the administrator and return the JSON that it prints."""
        return json.loads(self.place.run(
            'openstack', [*self.stock.command('openstack'), *words, '-f', 'json'],
            self.keystone.account))
