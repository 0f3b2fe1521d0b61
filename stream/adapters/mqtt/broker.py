"""MQTT 5 over aiomqtt (formerly asyncio-mqtt): connects with a will, publishes, and reconnects.

The library keeps no queue for us and resends nothing across connections: what must not be lost waits in the journal's
outbox, and a publish counts only when the broker has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream.adapters.backoff import Backoff
from stream.adapters.mqtt.client import Client as _Client
from stream.adapters.mqtt.rivals import NO_ANSWER, Rivals
from stream.adapters.outbound import authorities
from stream.core.messages.schemas import CONTENT_TYPE
from stream.errors import MessageRefusedError, RefusedError, UnreachableError
from stream.ports import Publisher
from stream.telemetry import BrokerConnected, BrokerLost, Observer
from stream.urls import parse

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_KEEPALIVE_S = 20
_HEALTHY_AFTER_S = 5.0
_LAST_WORD_S = 1.0
_CANCEL_AGAIN_S = 0.2
#: Received messages that wait to be read; nothing depends on those beyond, which are dropped.
_MOST_QUEUED = 10_000
#: How many subscriptions in a row the broker may ignore, or answer by ending the connection, before we no longer look
#: for other nodes.
_LOOKS = 2
#: Takeovers by another client within `_FIGHT_S` that prove a conflict: where we see the other nodes, and where not.
_TAKEOVERS, _TAKEOVERS_BLIND = 3, 2
_FIGHT_S = 300.0


class _Packed(Properties):
    """Properties that are encoded once: most messages have the same."""

    def pack(self) -> bytes:
        packed: bytes | None = self.__dict__.get("packed")
        if packed is None:
            self.__dict__["packed"] = packed = bytes(super().pack())  # type: ignore[no-untyped-call]
        return packed


@lru_cache(maxsize=64)
def _properties(packet: int, expiry_s: int | None = None) -> Properties:
    properties = _Packed(packet)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    properties.PayloadFormatIndicator = 1
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties


#: Errors that end a connection or prevent one: retried for ever.
_LOST = (aiomqtt.MqttError, UnreachableError, OSError, UnicodeError)


class Session:
    """Implements `stream.ports.Publisher` on one live connection."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    @property
    def receive_maximum(self) -> int:
        return self._client.receive_maximum

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> asyncio.Future[None]:
        refusal = self._client.too_large(topic, payload)
        if refusal is None:
            properties = _properties(PacketTypes.PUBLISH, expiry_s)
            try:
                return self._client.send(topic, payload, retain=retain, properties=properties)
            except ValueError as error:
                # The library itself rejects the message as invalid.
                refusal = str(error)
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(MessageRefusedError(refusal))
        return refused


class MqttBroker:
    """Implements `stream.ports.Broker` for the broker at `mqtt://` or `mqtts://[user:password@]host[:port]`."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        will_topic: str,
        will: bytes,
        observe: Observer,
        rng: random.Random,
        tls: ssl.SSLContext | None = None,
        rivals: Callable[[], Rivals] | None = None,
        recall: Callable[[aiomqtt.Client], Awaitable[None]] | None = None,
    ) -> None:
        """`will` is the message that the broker publishes on `will_topic`, retained, when this client vanishes.
        `rivals` creates what looks for other nodes on each connection before anything is published; without it nothing
        looks. `recall` then reads what has been published before."""
        self._url = url
        self._client_id = client_id
        self._will = aiomqtt.Will(will_topic, will, qos=1, retain=True, properties=_properties(PacketTypes.WILLMESSAGE))
        self._observe = observe
        # Longer than a look for other nodes takes: one that has taken our name must have had the time to publish it.
        self._backoff = Backoff(rng, first_s=0.5, cap_s=15.0)
        self._tls = tls
        self._rivals = rivals
        self._recall = recall
        #: Whether the newest look has shown the other nodes, and how many in a row the broker has cut short.
        self._sighted = False
        self._cut_short = 0
        self._blind_reported: str | None = None
        #: The session that had published under our name before we first did.
        self._predecessor: str | None = None
        self._takeovers_s: deque[float] = deque(maxlen=_TAKEOVERS)

    async def run(self, session: Callable[[Publisher], Awaitable[None]]) -> None:
        """Runs `session` on each connection, reconnecting, until it returns by itself: then its last message is out.

        Raises `RefusedError` where another node publishes the same, or another client takes our client id.
        """
        known: str | None = None
        published = False
        while True:
            client = broker_client(self._url, self._client_id, self._will, tls=self._tls)
            try:
                async with client:
                    self._observe(BrokerConnected())
                    log.info("connected to the MQTT broker")
                    known = None
                    if self._rivals is not None:
                        await self._look_around(client, self._rivals(), published=published)
                    if self._recall is not None:
                        await self._recall(client)
                    published = True
                    await self._attend(client, session)
                    return
            except _LOST as error:
                if client.taken_over:
                    self._refuse_a_fight()
                # Logged once per cause, not once per attempt.
                reason = client.why(error)
                self._observe(BrokerLost(reason))
                if reason != known:
                    log.warning("no connection to the MQTT broker, reconnecting: %s", reason, extra={"reason": reason})
                    known = reason
            await asyncio.sleep(self._backoff.next_s())

    async def _look_around(self, client: _Client, rivals: Rivals, *, published: bool) -> None:
        """Looks for other nodes before we publish. Raises `RefusedError` where one publishes the same.

        Seeing them is no condition: a node that may publish but not subscribe publishes all the same.
        """
        self._sighted = False
        if self._cut_short >= _LOOKS:
            return
        try:
            blind = await rivals.look_once(client)
        except aiomqtt.MqttError:
            if client.ended:
                self._cut_short += 1
                if self._cut_short == _LOOKS:
                    self._report_blind(client.farewell or "it ends the connection when we subscribe")
            raise
        # Neither an ended connection nor a missing answer is worth a wait on each connection.
        self._cut_short = self._cut_short + 1 if blind == NO_ANSWER else 0
        if blind is not None:
            self._report_blind(blind)
            return
        self._sighted = True
        rivals.refuse()
        if published:
            rivals.refuse_usurper(self._predecessor)
        else:
            self._predecessor = rivals.under_our_name

    def _report_blind(self, reason: str) -> None:
        if reason != self._blind_reported:
            log.warning(
                "the broker does not let us see other nodes (%s): nobody notices one that publishes the same", reason
            )
            self._blind_reported = reason

    def _refuse_a_fight(self) -> None:
        """Raises `RefusedError` where another client uses our client id.

        One takeover proves nothing: an attempt of our own that we gave up may have reached the broker late. Which
        client it was shows at the next look, or at the next takeover. Without `rivals` no look follows, so the first
        takeover counts.
        """
        now_s = asyncio.get_running_loop().time()
        self._takeovers_s.append(now_s)
        recent = sum(now_s - at_s < _FIGHT_S for at_s in self._takeovers_s)
        if self._rivals is None or recent >= (_TAKEOVERS if self._sighted else _TAKEOVERS_BLIND):
            raise RefusedError(
                f"another client has connected to the broker with our client id {self._client_id}: "
                "give each node its own --instance"
            ) from None

    async def _attend(self, client: _Client, session: Callable[[Publisher], Awaitable[None]]) -> None:
        """Runs the session and listens alongside, so that one that sends nothing notices the connection's end too."""
        speaking = asyncio.ensure_future(session(Session(client)))
        listening = asyncio.ensure_future(self._listen(client))
        try:
            await asyncio.wait((speaking, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (listening, speaking):
                # Repeatedly: Python 3.11's wait_for, where it is used, loses a cancellation that meets its result.
                while not task.done():
                    task.cancel()
                    await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
            if speaking.cancelled() or speaking.exception() is not None:
                await self._publish_will(client)
        if not listening.cancelled():
            listening.result()
        speaking.result()

    async def _publish_will(self, client: _Client) -> None:
        """Publishes the will for a session that was cut short: a clean disconnect makes the broker drop it."""
        with contextlib.suppress(aiomqtt.MqttError, UnreachableError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_S):
                await Session(client).publish(self._will.topic, self._will.payload, retain=True)  # type: ignore[arg-type]

    async def _listen(self, client: _Client) -> None:
        # A connection that lives this long resets the backoff; a flapping one does not.
        healthy = asyncio.get_running_loop().call_later(_HEALTHY_AFTER_S, self._backoff.healthy)
        try:
            async for _ in client.messages:
                pass
        finally:
            healthy.cancel()


async def stand_by(
    url: str, *, client_id: str, rivals: Callable[[], Rivals], rng: random.Random, tls: ssl.SSLContext | None = None
) -> None:
    """Waits until no other live node publishes our symbols, as far as the broker knows; waits for the broker, too."""
    backoff = Backoff(rng, first_s=0.25, cap_s=15.0)
    known: str | None = None
    while True:
        client = broker_client(url, client_id, tls=tls)
        try:
            async with client:
                known = None
                await rivals().all_gone(client)
                return
        except _LOST as error:
            reason = client.why(error)
            if reason != known:
                log.warning("standing by: no connection to the MQTT broker, reconnecting: %s", reason)
                known = reason
        await asyncio.sleep(backoff.next_s())


def tls_context(
    url: str, ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext | None:
    """Returns the TLS context for the broker; None where `url` is not encrypted. Reads files.

    The broker's certificate is verified by the authorities in `ca_file` (PEM) and no other, or without it by the
    environment's. The broker verifies us by `cert_file`, whose key is in the same file or in `key_file`. Raises
    `RefusedError` where one of the files cannot be used.
    """
    if urlsplit(url).scheme != "mqtts":
        return None
    context = authorities(ca_file, "--mqtt-ca-file")
    if cert_file is not None:
        _introduce(context, cert_file, key_file)
    return context


def _introduce(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    given = f"--mqtt-cert-file {cert_file}" + (f", --mqtt-key-file {key_file}" if key_file else "")

    def no_passphrase() -> str:
        # Without this callback OpenSSL would prompt on the terminal, and wait.
        raise RefusedError(
            f"{given}: the key is encrypted, and nobody is there to say the passphrase: decrypt the file"
        )

    try:
        context.load_cert_chain(cert_file, key_file, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            cause = "the key is not the certificate's"
        else:
            cause = "a certificate and its key, both in PEM, cannot be read there"
        raise RefusedError(f"{given}: {cause}") from None
    except OSError as error:
        raise RefusedError(f"{given}: cannot be read: {error.strerror}") from None


def broker_client(
    url: str, client_id: str, will: aiomqtt.Will | None = None, *, tls: ssl.SSLContext | None = None
) -> _Client:
    """Returns an MQTT 5 client for `mqtt[s]://[user:password@]host[:port]`, not yet connected.

    `mqtts://` is always verified: by `tls`, else by the authorities of the environment or the system.
    """
    address = parse(url)
    encrypted = address.scheme == "mqtts"
    client = _Client(
        address.host,
        address.port or (8883 if encrypted else 1883),
        # A token without a user name has an empty one: paho omits a password that has none.
        username=address.username,
        password=address.password,
        identifier=client_id,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=will,
        tls_context=(tls or tls_context(url, None)) if encrypted else None,
        keepalive=_KEEPALIVE_S,
        timeout=_TIMEOUT_S,
        max_queued_incoming_messages=_MOST_QUEUED,
    )
    return client
