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

"""A TCP proxy between one engine and its database, and what can go wrong with a network.

One thread serves all connections of a proxy; a test sets :attr:`Proxy.mode` from its own.

=============  =====================================================================
open           bytes pass, both ways
cut            connections are closed, and new ones at once
delayed        each piece of bytes waits for ``DELAY_SECONDS``, both ways
black hole     connections are accepted, and nothing passes either way
lost replies   requests pass and are carried out; the first reply is dropped, and the
               connection is closed with it
swallowed      as before, but the connection stays and nobody ever answers
late requests  the connection is closed when a request comes, and the request is carried
               out all the same, ``LATE_SECONDS`` later
=============  =====================================================================

A connection that a black hole has swallowed bytes of is closed when the mode changes: no stream can
go on with a gap.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Literal

Mode = Literal['open', 'cut', 'delayed', 'black hole', 'lost replies', 'swallowed', 'late requests']

DELAY_SECONDS = 0.15
LATE_SECONDS = 1.0
_PIECE_BYTES = 65536


class Proxy:
    """A listener on a free port of loopback that passes on to a port; running until closed."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._mode: Mode = 'open'
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name='proxy')
        self._thread.start()
        self._do(self._listen())

    @property
    def mode(self) -> Mode:
        """What happens to the connections."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._do(self._change(mode, self.target))

    def lead_to(self, target: int) -> None:
        """Lead to another port, as a load balancer does: connections to the old one are closed."""
        self._do(self._change(self._mode, target))

    def close(self) -> None:
        """Close all connections and stop listening."""
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, '127.0.0.1', 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _change(self, mode: Mode, target: int) -> None:
        for link in list(self._links):
            if mode == 'cut' or link.broken or target != self.target:
                link.close()
        self._mode, self.target = mode, target

    async def _shut(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for link in list(self._links) for task in link.close()]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == 'cut':
            writer.close()
            return
        try:
            far = await asyncio.open_connection('127.0.0.1', self.target)
        except OSError:
            writer.close()
            return
        link = _Link(self, (reader, writer), far)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection, and the one behind it."""

    def __init__(self, proxy: Proxy, near: _End, far: _End) -> None:
        self.broken = False
        self._forsaken = False
        """Nobody waits for a reply any more."""
        self._proxy = proxy
        self._ends = (near, far)
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        (near_reader, near_writer), (far_reader, far_writer) = self._ends
        self._tasks = [asyncio.ensure_future(self._pass(near_reader, far_writer, reply=False)),
                       asyncio.ensure_future(self._pass(far_reader, near_writer, reply=True))]
        # What ends one way ends the other.
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*self.close(), return_exceptions=True)
        for _, writer in self._ends:
            writer.transport.abort()

    def close(self) -> list['asyncio.Task[None]']:
        for task in self._tasks:
            task.cancel()
        return self._tasks

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *,
                    reply: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                mode = self._proxy.mode
                if mode == 'black hole' or (mode == 'swallowed' and reply):
                    self.broken = True
                elif reply and (self._forsaken or mode == 'lost replies'):
                    return
                elif mode == 'late requests' and not reply:
                    await self._send_late(piece)
                    return
                if mode == 'delayed':
                    await asyncio.sleep(DELAY_SECONDS)
                if not self.broken:
                    writer.write(piece)
                    await writer.drain()

    async def _send_late(self, piece: bytes) -> None:
        (_, near), (_, far) = self._ends
        self._forsaken = True
        near.transport.abort()
        await asyncio.sleep(LATE_SECONDS)
        far.write(piece)
        # Its end is the reply to this: a connection that were reset before would take it along.
        await asyncio.wait([self._tasks[1]])
