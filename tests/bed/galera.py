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

"""Three nodes of Galera, all of them on loopback, as a cluster of our own.

A node is a MariaDB server that may be frozen, killed and started again like any other; it
*answers* when it belongs to the part of the cluster that has the quorum and has caught up with it.
All timeouts of the cluster are Galera's defaults: a death is noticed after five seconds, and
nobody commits meanwhile.
"""

import os
import pathlib
import re
import shutil
import time
from collections.abc import Sequence
from typing import Any, Self

import pymysql
import sqlalchemy as sa

from tests.bed import mariadb, processes, server, waiting

NODES = 3
CLUSTER_SECONDS = 120.0
# Nodes that are enough for a quorum find together within this, or never.
QUORUM_SECONDS = 20.0
_TRANSFER = pathlib.Path(__file__).with_name('wsrep_sst_copy')
_PROVIDERS = [pathlib.Path('/usr/lib/galera'), pathlib.Path('/usr/lib64/galera-4')]
_NOWHERE = -1


class Node(mariadb.MariaDB):
    """One node; ``start`` lets it join the others again."""

    def __init__(self) -> None:
        super().__init__()
        self.group_port = server.free_port()
        self.peers: Sequence[Node] = ()
        self._cluster_id = ''
        self._position = _NOWHERE
        self._founds = False
        self._transfer_ports = (server.free_port(), server.free_port())

    @property
    def name(self) -> str:
        """What the node is called in the cluster."""
        return f'node-{self.group_port}'

    def build(self, *, founds: bool = False) -> None:
        """Prepare the node and start it: as the first of the cluster, or to join its peers."""
        self._prepare()
        self._founds = founds
        if founds:
            super()._prepare()
        self._start_on_a_free_port()
        self._founds = False
        if founds:
            self._create_account()

    def start(self) -> None:
        """Start the node on the ports it had; it joins, catches up and answers.

        Where a killed node stood is found first, as ``galera_recovery`` does it, so that the
        others need to give it no more than what it missed.
        """
        self._position = self.position()
        super().start()

    def found(self) -> None:
        """Start the node as the first of the cluster, whatever there was before."""
        state = self.data / 'grastate.dat'
        if state.exists():
            state.write_text(state.read_text().replace(
                'safe_to_bootstrap: 0', 'safe_to_bootstrap: 1'))
        self._founds = True
        self.start()
        self._founds = False

    def bootstrap(self) -> None:
        """Give the quorum to what this running node sees of the cluster."""
        self.execute("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=true'")

    def status(self, name: str) -> str:
        """Return a status variable, named without its ``wsrep_``; '' where the node is mute."""
        try:
            return str(self.execute(f"SHOW STATUS LIKE 'wsrep_{name}'")[0][1])
        except (pymysql.MySQLError, IndexError):
            return ''

    def answers(self) -> bool:
        return self.status('ready') == 'ON' and self.status('local_state_comment') == 'Synced'

    def position(self) -> int:
        """Return the number of the last transaction that the node has, be it running or not."""
        if self.running:
            return int(self.status('last_committed') or _NOWHERE)
        if not (self.data / 'ibdata1').exists() or (self.data / 'sst_unfinished').exists():
            return _NOWHERE
        report = self._run(*super()._command(), *self._wsrep(), '--wsrep-recover')
        self._cluster_id, number = re.findall(r'Recovered position: (\S+):(-?\d+)', report)[-1]
        return int(number)

    def _prepare(self) -> None:
        provider()
        for directory in (self.data, self.directory / 'bin'):
            directory.mkdir()
            processes.give_to_unprivileged(directory)
        shutil.copy(_TRANSFER, self.directory / 'bin')

    def _command(self) -> Sequence[str]:
        command = ['env', f'PATH={self.directory / "bin"}:{os.environ.get("PATH", os.defpath)}',
                   *super()._command(), *self._wsrep()]
        if self._founds:
            command.append('--wsrep-new-cluster')
        if self._position != _NOWHERE:
            command.append(f'--wsrep-start-position={self._cluster_id}:{self._position}')
        return command

    def _wsrep(self) -> list[str]:
        incremental, full = self._transfer_ports
        options = {
            'gmcast.listen_addr': f'tcp://127.0.0.1:{self.group_port}',
            'base_host': '127.0.0.1',
            'base_port': str(self.group_port),
            'ist.recv_addr': f'127.0.0.1:{incremental}',
            'gcache.size': '32M',
        }
        peers = ','.join(f'127.0.0.1:{peer.group_port}' for peer in self.peers)
        return [
            '--wsrep-on=ON', f'--wsrep-provider={provider()}',
            '--wsrep-cluster-name=heat-liveness', f'--wsrep-cluster-address=gcomm://{peers}',
            f'--wsrep-node-name={self.name}',
            f'--wsrep-node-address=127.0.0.1:{self.group_port}',
            f'--wsrep-sst-method={_TRANSFER.name.removeprefix("wsrep_sst_")}',
            f'--wsrep-sst-receive-address=127.0.0.1:{full}',
            '--wsrep-provider-options=' + ';'.join(f'{k}={v}' for k, v in options.items()),
            '--binlog-format=ROW', '--innodb-autoinc-lock-mode=2',
        ]


class Cluster:
    """The nodes, and what can be asked of any of them; made by ``create``, all running then."""

    drivername = Node.drivername

    def __init__(self) -> None:
        self.nodes = [Node() for _ in range(NODES)]
        for node in self.nodes:
            node.peers = [peer for peer in self.nodes if peer is not node]

    @classmethod
    def create(cls, *, steppable: bool = False) -> Self:
        """Make the nodes and start them; as ``Server.create``."""
        cluster = cls()
        try:
            for node in cluster.nodes if steppable else ():
                node.get_clock()
            cluster.nodes[0].build(founds=True)
            for node in cluster.nodes[1:]:
                node.build()
        except BaseException:
            cluster.destroy()
            raise
        return cluster

    def destroy(self) -> None:
        """Kill all nodes and remove what they stored."""
        for node in self.nodes:
            node.destroy()

    def urls(self, url: str) -> list[str]:
        """Return the URL of a database on each node, given that on one of them."""
        return [node.url(str(sa.make_url(url).database)) for node in self.nodes]

    def create_database(self) -> str:
        """Create an empty database and return its URL on the first node; all nodes know it."""
        url = self.nodes[0].create_database()
        self.settle()
        return url

    def drop_database(self, url: str) -> None:
        """Drop a database that ``create_database`` made, and cut the connections to it."""
        for node in self.nodes:
            node.cut_off(url)
        self.nodes[0].drop_database(url)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, committed, and return its rows."""
        return self.nodes[0].execute(statement)

    def settle(self) -> None:
        """Wait until each node has what any of them had committed before."""
        newest = max(node.position() for node in self.nodes)
        waiting.wait_until(
            lambda: all(node.position() >= newest for node in self.nodes), CLUSTER_SECONDS,
            f'Transaction {newest} on all nodes')

    def heal(self) -> None:
        """Undo what a test has done: thaw, give the quorum back, start, and wait for all nodes."""
        for node in self.nodes:
            if node.running:
                node.thaw()
        if not self._has_quorum_soon():
            self._restore_quorum()
        waiting.wait_until(self._whole, CLUSTER_SECONDS, 'The healing of the cluster')

    def _whole(self) -> bool:
        """Start what has ended, also what gave up meanwhile; return whether all nodes are one."""
        for node in self.nodes:
            if not node.running:
                node.start()
        return all(self._complete(node) for node in self.nodes)

    def _complete(self, node: Node) -> bool:
        """Whether a node is ready and sees all that run."""
        running = sum(one.running for one in self.nodes)
        return node.answers() and node.status('cluster_size') == str(running)

    def _has_quorum_soon(self) -> bool:
        """Whether the nodes that run find together by themselves."""
        deadline = time.monotonic() + QUORUM_SECONDS
        running = [node for node in self.nodes if node.running]
        while not any(self._complete(node) for node in running):
            alone = [node for node in running if node.status('cluster_status') == 'Primary']
            if (len(running) < 2 and not alone) or time.monotonic() > deadline:
                return False
            time.sleep(waiting.POLL_SECONDS)
        return True

    def _restore_quorum(self) -> None:
        """Do what an operator does then: begin with the node that has the most."""
        best = max(self.nodes, key=Node.position)
        if best.running:
            best.bootstrap()
            return
        for node in self.nodes:
            node.kill()
        best.found()


def provider() -> pathlib.Path:
    """Return the library that makes a cluster of servers.

    Raises
    ------
    MissingProgram
        It is nowhere.
    """
    for directory in _PROVIDERS:
        if (directory / 'libgalera_smm.so').exists():
            return directory / 'libgalera_smm.so'
    raise server.MissingProgram('galera-4 is not installed; `make test` installs it.')
