"""The websockets library, told what it would otherwise decide by itself."""

from __future__ import annotations

from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from stream.adapters.feed.control_frames import ControlFrames
from stream.adapters.outbound import Way


def proxy_and_tls(way: Way) -> dict[str, Any]:
    """What `connect` is told of the way; without a word it would read the environment by itself."""
    options: dict[str, Any] = {"proxy": way.proxy, "ssl": way.tls}
    return options if way.proxy_tls is None else {**options, "proxy_ssl": way.proxy_tls}


class Connect(connect):
    """Follows nobody to another place: an endpoint that moved is said, and configured by a person."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Socket(ClientConnection):
    """The library's connection, counting the pongs that it sends by itself."""

    frames: ControlFrames | None = None

    def process_event(self, event: Any) -> None:
        if self.frames is not None and isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.frames.pong()
        super().process_event(event)
