"""REST history against the shipped exchange: pages, the forming row, refusals, Retry-After."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from stream.adapters.rest.history import BinanceHistory
from stream.adapters.rest.http_get import AT_ONCE
from stream.clock import Clock
from stream.core.market.binance import UnknownSymbolError
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import UnreachableError
from stream.ports import Urgency
from stream.telemetry import Fact, WeightUsed
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


async def answering(body: bytes | Callable[[bytes], bytes], headers: str = "") -> asyncio.Server:
    """Starts a server that gives the same answer to every request, or what the function answers to it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            request = await reader.readuntil(b"\r\n\r\n")
            reply = body if isinstance(body, bytes) else body(request)
            length = len(reply)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n".encode())
            writer.write(reply)
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
    asked: list[bytes] = []

    def page(request: bytes) -> bytes:
        asked.append(request)
        if b"/time" in request:
            return b'{"serverTime":%d}' % (START + 9_000 * HOUR_MS)
        return msgspec.json.encode([kline_row(c) for c in candles[:1_000]])

    server = await answering(page)
    async with server, BinanceHistory(address_of(server), clock=Clock()) as client:
        with pytest.raises(UnreachableError, match="without a candle"):
            await client.candles("BTCUSDT", START + 5_000 * HOUR_MS)
    assert sum(b"/klines" in request for request in asked) == 1


WALKED = START + 100 * HOUR_MS


@pytest.mark.parametrize("rows", [2, 100, 500, 999])
async def test_a_range_is_walked_to_its_end_however_short_the_pages_are(
    rows: int, exchange: Exchange, history: BinanceHistory, candles: list[Candle]
) -> None:
    exchange.fault("rest_cap", rows=rows)
    first = START + (HOURS - 300) * HOUR_MS
    answer = await history.candles("BTCUSDT", first)
    assert [c.open_time for c in answer.candles] == [
        c.open_time for c in candles if first <= c.open_time and c.close_time < answer.asked_at_ms
    ]
    assert answer.newest_open_time == START + (HOURS - 10) * HOUR_MS


async def test_an_answer_lacks_the_hours_that_it_has_a_candle_before_and_after(history: BinanceHistory) -> None:
    whole = await history.candles("BTCUSDT", WALKED)
    assert [(h - START) // HOUR_MS for h in whole.absent] == [700, 701, 999, 1_000, 1_001]
    # Without a candle before and after an hour its absence is not shown.
    assert (await history.candles("BTCUSDT", START + 700 * HOUR_MS, START + 701 * HOUR_MS)).absent == ()
    exactly = await history.candles("BTCUSDT", START + 699 * HOUR_MS, START + 701 * HOUR_MS)
    assert [(h - START) // HOUR_MS for h in exactly.absent] == [700, 701]


@pytest.mark.parametrize(("kind", "page"), [("empty", 2), ("newest", 2), ("unusable", 2), ("off_grid", 2)])
async def test_a_page_that_is_not_what_was_asked_for_ends_no_history(
    kind: str, page: int, exchange: Exchange, history: BinanceHistory, candles: list[Candle]
) -> None:
    """The last candle of one page is the first of the next: a page that does not repeat it is refused."""
    exchange.fault("rest_cap", rows=1_000)
    await history.server_time_ms()
    for _ in range(page - 1):
        # Each page before it takes a fault that is survived, so that the fault meets the page in question.
        exchange.fault("rest_body", kind="cut_times", n=1)
    exchange.fault("rest_body", kind=kind, n=1)
    if kind == "off_grid":
        answer = await history.candles("BTCUSDT", WALKED)
        assert [c.ohlcv for c in answer.candles][:5] == [c.ohlcv for c in candles if c.open_time >= WALKED][:5]
        return
    with pytest.raises(UnreachableError, match=r"does not repeat that candle|without a candle"):
        await history.candles("BTCUSDT", WALKED)
    # The next request succeeds.
    assert len((await history.candles("BTCUSDT", WALKED)).candles) == HOURS - 10 - 100 - 5


async def test_an_empty_first_page_shows_nothing_absent(exchange: Exchange, history: BinanceHistory) -> None:
    exchange.fault("rest_body", kind="empty", n=1)
    answer = await history.candles("BTCUSDT", WALKED)
    assert (answer.candles, answer.newest_open_time, answer.absent) == ([], None, ())


async def test_a_ban_longer_than_our_patience_is_told_at_once(exchange: Exchange) -> None:
    async with BinanceHistory(exchange.rest_url, clock=Clock(), patience_s=5.0) as history:
        exchange.fault("rest_status", status=418, n=1, retry_after=600)
        with pytest.raises(UnreachableError, match="silence for 600 s"):
            await history.server_time_ms()
        asked = len(exchange.access_log.entries("request"))
        with pytest.raises(UnreachableError, match="silence for"):
            await history.server_time_ms()
        assert len(exchange.access_log.entries("request")) == asked


async def test_no_cache_may_answer_and_no_question_is_worded_like_the_last(
    exchange: Exchange, history: BinanceHistory
) -> None:
    exchange.fault("rest_cache", seconds=600.0)
    for _ in range(4):
        await history.candles("BTCUSDT", WALKED, WALKED + 3 * HOUR_MS)
    asked = [e.detail["params"] for e in exchange.access_log.entries("request") if e.method.endswith("klines")]
    assert len({tuple(sorted(p.items())) for p in asked}) == len(asked)


async def test_hundreds_of_symbols_wait_for_each_other_and_not_in_vain() -> None:
    """The client's own pool lets a request wait for so long and then fails it: all at once that is a storm."""
    active = most = answered = 0
    full = asyncio.Event()
    connections: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal active, most, answered
        connections.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                active += 1
                most = max(most, active)
                if active == AT_ONCE:
                    full.set()
                await full.wait()
                active -= 1
                answered += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(60):
        async with BinanceHistory(url, clock=Clock()) as client:
            newest = await asyncio.gather(*(client.newest(f"S{n}USDT") for n in range(400)))
        await asyncio.gather(*(task for task in connections if task is not None))
    assert set(newest) == {None}
    assert (most, answered) == (AT_ONCE, 400)


MANY = tuple(f"S{n:03}USDT" for n in range(250))


@pytest.fixture
async def crowded() -> AsyncIterator[Exchange]:
    """An exchange with many symbols, half an hour after a close."""
    tape = {s: simulate_symbol(s, START, 30, n) for n, s in enumerate(MANY)}
    async with Exchange(tape, START + 20 * HOUR_MS + 1_800_000) as running:
        yield running


@pytest.mark.parametrize("unknown", [[], [0], [99, 100], [7, 8, 249]])
async def test_one_question_serves_a_hundred_symbols_and_finds_those_that_are_not_listed(
    crowded: Exchange, unknown: list[int]
) -> None:
    symbols = [f"X{n}USDT" if n in unknown else symbol for n, symbol in enumerate(MANY)]
    async with BinanceHistory(crowded.rest_url, clock=Clock()) as history:
        assert await history.unlisted(symbols) == [f"X{n}USDT" for n in unknown]
        asked = crowded.access_log.entries("request")
        assert len(asked) <= 3 + 2 * 7 * len(unknown)
        assert await history.unlisted([]) == []
        assert await history.unlisted(["NOSUCHPAIR"]) == ["NOSUCHPAIR"]


async def test_a_time_serves_all_who_ask_at_once_and_for_the_moment_that_is_allowed(crowded: Exchange) -> None:
    now_s = 0.0
    clock = Clock(monotonic_s=lambda: now_s)

    def times() -> int:
        return sum(e.method == "/api/v3/time" for e in crowded.access_log.entries("request"))

    async with BinanceHistory(crowded.rest_url, clock=clock, time_serves_s=1.0) as history:
        answers = await asyncio.gather(*(history.candles(symbol, START) for symbol in MANY))
        assert {len(a.candles) for a in answers} == {20}
        assert times() == 1
        now_s = 0.9
        await history.candles(MANY[0], START)
        assert times() == 1
        now_s = 1.0
        await history.candles(MANY[0], START)
        assert times() == 2
        # Who wants to know the time itself is never given an old one.
        await history.server_time_ms()
        assert times() == 3


async def test_who_stops_waiting_for_the_time_takes_it_from_nobody(crowded: Exchange) -> None:
    async with BinanceHistory(crowded.rest_url, clock=Clock()) as history:
        one, other = (asyncio.create_task(history.server_time_ms()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert await other > START
        assert one.cancelled()
        alone = asyncio.create_task(history.server_time_ms())
        await asyncio.sleep(0)
        alone.cancel()
        # Asked in the step of the loop in which the one before is being cancelled.
        next_one = asyncio.create_task(history.server_time_ms())
        assert await next_one > START
        assert alone.cancelled()


async def test_questions_of_all_kinds_stay_within_the_share_of_the_weight() -> None:
    """Histories of many symbols at once, closes among them, on a clock that only waiting moves."""
    now_s = 1_000.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        await asyncio.sleep(0)

    def monotonic_s() -> float:
        return now_s

    tape = {s: simulate_symbol(s, START, 30, n) for n, s in enumerate(MANY[:60])}
    async with Exchange(
        tape, START + 20 * HOUR_MS + 1_800_000, monotonic=monotonic_s, weight_per_minute=100
    ) as exchange:
        clock = Clock(monotonic_s=monotonic_s, sleep=sleep)
        async with BinanceHistory(exchange.rest_url, clock=clock, weight_share=0.49) as history:
            await history.exchange_info(MANY[0])
            await asyncio.gather(
                *(history.candles(s, START, urgency=Urgency.HISTORY) for s in MANY[:60]),
                *(history.candles(s, START, urgency=Urgency.NOW) for s in MANY[:20]),
            )
        assert exchange.limits()["broken"] == 0
        assert exchange.limits()["used_weight_in_1_min"] <= 49
