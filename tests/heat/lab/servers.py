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

"""RabbitMQ and Keystone; MariaDB is the test bed's."""

import functools
import json
import pathlib
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from tests.bed import mariadb, server
from tests.heat.lab import environments
from tests.heat.lab.place import LabError, Place

PASSWORD = 'labsecret'
"""Everyone's: whatever it opens listens on loopback and ends with the tests."""

START_SECONDS = 90.0
WSGI = pathlib.Path(__file__).with_name('wsgi.py')


def ini(sections: Mapping[str, Mapping[str, object]]) -> str:
    """Return the text of a configuration file, as oslo.config reads it."""
    lines = []
    for section, options in sections.items():
        lines += [f'[{section}]', *(f'{name} = {value}' for name, value in options.items())]
    return '\n'.join(lines) + '\n'


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(('127.0.0.1', port)) == 0


def request(method: str, url: str, body: object = None, token: str | None = None) -> Any:
    """Ask a JSON interface; return its answer and the headers of that.

    Raises
    ------
    LabError
        It refused.
    """
    headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
    if token:
        headers['X-Auth-Token'] = token
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=90) as answer:
            text = answer.read()
            return (json.loads(text) if text else None), answer.headers
    except urllib.error.HTTPError as error:
        raise LabError(f'{method} {url}: {error.code} {error.read()[:2000]!r}') from error


class RabbitMQ:
    """A message broker of its own, with an Erlang port mapper of its own."""

    # Not the wrappers in sbin, which want to be root or an account of their own.
    SCRIPTS = '/usr/lib/rabbitmq/bin'

    def __init__(self, place: Place) -> None:
        self.port, nodes, mapper = (server.free_port() for _ in range(3))
        home = place.directory('rabbitmq')
        plugins = place.write('rabbitmq-plugins', '[].\n')
        place.write('rabbitmq.conf', '\n'.join([
            f'listeners.tcp.1 = 127.0.0.1:{self.port}', 'default_user = heat',
            f'default_pass = {PASSWORD}', '']))
        epmd = place.start('epmd', [
            server.find_program('epmd'), '-port', mapper, '-address', '127.0.0.1'])
        epmd.wait_until(lambda: listens(mapper), START_SECONDS, 'An answer of epmd')
        broker = place.start(
            'rabbitmq', [server.find_program(f'{self.SCRIPTS}/rabbitmq-server')], {
                'PATH': f'{self.SCRIPTS}:/usr/bin:/bin', 'HOME': home,
                # So the script becomes the broker, and does not stay before it: the kernel ends
                # with us only what we have started ourselves.
                'RUNNING_UNDER_SYSTEMD': 1,
                'RABBITMQ_NODENAME': f'lab{self.port}@localhost',
                'RABBITMQ_DIST_PORT': nodes, 'ERL_EPMD_PORT': mapper,
                'ERL_EPMD_ADDRESS': '127.0.0.1',
                'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS':
                    '-kernel inet_dist_use_interface {127,0,0,1}',
                'RABBITMQ_CONF_ENV_FILE': '/dev/null',
                'RABBITMQ_CONFIG_FILE': place.root / 'rabbitmq',
                'RABBITMQ_ENABLED_PLUGINS_FILE': plugins,
                'RABBITMQ_MNESIA_BASE': home / 'mnesia', 'RABBITMQ_LOG_BASE': place.logs,
                'RABBITMQ_PID_FILE': home / 'pid'})
        broker.wait_until(lambda: listens(self.port), START_SECONDS, 'An answer of RabbitMQ')

    @property
    def url(self) -> str:
        """What ``transport_url`` has to say."""
        return f'rabbit://heat:{PASSWORD}@127.0.0.1:{self.port}/'


class Keystone:
    """Keystone, and in it the users, roles and endpoints that Heat's manual asks for."""

    def __init__(self, place: Place, environment: environments.Environment,
                 database: mariadb.MariaDB, heat_port: int) -> None:
        self.port = server.free_port()
        self.url = f'http://127.0.0.1:{self.port}/v3'
        configuration = place.write('keystone.conf', ini({
            'DEFAULT': {'use_stderr': 'true'},
            'database': {'connection': database.create_database()},
            # Longer than the tests, whose administrator logs in once.
            'token': {'provider': 'fernet', 'expiration': 86400},
            'fernet_tokens': {'key_repository': place.directory('fernet')},
            'fernet_receipts': {'key_repository': place.directory('fernet')},
            'credential': {'key_repository': place.directory('credential')},
            'cache': {'enabled': 'false'},
            # The least; each resource that asks for a user of its own has a password hashed.
            'identity': {'password_hash_rounds': 4},
        }))
        manage = functools.partial(self._manage, place, environment, configuration)
        manage('db_sync')
        manage('fernet_setup')
        manage('credential_setup')
        manage('bootstrap', '--bootstrap-password', PASSWORD, '--bootstrap-region-id', 'RegionOne',
               *(word for kind in ('admin', 'internal', 'public')
                 for word in (f'--bootstrap-{kind}-url', self.url)))
        program = place.start(
            'keystone', [environment.python, place.bring(WSGI), self.port, 'keystone.wsgi.api'],
            {'OS_KEYSTONE_CONFIG_DIR': place.root, 'OS_KEYSTONE_CONFIG_FILES': configuration.name})
        program.wait_until(lambda: listens(self.port), START_SECONDS, 'An answer of Keystone')
        self.token, self.project, administrator = self._log_in()
        self.stack_domain = self._prepare_for_heat(heat_port, administrator)

    @property
    def account(self) -> dict[str, str]:
        """The administrator, as the clients of OpenStack read it from their environment."""
        return {'OS_AUTH_URL': self.url, 'OS_IDENTITY_API_VERSION': '3', 'OS_USERNAME': 'admin',
                'OS_PASSWORD': PASSWORD, 'OS_PROJECT_NAME': 'admin', 'OS_USER_DOMAIN_ID': 'default',
                'OS_PROJECT_DOMAIN_ID': 'default', 'OS_REGION_NAME': 'RegionOne'}

    def left_behind(self) -> set[tuple[str, str]]:
        """Return each trust, and each project in the domain of Heat's stacks, by kind and id."""
        found = set()
        for kind, path in (('trust', 'OS-TRUST/trusts'),
                           ('project', f'projects?domain_id={self.stack_domain}')):
            answer, _ = request('GET', f'{self.url}/{path}', token=self.token)
            found.update((kind, row['id']) for row in answer[f'{kind}s'])
        return found

    @staticmethod
    def _manage(place: Place, environment: environments.Environment, configuration: object,
                *words: str) -> None:
        place.run('keystone-manage', [
            *environment.command('keystone-manage'), '--config-file', configuration, *words])

    def _log_in(self) -> tuple[str, str, str]:
        domain = {'id': 'default'}
        answer, headers = request('POST', f'{self.url}/auth/tokens', {'auth': {
            'identity': {'methods': ['password'], 'password': {
                'user': {'name': 'admin', 'domain': domain, 'password': PASSWORD}}},
            'scope': {'project': {'name': 'admin', 'domain': domain}}}})
        token = answer['token']
        return headers['X-Subject-Token'], token['project']['id'], token['user']['id']

    def _prepare_for_heat(self, heat_port: int, administrator: str) -> str:
        admin = self._find('role', 'admin')
        owner = self._create('role', name='heat_stack_owner')
        self._create('role', name='heat_stack_user')
        self._grant(f'projects/{self.project}', administrator, owner)
        service = self._create('project', name='service', domain_id='default')
        heat = self._create('user', name='heat', password=PASSWORD, domain_id='default')
        self._grant(f'projects/{service}', heat, admin)
        domain = self._create('domain', name='heat')
        keeper = self._create('user', name='heat_domain_admin', password=PASSWORD, domain_id=domain)
        self._grant(f'domains/{domain}', keeper, admin)
        orchestration = self._create('service', name='heat', type='orchestration')
        for interface in ('admin', 'internal', 'public'):
            self._create('endpoint', service_id=orchestration, interface=interface,
                         region_id='RegionOne',
                         url=f'http://127.0.0.1:{heat_port}/v1/%(tenant_id)s')
        return domain

    def _create(self, kind: str, **values: str) -> str:
        answer, _ = request('POST', f'{self.url}/{kind}s', {kind: values}, self.token)
        return str(answer[kind]['id'])

    def _find(self, kind: str, name: str) -> str:
        answer, _ = request('GET', f'{self.url}/{kind}s?name={name}', token=self.token)
        return str(answer[f'{kind}s'][0]['id'])

    def _grant(self, scope: str, user: str, role: str) -> None:
        request('PUT', f'{self.url}/{scope}/users/{user}/roles/{role}', token=self.token)
