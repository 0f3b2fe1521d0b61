"""The feed against a real server on loopback that behaves badly."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dead_addresses import dead_addresses

from stream.adapters.backoff import Backoff
from stream.adapters.feed.client import ROTATE_AFTER_S, BinanceFeed
from stream.adapters.rest.history import BinanceHistory
from stream.clock import Clock
from stream.core.market.binance import KlineUpdate
from stream.core.market.candle import HOUR_MS, Candle
from stream.telemetry import Fact, FeedConnected, FeedDisconnected, FeedQuiet, FrameRejected
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

START = 1_704_067_200_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")


class Listener:
    """Keeps what it receives; `enough` is set when `closes` closing frames have come."""

    def __init__(self, closes: int) -> None:
        self.received: list[Candle] = []
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
        self.received.append(update.candle)
        if len(self.received) >= self._closes:
            self.enough.set()


@pytest.fixture
def tape() -> dict[str, list[Candle]]:
    return simulate(SYMBOLS, START, 48, 7)


@pytest.fixture
async def exchange(tape: dict[str, list[Candle]]) -> AsyncIterator[Exchange]:
    async with Exchange(tape, START, speed=None) as running:
        yield running


async def listen(
    exchange: Exchange, closes: int, facts: list[Fact], url: str | None = None, **options: Any
) -> Listener:
    listener = Listener(closes)
    rng = random.Random(1)
    feed = BinanceFeed(
        url or exchange.ws_url,
        SYMBOLS,
        **{"clock": Clock(), "backoff": Backoff(rng, first_s=0.01, cap_s=0.05), **options},
        observe=facts.append,
        rng=rng,
    )
    running = asyncio.create_task(feed.run(listener))
    try:
        async with asyncio.timeout(120):
            await listener.enough.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return listener


async def test_every_close_arrives_in_order_for_each_symbol(exchange: Exchange, tape: dict[str, list[Candle]]) -> None:
    listener = await listen(exchange, 96, [])
    for symbol in SYMBOLS:
        assert [c.ohlcv for c in listener.received if c.symbol == symbol] == [c.ohlcv for c in tape[symbol]]
    assert listener.forming_count > 0


@pytest.mark.fault(49)
async def test_a_dead_address_of_the_exchanges_name_does_not_hide_the_living_one(
    tape: dict[str, list[Candle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Exchange(tape, START, speed=None) as exchange:
        stream, rest = (int(url.rpartition(":")[2].rstrip("/")) for url in (exchange.ws_url, exchange.rest_url))
        with dead_addresses(rest, monkeypatch) as name:
            async with BinanceHistory(f"http://{name}:{rest}", clock=Clock()) as history:
                await history.exchange_info("BTCUSDT")
        with dead_addresses(stream, monkeypatch) as name:
            await listen(exchange, 10, [], url=f"ws://{name}:{stream}")


async def test_a_server_that_accepts_and_closes_is_outlived_without_a_storm(exchange: Exchange) -> None:
    exchange.fault("flap", n=20)
    facts: list[Fact] = []
    listener = await listen(exchange, 10, facts)
    assert listener.connections == 21
    assert listener.reasons[:20] == ["closed_1001"] * 20
    assert len([f for f in facts if isinstance(f, FeedConnected)]) == 21


@pytest.mark.parametrize(("status", "reason"), [(500, "http_500"), (503, "http_503"), (410, "http_other")])
async def test_http_refusals_are_outlived(exchange: Exchange, status: int, reason: str) -> None:
    exchange.fault("refuse", status=status, n=3)
    facts: list[Fact] = []
    listener = await listen(exchange, 10, facts)
    assert [f.reason for f in facts if isinstance(f, FeedDisconnected)] == [reason] * 3
    assert listener.connections == 1


async def test_a_stream_that_is_open_and_mute_is_given_up() -> None:
    # Slow and long: the tape must not end while the connection is mute.
    async with Exchange(simulate(SYMBOLS, START, 600, 7), START, speed=36_000.0) as exchange:
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

    async def send_frames(socket: ServerConnection) -> None:
        for frame in ("not json", b"\xff\xfe", '{"e":"trade"}', '{"e":"kline","s":"BTCUSDT"}'):
            await socket.send(frame)
        await socket.send(kline_payload(candle, candle.close_time + 80, closed=True), text=True)
        await socket.wait_closed()

    facts: list[Fact] = []
    async with serve(send_frames, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        rng = random.Random(1)
        feed = BinanceFeed(f"ws://127.0.0.1:{port}", ["BTCUSDT"], clock=Clock(), observe=facts.append, rng=rng)
        listener = Listener(1)
        running = asyncio.create_task(feed.run(listener))
        async with asyncio.timeout(120):
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
    # The exchange allows 300 attempts in five minutes: from the first delay on there are far fewer.
    assert next(i for i in range(len(delays)) if sum(delays[:i]) > 300) < 30
    backoff.healthy()
    assert backoff.next_s() <= 1.25


class FastClock:
    """A clock for tests: sleeping moves it at once, and lets the loop run."""

    def __init__(self, scale: float = 1.0) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(monotonic_s=lambda: self.now_s, sleep=self.sleep)


@pytest.mark.fault(32)
@pytest.mark.parametrize("status", [301, 302, 403, 404, 418, 429, 451])
async def test_a_refusal_that_will_last_is_named_and_not_asked_again_at_once(exchange: Exchange, status: int) -> None:
    location = "ws://127.0.0.1:1/elsewhere" if status < 400 else None
    exchange.fault("refuse", status=status, n=3, location=location)
    fast = FastClock()
    facts: list[Fact] = []
    listener = await listen(exchange, 10, facts, clock=fast.clock)
    assert [f.reason for f in facts if isinstance(f, FeedDisconnected)] == [f"http_{status}"] * 3
    assert [s for s in fast.slept if s >= 30] == [30.0] * 3
    assert listener.connections == 1


@pytest.mark.fault(5)
async def test_hundreds_of_symbols_are_subscribed_within_the_exchanges_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    symbols = tuple(f"A{i:03d}USDT" for i in range(650))
    tape = simulate(symbols, START, 1, 7)
    async with Exchange(tape, START, speed=3_600.0, ping_interval_s=0.4) as exchange:
        listener = Listener(len(symbols))
        facts: list[Fact] = []
        rng = random.Random(1)
        feed = BinanceFeed(exchange.ws_url, symbols, clock=Clock(), observe=facts.append, rng=rng)
        running = asyncio.create_task(feed.run(listener))
        async with asyncio.timeout(120):
            while sum(len(c["streams"]) for c in exchange.state()["connections"]) < 650:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert exchange.limits()["broken"] == 0
        assert 2 <= exchange.limits()["control_frames_in_1_s"] <= 5
        subscriptions = [e for e in exchange.access_log.entries("frame") if e.method == "SUBSCRIBE"]
        assert len(subscriptions) == 6
    assert not [f for f in facts if isinstance(f, FeedDisconnected)]


async def test_a_stream_that_is_silent_because_nothing_is_traded_raises_no_alarm(tape: dict[str, list[Candle]]) -> None:
    # At this speed no update is due for an hour.
    known = {s: tape[s][0] for s in SYMBOLS}
    asked: list[str] = []
    enough = asyncio.Event()

    async def newest(symbol: str) -> Candle | None:
        asked.append(symbol)
        if len(asked) >= 20:
            enough.set()
        return known[symbol]

    facts, fast = await _silent(tape, newest, enough)
    quiet = [f.quiet for f in facts if isinstance(f, FeedQuiet)]
    # At first there was no candle to compare with, which counts as a stall; from then on nothing is taken for one.
    assert [f.reason for f in facts if isinstance(f, FeedDisconnected)] == ["stall"]
    assert quiet == [True]
    assert fast.now_s > 300


async def test_a_dead_stream_is_noticed_within_90_seconds(tape: dict[str, list[Candle]]) -> None:
    calls = iter(range(1, 10**6))
    ended = asyncio.Event()

    async def newest(symbol: str) -> Candle | None:
        n = next(calls)
        if n > 12:
            ended.set()
        return Candle(symbol, START, 1.0, 1.0, 1.0, 1.0, float(n))

    facts, fast = await _silent(tape, newest, ended)
    reasons = [f.reason for f in facts if isinstance(f, FeedDisconnected)]
    assert set(reasons) == {"stall"}
    # Each stall was noticed within 90 s, not counting the backoff between connections.
    delays = sum(s for s in fast.slept if s not in (1.0, 5.0))
    assert (fast.now_s - delays) / len(reasons) < 90


async def _silent(tape: dict[str, list[Candle]], newest, ends: asyncio.Event):  # type: ignore[no-untyped-def]
    fast = FastClock()
    facts: list[Fact] = []
    rng = random.Random(1)
    async with Exchange(tape, START, speed=0.001) as exchange:
        feed = BinanceFeed(exchange.ws_url, SYMBOLS, clock=fast.clock, observe=facts.append, rng=rng, newest=newest)
        running = asyncio.create_task(feed.run(Listener(10**6)))
        async with asyncio.timeout(120):
            await ends.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return facts, fast


@pytest.mark.fault(4)
async def test_a_connection_is_relieved_before_its_day_is_over_and_not_near_a_close(
    tape: dict[str, list[Candle]],
) -> None:
    looks = iter(range(10**6))
    facts: list[Fact] = []
    async with Exchange(tape, START, speed=36_000.0) as exchange:
        listener = await listen(
            exchange,
            96,
            facts,
            rotate_after_s=(0.2, 0.3),
            until_calm_s=lambda: float(next(looks) < 3),
            stall_after_s=1.0,
        )
    reasons = [(f.reason, f.still_open) for f in facts if isinstance(f, FeedDisconnected)]
    assert reasons
    assert set(reasons) == {("rotated", True)}
    assert next(looks) > 3
    assert max(ROTATE_AFTER_S) < 86_400
    assert listener.connections == 1
    # Nothing is lost over the change; what both connections bring twice is for the sequencer to drop.
    for symbol in SYMBOLS:
        received = {c.open_time for c in listener.received if c.symbol == symbol}
        assert received == {c.open_time for c in tape[symbol] if c.open_time <= max(received)}
