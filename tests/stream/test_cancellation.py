"""A cancelled task ends, also where the cancellation meets an answer of the network in one round of the event loop."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from stream.adapters.feed.client import BinanceFeed
from stream.adapters.mqtt.broker import MqttBroker, stand_by
from stream.adapters.mqtt.rivals import Rivals
from stream.adapters.rest.history import BinanceHistory
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS
from stream.ports import Publisher
from stream.testing.broker import EmbeddedBroker
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

START = 1_704_067_200_000
#: Rounds of the loop between the network's answer and the cancellation.
ROUNDS = range(4)


class CancellingLoop(asyncio.SelectorEventLoop):
    """An event loop that cancels a task some rounds after the n-th time that the network had something for it."""

    victim: asyncio.Task[Any] | None = None

    def __init__(self, answers: int, rounds: int) -> None:
        super().__init__()
        self._answers, self._rounds = answers, rounds
        self.cancelled = asyncio.Event()

    def _process_events(self, events: list[Any]) -> None:
        super()._process_events(events)  # type: ignore[misc]
        if events and self.victim is not None:
            self._answers -= 1
            if self._answers == 0:
                self._cancel_after(self._rounds)

    def _cancel_after(self, rounds: int) -> None:
        if rounds:
            self.call_soon(self._cancel_after, rounds - 1)
        elif self.victim is not None:
            self.victim.cancel()
            self.cancelled.set()


def close_forgotten() -> None:
    """Closes sockets that Python 3.11 forgets: such as have just won the race of addresses when the race is cancelled
    in that round. The garbage collector closes them, and would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def ends(answers: int, rounds: int, work: Callable[[], Awaitable[None]]) -> bool:
    """Returns whether `work`, which would go on for ever, ends when it is cancelled."""
    loop = CancellingLoop(answers, rounds)

    async def main() -> bool:
        loop.victim = asyncio.ensure_future(work())
        cancelled = asyncio.ensure_future(loop.cancelled.wait())
        await asyncio.wait([loop.victim, cancelled], timeout=30, return_when=asyncio.FIRST_COMPLETED)
        cancelled.cancel()
        assert loop.cancelled.is_set(), "the network had less to say than that"
        # Longer than the shipped servers wait for the handshake of a connection that was given up.
        await asyncio.wait([loop.victim], timeout=30)
        ended = loop.victim.done()
        while not loop.victim.done():
            loop.victim.cancel()
            await asyncio.wait([loop.victim], timeout=0.5)
        return ended

    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        close_forgotten()


@pytest.fixture(scope="module")
def broker_url() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.url


@pytest.mark.fault(51)
@pytest.mark.parametrize("answers", range(1, 9))
def test_a_broker_connection_ends_whenever_it_is_told_to(answers: int, broker_url: str) -> None:
    """A broker answers CONNACK, SUBACK, retained messages, UNSUBACKs and PUBACKs, in this order."""

    async def session(publisher: Publisher) -> None:
        while True:
            await publisher.publish("some/topic", b"{}")

    def work() -> Awaitable[None]:
        return MqttBroker(
            broker_url,
            client_id="x",
            will_topic="a/b",
            will=b"{}",
            observe=lambda fact: None,
            rng=random.Random(1),
            rivals=lambda: Rivals("x", ["BTCUSDT"]),
        ).run(session)

    assert [rounds for rounds in ROUNDS if not ends(answers, rounds, work)] == []


@pytest.mark.fault(51)
@pytest.mark.parametrize("answers", range(1, 3))
def test_standing_by_ends_whenever_it_is_told_to(answers: int, broker_url: str) -> None:
    class NeverAlone(Rivals):
        def alive(self) -> dict[str, list[str]]:
            return {"another": ["BTCUSDT"]}

    def work() -> Awaitable[None]:
        return stand_by(broker_url, client_id="y", rivals=lambda: NeverAlone("y", ["BTCUSDT"]), rng=random.Random(1))

    assert [rounds for rounds in ROUNDS if not ends(answers, rounds, work)] == []


class Listener:
    """Accepts what the feed brings and ignores it."""

    def connected(self) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    async def closed(self, frame: object, received_at_s: float) -> None: ...

    def forming(self, frame: object, received_at_s: float) -> None: ...


def market() -> Exchange:
    candles = simulate(["BTCUSDT"], START - 1_500 * HOUR_MS, 2_000, 1)
    return Exchange.replaying(candles, START, 500, 3_600.0, seed=1)


@pytest.mark.fault(51)
@pytest.mark.parametrize("answers", range(1, 8))
def test_the_feed_ends_whenever_it_is_told_to(answers: int) -> None:
    async def work() -> None:
        async with market() as exchange:
            feed = BinanceFeed(
                exchange.ws_url, ["BTCUSDT"], clock=Clock(), observe=lambda fact: None, rng=random.Random(1)
            )
            await feed.run(Listener())

    assert [rounds for rounds in ROUNDS if not ends(answers, rounds, work)] == []


@pytest.mark.fault(51)
@pytest.mark.parametrize("answers", range(1, 8))
def test_a_question_to_rest_ends_whenever_it_is_told_to(answers: int) -> None:
    async def work() -> None:
        async with market() as exchange, BinanceHistory(exchange.rest_url, clock=Clock()) as history:
            while True:
                await history.candles("BTCUSDT", START - 1_400 * HOUR_MS, START - HOUR_MS)

    assert [rounds for rounds in ROUNDS if not ends(answers, rounds, work)] == []
