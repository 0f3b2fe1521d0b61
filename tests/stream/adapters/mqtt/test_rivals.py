"""Other nodes on the broker: who is a rival, who is not, and who stands by."""

from __future__ import annotations

import asyncio
import json
import logging
import random

import pytest
from mqtt_node import EVENTS, node, node_messages, ours, publishing
from scripted_broker import NOT_AUTHORIZED, QUOTA_EXCEEDED, TAKEN_OVER, Scripted

from stream.adapters.mqtt.broker import stand_by
from stream.adapters.mqtt.rivals import Rivals
from stream.core.messages.topics import node_topic
from stream.errors import RefusedError
from stream.ports import Publisher


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
