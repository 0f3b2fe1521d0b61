"""MQTT with a broker that misbehaves: a scripted one on a real socket, and a real one where it matters."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiomqtt
import pytest
from dead_addresses import dead_addresses
from scripted_broker import NOT_AUTHORIZED, QUOTA_EXCEEDED, SERVER_BUSY, TAKEN_OVER, Scripted

from stream.adapters.mqtt.broker import MqttBroker, Session, broker_client, stand_by, tls_context
from stream.adapters.mqtt.rivals import Rivals
from stream.core.messages.topics import node_topic
from stream.errors import HungUpError, MessageRefusedError, RefusedError
from stream.ports import Publisher
from stream.telemetry import BrokerConnected, BrokerLost, Fact


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with Scripted() as broker, asyncio.timeout(50):
        yield broker


def node(broker: Scripted, facts: list[Fact] | None = None, rivals: Callable[[], Rivals] | None = None) -> MqttBroker:
    return MqttBroker(
        broker.url,
        client_id="volcast-n",
        will_topic=node_topic("n", "state"),
        will=b"lost",
        observe=(facts if facts is not None else []).append,
        rng=random.Random(7),
        rivals=rivals,
    )


def publishing(topics: list[str]) -> Callable[[Publisher], Awaitable[None]]:
    """Returns a session that publishes each topic until it is acknowledged, in order, as the publisher does."""
    waiting = list(topics)

    async def session(publisher: Publisher) -> None:
        while waiting:
            await publisher.publish(waiting[0], b"{}")
            waiting.pop(0)

    return session


EVENTS = [f"e/{n}" for n in range(20)]


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


# --- addresses -------------------------------------------------------------------------------------------------


@pytest.mark.fault(49)
async def test_a_dead_address_of_the_brokers_name_does_not_hide_the_living_one(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_addresses(scripted.port, monkeypatch) as name:
        async with broker_client(f"mqtt://{name}:{scripted.port}", "volcast-n") as client:
            await Session(client).publish("e/0", b"x")
    assert scripted.received_topics("e/") == ["e/0"]


# --- rivals ----------------------------------------------------------------------------------------------------


def node_messages(instance: str, state: str, symbols: list[str]) -> list[tuple[str, bytes]]:
    return [
        (node_topic(instance, "state"), json.dumps({"state": state}).encode()),
        (node_topic(instance, "info"), json.dumps({"symbols": symbols}).encode()),
    ]


def ours() -> Rivals:
    return Rivals("n", ("BTCUSDT", "ETHUSDT"))


@pytest.mark.parametrize("state", ["starting", "ready", "degraded", "stopping"])
async def test_a_live_node_with_our_symbol_is_a_reason_not_to_speak(scripted: Scripted, state: str) -> None:
    scripted.retained = node_messages("other", state, ["XRPUSDT", "ETHUSDT"])
    with pytest.raises(RefusedError, match=r"node other .* publishes ETHUSDT too: .*--standby.*node/other/state"):
        await node(scripted, rivals=ours).run(publishing(EVENTS))
    assert scripted.received == []


@pytest.mark.parametrize(
    "retained",
    [
        [],
        node_messages("other", "ready", ["XRPUSDT"]),
        node_messages("other", "lost", ["BTCUSDT"]),
        node_messages("other", "stopped", ["BTCUSDT"]),
        node_messages("n", "ready", ["BTCUSDT"]),
        node_messages("other", "ready", [])[:1],
        node_messages("other", "ready", ["BTCUSDT"])[1:],
        [(node_topic("other", "state"), b"\xff{"), (node_topic("other", "info"), b"[" * 100_000)],
        [(node_topic("other", "state"), b"[]"), (node_topic("other", "info"), b'{"symbols": 7}')],
    ],
    ids=["nobody", "others", "lost", "stopped", "ourselves", "no-info", "no-state", "noise", "nonsense"],
)
async def test_what_is_no_rival_does_not_keep_us_from_speaking(
    scripted: Scripted, retained: list[tuple[str, bytes]]
) -> None:
    scripted.retained = retained
    await node(scripted, rivals=ours).run(publishing(EVENTS))
    assert scripted.received_topics("e/") == EVENTS


async def test_who_spoke_under_our_name_since_we_did_ends_us_and_our_own_past_does_not(scripted: Scripted) -> None:
    def state(session: str, since: int, state: str) -> list[tuple[str, bytes]]:
        message = {"state": state, "session": session, "since": since}
        return [(node_topic("n", "state"), json.dumps(message).encode())]

    def ourselves() -> Rivals:
        return Rivals("n", ("BTCUSDT",), session="ours", since_ms=1_000)

    async def run(retained: list[tuple[str, bytes]], first: list[tuple[str, bytes]]) -> None:
        """Runs a node that is refused once, and connects again to a broker that retains something else by then."""
        scripted.retained, scripted.pubacks = first, [QUOTA_EXCEEDED]
        waiting = list(EVENTS)

        async def session(publisher: Publisher) -> None:
            scripted.retained = retained
            await publishing(waiting)(publisher)

        await node(scripted, rivals=ourselves).run(session)

    await run(state("ours", 1_000, "lost"), first=state("theirs", 2_000, "ready"))
    await run(state("before", 900, "lost"), first=[])
    for word in ("ready", "lost"):
        with pytest.raises(RefusedError, match="under the name n: give each node its own --instance"):
            await run(state("theirs", 2_000, word), first=[])


async def test_a_broker_that_does_not_let_us_look_lets_us_speak(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.suback = NOT_AUTHORIZED
    await node(scripted, rivals=ours).run(publishing(EVENTS))
    assert scripted.received_topics("e/") == EVENTS
    assert "does not let us see other nodes" in caplog.text


@pytest.mark.fault(46)
@pytest.mark.parametrize("subscription", ["mute", "hang_up"])
async def test_who_may_not_subscribe_publishes_all_the_same_and_is_told_why_once(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, subscription: str
) -> None:
    scripted.subscription = subscription
    await node(scripted, rivals=ours).run(publishing(EVENTS))
    assert scripted.received_topics("e/") == EVENTS
    why = {"mute": "it does not answer a subscription", "hang_up": "it ends the connection when we subscribe"}
    warnings = [m for m in caplog.messages if "does not let us see other nodes" in m]
    assert len(warnings) == 1
    assert why[subscription] in warnings[0]


async def chatter(broker: Scripted, every_s: float = 0.1) -> None:
    """Publishes without end that another node is ready, for other symbols than this node's."""
    while True:
        for topic, payload in node_messages("noisy", "ready", ["XRPUSDT"]):
            broker.deliver(topic, payload, retain=False)
        await asyncio.sleep(every_s)


@pytest.mark.fault(46)
async def test_other_nodes_that_never_cease_to_talk_do_not_keep_us_from_speaking(scripted: Scripted) -> None:
    noise = asyncio.create_task(chatter(scripted))
    await node(scripted, rivals=ours).run(publishing(EVENTS))
    assert scripted.received_topics("e/") == EVENTS
    noise.cancel()


async def test_other_nodes_that_never_cease_to_talk_do_not_keep_a_standby_from_taking_over(scripted: Scripted) -> None:
    scripted.retained = node_messages("other", "ready", ["BTCUSDT"])
    noise = asyncio.create_task(chatter(scripted))
    waiting = asyncio.create_task(
        stand_by(scripted.url, client_id="volcast-n-standby", rivals=ours, rng=random.Random(7))
    )
    await scripted.subscribed.wait()
    scripted.deliver(*node_messages("other", "stopped", [])[0])
    await waiting
    noise.cancel()


async def test_an_end_of_our_own_making_is_no_rival(scripted: Scripted) -> None:
    """A connection may be taken over by this node's own earlier attempt that reached the broker late: no other node has
    published under its name since, so it goes on."""

    def ourselves() -> Rivals:
        return Rivals("n", ("BTCUSDT",), session="ours", since_ms=1_000)

    message = {"state": "ready", "session": "ours", "since": 1_500}
    scripted.retained = [(node_topic("n", "state"), json.dumps(message).encode())]
    scripted.prompt.clear()
    running = asyncio.create_task(node(scripted, rivals=ourselves).run(publishing(EVENTS)))
    await scripted.publish_received.wait()
    scripted.disconnect(TAKEN_OVER)
    scripted.prompt.set()
    await running
    assert scripted.connects == 2
    assert sorted(set(scripted.received_topics("e/")), key=EVENTS.index) == EVENTS


async def test_who_takes_our_connection_again_and_again_is_a_rival_though_it_says_nothing(scripted: Scripted) -> None:
    scripted.prompt.clear()
    running = asyncio.create_task(node(scripted, rivals=ours).run(publishing(EVENTS)))
    for _ in range(3):
        scripted.publish_received.clear()
        await scripted.publish_received.wait()
        scripted.disconnect(TAKEN_OVER)
    with pytest.raises(RefusedError, match="--instance"):
        await running
    assert scripted.connects == 3


async def test_our_own_past_with_a_clock_that_was_ahead_is_no_rival(scripted: Scripted) -> None:
    def ourselves() -> Rivals:
        return Rivals("n", ("BTCUSDT",), session="ours", since_ms=1_000)

    message = {"state": "lost", "session": "before", "since": 9_000}
    scripted.retained = [(node_topic("n", "state"), json.dumps(message).encode())]
    scripted.pubacks = [QUOTA_EXCEEDED]
    await node(scripted, rivals=ourselves).run(publishing(EVENTS))
    assert scripted.connects == 2


@pytest.mark.parametrize("end", ["stopped", "lost"])
async def test_who_stands_by_comes_in_when_the_other_has_gone(
    scripted: Scripted, end: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.retained = node_messages("other", "ready", ["BTCUSDT"])
    standing_by = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "standing by: the node other publishes BTCUSDT":
                standing_by.set()

    caplog.set_level("INFO")
    monkeypatch.setattr(logging.getLogger("stream.adapters.mqtt.rivals"), "handlers", [Listener()])
    waiting = asyncio.create_task(
        stand_by(scripted.url, client_id="volcast-n-standby", rivals=ours, rng=random.Random(7))
    )
    await standing_by.wait()
    assert not waiting.done()
    # Gone and back within the grace period: still alive.
    for topic, payload in [*node_messages("other", end, [])[:1], *node_messages("other", "starting", [])[:1]]:
        scripted.deliver(topic, payload)
    scripted.deliver(*node_messages("other", "ready", ["BTCUSDT"])[1])
    scripted.deliver(*node_messages("other", end, [])[0])
    await waiting
    assert scripted.received == []


async def test_nobody_to_wait_for_is_not_waited_for(scripted: Scripted) -> None:
    await stand_by(scripted.url, client_id="volcast-n-standby", rivals=ours, rng=random.Random(7))
    assert scripted.connects == 1


# --- what a broker's certificate is worth ----------------------------------------------------------------------


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
