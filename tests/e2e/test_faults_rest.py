"""A REST API that answers less than it knows, or something wrong: an answer is believed only as far as it is proven.

A lag of seconds vanishes at 3,600 times the speed, so tests of what happens around a close run at the exchange's own
speed, on a clock that begins just before or after one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_harness as stand
import pytest
from fault_harness import PACED, START, SYMBOLS, hour

from stream.core.market.candle import Candle
from stream.telemetry import (
    BackfillFailed,
    BackfillRequested,
    CandleProcessed,
    FeedConnected,
    FrameRejected,
    GapDeclared,
)
from stream.testing.exchange import Exchange

HOURS = 12


@pytest.fixture
def broker() -> Iterator[str]:
    with stand.new_broker() as url:
        yield url


@pytest.fixture(scope="module")
def tape() -> dict[str, list[Candle]]:
    return stand.market(hours=HOURS)


ANSWERS: list[Any] = [
    pytest.param([{"name": "rest_body", "kind": kind, "n": n}], id=f"{kind}-{n}")
    for kind, n in [
        ("short", 1), ("short", 3), ("empty", 1), ("empty", 3), ("unusable", 1), ("partly_unusable", 1), ("foreign", 1),
        ("foreign", 2), ("newest", 1), ("newest", 4), ("cut_times", 50),
    ]
] + [
    pytest.param([{"name": "rest_cap", "rows": 100}], id="capped"),
    pytest.param([{"name": "rest_lag", "seconds": 7_200}], id="two-candles-behind"),
    pytest.param([{"name": "rest_lag", "seconds": 3_000}], id="fifty-minutes-behind"),
    pytest.param([{"name": "rest_cache", "seconds": 5}], id="cached"),
    pytest.param([{"name": "rest_status", "status": 503, "path": "/api/v3/exchangeInfo", "n": 1_000}], id="no-info"),
]  # fmt: skip


@pytest.mark.fault(37)
@pytest.mark.parametrize("faults", ANSWERS)
async def test_a_fresh_start_has_its_whole_past_and_speaks_of_nothing_before_its_hour(
    faults: list[dict[str, Any]], tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        for fault in faults:
            exchange.fault(**fault)
        watch, _ = await stand.run(exchange, broker, tmp_path)
    assert not watch.of(GapDeclared)


@pytest.mark.fault(37)
@pytest.mark.parametrize("faults", ANSWERS)
async def test_after_weeks_no_candle_is_lost_and_none_declared_missing(
    faults: list[dict[str, Any]], broker: str, tmp_path: Path
) -> None:
    away, hours = 150, 6
    whole = stand.market(("BTCUSDT", "ETHUSDT"), hours=away + hours)
    async with Exchange.replaying(whole, START, 3, None) as exchange:
        await stand.run(exchange, broker, tmp_path)
    async with Exchange.replaying(whole, hour(away), hours, None) as exchange:
        for fault in faults:
            exchange.fault(**fault)
        watch, _ = await stand.run(exchange, broker, tmp_path)
    assert not watch.of(GapDeclared)


@pytest.mark.fault(38)
@pytest.mark.parametrize("faults", ANSWERS)
async def test_a_close_that_the_stream_lost_is_fetched_and_not_declared_missing(
    faults: list[dict[str, Any]], tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        exchange.fault("withhold_close", n=2, at=hour(4))
        for fault in faults:
            exchange.fault(**fault, at=hour(4))
        watch, _ = await stand.run(exchange, broker, tmp_path)
    assert not watch.of(GapDeclared)


@pytest.mark.fault(38)
async def test_a_hole_is_declared_after_two_direct_questions_some_time_apart(broker: str, tmp_path: Path) -> None:
    tape = stand.without(stand.market(hours=HOURS), {"BTCUSDT": {5, 6}})
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        watch, _ = await stand.run(exchange, broker, tmp_path)
        asked = [
            e.at_ms
            for e in exchange.access_log.entries("request")
            if e.method == "/api/v3/klines"
            and e.detail["params"].get("symbol") == "BTCUSDT"
            and hour(0) <= int(e.detail["params"].get("startTime", 0)) <= hour(5)
        ]
    assert [(g.symbol, g.from_open_time, g.hours) for g in watch.of(GapDeclared)] == [("BTCUSDT", hour(5), 2)]
    assert len(asked) >= 2


@pytest.mark.fault(39)
@pytest.mark.parametrize("behind_s", [3_000, 7_200])
async def test_a_rest_that_is_behind_changes_nothing_of_a_perfect_stream(
    behind_s: int, broker: str, tmp_path: Path
) -> None:
    tape = stand.market(hours=40)
    async with Exchange.replaying(tape, START, 40, PACED) as exchange:
        exchange.fault("rest_lag", seconds=behind_s, at=hour(2))
        # Until REST has been asked about candles that the stream had brought.
        watch, _ = await stand.run(
            exchange, broker, tmp_path, also=lambda w: len(w.of(BackfillRequested)) > 6 and w.live() > 30
        )
    assert not watch.of(GapDeclared)


def just(seconds: float, tape: dict[str, list[Candle]]) -> Exchange:
    """Returns an exchange at its own speed, so many seconds after the close of hour 0."""
    return Exchange(tape, hour(1) + round(seconds * 1_000), hour(2), 1.0)


LAST = dict.fromkeys(SYMBOLS, START)


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "faults",
    [
        [{"name": "rest_lag", "seconds": 3}],
        [{"name": "rest_cache", "seconds": 4}],
        [{"name": "rest_body", "kind": "cut_times", "n": 50}],
        [{"name": "wrong_time", "seconds": 2_400}],
        [{"name": "wrong_time", "seconds": 86_400}],
        [{"name": "wrong_time", "seconds": -86_400}],
    ],
    ids=["lag", "cache", "cut-times", "time-ahead", "time-a-day-ahead", "time-a-day-behind"],
)
@pytest.mark.parametrize("after_s", [-3.0, 1.0], ids=["before-the-close", "after-the-close"])
async def test_a_start_around_a_close_takes_no_half_formed_candle(
    after_s: float, faults: list[dict[str, Any]], tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    first = START if after_s > 0 else hour(-1)
    async with just(after_s, tape) as exchange:
        for fault in faults:
            exchange.fault(**fault)
        await stand.run(exchange, broker, tmp_path, last=LAST, since=first, up_to=hour(1), stall_after_s=30.0)


@pytest.mark.fault(40)
@pytest.mark.parametrize("fault", [{"name": "rest_lag", "seconds": 3}, {"name": "rest_cache", "seconds": 4}])
async def test_a_stream_that_is_cut_at_the_close_takes_no_half_formed_candle(
    fault: dict[str, Any], tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    async with just(-3.0, tape) as exchange:
        exchange.fault(**fault)
        exchange.fault("withhold_close", at=START)
        exchange.fault("drop", at=START)
        watch, _ = await stand.run(
            exchange, broker, tmp_path, last=LAST, since=hour(-1), up_to=hour(1), stall_after_s=30.0
        )
    assert {f.provenance for f in watch.of(CandleProcessed) if f.open_time == START} == {"backfill"}


@pytest.mark.fault(40)
@pytest.mark.parametrize("wrong_s", [2_400, 86_400], ids=["40-minutes", "a-day"])
async def test_one_wrong_time_in_the_middle_of_an_hour_ends_no_candle_early(
    wrong_s: int, tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    async def reconnect(watch: stand.Watch) -> None:
        """Ends the connection, and waits until REST was asked for what may have been missed meanwhile."""
        asked = len(exchange.access_log.entries("request"))
        exchange.fault("drop")

        def symbols() -> set[str]:
            found = exchange.access_log.entries("request")[asked:]
            return {e.detail["params"]["symbol"] for e in found if e.method == "/api/v3/klines"}

        await watch.until(lambda: symbols() == set(SYMBOLS))

    async def mislead(watch: stand.Watch) -> None:
        await watch.until(lambda: set(watch.newest) == set(SYMBOLS) and bool(watch.of(FeedConnected)))
        exchange.fault("wrong_time", seconds=wrong_s)
        # By the last question, what the answer to the first one led to has happened.
        for _ in range(3):
            await reconnect(watch)
        watch.stop.set()

    async with just(1_500.0, tape) as exchange:
        watch, _ = await stand.run(exchange, broker, tmp_path, last={"": START}, up_to=hour(1), alongside=mislead)
        assert exchange.state()["faults"] == []
    assert {(f.symbol, f.open_time) for f in watch.of(CandleProcessed)} == {(s, START) for s in SYMBOLS}


@pytest.mark.fault(41)
async def test_a_close_that_is_sent_an_hour_early_waits_for_its_end(
    tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    # Early enough for a node on a busy machine to be connected before the close.
    async with just(-15.0, tape) as exchange:
        exchange.fault("early_close", at=START)
        watch, _ = await stand.run(
            exchange, broker, tmp_path, last=LAST, since=hour(-1), up_to=hour(1), stall_after_s=30.0,
            also=lambda w: bool(w.of(FrameRejected)),
        )  # fmt: skip
    assert {f.reason for f in watch.of(FrameRejected)} == {"time_range"}


@pytest.mark.fault(59)
async def test_a_ban_at_the_start_with_a_new_symbol_keeps_no_stream_closed(
    tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    half = {"BTCUSDT": hour(3)}
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        await stand.run(exchange, broker, tmp_path, last=half, symbols=("BTCUSDT",), check=False)
        exchange.fault("rest_status", status=418, retry_after=600, n=1)
        watch, _ = await stand.run(
            exchange, broker, tmp_path, last={}, check=False, also=lambda w: bool(w.of(FeedConnected))
        )  # fmt: skip
    assert watch.of(BackfillFailed)


@pytest.mark.fault(61)
async def test_a_symbol_that_is_denied_once_is_no_reason_to_end(
    tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        exchange.fault("status", symbol="ETHUSDT", status="DELISTED")

        async def relist() -> None:
            while not any(  # noqa: ASYNC110 - the exchange's log has no event to wait for
                e.detail["params"] == {"symbol": "ETHUSDT"} for e in exchange.access_log.entries("request")
            ):
                await asyncio.sleep(0.01)
            exchange.fault("status", symbol="ETHUSDT", status="TRADING")

        relisting = asyncio.create_task(relist())
        await stand.run(exchange, broker, tmp_path)
        await relisting
