"""The exchange's WebSocket side: one object for each connection, and one hub for all of them.

It behaves as documented, oddities included: an unknown symbol or another interval is acknowledged and then
silent; control frames and data share the connection. The hub never decides what happens, it delivers.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from stream.core.market.candle import Candle
from stream.testing.wire import accepted, combined, kline_payload, refusal, stream_name

METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
#: Payload of the pings by which an exchange at max speed paces itself: they show nothing about the client, and their
#: pongs are not logged.
PACING = b"pacing"


class Listener(ServerConnection):
    """The library's connection, which also reports the control frames that the library answers by itself."""

    on_control: Callable[[str], None] | None = None

    def process_event(self, event: Any) -> None:
        callback = self.on_control
        if callback is not None and isinstance(event, Frame) and not bytes(event.data).startswith(PACING):
            if event.opcode is Opcode.PONG:
                callback("pong")
            elif event.opcode is Opcode.PING:
                callback("ping")
        super().process_event(event)


class Update:
    """One kline event, encoded once for all connections with the same framing and time unit."""

    def __init__(self, candle: Candle, event_ms: int, closed: bool, in_microseconds: bool = False) -> None:
        """With `in_microseconds` times are in microseconds whatever the client asked for."""
        self.symbol = candle.symbol
        self._in_microseconds = in_microseconds
        self.stream = stream_name(candle.symbol)
        self._candle, self._event_ms, self._closed = candle, event_ms, closed
        self._frames: dict[tuple[bool, bool], bytes] = {}

    def frame(self, is_combined: bool, microseconds: bool) -> bytes:
        key = (is_combined, microseconds)
        if key not in self._frames:
            raw = kline_payload(self._candle, self._event_ms, self._closed, microseconds or self._in_microseconds)
            self._frames[key] = combined(self.stream, raw) if is_combined else raw
        return self._frames[key]


class Connection:
    """One client's connection, and what it has asked for."""

    def __init__(self, number: int, socket: ServerConnection, path: str) -> None:
        streams, self.combined, self.microseconds = parse_path(path)
        self.number = number
        self.streams = dict.fromkeys(streams)  # a set that keeps the order of LIST_SUBSCRIPTIONS
        self._socket = socket
        self._pacing = itertools.count()

    def answer(self, message: str | bytes) -> tuple[str, Any, bytes]:
        """Returns method, parameters and reply of one control frame, which takes effect before the reply is sent."""
        try:
            request = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "", None, refusal(3, "Invalid JSON: expected value at line 1 column 1")
        if not isinstance(request, dict) or "method" not in request:
            return "", request, refusal(2, "Invalid request: missing field `method` at line 1 column 1")
        method, params, request_id = request["method"], request.get("params", []), request.get("id")
        if set(request) - {"method", "params", "id"}:
            return str(method), params, refusal(2, "Invalid request: unknown field")
        if not _is_request_id(request_id):
            return str(method), params, refusal(2, "Invalid request: request ID must be an unsigned integer")
        if method not in METHODS:
            expected = ", ".join(f"`{name}`" for name in METHODS)
            text = f"Invalid request: unknown variant `{method}`, expected one of {expected} at line 1 column 1"
            return str(method), params, refusal(2, text, request_id)
        if not isinstance(params, list):
            return method, params, refusal(2, "Invalid request: params must be an array", request_id)
        return method, params, self._obey(method, params, request_id)

    def _obey(self, method: str, params: list[Any], request_id: int | str | None) -> bytes:
        if method == "LIST_SUBSCRIPTIONS":
            return accepted(list(self.streams), request_id)
        if method.endswith("_PROPERTY"):
            return self._property(method, params, request_id)
        if not all(isinstance(name, str) and "@" in name for name in params):
            return refusal(2, "Invalid request: invalid stream", request_id)
        for name in params:
            if method == "SUBSCRIBE":
                self.streams[name] = None
            else:
                self.streams.pop(name, None)
        return accepted(None, request_id)

    def _property(self, method: str, params: list[Any], request_id: int | str | None) -> bytes:
        wanted = 1 if method == "GET_PROPERTY" else 2
        if len(params) > wanted:
            return refusal(2, "Invalid request: too many parameters", request_id)
        if not params or not isinstance(params[0], str):
            return refusal(2, "Invalid request: property name must be a string", request_id)
        if params[0] != "combined":
            return refusal(0, "Unknown property", request_id)
        if method == "GET_PROPERTY":
            return accepted(self.combined, request_id)
        if len(params) < wanted or not isinstance(params[1], bool):
            return refusal(1, "Invalid value type: expected Boolean", request_id)
        self.combined = params[1]
        return accepted(None, request_id)

    async def send(self, updates: Sequence[Update]) -> None:
        """Sends what is subscribed, waiting for the client to take it. Raises `ConnectionClosed` if it has gone."""
        for update in updates:
            if update.stream in self.streams:
                await self._socket.send(update.frame(self.combined, self.microseconds), text=True)

    async def send_raw(self, payload: bytes, framing: str | None = None) -> None:
        """Sends bytes that are not a candle's: as they are, or as the data of a combined frame (`framing`)."""
        await self._socket.send(combined("!serverShutdown", payload) if framing == "combined" else payload, text=True)

    async def close(self, code: int, reason: str = "") -> None:
        await self._socket.close(code, reason)

    async def settle(self) -> None:
        """Returns when the client has read everything sent so far: a pong overtakes nothing."""
        await (await self._socket.ping(PACING + str(next(self._pacing)).encode()))

    def cut(self) -> None:
        """Ends the TCP connection with no closing handshake."""
        self._socket.transport.abort()


class Hub:
    """The open connections. `listening` is set while at least one of them is subscribed to something."""

    def __init__(self, on_listening: Callable[[], None]) -> None:
        self._connections: dict[int, Connection] = {}
        self._on_listening = on_listening
        self.listening = asyncio.Event()

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(self._connections)

    def describe(self) -> list[dict[str, Any]]:
        return [
            {"connection": c.number, "streams": list(c.streams), "combined": c.combined, "microseconds": c.microseconds}
            for c in self._connections.values()
        ]

    def add(self, connection: Connection) -> None:
        self._connections[connection.number] = connection
        self.review()

    def remove(self, number: int) -> None:
        self._connections.pop(number, None)
        self.review()

    def review(self) -> None:
        """Updates `listening`. Call it when a connection's subscriptions have changed."""
        if any(c.streams for c in self._connections.values()):
            self.listening.set()
            self._on_listening()
        else:
            self.listening.clear()

    def cut(self, number: int | None) -> list[int]:
        """Cuts one connection or all, and removes them from the hub at once. Returns their numbers."""
        chosen = [c for c in self._connections.values() if number in (None, c.number)]
        for connection in chosen:
            connection.cut()
            self.remove(connection.number)
        return [c.number for c in chosen]

    async def deliver(self, updates: Sequence[Update], is_muted: Callable[[int, str], bool]) -> None:
        """Sends to every connection concurrently, and waits for the slowest."""

        async def one(connection: Connection) -> None:
            await connection.send([u for u in updates if not is_muted(connection.number, u.symbol)])

        await self._each(one)

    def all(self) -> list[Connection]:
        return list(self._connections.values())

    async def send_junk(self, frames: Sequence[bytes]) -> None:
        async def one(connection: Connection) -> None:
            for frame in frames:
                await connection.send_raw(frame)

        await self._each(one)

    async def announce(self, payload: bytes, framing: str | None) -> None:
        """Sends a message to every client, in this framing or in each client's own."""

        async def one(connection: Connection) -> None:
            own = "combined" if connection.combined else "raw"
            await connection.send_raw(payload, framing or own)

        await self._each(one)

    async def settle(self) -> None:
        """Waits until every client has read everything sent so far."""
        await self._each(Connection.settle)

    async def _each(self, act: Callable[[Connection], Any]) -> None:
        async def guarded(connection: Connection) -> None:
            try:
                await act(connection)
            except ConnectionClosed:
                self.remove(connection.number)

        connections = list(self._connections.values())
        if len(connections) == 1:
            await guarded(connections[0])
        else:
            await asyncio.gather(*(guarded(c) for c in connections))


def parse_path(path: str) -> tuple[list[str], bool, bool]:
    """Returns streams, combined framing and microseconds of a URL's path. Raises `ValueError` for no endpoint."""
    parts = urlsplit(unquote(path))
    # Not parse_qs: it would read the "+" of "@kline_1h@+08:00" as a space.
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&"))
    microseconds = query.get("timeUnit", "").upper() == "MICROSECOND"
    if parts.path == "/stream":
        return [s for s in query.get("streams", "").split("/") if s], True, microseconds
    if parts.path == "/ws" or parts.path.startswith("/ws/"):
        return [s for s in parts.path[len("/ws") :].split("/") if s], False, microseconds
    raise ValueError(f"no endpoint {parts.path}")


def _is_request_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 36 and value.isalnum()
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
