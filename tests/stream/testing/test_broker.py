"""stream.testing.broker: a real MQTT 5 client against the embedded broker."""

import asyncio
import signal
import socket
import sys

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream import web
from stream.testing.broker import MAX_PAYLOAD_BYTES, BrokerError, EmbeddedBroker


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker() as running:
        yield running


def client(broker: EmbeddedBroker) -> aiomqtt.Client:
    return aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5, timeout=10)


async def first_of(subscriber: aiomqtt.Client) -> aiomqtt.Message:
    return await anext(aiter(subscriber.messages))


async def test_a_late_subscriber_gets_what_was_retained_with_its_properties(broker):
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    async with client(broker) as publisher:
        await publisher.publish("late/one", b"{}", qos=1, retain=True, properties=properties)
    async with client(broker) as subscriber:
        await subscriber.subscribe("late/#", qos=1)
        message = await first_of(subscriber)
    assert (str(message.topic), message.payload, message.retain) == ("late/one", b"{}", True)
    assert message.properties.ContentType == "application/json"


async def test_a_payload_of_256_kib_goes_through(broker):
    assert MAX_PAYLOAD_BYTES > 262_144
    payload = bytes(262_144)
    async with client(broker) as subscriber, client(broker) as publisher:
        await subscriber.subscribe("large", qos=1)
        await publisher.publish("large", payload, qos=1)
        assert (await first_of(subscriber)).payload == payload


def die_connected(port: int, will_topic: str) -> None:
    doomed = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    doomed.will_set(will_topic, b"lost", qos=1, retain=True)
    doomed.connect("127.0.0.1", port)
    while not doomed.is_connected():
        doomed.loop()
    doomed.socket().shutdown(socket.SHUT_RDWR)  # the connection breaks: no DISCONNECT is sent
    doomed.loop()  # it notices, and closes its socket


async def test_a_last_will_is_published_when_the_client_is_lost(broker):
    async with client(broker) as subscriber:
        await subscriber.subscribe("will/state", qos=1)
        await asyncio.to_thread(die_connected, broker.port, "will/state")
        assert (await first_of(subscriber)).payload == b"lost"


def test_url_names_loopback_and_the_port_is_free_afterwards(capfd):
    with EmbeddedBroker() as broker:
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
        assert broker.is_running
    assert not broker.is_running
    web.bind("127.0.0.1", broker.port).close()
    assert capfd.readouterr() == ("", "")


def test_it_can_come_back_on_its_port():
    with EmbeddedBroker() as first:
        port = first.port
    with EmbeddedBroker(port) as second:
        assert second.port == port


def test_its_process_is_ended_without_being_asked_to():
    """It takes seconds to heed SIGTERM, and nothing that it could save is wanted."""
    with EmbeddedBroker() as broker:
        process = broker._process
    assert process.returncode == -signal.SIGKILL


def test_a_taken_port_is_one_line():
    with web.bind("127.0.0.1", 0) as taken, pytest.raises(web.PortInUseError, match="is in use"):
        EmbeddedBroker(taken.getsockname()[1]).start()


def test_without_iotcore_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "iotcore", None)
    with pytest.raises(BrokerError, match=r"iotcore: .*pip install .*\[demo\]"):
        EmbeddedBroker().start()


async def test_entering_in_a_thread_leaves_the_loop_free():
    broker = EmbeddedBroker()
    await asyncio.to_thread(broker.start)
    async with client(broker) as publisher:
        await publisher.publish("x", b"y", qos=1)
    await asyncio.to_thread(broker.stop)
