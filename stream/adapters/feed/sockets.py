"""The websockets library, with explicit settings for what it would otherwise decide by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from stream.adapters.feed.control_frames import ControlFrames
from stream.adapters.outbound import Way


def proxy_and_tls(way: Way) -> dict[str, Any]:
    """Returns the proxy and TLS options of `connect`, which would otherwise read the environment by itself."""
    options: dict[str, Any] = {"proxy": way.proxy, "ssl": way.tls}
    return options if way.proxy_tls is None else {**options, "proxy_ssl": way.proxy_tls}


class Connect(connect):
    """Follows no redirect: an endpoint that has moved is reported, and a person changes the configuration."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Socket(ClientConnection):
    """The library's connection, which also counts the pongs that it sends by itself."""

    frames: ControlFrames | None = None

    def process_event(self, event: Any) -> None:
        if self.frames is not None and isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.frames.pong()
        super().process_event(event)


class Link:
    """One connection, from its handshake to its end."""

    def __init__(self) -> None:
        self.task: asyncio.Task[tuple[str, float]] | None = None
        self.socket: ClientConnection | None = None
        #: `relieve` is set when a successor is wanted, `receiving` when this connection can be one.
        self.relieve = asyncio.Event()
        self.receiving = asyncio.Event()
        #: Why this side ended it; empty where it did not.
        self.ending = ""
        self.delivering = False
        self.request_id = 0

    async def end(self, reason: str) -> None:
        self.ending = self.ending or reason
        if self.socket is not None:
            await self.socket.close()
