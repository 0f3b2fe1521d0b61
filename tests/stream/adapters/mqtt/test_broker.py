"""MQTT with a broker that misbehaves: a scripted one on a real socket, and a real one where it matters."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import aiomqtt
import pytest
from dead_addresses import dead_addresses
from mqtt_node import EVENTS, node, publishing
from scripted_broker import NOT_AUTHORIZED, QUOTA_EXCEEDED, SERVER_BUSY, TAKEN_OVER, Scripted

from stream.adapters.mqtt.broker import Session, broker_client, tls_context
from stream.errors import HungUpError, MessageRefusedError, RefusedError
from stream.ports import Publisher
from stream.telemetry import BrokerConnected, BrokerLost, Fact


@pytest.mark.fault(31)
@pytest.mark.parametrize("code", [QUOTA_EXCEEDED, NOT_AUTHORIZED])
async def test_what_the_broker_refuses_is_said_again_in_order(scripted: Scripted, code: int) -> None:
    # The zero after a refusal answers the message that a session publishes when it has failed.
    scripted.pubacks = [0, 0, 0, code, 0, code, code, 0, code]
    facts: list[Fact] = []
    await node(scripted, facts).run(publishing(EVENTS))
    events = scripted.received_topics("e/")
    assert sorted(set(events), key=events.index) == EVENTS
    assert [t for t in events if events.count(t) > 1] == ["e/3"] * 3 + ["e/4"] * 2
    assert len([f for f in facts if isinstance(f, BrokerLost)]) == 3


@pytest.mark.fault(31)
async def test_a_slow_broker_is_waited_for_and_hears_everything_once(scripted: Scripted) -> None:
    scripted.prompt.clear()
    running = asyncio.create_task(node(scripted).run(publishing(EVENTS)))
    await scripted.publish_received.wait()
    assert scripted.received_topics("e/") == EVENTS[:1]
    scripted.prompt.set()
    await running
    assert scripted.received_topics("e/") == EVENTS
    assert scripted.connects == 1


@pytest.mark.fault(31)
async def test_refused_credentials_are_tried_again_and_told_once(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.connacks = [NOT_AUTHORIZED] * 3
    facts: list[Fact] = []
    await node(scripted, facts).run(publishing(EVENTS))
    assert scripted.received_topics("e/") == EVENTS
    assert [m for m in caplog.messages if "Not authorized" in m] == [caplog.messages[0]]
    assert [type(f) for f in facts][-1] is BrokerConnected


@pytest.mark.fault(31)
async def test_a_takeover_ends_the_node_instead_of_a_fight(scripted: Scripted) -> None:
    scripted.prompt.clear()
    running = asyncio.create_task(node(scripted).run(publishing(EVENTS)))
    await scripted.publish_received.wait()
    scripted.disconnect(TAKEN_OVER)
    with pytest.raises(RefusedError, match="--instance"):
        await running
    assert scripted.connects == 1


async def test_any_other_goodbye_of_the_broker_is_no_takeover(scripted: Scripted) -> None:
    scripted.prompt.clear()
    running = asyncio.create_task(node(scripted).run(publishing(EVENTS)))
    await scripted.publish_received.wait()
    scripted.disconnect(0x8B)
    scripted.prompt.set()
    await running
    assert scripted.connects == 2
    assert sorted(set(scripted.received_topics("e/")), key=EVENTS.index) == EVENTS


def property_text(identifier: int, text: str) -> bytes:
    return bytes([identifier]) + struct.pack(">H", len(text)) + text.encode()


REASON_STRING, MAXIMUM_PACKET_SIZE = 0x1F, 0x27


async def test_the_brokers_own_reason_is_what_the_log_says(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.connacks = [SERVER_BUSY]
    scripted.welcome = property_text(REASON_STRING, "come back\nlater")
    scripted.prompt.clear()
    facts: list[Fact] = []
    running = asyncio.create_task(node(scripted, facts).run(publishing(EVENTS)))
    await scripted.publish_received.wait()
    scripted.disconnect(0x8B)
    scripted.prompt.set()
    await running
    reasons = [f.reason for f in facts if isinstance(f, BrokerLost)]
    assert reasons == [
        "the broker refused the connection: Server busy (come back later)",
        "the broker ended the connection: Server shutting down",
    ]
    assert "timed out" not in caplog.text


async def test_a_connection_that_is_closed_without_an_answer_is_not_waited_out(scripted: Scripted) -> None:
    scripted.slams = True
    with pytest.raises(aiomqtt.MqttError, match="the broker closed the connection without an answer"):
        async with broker_client(scripted.url, "volcast-n"):
            pass


async def test_an_attempt_that_was_given_up_holds_no_connection(scripted: Scripted) -> None:
    """It would be established late, under this node's client id, and end the connection that came after it."""
    client = broker_client(scripted.url, "volcast-n")
    client.timeout = 0.05
    scripted.mute = True
    with pytest.raises(aiomqtt.MqttError, match="did not answer in time"):
        async with client:
            pass
    await scripted.left.wait()


async def test_what_is_too_large_for_this_broker_is_not_sent_to_it(scripted: Scripted) -> None:
    scripted.welcome = bytes([MAXIMUM_PACKET_SIZE]) + struct.pack(">I", 1_000)
    async with broker_client(scripted.url, "volcast-n") as client:
        with pytest.raises(MessageRefusedError, match=r"Packet too large \(2000 bytes; .*1000"):
            await Session(client).publish("e/0", b"x" * 2_000)
        await Session(client).publish("e/1", b"x")
    assert scripted.received_topics("e/") == ["e/1"]


async def test_a_refusal_is_of_the_message_and_the_end_of_the_connection_is_not(scripted: Scripted) -> None:
    scripted.denied, scripted.poison = {"e/0": NOT_AUTHORIZED}, {"e/2"}
    async with broker_client(scripted.url, "volcast-n") as client:
        session = Session(client)
        with pytest.raises(MessageRefusedError, match="Not authorized"):
            await session.publish("e/0", b"x")
        await session.publish("e/1", b"x")
        with pytest.raises(HungUpError, match="Not authorized"):
            await session.publish("e/2", b"x")


@pytest.mark.fault(45)
@pytest.mark.parametrize("gives_reason", [True, False])
async def test_who_publishes_hears_that_the_broker_hung_up(scripted: Scripted, gives_reason: bool) -> None:
    """MQTT 5 has a packet for it; older brokers close the connection."""
    scripted.poison, scripted.gives_reason = {"e/0"}, gives_reason
    errors: list[BaseException] = []

    async def session(publisher: Publisher) -> None:
        if errors:
            return
        try:
            await publisher.publish("e/0", b"x")
        except BaseException as error:
            errors.append(error)
            raise

    await node(scripted).run(session)
    assert [(type(e), str(e)) for e in errors] == [
        (HungUpError, "Not authorized" if gives_reason else "the connection ended without a word")
    ]


@pytest.mark.fault(49)
async def test_a_dead_address_of_the_brokers_name_does_not_hide_the_living_one(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_addresses(scripted.port, monkeypatch) as name:
        async with broker_client(f"mqtt://{name}:{scripted.port}", "volcast-n") as client:
            await Session(client).publish("e/0", b"x")
    assert scripted.received_topics("e/") == ["e/0"]


def test_a_ca_file_that_holds_no_certificate_is_refused_in_one_line(tmp_path: Path) -> None:
    nothing = tmp_path / "ca.pem"
    for content in (None, "", "no certificate"):
        if content is not None:
            nothing.write_text(content)
        with pytest.raises(RefusedError, match="--mqtt-ca-file"):
            tls_context("mqtts://broker.example", nothing)
    assert tls_context("mqtt://127.0.0.1", nothing) is None


def test_tls_is_verified_without_any_setting() -> None:
    import ssl

    context = tls_context("mqtts://broker.example", None)
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


async def test_a_token_without_a_user_name_reaches_the_broker() -> None:
    """The library omits a password that has no user name."""
    connect: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connect.set_result(await reader.read(4_096))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"mqtt://:token@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        with pytest.raises(aiomqtt.MqttError):
            async with broker_client(url, "n"):
                pass
    # Lengths and texts: no user name, and the token.
    assert (await connect).endswith(b"\0\0" + b"\0\5token")
