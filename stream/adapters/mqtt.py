"""MQTT 5 over aiomqtt (asyncio-mqtt under its present name): connect, say what the will is, publish, come back.

The library holds no queue for us and repeats nothing across connections: what must not be lost waits in the
journal's outbox, and a publish counts only when the broker has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream.adapters.backoff import Backoff
from stream.adapters.outbound import authorities
from stream.adapters.rivals import Rivals
from stream.core.messages import CONTENT_TYPE
from stream.ports import BrokerConnected, BrokerLost, Observer, Publisher, RefusedError, UnreachableError
from stream.urls import parse

T = TypeVar("T")

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
#: A slow broker is waited for: to connect anew would only have it hear the same message twice.
_ACKNOWLEDGED_S = 15.0
_KEEPALIVE_S = 20
_HEALTHY_AFTER_S = 5.0
_LAST_WORD_S = 1.0
_CANCEL_AGAIN_S = 0.2
#: MQTT 5: another client has connected with our client id.
_TAKEN_OVER = 0x8E


def _properties(packet: int, expiry_s: int | None = None) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    properties.PayloadFormatIndicator = 1
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties


class _Client(aiomqtt.Client):
    """The library takes any PUBACK for an acknowledgement, also one that says "not authorized" or "quota exceeded"."""

    refusal: str | None = None
    taken_over = False

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:
        # Every wait of the library goes through this. Its own is asyncio's wait_for, which before Python 3.12 returns
        # normally where a cancellation meets the answer: the task then goes on as if nobody had told it to end.
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("Operation timed out") from None

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except asyncio.CancelledError:
            # The library leaves the connection open; and what it waited on cancelled, over which it would stumble.
            self._connected = asyncio.Future()
            self._client.disconnect()
            raise

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if getattr(reason_code, "value", None) == _TAKEN_OVER:
            self.taken_over = True
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        if reason_code.is_failure:
            self.refusal = str(reason_code)
        super()._on_publish(client, userdata, mid, reason_code, properties)


#: What may end a connection, or keep it from coming about: tried again for ever.
_LOST = (aiomqtt.MqttError, UnreachableError, OSError, UnicodeError)


class Session:
    """`stream.ports.Publisher` on one live connection; one message at a time."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        try:
            await self._client.publish(
                topic,
                payload,
                qos=1,
                retain=retain,
                properties=_properties(PacketTypes.PUBLISH, expiry_s),
                timeout=_ACKNOWLEDGED_S,
            )
        except aiomqtt.MqttError as error:
            raise UnreachableError(f"the broker did not acknowledge: {error}") from None
        if self._client.refusal is not None:
            raise UnreachableError(f"the broker refused {topic}: {self._client.refusal}")


class MqttBroker:
    """`stream.ports.Broker` at `mqtt://` or `mqtts://[user:password@]host[:port]`."""

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
    ) -> None:
        """`will` is what the broker says on `will_topic`, retained, when this client vanishes. `rivals` makes what
        looks around on each connection before anything is said; without it nobody looks."""
        self._url = url
        self._client_id = client_id
        self._will = aiomqtt.Will(will_topic, will, qos=1, retain=True, properties=_properties(PacketTypes.WILLMESSAGE))
        self._observe = observe
        # Longer than a look around takes: who has taken our name must have had the time to say so.
        self._backoff = Backoff(rng, first_s=0.5, cap_s=15.0)
        self._tls = tls
        self._rivals = rivals

    async def run(self, session: Callable[[Publisher], Awaitable[None]]) -> None:
        """Returns when `session` returns by itself: then it has said its last word. `RefusedError` where another node
        publishes the same, or another client takes our client id."""
        known: str | None = None
        spoken = False
        while True:
            client = broker_client(self._url, self._client_id, self._will, tls=self._tls)
            try:
                async with client:
                    self._observe(BrokerConnected())
                    log.info("connected to the broker")
                    known = None
                    if self._rivals is not None:
                        rivals = self._rivals()
                        await rivals.look_once(client)
                        rivals.refuse()
                        if spoken:
                            rivals.refuse_usurper()
                    spoken = True
                    await self._attend(client, session)
                    return
            except _LOST as error:
                if client.taken_over:
                    raise RefusedError(
                        f"another client has connected to the broker with our client id {self._client_id}: "
                        "give each node its own --instance"
                    ) from None
                # Said once per cause, not once per attempt.
                reason = f"{type(error).__name__}: {error}"
                self._observe(BrokerLost(reason))
                if reason != known:
                    log.warning("no broker, trying on: %s", reason)
                    known = reason
            await asyncio.sleep(self._backoff.next_s())

    async def _attend(self, client: _Client, session: Callable[[Publisher], Awaitable[None]]) -> None:
        """Runs the session beside an ear on the connection: a session that is silent must notice its end too."""
        speaking = asyncio.ensure_future(session(Session(client)))
        listening = asyncio.ensure_future(self._listen(client))
        try:
            await asyncio.wait((speaking, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (listening, speaking):
                # Again and again: Python 3.11's wait_for, which the library uses, loses a cancellation that meets
                # the acknowledgement.
                while not task.done():
                    task.cancel()
                    await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
            if speaking.cancelled() or speaking.exception() is not None:
                await self._say_will(client)
        if not listening.cancelled():
            listening.result()
        speaking.result()

    async def _say_will(self, client: _Client) -> None:
        """Leaving politely makes the broker drop the will; a session that did not end with its last word says it."""
        with contextlib.suppress(aiomqtt.MqttError, UnreachableError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_S):
                await Session(client).publish(self._will.topic, self._will.payload, retain=True)  # type: ignore[arg-type]

    async def _listen(self, client: _Client) -> None:
        # A connection that lives this long forgives the failures before it; a flapping one does not.
        healthy = asyncio.get_running_loop().call_later(_HEALTHY_AFTER_S, self._backoff.healthy)
        try:
            async for _ in client.messages:
                pass
        finally:
            healthy.cancel()


async def stand_by(
    url: str, *, client_id: str, rivals: Callable[[], Rivals], rng: random.Random, tls: ssl.SSLContext | None = None
) -> None:
    """Returns once no other live node publishes ours, as far as the broker knows; waits for the broker, too."""
    backoff = Backoff(rng, first_s=0.25, cap_s=15.0)
    known: str | None = None
    while True:
        try:
            async with broker_client(url, client_id, tls=tls) as client:
                known = None
                await rivals().all_gone(client)
                return
        except _LOST as error:
            reason = f"{type(error).__name__}: {error}"
            if reason != known:
                log.warning("standing by: no broker, trying on: %s", reason)
                known = reason
        await asyncio.sleep(backoff.next_s())


def tls_context(
    url: str, ca_file: Path | None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext | None:
    """What verifies the broker's certificate: the environment's authorities, or those in `ca_file` (PEM) and no other;
    and what the broker verifies us by: `cert_file`, its key within or in `key_file`. None where `url` is not encrypted.
    Reads files. `RefusedError` where they will not do."""
    if urlsplit(url).scheme != "mqtts":
        return None
    context = authorities(ca_file, "--mqtt-ca-file")
    if cert_file is not None:
        _introduce(context, cert_file, key_file)
    return context


def _introduce(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    given = f"--mqtt-cert-file {cert_file}" + (f", --mqtt-key-file {key_file}" if key_file else "")

    def no_passphrase() -> str:
        # Without an answer of ours OpenSSL would ask on the terminal, and wait.
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
    """A client for `mqtt[s]://[user:password@]host[:port]`, MQTT 5, not yet connected. `mqtts://` is always verified:
    by `tls`, else by the system's authorities."""
    address = parse(url)
    encrypted = address.scheme == "mqtts"
    client = _Client(
        address.host,
        address.port or (8883 if encrypted else 1883),
        # A token without a name has an empty one: paho leaves out a password that has none.
        username=address.username,
        password=address.password,
        identifier=client_id,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=will,
        tls_context=(tls or tls_context(url, None)) if encrypted else None,
        keepalive=_KEEPALIVE_S,
        timeout=_TIMEOUT_S,
    )
    # The library warns above ten; we wait for each acknowledgement, so the number says nothing here.
    client.pending_calls_threshold = 1_000
    return client
