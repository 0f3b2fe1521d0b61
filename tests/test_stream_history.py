"""REST history against the shipped exchange: pages, the forming row, refusals, Retry-After."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from stream.adapters.history import BinanceHistory
from stream.core.binance import UnknownSymbolError
from stream.core.candle import HOUR_MS, Candle
from stream.ports import Clock, Fact, UnreachableError, WeightUsed
from stream.testing.exchange import Exchange
from stream.testing.market import simulate_symbol
from stream.testing.wire import kline_row

START = 1_704_067_200_000
HOURS = 2_500


@pytest.fixture(scope="module")
def candles() -> list[Candle]:
    holes = {START + h * HOUR_MS for h in (700, 701, 999, 1_000, 1_001)}
    return [c for c in simulate_symbol("BTCUSDT", START, HOURS, 3) if c.open_time not in holes]


@pytest.fixture
async def exchange(candles: list[Candle]) -> AsyncIterator[Exchange]:
    async with Exchange({"BTCUSDT": candles}, START + (HOURS - 10) * HOUR_MS + 1_000) as running:
        yield running


@pytest.fixture
async def history(exchange: Exchange) -> AsyncIterator[BinanceHistory]:
    async with BinanceHistory(exchange.rest_url, clock=Clock()) as client:
        yield client


async def test_pages_are_put_together_without_the_forming_row(history: BinanceHistory, candles: list[Candle]) -> None:
    answer = await history.candles("BTCUSDT", START)
    closed = [c for c in candles if c.close_time < answer.asked_at_ms]
    assert len(closed) == HOURS - 10 - 5
    assert [c.ohlcv for c in answer.candles] == [c.ohlcv for c in closed]
    assert [c.open_time for c in answer.candles] == [c.open_time for c in closed]


@pytest.mark.parametrize(("first", "last"), [(0, 999), (0, 1_000), (5, 5), (700, 701), (998, 2_000), (2_488, 2_489)])
async def test_a_range_is_exactly_what_exists_in_it(
    history: BinanceHistory, candles: list[Candle], first: int, last: int
) -> None:
    answer = await history.candles("BTCUSDT", START + first * HOUR_MS, START + last * HOUR_MS)
    expected = [c for c in candles if START + first * HOUR_MS <= c.open_time <= START + last * HOUR_MS]
    assert [c.ohlcv for c in answer.candles] == [c.ohlcv for c in expected]


async def test_a_symbol_that_does_not_exist_is_told_apart_from_trouble(history: BinanceHistory) -> None:
    with pytest.raises(UnknownSymbolError):
        await history.exchange_info("NOSUCHPAIR")
    with pytest.raises(UnknownSymbolError):
        await history.candles("NOSUCHPAIR", START)
    info = await history.exchange_info("BTCUSDT")
    assert info.symbols[0].trading


@pytest.mark.parametrize("status", [403, 500, 503])
async def test_trouble_is_unreachable(exchange: Exchange, history: BinanceHistory, status: int) -> None:
    exchange.fault("rest_status", status=status, n=1)
    with pytest.raises(UnreachableError, match=str(status)):
        await history.server_time_ms()
    assert await history.server_time_ms() > START


async def test_retry_after_binds_the_next_request(exchange: Exchange) -> None:
    now_s = 0.0

    def monotonic() -> float:
        return now_s

    async with BinanceHistory(exchange.rest_url, clock=Clock(monotonic_s=monotonic)) as history:
        exchange.fault("rest_status", status=429, n=1, retry_after=7)
        with pytest.raises(UnreachableError, match="silence for 7 s"):
            await history.server_time_ms()
        asked = len(exchange.access_log.entries("request"))
        waiting = asyncio.create_task(history.server_time_ms())
        await asyncio.sleep(0)
        assert len(exchange.access_log.entries("request")) == asked
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        now_s = 7.1
        assert await history.server_time_ms() > START


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with BinanceHistory("http://127.0.0.1:9", clock=Clock()) as history:
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            await history.server_time_ms()


async def test_used_weight_is_told(exchange: Exchange) -> None:
    facts: list[Fact] = []
    async with BinanceHistory(exchange.rest_url, clock=Clock(), observe=facts.append) as history:
        await history.candles("BTCUSDT", START, START + HOUR_MS)
    ratios = [f.ratio for f in facts if isinstance(f, WeightUsed)]
    assert ratios == sorted(ratios)
    assert 0 < ratios[-1] < 0.01


async def answering(body: bytes, headers: str = "") -> asyncio.Server:
    """A server that says the same thing to every request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            length = len(body)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


def address_of(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b'{"serverTime":9000000000000}', "", "server time"),
        (b'{"serverTime":0}', "", "server time"),
        (b"<html>", "", "not a time answer"),
        (b"x" * 5_000_000, "", "over 4194304 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_unreachable(body: bytes, headers: str, words: str) -> None:
    server = await answering(body, headers)
    async with (
        server,
        BinanceHistory(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", clock=Clock()) as client,
    ):
        with pytest.raises(UnreachableError, match=words):
            await client.server_time_ms()


async def test_a_weight_that_is_no_count_is_left_alone() -> None:
    server = await answering(b'{"serverTime":1704067200000}', f"X-MBX-USED-WEIGHT-1M: {'9' * 4_400}\r\n")
    async with (
        server,
        BinanceHistory(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", clock=Clock()) as client,
    ):
        assert await client.server_time_ms() == START


async def test_a_rest_that_repeats_one_old_page_is_not_asked_for_ever(candles: list[Candle]) -> None:
    class Stuck(BinanceHistory):
        asked = 0

        async def server_time_ms(self) -> int:
            return START + 9_000 * HOUR_MS

        async def _get(self, path: str, params: dict[str, str]) -> bytes:
            self.asked += 1
            return msgspec.json.encode([kline_row(c) for c in candles[:1_000]])

    async with Stuck("http://127.0.0.1:9", clock=Clock()) as client:
        with pytest.raises(UnreachableError, match="without a candle"):
            await client.candles("BTCUSDT", START + 5_000 * HOUR_MS)
        assert client.asked == 1
