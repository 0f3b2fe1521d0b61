"""The exchange's limits and the faults that go with them, seen by a bare client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.exchange import Exchange
from stream.testing.faults import FaultError
from stream.testing.junk import JUNK
from stream.testing.limits import Rolling
from stream.testing.market import simulate
from stream.testing.relay import Relay

START = 1_704_067_200_000
URL = "/stream?streams=btcusdt@kline_1h"


@pytest.fixture
def tape() -> dict[str, list[Candle]]:
    return simulate(["BTCUSDT", "ETHUSDT"], START - 10 * HOUR_MS, 30, 7)


@pytest.fixture
async def exchange(tape: dict[str, list[Candle]]) -> AsyncIterator[Exchange]:
    async with Exchange.replaying(tape, START, 20, 0.001, connects_per_5_min=5) as running:
        yield running


@given(st.lists(st.floats(0, 0.5), max_size=50))
def test_a_rolling_window_counts_what_a_look_back_over_everything_would(steps: list[float]) -> None:
    now, times = [0.0], []
    rolling = Rolling(1.0, lambda: now[0])
    for step in steps:
        now[0] += step
        times.append(now[0])
        assert rolling.add(0) == sum(t > now[0] - 1.0 for t in times)


def test_a_window_is_over_when_either_clock_says_so() -> None:
    now = [0.0]
    rolling = Rolling(1.0, lambda: now[0])
    assert [rolling.add(0), rolling.add(500), rolling.add(5_000)] == [1, 2, 1]
    now[0] = 2.0
    assert rolling.add(5_000) == 1
    assert rolling.most == 2


@pytest.mark.fault(5)
async def test_the_sixth_control_frame_in_a_second_ends_the_connection(exchange: Exchange) -> None:
    async with connect(exchange.ws_url + URL, ping_interval=None) as socket:
        for number in range(6):
            await socket.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        await socket.wait_closed()
    assert socket.close_code == 1008
    limits = exchange.limits()
    assert (limits["control_frames_in_1_s"], limits["broken"]) == (6, 1)
    assert [e.method for e in exchange.access_log.entries("limit")] == ["control frames"]


async def test_one_attempt_too_many_is_refused(exchange: Exchange) -> None:
    for _ in range(5):
        async with connect(exchange.ws_url + URL):
            pass
    with pytest.raises(InvalidStatus) as refused:
        async with connect(exchange.ws_url + URL):
            pass
    assert refused.value.response.status_code == 429
    assert exchange.limits()["connects_in_5_min"] == 6
    assert exchange.limits()["broken"] == 1


@pytest.mark.parametrize(
    ("framing", "path", "expected"),
    [
        (None, "/ws/btcusdt@kline_1h", {"e"}),
        (None, URL, {"stream", "data"}),
        ("raw", URL, {"e"}),
        ("combined", "/ws/btcusdt@kline_1h", {"stream", "data"}),
    ],
)
async def test_a_shutdown_is_announced_in_either_framing_and_then_comes(
    exchange: Exchange, framing: str | None, path: str, expected: set[str]
) -> None:
    async with connect(exchange.ws_url + path) as socket:
        exchange.fault("shutdown", framing=framing, hours=0)
        frame = json.loads(await socket.recv())
        assert expected <= frame.keys()
        event = frame.get("data", frame)
        assert (event["e"], event["E"]) == ("serverShutdown", exchange.now_ms())
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_a_status_and_a_delisting_are_said_by_rest(exchange: Exchange) -> None:
    async with httpx.AsyncClient(base_url=exchange.rest_url) as rest:

        async def info() -> httpx.Response:
            return await rest.get("/api/v3/exchangeInfo", params={"symbol": "ETHUSDT"})

        assert (await info()).json()["symbols"][0]["status"] == "TRADING"
        exchange.fault("status", symbol="ETHUSDT", status="BREAK")
        assert (await info()).json()["symbols"][0]["status"] == "BREAK"
        exchange.fault("status", symbol="ETHUSDT", status="DELISTED")
        assert (await info()).json()["code"] == -1121
        rows = await rest.get("/api/v3/klines", params={"symbol": "ETHUSDT", "interval": "1h"})
        assert rows.json()["code"] == -1121
        assert (await rest.get("/control/state")).json()["faults"] == [
            {"fault": "status", "symbol": "ETHUSDT", "status": "DELISTED"}
        ]


async def test_a_revised_candle_is_what_rest_says_from_then_on(
    exchange: Exchange, tape: dict[str, list[Candle]]
) -> None:
    async with httpx.AsyncClient(base_url=exchange.rest_url) as rest:

        async def close_of(open_time: int) -> float:
            params = {"symbol": "BTCUSDT", "interval": "1h", "startTime": str(open_time), "limit": "1"}
            return float((await rest.get("/api/v3/klines", params=params)).json()[0][4])

        before = await close_of(START)
        assert exchange.fault("revise", symbol="BTCUSDT", factor=1.5) == {"revised": START}
        assert await close_of(START) == pytest.approx(before * 1.5)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("malformed", {"kinds": ["no such"]}),
        ("revise", {"symbol": "BTCUSDT", "hours_ago": 0}),
        ("revise", {"symbol": "BTCUSDT", "hours_ago": 99}),
        ("refuse", {"status": 301}),
        ("status", {"symbol": "BTCUSDT", "status": "ASLEEP"}),
        ("shutdown", {"hours": -1}),
    ],
)
async def test_a_fault_that_cannot_be_is_refused(exchange: Exchange, name: str, params: dict[str, object]) -> None:
    with pytest.raises(FaultError):
        exchange.fault(name, **params)


def test_junk_is_made_of_a_candle_and_is_none(tape: dict[str, list[Candle]]) -> None:
    from stream.core.market.binance import KlineUpdate, WireError, decode_frame

    candle = tape["BTCUSDT"][0]
    for kind, make in JUNK.items():
        if kind in ("error_flat", "error_nested", "far_ahead"):
            continue
        try:
            assert not isinstance(decode_frame(make(candle, candle.close_time + 80)), KlineUpdate), kind
        except WireError:
            continue


async def test_a_relay_forwards_swallows_and_cuts(exchange: Exchange) -> None:
    async with Relay(exchange.ws_url) as relay:
        async with connect(relay.url + URL) as socket:
            await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
            assert json.loads(await socket.recv())["result"] == ["btcusdt@kline_1h"]
            relay.become("blackhole")
            await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":2}')
            relay.become("open")
            assert json.loads(await socket.recv())["id"] == 2
            relay.reset()
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        relay.become("closed")
        with pytest.raises((OSError, InvalidHandshake)):
            async with connect(relay.url + URL):
                pass
        assert relay.accepted == 2
