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
"""TLS to the database: what the operator's URL asks for is what the driver does.

Each server here takes connections over TCP only encrypted, and shows a certificate of an
authority that openssl makes for the test.
"""

import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from heat_liveness.cmd import manage
from heat_liveness.db.database import Database
from tests.bed import processes
from tests.bed.mariadb import MariaDB
from tests.bed.postgresql import PostgreSQL
from tests.bed.server import MissingProgram, Server, find_program


class Authority:
    """Certificates: one authority, another that nobody asked, and what the first one signs."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ('ca', 'other'):
            self._openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
                          '-nodes', '-days', '2', '-subj', f'/CN={name}',
                          '-keyout', f'{name}.key', '-out', f'{name}.pem')
        self._openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                      '-subj', '/CN=server', '-keyout', 'server.key', '-out', 'server.csr')
        (folder / 'names').write_text('subjectAltName = IP:127.0.0.1\n')
        self._openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key',
                      '-CAcreateserial', '-days', '2', '-extfile', 'names', '-out', 'server.pem')
        for name in ('server.key', 'server.pem', 'ca.pem'):
            processes.give_to_unprivileged(folder / name)
        (folder / 'server.key').chmod(0o600)
        processes.give_to_unprivileged(folder)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run([find_program('openssl'), *arguments], cwd=self.folder, check=True,
                       capture_output=True, timeout=60)

    def path(self, name: str) -> str:
        return str(self.folder / name)


class SecureMariaDB(MariaDB):
    """MariaDB that talks TLS."""

    parameters: ClassVar[Mapping[str, str]] = {}

    def _prepare(self) -> None:
        self.authority = Authority(self.directory / 'tls')
        super()._prepare()

    def _command(self) -> Sequence[str]:
        files = {'ca': 'ca.pem', 'cert': 'server.pem', 'key': 'server.key'}
        return [*super()._command(), '--require-secure-transport=ON',
                *(f'--ssl-{name}={self.authority.path(file)}' for name, file in files.items())]


class SecurePostgreSQL(PostgreSQL):
    """PostgreSQL that talks TLS."""

    def _prepare(self) -> None:
        self.authority = Authority(self.directory / 'tls')
        super()._prepare()
        rules = self.data / 'pg_hba.conf'
        rules.write_text('local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n')

    def _command(self) -> Sequence[str]:
        files = {'ssl_cert_file': 'server.pem', 'ssl_key_file': 'server.key'}
        return [*super()._command(), '-c', 'ssl=on',
                *(word for name, file in files.items()
                  for word in ('-c', f'{name}={self.authority.path(file)}'))]


CIPHER = {'mysql': "SELECT variable_value FROM information_schema.session_status "
                   "WHERE variable_name = 'Ssl_cipher'",
          'postgresql': 'SELECT cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()'}


@pytest.fixture(scope='module', params=[
    pytest.param(SecureMariaDB, marks=pytest.mark.mariadb, id='mariadb'),
    pytest.param(SecurePostgreSQL, marks=pytest.mark.postgresql, id='postgresql')])
def secure(request: pytest.FixtureRequest) -> Iterator[Any]:
    try:
        server: Server = request.param.create()
    except MissingProgram as missing:
        pytest.fail(str(missing), pytrace=False)
    yield server
    server.destroy()


def query(server: Any, authority: str) -> dict[str, str]:
    """Return what the URL says so that the server must show a certificate of that authority."""
    if isinstance(server, MariaDB):
        return {'ssl_ca': server.authority.path(authority)}
    return {'sslmode': 'verify-full', 'sslrootcert': server.authority.path(authority)}


def run(url: sa.URL, folder: pathlib.Path, *command: str, parameters: str = '') -> int:
    (folder / 'c.conf').write_text(
        f'[database]\nconnection = {url.render_as_string(hide_password=False)}\n'
        f'connection_parameters = {parameters}\n')
    return manage.main(['--config-file', str(folder / 'c.conf'), *command])


@pytest.mark.parametrize('where', ['url', 'connection_parameters'])
def test_a_server_of_the_right_authority_is_talked_to(
        secure: Any, where: str, tmp_path: pathlib.Path,
        capfd: pytest.CaptureFixture[str]) -> None:
    url = sa.make_url(secure.create_database())
    wanted = query(secure, 'ca.pem')
    if where == 'url':
        parameters = ''
        url = url.update_query_dict(wanted)
    else:
        parameters = '&'.join(f'{name}={value}' for name, value in wanted.items())
    for command in (['db', 'sync'], ['service', 'list']):
        assert run(url, tmp_path, *command, parameters=parameters) == 0, capfd.readouterr()
    database = Database(url.render_as_string(hide_password=False), parameters=parameters)
    with database.autocommit() as connection:
        assert connection.exec_driver_sql(CIPHER[database.backend]).scalar()
    database.close()


@pytest.mark.parametrize(('authority', 'host'), [
    ('other.pem', '127.0.0.1'), ('ca.pem', 'localhost')], ids=['authority', 'host'])
def test_a_server_of_another_authority_or_name_is_refused_in_a_sentence(
        secure: Any, authority: str, host: str, tmp_path: pathlib.Path,
        capfd: pytest.CaptureFixture[str]) -> None:
    url = sa.make_url(secure.create_database()).update_query_dict(query(secure, authority))
    assert run(url.set(host=host), tmp_path, 'service', 'list') == 1
    said = capfd.readouterr()
    assert said.out == ''
    assert said.err.count('\n') == 1
    assert 'cannot be reached' in said.err
    assert 'certificate' in said.err


def test_a_file_that_is_not_there_is_a_sentence(
        secure: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = sa.make_url(secure.create_database()).update_query_dict(query(secure, 'none.pem'))
    assert run(url, tmp_path, 'service', 'list') == 1
    said = capfd.readouterr()
    assert said.err.count('\n') == 1
    assert 'A file that the URL' in said.err or 'none.pem' in said.err
