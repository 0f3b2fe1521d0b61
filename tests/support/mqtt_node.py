"""A node's connection to the scripted broker, and sessions that publish a few events."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable

from scripted_broker import Scripted

from stream.adapters.mqtt.broker import MqttBroker
from stream.adapters.mqtt.rivals import Rivals
from stream.core.messages.topics import node_topic
from stream.ports import Publisher
from stream.telemetry import Fact


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


def node_messages(instance: str, state: str, symbols: list[str]) -> list[tuple[str, bytes]]:
    return [
        (node_topic(instance, "state"), json.dumps({"state": state}).encode()),
        (node_topic(instance, "info"), json.dumps({"symbols": symbols}).encode()),
    ]


def ours() -> Rivals:
    return Rivals("n", ("BTCUSDT", "ETHUSDT"))
