"""Faults on order: each does what it says, as often as it says, and is used up."""

from contextlib import suppress

import pytest
from exchange_tape import FIRST_MS, SYMBOLS, ask, closed_hours, closes, hour, klines, playing, rest, ws
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stream.core.market.binance import (
    control,
    klines_params,
    stream_url,
)
from stream.testing.fault_board import FaultBoard
from stream.testing.faults import FaultError, parse_fault


async def test_a_drop_loses_the_close_that_it_strikes_at():
    async with playing() as exchange, rest(exchange) as http:
        exchange.fault("drop", at=hour(3))
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 9) == [1, 2]
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 9) == [4, 5, 6, 7, 8, 9]
        assert [row[0] for row in await klines(http, startTime=hour(3), limit=1)] == [hour(3)]


async def test_a_drop_with_an_outage_refuses_until_enough_closes_have_passed():
    async with playing() as exchange:
        exchange.fault("drop", at=hour(2), outage_hours=3)
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 9) == [1]
        resumed: list[int] = []
        while not resumed:
            with suppress(InvalidStatus):  # 503 while the outage lasts
                async with ws(exchange) as socket:
                    resumed = await closed_hours(socket, 9)
        assert resumed == [5, 6, 7, 8, 9]


async def test_a_drop_can_concern_one_connection_only():
    async with playing() as exchange, ws(exchange, "/ws") as one, ws(exchange, "/ws") as two:
        await ask(one, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        await ask(two, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        number = exchange.access_log.entries("connect")[0].connection
        assert exchange.fault("drop", connection=number) == {"dropped": [number]}
        with pytest.raises(ConnectionClosed):
            await one.recv()
        await two.send(control("SUBSCRIBE", ["BTCUSDT"], 2))
        assert await closed_hours(two, 9) == list(range(1, 10))


async def test_duplicate_and_withheld_closes():
    async with playing() as exchange, rest(exchange) as http:
        exchange.fault("duplicate_close", symbol="BTCUSDT", at=hour(2), n=2)
        exchange.fault("withhold_close", at=hour(5))
        exchange.fault("withhold_close", symbol="ETHUSDT", at=hour(7))
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 9) == [1, 2, 2, 3, 3, 4, 6, 7, 8, 9]
        assert [row[0] for row in await klines(http, startTime=hour(5), limit=1)] == [hour(5)]


async def test_mute_keeps_the_connection_and_ends_by_virtual_time_or_order():
    async with playing() as exchange:
        exchange.fault("mute", at=hour(2), seconds=2.5 * 3_600)
        exchange.fault("mute", at=hour(6))
        exchange.fault("unmute", at=hour(8))
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 9) == [1, 5, 8, 9]


async def test_mute_spares_other_symbols_and_new_connections():
    async with playing() as exchange:
        exchange.fault("mute", symbol="ETHUSDT", also_new=True)
        async with connect(stream_url(exchange.ws_url, SYMBOLS), proxy=None) as socket:
            muted = await closes(socket, hour(9))
        assert {f.candle.symbol for f in muted} == {"BTCUSDT"}
    async with playing() as exchange, ws(exchange, "/ws") as silenced:
        await ask(silenced, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        exchange.fault("mute")
        async with ws(exchange) as talking:
            assert await closed_hours(talking, 9) == list(range(1, 10))


async def test_refused_and_flapping_upgrades():
    async with playing() as exchange:
        exchange.fault("refuse", status=429, retry_after=7)
        exchange.fault("flap", n=2)
        with pytest.raises(InvalidStatus) as caught:
            async with ws(exchange):
                raise AssertionError("was admitted")
        assert (caught.value.response.status_code, caught.value.response.headers["Retry-After"]) == (429, "7")
        for _ in range(2):
            async with ws(exchange) as socket:
                assert await closed_hours(socket, 9) == []
        async with ws(exchange) as socket:
            assert await closed_hours(socket, 9) == list(range(1, 10))
        assert [e.kind for e in exchange.log if e.kind != "fault"][:4] == ["refused", "flapped", "flapped", "connect"]


async def test_rest_failures_are_scripted_by_count_and_path():
    async with playing() as exchange, rest(exchange) as http:
        exchange.fault("rest_status", status=429, retry_after=7, path="/api/v3/klines")
        exchange.fault("rest_status", status=403)
        assert (await http.get("/api/v3/time")).text.startswith("<html>")
        answer = await http.get("/api/v3/klines", params=klines_params("BTCUSDT", FIRST_MS))
        assert (answer.status_code, answer.headers["Retry-After"], answer.json()["code"]) == (429, "7", -1003)
        assert "X-MBX-USED-WEIGHT-1M" in answer.headers
        assert (await http.get("/api/v3/time")).status_code == 200
        assert len(await klines(http)) == 500


async def test_faults_over_http():
    async with playing() as exchange, rest(exchange) as http, ws(exchange, "/ws") as socket:
        await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        ordered = await http.post("/control/fault", json={"fault": "withhold_close", "n": 2, "at": hour(1)})
        assert ordered.json() == {"scheduled": hour(1)}
        assert (await http.post("/control/fault", json={"fault": "mute", "seconds": 1})).json() == {"armed": "mute"}
        state = (await http.get("/control/state")).json()
        assert (state["speed"], state["started"], state["finished"]) == ("max", False, False)
        assert {f["fault"] for f in state["faults"]} == {"withhold_close", "mute"}
        assert (await http.post("/control/fault", json={"fault": "drop"})).json()["dropped"] == [1]
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        for body in (
            b"{",
            b"[]",
            b'{"fault":"fire"}',
            b'{"fault":"drop","when":1}',
            b'{"fault":"flap","n":0}',
            b"\xff",
        ):
            refused = await http.post("/control/fault", content=body)
            assert (refused.status_code, list(refused.json())) == (400, ["error"])


def test_an_unknown_fault_is_refused_in_process():
    with pytest.raises(FaultError, match="fire"):
        parse_fault({"fault": "fire"})
    with pytest.raises(FaultError):
        parse_fault({"fault": "refuse", "status": 200})


def test_a_counted_fault_is_used_up_symbol_by_symbol():
    board = FaultBoard()
    board.arm(parse_fault({"fault": "withhold_close", "n": 1}), 0, frozenset())
    assert [board.copies_of_close(s) for s in ("A", "B", "A", "B")] == [0, 0, 1, 1]


async def test_the_same_seed_says_the_same():
    async def run() -> list[str | bytes]:
        async with playing(5, seed=3) as exchange, ws(exchange) as socket:
            return [await socket.recv() for _ in range(8)]

    assert await run() == await run()
