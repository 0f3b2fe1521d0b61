"""A broker that misbehaves by script: as much of MQTT 5 as a publisher needs, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import struct

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, DISCONNECT = 1, 2, 3, 4, 8, 9, 10, 11, 14
QUOTA_EXCEEDED, NOT_AUTHORIZED, TAKEN_OVER, SERVER_BUSY = 0x97, 0x87, 0x8E, 0x89


class Scripted:
    """As much of an MQTT 5 broker as a publisher needs; its attributes say how it answers each packet."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.connects = 0
        #: Reason codes for the next connections; 0 for all later ones.
        self.connacks: list[int] = []
        #: Reason codes for the next publications; 0 for all later ones.
        self.pubacks: list[int] = []
        self.suback = 0
        #: Topics that are refused with a reason code, and those at which the connection is ended.
        self.denied: dict[str, int] = {}
        self.poison: set[str] = set()
        self.gives_reason = True
        #: How a subscription is answered if not by a SUBACK: "mute", or "hang_up".
        self.subscription = ""
        #: The properties of the next CONNACKs.
        self.welcome = b""
        #: Connections are accepted and closed before they are answered.
        self.slams = False
        #: Nothing is answered. `left` is set once a client has gone.
        self.mute = False
        self.left = asyncio.Event()
        self.subscribed = asyncio.Event()
        self.retained: list[tuple[str, bytes]] = []
        #: Cleared: acknowledgements are held back.
        self.prompt = asyncio.Event()
        self.prompt.set()
        self.publish_received = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                kind, flags, body = await self._packet(reader)
                if not self.mute:
                    await self._answer(writer, kind, flags, body)
        self.left.set()

    async def _packet(self, reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
        (first,) = await reader.readexactly(1)
        length = shift = 0
        while True:
            (byte,) = await reader.readexactly(1)
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        return first >> 4, first & 15, await reader.readexactly(length)

    async def _answer(self, writer: asyncio.StreamWriter, kind: int, flags: int, body: bytes) -> None:
        if kind == CONNECT:
            self.connects += 1
            if self.slams:
                writer.close()
                return
            code = self.connacks.pop(0) if self.connacks else 0
            self._send(writer, CONNACK, bytes([0, code, len(self.welcome)]) + self.welcome)
            if code:
                writer.close()
        elif kind == PUBLISH:
            size = struct.unpack(">H", body[:2])[0]
            topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
            properties = rest[2]
            self.received.append((topic, rest[3 + properties :]))
            self.publish_received.set()
            await self.prompt.wait()
            if topic in self.poison:
                if self.gives_reason:
                    self._send(writer, DISCONNECT, bytes([NOT_AUTHORIZED, 0]))
                writer.close()
                return
            code = self.denied.get(topic, self.pubacks.pop(0) if self.pubacks else 0)
            self._send(writer, PUBACK, rest[:2] + bytes([code, 0]))
        elif kind == SUBSCRIBE and self.subscription:
            if self.subscription == "hang_up":
                writer.close()
        elif kind == SUBSCRIBE:
            self._send(writer, SUBACK, body[:2] + bytes([0, self.suback, self.suback]))
            for topic, payload in self.retained if not self.suback else ():
                self.deliver(topic, payload, writer)
            self.subscribed.set()
        elif kind == UNSUBSCRIBE:
            self._send(writer, UNSUBACK, body[:2] + bytes([0, 0, 0]))

    def deliver(
        self, topic: str, payload: bytes, writer: asyncio.StreamWriter | None = None, *, retain: bool = True
    ) -> None:
        for each in [writer] if writer else self._writers:
            body = struct.pack(">H", len(topic)) + topic.encode() + b"\0" + payload
            self._send(each, PUBLISH, body, flags=int(retain))

    def disconnect(self, reason: int) -> None:
        for writer in self._writers:
            self._send(writer, DISCONNECT, bytes([reason, 0]))
            writer.close()

    def _send(self, writer: asyncio.StreamWriter, kind: int, body: bytes, flags: int = 0) -> None:
        length, head = len(body), bytearray([kind << 4 | flags])
        while True:
            head.append(length % 128 | (0x80 if length > 127 else 0))
            length //= 128
            if not length:
                break
        with contextlib.suppress(ConnectionError):
            writer.write(bytes(head) + body)

    def received_topics(self, prefix: str) -> list[str]:
        return [topic for topic, _ in self.received if topic.startswith(prefix)]
