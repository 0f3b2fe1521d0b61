"""Messages in flight: their answers, late answers, and what the end of the connection does to them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from scripted_broker import NOT_AUTHORIZED, Scripted

from stream.adapters.mqtt.broker import Session, broker_client
from stream.adapters.mqtt.deliveries import Deliveries
from stream.errors import HungUpError, MessageRefusedError, UnreachableError

RECEIVE_MAXIMUM = 0x21
LIMIT_S = 15.0


class Loop:
    """The running loop with a clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.create_future = asyncio.get_running_loop().create_future

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Any:
        timer = (when_s, callback)
        self._timers.append(timer)

        class Handle:
            def cancel(handle) -> None:  # noqa: N805
                self._timers.remove(timer)

        return Handle()

    def move(self, seconds: float) -> None:
        self.now_s += seconds
        while due := [timer for timer in self._timers if timer[0] <= self.now_s]:
            self._timers.remove(due[0])
            due[0][1]()


def failure(future: asyncio.Future[None]) -> BaseException | None:
    return future.exception() if future.done() else None


async def test_a_broker_that_is_slow_but_keeps_going_is_waited_for() -> None:
    loop = Loop()
    deliveries = Deliveries(loop, LIMIT_S)  # type: ignore[arg-type]
    futures = [deliveries.add(mid) for mid in range(1, 11)]
    for mid, future in enumerate(futures, start=1):
        loop.move(14.0)
        deliveries.acknowledge(mid)
        assert future.done()
        assert failure(future) is None
    # Nothing is in flight, so nothing becomes late.
    loop.move(100.0)
    later = deliveries.add(11)
    loop.move(14.0)
    assert not later.done()


async def test_the_oldest_message_is_late_whatever_is_acknowledged_after_it() -> None:
    loop = Loop()
    deliveries = Deliveries(loop, LIMIT_S)  # type: ignore[arg-type]
    never = deliveries.add(1)
    for mid in range(2, 6):
        other = deliveries.add(mid)
        loop.move(3.0)
        assert not never.done()
        deliveries.acknowledge(mid)
        assert failure(other) is None
    loop.move(3.0)
    assert isinstance(failure(never), UnreachableError)
    assert not isinstance(failure(never), HungUpError)


async def test_the_end_of_the_connection_fails_all_messages_in_flight() -> None:
    loop = Loop()
    deliveries = Deliveries(loop, LIMIT_S)  # type: ignore[arg-type]
    futures = [deliveries.add(mid) for mid in (1, 2, 3)]
    deliveries.acknowledge(1)
    deliveries.acknowledge(2, "Not authorized")
    deliveries.hang_up("Server shutting down")
    assert failure(futures[0]) is None
    assert isinstance(failure(futures[1]), MessageRefusedError)
    assert isinstance(failure(futures[2]), HungUpError)
    # An answer that comes late is no error.
    deliveries.acknowledge(3)
    loop.move(100.0)


async def test_messages_are_sent_without_waiting_for_answers_and_keep_their_order(scripted: Scripted) -> None:
    scripted.welcome = bytes([RECEIVE_MAXIMUM]) + struct.pack(">H", 20)
    scripted.denied = {"e/7": NOT_AUTHORIZED}
    scripted.prompt.clear()
    async with broker_client(scripted.url, "volcast-n") as client:
        session = Session(client)
        assert session.receive_maximum == 20
        futures = [session.publish(f"e/{n}", b"{}") for n in range(20)]
        await scripted.publish_received.wait()
        assert not any(future.done() for future in futures)
        scripted.prompt.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert scripted.received_topics("e/") == [f"e/{n}" for n in range(20)]
    assert [n for n, result in enumerate(results) if result is not None] == [7]
    assert isinstance(results[7], MessageRefusedError)


@pytest.mark.parametrize("gives_reason", [True, False])
async def test_a_broker_that_ends_the_connection_leaves_the_oldest_message_unanswered(
    scripted: Scripted, *, gives_reason: bool
) -> None:
    scripted.poison, scripted.gives_reason = {"e/3"}, gives_reason
    async with broker_client(scripted.url, "volcast-n") as client:
        futures = [Session(client).publish(f"e/{n}", b"{}") for n in range(8)]
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[:3] == [None] * 3
    assert all(isinstance(result, HungUpError) for result in results[3:])
    assert ("Not authorized" in str(results[3])) is gives_reason
