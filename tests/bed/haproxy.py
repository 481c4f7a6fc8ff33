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

"""HAProxy before the nodes of a cluster, as OpenStack's installers set it up."""

import pathlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence

import sqlalchemy as sa

from tests.bed import galera, processes, server, waiting

_CONFIGURATION = """
global
    stats socket {socket} mode 600 level admin
defaults
    mode tcp
    timeout connect 2s
    timeout check 2s
    timeout client 1h
    timeout server 1h
listen galera
    bind 127.0.0.1:{port}
    balance roundrobin
    option mysql-check user {user} post-41
    default-server check inter 2000 fall 5 rise 2 {more}
{servers}
"""
_USER = 'haproxy'


class HAProxy:
    """A proxy on a port of its own; it asks each node every 2 s, five times, before it drops it."""

    def __init__(self, nodes: Sequence[galera.Node], *, single_writer: bool = True,
                 shuts_sessions: bool = True) -> None:
        """Start it.

        :param single_writer: send all to the first node that is up, or to all in turn
        :param shuts_sessions: cut the connections to a node that is dropped
        :raises MissingProgram: it is not installed
        """
        program = server.find_program('haproxy', '/usr/sbin')
        nodes[0].execute(f"CREATE USER IF NOT EXISTS '{_USER}'@'127.0.0.1'")
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix='heat-liveness-'))
        self.port = server.free_port()
        self._nodes = nodes
        configuration = self._directory / 'haproxy.cfg'
        configuration.write_text(_CONFIGURATION.format(
            port=self.port, user=_USER, socket=self._directory / 'socket',
            more='on-marked-down shutdown-sessions' if shuts_sessions else '',
            servers=''.join(
                f'    server {node.name} 127.0.0.1:{node.port}'
                f'{" backup" if single_writer and number else ""}\n'
                for number, node in enumerate(nodes))))
        processes.give_to_unprivileged(self._directory)
        with (self._directory / 'log').open('wb') as log:
            self._process = processes.spawn(
                [program, '-db', '-f', str(configuration)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, **processes.unprivileged())
        try:
            waiting.wait_until(self._listens, 30, 'The start of HAProxy')
        except BaseException:
            self.close()
            raise

    def url(self, url: str) -> str:
        """Return the URL of a database through the proxy, given that on a node."""
        return sa.make_url(url).set(port=self.port).render_as_string(hide_password=False)

    def retire(self, node: galera.Node) -> None:
        """Send new connections elsewhere, and leave the node those that it has."""
        self._command(f'set server galera/{node.name} state maint')

    def drops(self, node: galera.Node) -> bool:
        """Whether the proxy takes a node for dead."""
        return f'{node.name},' in ''.join(
            line for line in self._command('show stat').splitlines() if ',DOWN,' in line)

    def _command(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._directory / 'socket'))
            connection.sendall(f'{command}\n'.encode())
            return b''.join(iter(lambda: connection.recv(65536), b'')).decode()

    def close(self) -> None:
        """Kill the proxy."""
        processes.kill(self._process)
        shutil.rmtree(self._directory)

    def _listens(self) -> bool:
        assert self._process.poll() is None, (self._directory / 'log').read_text()
        with socket.socket() as probe:
            return probe.connect_ex(('127.0.0.1', self.port)) == 0
