"""stream.testing.exchange: real WebSocket and HTTP clients against it, decoded as the daemon does."""

import asyncio
import itertools
import json

import pytest
from exchange_tape import (
    FIRST_MS,
    FROM_MS,
    SYMBOLS,
    TAPE,
    ask,
    candle,
    closed_hours,
    closes,
    hour,
    klines,
    playing,
    rest,
    ws,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream import web
from stream.core.market.binance import (
    Reply,
    UnknownSymbolError,
    WireError,
    control,
    decode_exchange_info,
    decode_frame,
    decode_klines,
    decode_time,
    klines_params,
    raise_refusal,
    stream_name,
    stream_url,
)
from stream.core.market.candle import HOUR_MS
from stream.testing.tape import Tape, forming
from stream.testing.virtual_clock import VirtualClock
from stream.testing.wire import decimal


async def test_plays_every_close_of_the_tape_once_in_order_and_then_stops():
    async with playing(100) as exchange, ws(exchange) as socket:
        frames = await closes(socket, hour(99))
        await exchange.finished.wait()
        assert [f.candle for f in frames] == [candle(n) for n in range(1, 100)]
        assert all(1 <= f.event_time - f.candle.close_time <= 120 for f in frames)
        assert exchange.now_ms() == frames[-1].event_time


async def test_symbols_close_together():
    async with playing() as exchange, connect(stream_url(exchange.ws_url, SYMBOLS), proxy=None) as socket:
        by_time: dict[int, list[str]] = {}
        for frame in await closes(socket, hour(9)):
            by_time.setdefault(frame.event_time, []).append(frame.candle.symbol)
    assert all(symbols == list(SYMBOLS) for symbols in list(by_time.values())[:-1])


async def test_stands_still_until_the_first_subscription():
    async with playing() as exchange, rest(exchange) as http, ws(exchange, "/ws") as socket:
        start_ms = decode_time((await http.get("/api/v3/time")).content)
        assert FROM_MS + HOUR_MS < start_ms < FROM_MS + HOUR_MS + 1_000
        await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        assert decode_time((await http.get("/api/v3/time")).content) == start_ms
        await socket.send(control("SUBSCRIBE", ["BTCUSDT"], 2))
        assert await closed_hours(socket, 9) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


async def test_forming_updates_lead_to_the_close():
    async with playing(3) as exchange, ws(exchange) as socket:
        frames = [decode_frame(await socket.recv()) for _ in range(4)]
    assert [f.closed for f in frames] == [False, True, False, True]
    early, late = frames[:2]
    assert early.candle.open == late.candle.open
    assert late.candle.low <= early.candle.low <= early.candle.high <= late.candle.high
    assert 0 < early.candle.volume < late.candle.volume
    assert early.candle.open_time < early.event_time < early.candle.close_time


async def test_max_speed_does_not_outrun_a_client_that_does_not_read():
    async with playing(100) as exchange, rest(exchange) as http, ws(exchange, max_queue=4) as socket:
        for _ in range(50):
            assert decode_time((await http.get("/api/v3/time")).content) < hour(20)
        assert await closed_hours(socket, 99) == list(range(1, 100))


async def test_max_speed_waits_while_nobody_is_subscribed():
    async with playing() as exchange, rest(exchange) as http:
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 3) == [1, 2, 3]
        async with ws(exchange) as socket:
            resumed = await closed_hours(socket, 9)
        assert resumed[-1] == 9
        assert resumed == list(range(resumed[0], 10))
        page = decode_klines(
            (await http.get("/api/v3/klines", params=klines_params("BTCUSDT", hour(1)))).content,
            "BTCUSDT",
            exchange.now_ms(),
        )
    assert [c.open_time for c in page.candles] == [hour(n) for n in range(1, 10)]


async def test_a_finite_speed_plays_the_same_closes():
    async with playing(20, speed=3.6e6) as exchange, ws(exchange) as socket:
        assert await closed_hours(socket, 19) == list(range(1, 20))


@pytest.mark.fault(57)
async def test_the_clock_runs_once_a_client_has_been_told_the_time():
    async with playing(20, speed=36_000.0) as exchange, rest(exchange) as http:
        # A client that asks for candles or for the state has not been given the time.
        await http.get("/api/v3/exchangeInfo")
        await http.get("/api/v3/klines", params=klines_params("BTCUSDT", hour(0)))
        assert (await http.get("/control/state")).json()["started"] is False
        server_time = decode_time((await http.get("/api/v3/time")).content)
        assert server_time == exchange.start_ms
        # No client is subscribed, and the hours pass all the same: REST has the closed candles.
        async with asyncio.timeout(60):
            while decode_time((await http.get("/api/v3/time")).content) < hour(6):
                pass
        body = (await http.get("/api/v3/klines", params=klines_params("BTCUSDT", hour(1)))).content
        page = decode_klines(body, "BTCUSDT", exchange.now_ms())
        assert [c.open_time for c in page.candles][:5] == [hour(n) for n in range(1, 6)]


async def test_at_max_speed_time_waits_for_a_subscriber_whoever_asks():
    async with playing() as exchange, rest(exchange) as http:
        for _ in range(20):
            assert decode_time((await http.get("/api/v3/time")).content) == exchange.start_ms
        assert (await http.get("/control/state")).json()["started"] is False


async def test_a_tape_ends_on_order():
    async with playing(100) as exchange, rest(exchange) as http, ws(exchange) as socket:
        exchange.fault("end", at=hour(3))
        assert [row[0] for row in await klines(http, startTime=hour(1), limit=1)] == [hour(1)]
        await exchange.finished.wait()
        assert exchange.end_ms == hour(5)
        assert await closed_hours(socket, 4) == [1, 2, 3, 4]
    async with playing(3_000, speed=36_000.0) as exchange, rest(exchange) as http, ws(exchange) as socket:
        assert await closed_hours(socket, 2) == [1, 2]
        end_ms = (await http.post("/control/fault", json={"fault": "end"})).json()["end_ms"]
        await exchange.finished.wait()
        last = (end_ms - FROM_MS) // HOUR_MS - 1
        assert await closed_hours(socket, last) == list(range(3, last + 1))


async def test_a_hole_in_the_tape_is_silence_and_absent_from_rest():
    holed = {"BTCUSDT": [c for c in TAPE["BTCUSDT"] if c.open_time not in (hour(3), hour(4))]}
    async with playing(tape=holed) as exchange, rest(exchange) as http, ws(exchange) as socket:
        assert await closed_hours(socket, 9) == [1, 2, 5, 6, 7, 8, 9]
        rows = (await http.get("/api/v3/klines", params=klines_params("BTCUSDT", hour(2), hour(5)))).json()
        assert [row[0] for row in rows] == [hour(2), hour(5)]


async def test_a_second_client_gets_the_same():
    async with playing() as exchange, ws(exchange) as one, ws(exchange, f"/ws/{stream_name('BTCUSDT')}") as two:
        first, second = await asyncio.gather(closed_hours(one, 9), closed_hours(two, 9))
        assert first == list(range(1, 10))
        assert second == first[-len(second) :]


async def test_a_taken_port_is_named():
    with web.bind("127.0.0.1", 0) as taken, pytest.raises(web.PortInUseError):
        async with playing(ws_port=taken.getsockname()[1]):
            raise AssertionError("two servers on a port")


async def test_clock_never_passes_an_event_that_was_not_awaited():
    real_s = 0.0
    clock = VirtualClock(1_000, 2.0, lambda: real_s)
    assert (clock.now_ms(), clock.started) == (1_000, False)
    real_s = 5.0
    assert clock.now_ms() == 1_000
    clock.start()
    real_s = 10.0  # 5 s since the start, 10 s of virtual time
    assert clock.now_ms() == 1_000
    await clock.until(4_000)
    assert (clock.now_ms(), clock.elapsed_to_ms()) == (4_000, 11_000)
    await clock.until(3_000)
    assert clock.now_ms() == 4_000


def test_clock_refuses_a_speed_that_is_none():
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="speed"):
            VirtualClock(0, speed)


def test_tape_refuses_what_no_exchange_has():
    c = candle(0)
    with pytest.raises(ValueError, match="two candles"):
        Tape({"BTCUSDT": [c, c]})
    with pytest.raises(ValueError, match="another symbol"):
        Tape({"ETHUSDT": [c]})


def test_a_forming_candle_ends_as_the_candle():
    c = candle(5)
    steps = [forming(c, k / 60) for k in range(61)]
    assert steps[0].ohlcv == (c.open, c.open, c.open, c.open, 0)
    assert steps[-1] == c
    for earlier, later in itertools.pairwise(steps):
        assert later.high >= earlier.high
        assert later.low <= earlier.low
        assert later.volume >= earlier.volume
        assert later.low <= later.close <= later.high


def test_decimals_read_back_as_the_same_float():
    for value in (0.0, 1e-8, 0.1, 0.30000000000000004, 57994.6, 123456789.12345678, 1.5e-9, 3.3e15, 1 / 3):
        assert float(decimal(value)) == value
        assert "e" not in decimal(value).lower()
    assert decimal(57994.6) == "57994.60000000"


@pytest.mark.parametrize(
    ("path", "is_combined", "stamp_digits"),
    [
        ("/ws/btcusdt@kline_1h", False, 13),
        ("/stream?streams=btcusdt@kline_1h", True, 13),
        ("/stream?streams=btcusdt%40kline_1h", True, 13),
        ("/stream?streams=btcusdt@kline_1h&timeUnit=MICROSECOND", True, 16),
        ("/ws/btcusdt@kline_1h?timeUnit=microsecond", False, 16),
    ],
)
async def test_framings_and_units_all_decode_to_the_tape(path, is_combined, stamp_digits):
    async with playing() as exchange, ws(exchange, path) as socket:
        message = json.loads(await socket.recv())
        event = message["data"] if is_combined else message
        assert is_combined is ("stream" in message)
        for stamp in (event["E"], event["k"]["t"], event["k"]["T"]):
            assert len(str(stamp)) == stamp_digits
        assert [f.candle for f in await closes(socket, hour(9))] == [candle(n) for n in range(1, 10)]


async def test_control_frames_are_answered_as_documented():
    async with playing() as exchange, ws(exchange, "/ws") as socket:
        assert await ask(socket, {"method": "GET_PROPERTY", "params": ["combined"], "id": 1}) == {
            "result": False,
            "id": 1,
        }
        assert await ask(socket, {"method": "SET_PROPERTY", "params": ["combined", True], "id": 2}) == {
            "result": None,
            "id": 2,
        }
        assert await ask(socket, {"method": "GET_PROPERTY", "params": ["combined"], "id": "a3"}) == {
            "result": True,
            "id": "a3",
        }
        # Neither an unknown symbol nor another interval is refused; both are silent for ever.
        for name in ("nosuchusdt@kline_1h", "btcusdt@kline_1m"):
            assert await ask(socket, {"method": "SUBSCRIBE", "params": [name], "id": 4}) == {"result": None, "id": 4}
        listed = await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 5})
        assert listed == {"result": ["nosuchusdt@kline_1h", "btcusdt@kline_1m"], "id": 5}
        await ask(socket, {"method": "UNSUBSCRIBE", "params": ["nosuchusdt@kline_1h"], "id": 6})
        assert decode_frame(json.dumps(await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 7}))) == Reply(
            7, result=("btcusdt@kline_1m",)
        )
        await exchange.finished.wait()
        assert (await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 8}))["id"] == 8
        methods = [e.method for e in exchange.log if e.kind == "frame"]
    assert methods[:4] == ["GET_PROPERTY", "SET_PROPERTY", "GET_PROPERTY", "SUBSCRIBE"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", 3),
        (b"\xff\xfe", 3),
        ("[]", 2),
        ({"id": 1}, 2),
        ({"method": "SUBSCRIBE", "params": [], "id": 1.5}, 2),
        ({"method": "SHOUT", "params": [], "id": 1}, 2),
        ({"method": "SUBSCRIBE", "params": "btcusdt@kline_1h", "id": 1}, 2),
        ({"method": "SUBSCRIBE", "params": [7], "id": 1}, 2),
        ({"method": "SUBSCRIBE", "params": [], "id": 1, "extra": 1}, 2),
        ({"method": "GET_PROPERTY", "params": ["combined", 1], "id": 1}, 2),
        ({"method": "SET_PROPERTY", "params": ["combined", 1], "id": 1}, 1),
        ({"method": "SET_PROPERTY", "params": ["colour", True], "id": 1}, 0),
    ],
)
async def test_malformed_control_frames_get_the_documented_codes(body, code):
    async with playing() as exchange, ws(exchange, "/ws") as socket:
        await socket.send(body if isinstance(body, (str, bytes)) else json.dumps(body))
        reply = await socket.recv()
        assert json.loads(reply)["code"] == code
        assert decode_frame(reply).error.startswith(f"{code}: ")


async def test_an_unknown_endpoint_is_404():
    async with playing() as exchange:
        with pytest.raises(InvalidStatus, match="404"):
            async with ws(exchange, "/nowhere"):
                raise AssertionError("connected to nowhere")


async def test_pings_and_the_log_of_what_clients_do():
    async with playing(ping_interval_s=0.01) as exchange, rest(exchange) as http:
        async with ws(exchange, "/ws") as socket:
            await socket.ping()
            seen: set[str] = set()
            while not seen >= {"connect", "ping", "pong", "request"}:
                seen = {e["kind"] for e in (await http.get("/control/log")).json()} | {e.kind for e in exchange.log}
                await http.get("/api/v3/ping")
        while not exchange.access_log.entries("disconnect"):
            await http.get("/api/v3/ping")
    weights = {e.detail["weight"] for e in exchange.log if e.kind == "request"}
    assert weights == {1}


async def test_klines_pages_and_their_edges():
    async with playing() as exchange, rest(exchange) as http:

        async def opens(**params):
            return [(row[0] - FROM_MS) // HOUR_MS for row in await klines(http, **params)]

        assert await opens() == list(range(-498, 2))  # 500 rows, the last one still forming
        assert await opens(limit=5_000) == list(range(-998, 2))
        assert await opens(startTime=hour(-1)) == [-1, 0, 1]
        assert await opens(startTime=hour(-1) + 1) == [0, 1]
        assert await opens(endTime=hour(-1), limit=2) == [-2, -1]
        assert await opens(startTime=hour(-9), endTime=hour(-3), limit=3) == [-9, -8, -7]
        assert await opens(startTime=hour(-9) * 1_000, endTime=hour(-8) * 1_000) == [-9, -8]
        assert await opens(startTime=hour(2)) == []
        assert await opens(startTime=hour(0), endTime=hour(-1)) == []
        assert await opens(startTime=FIRST_MS - HOUR_MS, limit=1) == [-1_100]
        assert await opens(interval="1m") == []


async def test_klines_equal_the_tape_and_only_the_last_row_is_forming():
    async with playing() as exchange, rest(exchange) as http:
        answer = await http.get("/api/v3/klines", params=klines_params("BTCUSDT", hour(-700)))
        page = decode_klines(answer.content, "BTCUSDT", exchange.now_ms())
        assert list(page.candles) == [candle(n) for n in range(-700, 1)]
        assert (page.forming, page.rejected) == (1, ())
        micro = await http.get(
            "/api/v3/klines",
            params={"symbol": "BTCUSDT", "interval": "1h", "limit": "2"},
            headers={"X-MBX-TIME-UNIT": "MICROSECOND"},
        )
        assert micro.json()[0][0] == hour(0) * 1_000
        assert micro.json()[0][6] == hour(1) * 1_000 - 1
        assert decode_klines(micro.content, "BTCUSDT", exchange.now_ms()).candles == (candle(0),)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"symbol": "NOSUCH"}, -1121),
        ({"interval": "7m"}, -1120),
        ({"symbol": ""}, -1102),
        ({"startTime": "yesterday"}, -1100),
        ({"limit": "0"}, -1130),
    ],
)
async def test_klines_errors_are_the_exchanges(params, code):
    async with playing() as exchange, rest(exchange) as http:
        answer = await http.get("/api/v3/klines", params={"symbol": "BTCUSDT", "interval": "1h", **params})
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    with pytest.raises(UnknownSymbolError if code == -1121 else WireError):
        raise_refusal(answer.status_code, answer.content)


async def test_exchange_info_and_used_weight():
    async with playing() as exchange, rest(exchange) as http:
        assert (await http.get("/api/v3/ping")).json() == {}
        answer = await http.get("/api/v3/exchangeInfo", params={"symbols": '["ETHUSDT"]'})
        info = decode_exchange_info(answer.content)
        assert [(s.symbol, s.trading) for s in info.symbols] == [("ETHUSDT", True)]
        assert info.weight_per_minute == 6_000
        assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "21"
        everything = decode_exchange_info((await http.get("/api/v3/exchangeInfo")).content)
        assert [s.symbol for s in everything.symbols] == list(SYMBOLS)
        for params in ({"symbol": "NOSUCH"}, {"symbols": '["BTCUSDT","NOSUCH"]'}):
            refused = await http.get("/api/v3/exchangeInfo", params=params)
            assert (refused.status_code, refused.json()) == (400, {"code": -1121, "msg": "Invalid symbol."})
        both = await http.get("/api/v3/exchangeInfo", params={"symbol": "BTCUSDT", "symbols": "[]"})
        assert both.json()["code"] == -1128


async def test_weight_is_forgotten_after_a_virtual_minute():
    async with playing() as exchange, rest(exchange) as http:
        await klines(http)
        async with ws(exchange) as socket:
            await closes(socket, hour(9))
        await exchange.finished.wait()
        assert (await http.get("/api/v3/ping")).headers["X-MBX-USED-WEIGHT-1M"] == "1"
