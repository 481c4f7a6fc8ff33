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

"""The proxy does to a connection what its mode says."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.bed.proxy import Proxy
from tests.bed.waiting import wait_until


@pytest.fixture
def heard() -> list[bytes]:
    """What has arrived behind the proxy."""
    return []


@pytest.fixture
def proxy(heard: list[bytes]) -> Iterator[Proxy]:
    """A proxy to a listener that answers each piece of bytes with itself."""
    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while piece := connection.recv(100):
                heard.append(piece)
                connection.sendall(piece)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(('127.0.0.1', 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        proxy = Proxy(listener.getsockname()[1])
        yield proxy
        proxy.close()
        listener.shutdown(socket.SHUT_RDWR)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(('127.0.0.1', proxy.port), timeout=10)


def silent(connection: socket.socket) -> bool:
    """Whether a connection stays open and says nothing, as far as a moment can tell."""
    connection.settimeout(0.2)
    try:
        return not connection.recv(100) and False
    except TimeoutError:
        return True


def test_open(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b'a')
        assert connection.recv(100) == b'a'


def test_cut(proxy: Proxy, heard: list[bytes]) -> None:
    with connect(proxy) as before:
        before.sendall(b'a')
        assert before.recv(100) == b'a'
        proxy.mode = 'cut'
        with contextlib.suppress(ConnectionError):
            assert before.recv(100) == b''
        with contextlib.suppress(ConnectionError), connect(proxy) as after:
            after.sendall(b'b')
            assert after.recv(100) == b''
    assert heard == [b'a']


def test_black_hole(proxy: Proxy, heard: list[bytes]) -> None:
    proxy.mode = 'black hole'
    with connect(proxy) as connection:
        connection.sendall(b'a')
        assert silent(connection)
        proxy.mode = 'open'
        connection.settimeout(10)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b''
    assert heard == []


def test_lost_replies(proxy: Proxy, heard: list[bytes]) -> None:
    proxy.mode = 'lost replies'
    with connect(proxy) as connection:
        connection.sendall(b'a')
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b''
    assert heard == [b'a']


def test_swallowed_replies(proxy: Proxy, heard: list[bytes]) -> None:
    proxy.mode = 'swallowed'
    with connect(proxy) as connection:
        connection.sendall(b'a')
        wait_until(lambda: heard == [b'a'], 10, 'The arrival of the request')
        assert silent(connection)


def test_late_requests(
        proxy: Proxy, heard: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    # So late that all of this comes before it, on a busy machine too.
    monkeypatch.setattr('tests.bed.proxy.LATE_SECONDS', 5)
    with connect(proxy) as connection:
        connection.sendall(b'a')
        assert connection.recv(100) == b'a'
        proxy.mode = 'late requests'
        connection.sendall(b'b')
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b''
        assert heard == [b'a'], 'nobody has carried it out yet'
        proxy.mode = 'open'
    with connect(proxy) as connection:
        connection.sendall(b'c')
        assert connection.recv(100) == b'c'
        wait_until(lambda: heard == [b'a', b'c', b'b'], 60, 'The arrival of the late request')


def test_delayed(proxy: Proxy) -> None:
    proxy.mode = 'delayed'
    with connect(proxy) as connection:
        connection.sendall(b'a')
        assert connection.recv(100) == b'a'


def test_another_target(proxy: Proxy) -> None:
    with socket.create_server(('127.0.0.1', 0)) as other:
        proxy.lead_to(other.getsockname()[1])
        with connect(proxy):
            other.settimeout(10)
            other.accept()[0].close()
