"""A TCP proxy that behaves as badly as networks do: it cuts connections, stalls them, and leaves them half open.

One thread with an event loop; every method may be called from any other thread and returns once it is done.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"


@dataclass(eq=False)
class Link:
    """One connection through the proxy: its two sides, and the tasks that carry bytes between them."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """`with Proxy(server.port) as proxy`: connect to `proxy.port` instead."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Reset every connection, on both sides; the number of them."""
        return self._do(self._end(_reset))

    def half_open(self) -> int:
        """From now on nothing passes on the connections of this moment, and neither side hears of it."""
        return self._do(self._end(lambda writer: None))

    def stall(self) -> None:
        """Hold back every byte until `flow`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    # inside the loop

    def _do(self, work: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> int:
        self._flowing.set()
        self._lost: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection(HOST, self.target)
        except OSError:
            _reset(client)
            return
        link = Link(client, server)
        self.links.add(link)
        link.pumps = [
            asyncio.create_task(self._pump(reader, server, link)),
            asyncio.create_task(self._pump(from_server, client, link)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        self.links.discard(link)
        link.client.close()
        link.server.close()

    async def _end(self, how: Callable[[asyncio.StreamWriter], None]) -> int:
        ended, self.links = self.links, set()
        for link in ended:
            for pump in link.pumps:
                pump.cancel()
            await asyncio.gather(*link.pumps, return_exceptions=True)
            for writer in (link.client, link.server):
                how(writer)
                self._lost.append(writer)
        return len(ended)

    async def _close(self) -> int:
        assert self._server is not None
        self._server.close()
        await self._end(_reset)
        for writer in self._lost:
            _reset(writer)
        await asyncio.sleep(0)
        return 0


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: the other side sees `connection reset by peer`, and no more than that."""
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
