"""One connection to a broker, which reports why it ends: aiomqtt's client, with some of its behaviour replaced.

The library takes any acknowledgement for success, waits until its timeout where the connection has already ended,
drops the broker's reason on the way, and tries the addresses of a host name one after the other. Its `publish` needs a
task for each message in flight; `send` needs a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self, TypeVar

import aiomqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties

from stream.adapters.backoff import ADDRESS_RACE_S
from stream.adapters.mqtt.deliveries import Deliveries

T = TypeVar("T")

#: Limit for resolving the broker's name and connecting to one of its addresses.
_REACHED_S = 10.0
#: MQTT 5: another client has connected with our client id.
_TAKEN_OVER = 0x8E
_REASON_CHARACTERS = 200
#: MQTT 5: what applies where the broker does not say how many messages it takes at a time.
_RECEIVE_MAXIMUM = 65_535
#: A slow broker is waited for: reconnecting would only make it receive the same message twice.
_ACKNOWLEDGED_S = 15.0
#: What a PUBLISH packet has apart from topic and payload: fixed header, packet identifier, our properties.
_PUBLISH_OVERHEAD_BYTES = 64


def _words(reason_code: Any, properties: Any) -> str:
    """Returns a reason code and, where the broker gives one, its reason string, as one printable line."""
    reason = " ".join(str(getattr(properties, "ReasonString", "")).split())
    reason = "".join(c for c in reason if c.isprintable())[:_REASON_CHARACTERS]
    return f"{reason_code} ({reason})" if reason else str(reason_code)


class Client(aiomqtt.Client):
    """The library's client. Uses private parts of aiomqtt 2 and of paho: both are pinned to their major version."""

    #: Why the broker refused topics of the newest subscription.
    denials: tuple[str, ...] = ()
    #: The broker's reason when it ended the connection or refused to open it.
    farewell: str | None = None
    #: Whether the connection has ended, whoever ended it.
    ended = False
    taken_over = False
    #: How many messages the broker takes before it has acknowledged the first of them.
    receive_maximum = _RECEIVE_MAXIMUM
    _connected_once = False
    _largest_packet_bytes: int | None = None
    _reached: socket.socket | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deliveries = Deliveries(self._loop, _ACKNOWLEDGED_S)
        # Whoever calls `send` keeps to `receive_maximum`; paho's own queue would search all messages for each answer.
        self._client.max_inflight_messages_set(0)

    def send(self, topic: str, payload: bytes, *, retain: bool, properties: Properties) -> asyncio.Future[None]:
        """Publishes with QoS 1 and returns a future that is done once the broker has acknowledged the message.

        The future fails with `MessageRefusedError`, with `HungUpError` once the connection has ended, and with
        `UnreachableError` where the answer does not come in time. Raises `ValueError` where the message is invalid.
        """
        info = self._client.publish(topic, payload, 1, retain, properties)
        future = self._deliveries.add(info.mid)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._deliveries.hang_up(self._last_words())
        return future

    def _last_words(self) -> str:
        return self.farewell or "the connection ended without a word"

    def why(self, error: BaseException) -> str:
        """Returns the cause of `error` for a person to read: the broker's own reason where it gave one."""
        text = f"{type(error).__name__}: {error}"
        if self.farewell is None or self.farewell in text:
            return text
        did = "ended" if self._connected_once else "refused"
        return f"the broker {did} the connection: {self.farewell}"

    def too_large(self, topic: str, payload: bytes) -> str | None:
        """Returns why this broker cannot take a message of that size, which would end the connection; else None."""
        size = len(topic.encode()) + len(payload) + _PUBLISH_OVERHEAD_BYTES
        if self._largest_packet_bytes is None or size <= self._largest_packet_bytes:
            return None
        return f"Packet too large ({len(payload)} bytes; the broker takes packets of {self._largest_packet_bytes})"

    async def __aenter__(self) -> Self:
        try:
            await self._reach()
            await super().__aenter__()
        except BaseException:
            # An attempt that was given up must not succeed later: under our client id it would end the next attempt's
            # connection.
            self._abandon()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc, tb)
        finally:
            self._abandon()

    async def _reach(self) -> None:
        """Races the addresses of the host name, and gives the first socket that connects to the library's connect."""
        try:
            async with asyncio.timeout(_REACHED_S):
                transport, _ = await self._loop.create_connection(
                    asyncio.Protocol, self._hostname, self._port, happy_eyeballs_delay=ADDRESS_RACE_S
                )
        except TimeoutError:
            raise aiomqtt.MqttError(f"no address of {self._hostname} answers within {_REACHED_S:g} s") from None
        try:
            self._reached = transport.get_extra_info("socket").dup()
        finally:
            transport.abort()
        self._client._create_socket_connection = self._take_socket  # type: ignore[method-assign]

    def _take_socket(self) -> socket.socket:
        if self._reached is None:
            raise ConnectionAbortedError("the connection attempt was given up")
        taken, self._reached = self._reached, None
        return taken

    def _abandon(self) -> None:
        if self._reached is not None:
            self._reached.close()
            self._reached = None
        with contextlib.suppress(OSError):
            self._client._sock_close()
        for future in (self._connected, self._disconnected):
            # Retrieved, so that asyncio does not report an exception that nobody waited for.
            if future.done() and not future.cancelled():
                future.exception()

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:
        """Replaces the library's wait: it also ends with the connection and, unlike Python 3.11's wait_for, loses no
        cancellation."""
        limit_s = self.timeout if timeout is None else timeout
        waiting: asyncio.Future[T] = asyncio.ensure_future(fut)
        either: set[asyncio.Future[Any]] = {waiting, self._disconnected}
        try:
            await asyncio.wait(
                either,
                timeout=None if limit_s == math.inf else limit_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if waiting.done():
                return waiting.result()
        finally:
            if waiting is not self._connected and waiting is not self._disconnected:
                waiting.cancel()
        if self._disconnected.done():
            raise aiomqtt.MqttError(self.farewell or "the connection ended")
        raise aiomqtt.MqttError("the broker did not answer in time")

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if reason_code.is_failure:
            self.farewell = _words(reason_code, properties)
        self._connected_once = not reason_code.is_failure
        self.receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
        self._largest_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.ended = True
        if flags.is_disconnect_packet_from_server:
            self.farewell = _words(reason_code, properties)
            self.taken_over = reason_code.value == _TAKEN_OVER
        # Before the library wakes those who read: whoever published must learn first at which message it ended.
        self._deliveries.hang_up(self._last_words())
        if not self._connected.done():
            # The library would wait for an answer that cannot come. Its connect, which may call this, runs in a thread.
            self._loop.call_soon_threadsafe(self._never_connected)
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _never_connected(self) -> None:
        if not self._connected.done():
            reason = self.farewell or "the broker closed the connection without an answer"
            self._connected.set_exception(aiomqtt.MqttError(reason))

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, reason_codes: Any, properties: Any = None) -> None:
        self.denials = tuple(_words(code, properties) for code in reason_codes if code.is_failure)
        super()._on_subscribe(client, userdata, mid, reason_codes, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        self._deliveries.acknowledge(mid, _words(reason_code, properties) if reason_code.is_failure else None)
