"""The feed against a real server on loopback that behaves badly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from stream.adapters.backoff import Backoff
from stream.adapters.feed import BinanceFeed
from stream.core.binance import KlineUpdate
from stream.core.candle import HOUR_MS, Candle
from stream.ports import Clock, Fact, FeedConnected, FeedDisconnected, FrameRejected
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

START = 1_704_067_200_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")


class Listener:
    """Keeps what it hears; `enough` is set when `closes` closing frames have come."""

    def __init__(self, closes: int) -> None:
        self.heard: list[Candle] = []
        self.reasons: list[str] = []
        self.connections = 0
        self.forming_count = 0
        self.enough = asyncio.Event()
        self._closes = closes

    def connected(self) -> None:
        self.connections += 1

    def disconnected(self, reason: str) -> None:
        self.reasons.append(reason)

    def forming(self, update: KlineUpdate, received_at_s: float) -> None:
        assert not update.closed
        self.forming_count += 1

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None:
        assert update.closed
        self.heard.append(update.candle)
        if len(self.heard) >= self._closes:
            self.enough.set()


@pytest.fixture
def tape() -> dict[str, list[Candle]]:
    return simulate(SYMBOLS, START, 48, 7)


@pytest.fixture
async def exchange(tape: dict[str, list[Candle]]) -> AsyncIterator[Exchange]:
    async with Exchange(tape, START, speed=None) as running:
        yield running


async def listen(exchange: Exchange, closes: int, facts: list[Fact], **options: float) -> Listener:
    listener = Listener(closes)
    rng = random.Random(1)
    feed = BinanceFeed(
        exchange.ws_url,
        SYMBOLS,
        clock=Clock(),
        observe=facts.append,
        rng=rng,
        backoff=Backoff(rng, first_s=0.01, cap_s=0.05),
        **options,
    )
    running = asyncio.create_task(feed.run(listener))
    try:
        async with asyncio.timeout(30):
            await listener.enough.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return listener


async def test_every_close_arrives_in_order_for_each_symbol(exchange: Exchange, tape: dict[str, list[Candle]]) -> None:
    listener = await listen(exchange, 96, [])
    for symbol in SYMBOLS:
        assert [c.ohlcv for c in listener.heard if c.symbol == symbol] == [c.ohlcv for c in tape[symbol]]
    assert listener.forming_count > 0


async def test_a_server_that_accepts_and_closes_is_outlived_without_a_storm(exchange: Exchange) -> None:
    exchange.fault("flap", n=20)
    facts: list[Fact] = []
    listener = await listen(exchange, 10, facts)
    assert listener.connections == 21
    assert listener.reasons[:20] == ["closed_1001"] * 20
    assert len([f for f in facts if isinstance(f, FeedConnected)]) == 21


@pytest.mark.parametrize(("status", "reason"), [(500, "http_500"), (503, "http_503"), (404, "http_other")])
async def test_http_refusals_are_outlived(exchange: Exchange, status: int, reason: str) -> None:
    exchange.fault("refuse", status=status, n=3)
    facts: list[Fact] = []
    listener = await listen(exchange, 10, facts)
    assert [f.reason for f in facts if isinstance(f, FeedDisconnected)] == [reason] * 3
    assert listener.connections == 1


async def test_a_stream_that_is_open_and_mute_is_given_up(tape: dict[str, list[Candle]]) -> None:
    # Paced: at max speed the tape would run to its end while the connection is mute.
    async with Exchange(tape, START, speed=36_000.0) as exchange:
        exchange.fault("mute", at=START + 5 * HOUR_MS)
        listener = await listen(exchange, 20, [], stall_after_s=1.0)
    assert listener.reasons == ["stall"]
    assert listener.connections == 2


async def test_a_dropped_connection_comes_back(exchange: Exchange) -> None:
    exchange.fault("drop", at=START + 5 * HOUR_MS)
    listener = await listen(exchange, 40, [])
    assert listener.connections == 2
    assert len(listener.reasons) == 1


async def test_a_frame_that_cannot_be_used_is_counted_and_the_next_one_is_read() -> None:
    from websockets.asyncio.server import ServerConnection, serve

    from stream.testing.wire import kline_payload

    candle = simulate(["BTCUSDT"], START, 1, 7)["BTCUSDT"][0]

    async def speak(socket: ServerConnection) -> None:
        for frame in ("not json", b"\xff\xfe", '{"e":"trade"}', '{"e":"kline","s":"BTCUSDT"}'):
            await socket.send(frame)
        await socket.send(kline_payload(candle, candle.close_time + 80, closed=True), text=True)
        await socket.wait_closed()

    facts: list[Fact] = []
    async with serve(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        rng = random.Random(1)
        feed = BinanceFeed(f"ws://127.0.0.1:{port}", ["BTCUSDT"], clock=Clock(), observe=facts.append, rng=rng)
        listener = Listener(1)
        running = asyncio.create_task(feed.run(listener))
        async with asyncio.timeout(10):
            await listener.enough.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    reasons = [f.reason for f in facts if isinstance(f, FrameRejected)]
    assert reasons == ["not_json_object", "not_json_object", "unknown_event", "kline_fields"]


def test_backoff_grows_to_its_cap_and_is_forgiven() -> None:
    backoff = Backoff(random.Random(3), first_s=1.0, cap_s=60.0)
    delays = [backoff.next_s() for _ in range(2_000)]
    assert all(0.75 <= d <= 75 for d in delays)
    assert min(delays[20:]) >= 45
    # The exchange allows 300 attempts in five minutes: even from nothing we stay far below.
    assert next(i for i in range(len(delays)) if sum(delays[:i]) > 300) < 30
    backoff.healthy()
    assert backoff.next_s() <= 1.25
