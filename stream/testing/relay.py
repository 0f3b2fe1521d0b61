"""A small TCP relay between a client and the exchange, which simulates faults of the network.

It forwards bytes until its mode is changed. A mode applies to all connections, and to those to come.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

#: `open` forwards; `blackhole` silently holds back both directions; `slow` lets `SLOW_BYTES_S` a second through;
#: `closed` refuses new connections by ending them at once.
Mode = Literal["open", "blackhole", "slow", "closed"]
SLOW_BYTES_S = 2_000
_CHUNK = 65_536


class Relay:
    """Listens on loopback within `async with Relay(ex.ws_url) as relay:`; the client connects to `relay.url`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._scheme, self._host, self._port = parts.scheme, parts.hostname or "127.0.0.1", parts.port or 0
        self._open = asyncio.Event()
        self._open.set()
        self._mode: Mode = "open"
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.url = ""
        #: Connections that clients have opened.
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"{self._scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.become("open")
        self.reset()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def become(self, mode: Mode) -> None:
        """Changes the mode. What a blackhole has held back is delivered late when it opens again."""
        self._mode = mode
        if mode == "blackhole":
            self._open.clear()
        else:
            self._open.set()

    def reset(self) -> None:
        """Cuts every connection with a TCP reset."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._mode == "closed":
            writer.transport.abort()
            return
        try:
            beyond, out = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, out}
        try:
            await asyncio.gather(self._forward(reader, out), self._forward(beyond, writer))
        finally:
            self._writers -= {writer, out}
            for end in (writer, out):
                end.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_CHUNK if self._mode != "slow" else SLOW_BYTES_S // 10):
                # Half-open: the sender has sent the bytes, and does not learn that they have not arrived.
                await self._open.wait()
                if self._mode == "slow":
                    await asyncio.sleep(len(data) / SLOW_BYTES_S)
                target.write(data)
                await target.drain()
        with contextlib.suppress(OSError, RuntimeError):
            target.write_eof()
