"""The faults of docs/faults.md that reach a whole node, each checked by the oracle of `fault_harness`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_harness as stand
import fault_oracle
import msgspec
import pytest
from fault_harness import LONG, PACED, START, SYMBOLS, hour

from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.telemetry import (
    BackfillFailed,
    BackfillRequested,
    CandleProcessed,
    CandleRepeated,
    CandleRevised,
    FeedConnected,
    FeedDisconnected,
    ForecastRevised,
    FrameRejected,
    GapDeclared,
    LoopLagged,
    TradingObserved,
)
from stream.testing.exchange import Exchange
from stream.testing.relay import Relay
from stream.testing.tape import Tape

HOURS = 24
DROP: dict[str, Any] = {"name": "drop", "at": hour(5)}


@pytest.fixture
def broker() -> Iterator[str]:
    """A broker that is empty for each test: the tapes differ, and on one broker an id names one value."""
    with stand.new_broker() as url:
        yield url


@pytest.fixture(scope="module")
def tape() -> dict[str, list[Candle]]:
    return stand.market(hours=HOURS)


def case(row: int, name: str, *faults: dict[str, Any], **changes: Any) -> Any:
    return pytest.param(faults, changes, id=name, marks=pytest.mark.fault(row))


@pytest.mark.parametrize(
    ("faults", "changes"),
    [
        case(1, "close-lost-in-a-reconnect", DROP, {"name": "withhold_close", "at": hour(5)}),
        case(4, "closed-without-a-word", {"name": "shutdown", "announce": False, "hours": 0, "at": hour(5)}),
        case(6, "flap", {"name": "flap", "n": 3}),
        case(7, "late-close", {"name": "delay_close", "n": 3, "at": hour(5)}),
        case(8, "close-never-sent", {"name": "withhold_close", "n": 3, "at": hour(5)}),
        case(9, "close-twice", {"name": "duplicate_close", "n": 3, "at": hour(5)}),
        case(10, "swapped", {"name": "delay_close", "until": "close", "n": 1, "at": hour(5)}),
        case(13, "burst", {"name": "burst", "n": 3_000, "at": hour(5)}),
        case(15, "rest-429", DROP,
             {"name": "rest_status", "status": 429, "n": 1, "retry_after": 1, "at": hour(5)}),
        case(15, "rest-418", DROP,
             {"name": "rest_status", "status": 418, "n": 1, "retry_after": 1, "at": hour(5)}),
        case(15, "rest-403", DROP, {"name": "rest_status", "status": 403, "n": 2, "at": hour(5)}),
        case(15, "rest-500", DROP, {"name": "rest_status", "status": 500, "n": 2, "at": hour(5)}),
        case(15, "rest-html", DROP, {"name": "rest_body", "kind": "html", "n": 2, "at": hour(5)}),
        case(15, "rest-cut", DROP, {"name": "rest_body", "kind": "truncated", "at": hour(5)}),
        case(15, "rest-nested", DROP, {"name": "rest_body", "kind": "nested", "at": hour(5)}),
        case(16, "rest-has-a-forming-candle", {"name": "withhold_close", "n": 6, "at": hour(5)},
             {"name": "drop", "at": hour(7)}),
        case(17, "rest-repeats-a-row", {"name": "drop", "outage_hours": 3, "at": hour(5)},
             {"name": "rest_body", "kind": "duplicate", "n": 3, "at": hour(5)}),
        case(20, "rest-off-grid", {"name": "drop", "outage_hours": 3, "at": hour(5)},
             {"name": "rest_body", "kind": "off_grid", "n": 3, "at": hour(5)}),
        case(20, "off-grid", {"name": "malformed", "kinds": ("off_grid", "closed_short"), "n": 3, "at": hour(5)}),
        case(23, "microseconds", {"name": "microseconds", "n": 3, "at": hour(5)}),
        case(26, "malformed", {"name": "malformed", "n": 2, "at": hour(5)}),
        case(26, "oversize", {"name": "malformed", "kinds": ("oversize",), "at": hour(5)}),
    ],
)  # fmt: skip
async def test_the_journal_is_the_tape(
    faults: tuple[dict[str, Any], ...],
    changes: dict[str, Any],
    tape: dict[str, list[Candle]],
    broker: str,
    tmp_path: Path,
) -> None:
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        for fault in faults:
            exchange.fault(**fault)
        watch, _ = await stand.run(exchange, broker, tmp_path, **changes)
    names = {fault["name"] for fault in faults}
    if "duplicate_close" in names:
        assert len(watch.of(CandleRepeated)) == 3 * len(SYMBOLS)
    if "malformed" in names and "oversize" not in str(faults):
        assert {f.reason for f in watch.of(FrameRejected)} >= {"off_grid"}
    if "rest_status" in names or "html" in str(faults):
        assert watch.of(BackfillFailed)


def once_live(exchange: Exchange, candles: int, *faults: dict[str, Any]) -> Callable[[stand.Watch], Any]:
    """Returns a task that orders the faults once so many candles have come over the websocket: any hour that a test
    would name might be over by then."""

    async def order(watch: stand.Watch) -> None:
        await watch.until(lambda: watch.live() >= candles)
        for fault in faults:
            exchange.fault(**fault)

    return order


def since_live(processed: list[CandleProcessed]) -> list[CandleProcessed]:
    """Returns the candles since the websocket had brought at least one of each symbol."""
    first = {f.symbol: i for i, f in reversed(list(enumerate(processed))) if f.provenance == "live"}
    return processed[max(first.values()) :]


@pytest.mark.fault(2)
async def test_an_acknowledged_stream_that_says_nothing_is_given_up(
    tape: dict[str, list[Candle]], broker: str, tmp_path: Path
) -> None:
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        exchange.fault("mute", at=hour(9))
        # REST may have brought all candles before the silence has lasted long enough.
        watch, _ = await stand.run(exchange, broker, tmp_path, also=lambda watch: bool(watch.of(FeedDisconnected)))
    assert [f.reason for f in watch.of(FeedDisconnected)] == ["stall"]


@pytest.mark.fault(3)
async def test_one_mute_stream_is_subscribed_again_then_relieved_and_disturbs_nobody(
    broker: str, tmp_path: Path
) -> None:
    tape = stand.market(hours=LONG)

    def relieved(watch: stand.Watch) -> bool:
        relief = [i for i, f in enumerate(watch.facts) if isinstance(f, FeedDisconnected)]
        later = watch.facts[relief[0] :] if relief else []
        return any(isinstance(f, CandleProcessed) and (f.symbol, f.provenance) == ("ETHUSDT", "live") for f in later)

    async with Exchange.replaying(tape, START, LONG, PACED) as exchange:
        mute = once_live(exchange, 6, {"name": "mute", "symbol": "ETHUSDT"})
        watch, ear = await stand.run(exchange, broker, tmp_path, alongside=mute, until=relieved)
        frames = [(e.connection, e.method) for e in exchange.access_log.entries("frame")]
    assert frames == [(1, "UNSUBSCRIBE"), (1, "SUBSCRIBE")]
    assert [(f.reason, f.still_open) for f in watch.of(FeedDisconnected)] == [("rotated", True)]
    processed = watch.of(CandleProcessed)
    assert {f.provenance for f in since_live(processed) if f.symbol == "BTCUSDT"} == {"live"}
    # REST brings what the mute stream does not; the next connection brings the rest.
    assert {f.symbol for f in since_live(processed) if f.provenance == "backfill"} == {"ETHUSDT"}
    states = [state for symbol, state in ear.feed if symbol == "BTCUSDT"]
    assert "stale" not in states[states.index("live") :]


@pytest.mark.fault(4)
@pytest.mark.parametrize("framing", ["raw", "combined"])
async def test_an_announced_shutdown_loses_nothing_and_asks_rest_for_nothing(
    framing: str, broker: str, tmp_path: Path
) -> None:
    tape = stand.market(hours=LONG)
    async with Exchange.replaying(tape, START, LONG, PACED) as exchange:

        def ended(watch: stand.Watch) -> bool:
            return bool(exchange.access_log.entries("disconnect"))

        announce = once_live(exchange, 8, {"name": "shutdown", "framing": framing, "hours": 20})
        watch, _ = await stand.run(exchange, broker, tmp_path, alongside=announce, until=ended, stall_after_s=20.0)
        entries = exchange.access_log.entries("connect", "disconnect")
    assert [f.reason for f in watch.of(FeedDisconnected)] == ["rotated"]
    assert [e.kind for e in entries[:3]] == ["connect", "connect", "disconnect"]
    assert {f.provenance for f in since_live(watch.of(CandleProcessed))} == {"live"}
    assert not watch.of(GapDeclared)


@pytest.mark.fault(9)
async def test_a_restart_processes_nothing_twice(tape: dict[str, list[Candle]], broker: str, tmp_path: Path) -> None:
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        half = dict.fromkeys(SYMBOLS, hour(10))
        first, early = await stand.run(exchange, broker, tmp_path, last=half, check=False)
        exchange.fault("duplicate_close", n=4)
        second, late = await stand.run(exchange, broker, tmp_path, check=False)
        await asyncio.to_thread(fault_oracle.hold, tmp_path, tape, exchange.end_ms, START)
    for symbol in SYMBOLS:
        times = [f.open_time for w in (first, second) for f in w.of(CandleProcessed) if f.symbol == symbol]
        assert times == [c.open_time for c in tape[symbol] if c.open_time >= START]
    for key in early.events.keys() & late.events.keys():
        assert early.events[key] == late.events[key]


@pytest.mark.fault(11)
@pytest.mark.parametrize("trouble", ["blackhole", "reset", "slow"])
async def test_a_network_that_swallows_cuts_or_drips(trouble: Any, broker: str, tmp_path: Path) -> None:
    tape = stand.market(hours=LONG)
    async with Exchange.replaying(tape, START, LONG, PACED) as exchange, Relay(exchange.ws_url) as relay:

        async def meddle(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 6)
            if trouble == "reset":
                relay.reset()
            else:
                relay.become(trouble)
            # A connection on which nothing arrives is given up; a slow one is kept.
            before = len(watch.of(CandleProcessed))
            await watch.until(
                lambda: (
                    bool(watch.of(FeedDisconnected))
                    or (trouble == "slow" and len(watch.of(CandleProcessed)) >= before + 20)
                )
            )
            relay.become("open")
            live = watch.live()
            await watch.until(lambda: watch.live() >= live + 6)

        watch, _ = await stand.run(
            exchange, broker, tmp_path, ws_url=relay.url, alongside=meddle, until=lambda watch: True
        )
    reasons = [f.reason for f in watch.of(FeedDisconnected)]
    assert trouble == "slow" or reasons
    assert set(reasons) <= {"stall", "connection_lost", "unreachable"}


@pytest.mark.fault(12)
async def test_a_blocked_loop_is_measured_and_blames_nobody_else(broker: str, tmp_path: Path) -> None:
    tape = stand.market(hours=20)

    async def block(watch: stand.Watch) -> None:
        await watch.until(lambda: watch.live() >= 2)
        ends = time.perf_counter() + 6.5
        while time.perf_counter() < ends:
            pass

    async with Exchange.replaying(tape, START, 20, 6_000.0) as exchange:
        watch, _ = await stand.run(exchange, broker, tmp_path, alongside=block, stall_after_s=5.0)
    assert max(f.seconds for f in watch.of(LoopLagged)) > 5
    assert not watch.of(FeedDisconnected)


@pytest.mark.fault(14)
async def test_many_symbols_close_at_once(broker: str, tmp_path: Path) -> None:
    symbols = tuple(f"A{i:02d}USDT" for i in range(24))
    tape = stand.market(symbols, hours=6, history=60)
    async with Exchange.replaying(tape, START, 6, None) as exchange:
        watch, _ = await stand.run(exchange, broker, tmp_path)
    assert len(watch.of(CandleProcessed)) == 24 * 6
    assert not watch.of(FeedDisconnected)


@pytest.mark.fault(18)
async def test_rest_answers_late_while_the_socket_goes_on_and_disagrees(broker: str, tmp_path: Path) -> None:
    tape = stand.market(hours=LONG)
    wrong: list[int] = []
    async with Exchange.replaying(tape, START, LONG, PACED) as exchange:

        async def disagree(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 6)
            first = grid_floor(exchange.now_ms()) + HOUR_MS
            exchange.fault("withhold_close", at=first)
            exchange.fault("wrong_close", at=first + HOUR_MS, n=2)
            exchange.fault("slow_rest", at=first + HOUR_MS, seconds=1.0, n=4)
            wrong.extend((first + HOUR_MS, first + 2 * HOUR_MS))
            await watch.until(lambda: corrected(watch, wrong))

        await stand.run(exchange, broker, tmp_path, alongside=disagree, until=lambda watch: True)


def corrected(watch: stand.Watch, wrong: list[int]) -> bool:
    """Returns whether all hours that the stream sent wrong have been backfilled or revised by REST."""
    backfilled = {(f.symbol, f.open_time) for f in watch.of(CandleProcessed) if f.provenance == "backfill"}
    revised = {(f.symbol, f.open_time) for f in watch.of(CandleRevised)}
    return backfilled | revised >= {(symbol, open_time) for symbol in SYMBOLS for open_time in wrong}


@pytest.mark.fault(19)
async def test_hours_that_nobody_has_are_declared_once(broker: str, tmp_path: Path) -> None:
    tape = stand.without(stand.market(hours=HOURS), {s: {6, 7, 8, 9} for s in SYMBOLS})
    async with Exchange.replaying(tape, START, HOURS, None) as exchange:
        watch, ear = await stand.run(exchange, broker, tmp_path)
    gaps = [(g.symbol, (g.from_open_time - START) // HOUR_MS, g.hours) for g in watch.of(GapDeclared)]
    assert sorted(gaps) == [(s, 6, 4) for s in SYMBOLS]
    opened = [key for key in ear.events if key[0].endswith(":opened")]
    assert len(opened) == 2
    assert len(watch.of(BackfillRequested)) < 40


def flat(tape: dict[str, list[Candle]], symbol: str, hours: range) -> dict[str, list[Candle]]:
    """Returns the tape with hours without a trade: the last price, and no volume."""
    found = []
    for candle in tape[symbol]:
        if (candle.open_time - START) // HOUR_MS in hours:
            p = found[-1].close
            candle = Candle(symbol, candle.open_time, p, p, p, p, 0.0, 0.0, 0, 0.0)
        found.append(candle)
    return tape | {symbol: found}


@pytest.mark.fault(21)
@pytest.mark.parametrize("hours", [range(5, 6), range(5, LONG)], ids=["one", "for-ever"])
async def test_hours_without_a_trade(hours: range, broker: str, tmp_path: Path) -> None:
    for_ever = len(hours) > 1
    played = hours.stop if for_ever else HOURS
    tape = flat(stand.market(hours=played), "ETHUSDT", hours)
    async with Exchange.replaying(tape, START, played, PACED if for_ever else None) as exchange:
        if for_ever:
            exchange.fault("status", symbol="ETHUSDT", status="BREAK", at=hour(6))

        def halted(watch: stand.Watch) -> bool:
            return ("ETHUSDT", "halted") in watch.ear.feed and any(f.halted for f in watch.of(TradingObserved))

        watch, ear = await stand.run(exchange, broker, tmp_path, until=halted if for_ever else None)
    assert {f.symbol for f in watch.of(TradingObserved) if f.halted} == ({"ETHUSDT"} if for_ever else set())
    assert (("ETHUSDT", "halted") in ear.feed) == for_ever
    assert not watch.of(FeedDisconnected)


@pytest.mark.fault(22)
@pytest.mark.parametrize("status", ["BREAK", "HALT", "CANCEL_ONLY", "DELISTED"])
async def test_a_symbol_is_halted_or_delisted_and_comes_back(status: str, broker: str, tmp_path: Path) -> None:
    def halted(watch: stand.Watch) -> bool:
        return [f.halted for f in watch.of(TradingObserved) if f.symbol == "ETHUSDT"][-1]

    tape = stand.market(hours=LONG)
    series = tape["ETHUSDT"]
    async with Exchange.replaying(tape, START, LONG, PACED) as exchange:

        async def halt_and_come_back(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 6)
            # Trading ends with the running hour, and resumes after the hour that runs when the halt has been noticed.
            exchange.tape = Tape(tape | {"ETHUSDT": [c for c in series if c.open_time <= exchange.now_ms()]})
            end = exchange.tape.all("ETHUSDT")[-1].close_time
            exchange.fault("status", symbol="ETHUSDT", status=status)
            await watch.until(lambda: dict(watch.ear.feed)["ETHUSDT"] == "halted" and halted(watch))
            again = exchange.now_ms()
            exchange.tape = Tape(tape | {"ETHUSDT": [c for c in series if not end < c.open_time <= again]})
            exchange.fault("status", symbol="ETHUSDT", status="TRADING")
            # Not asked once the tape has ended: to a node that then stops slowly the next hour is overdue.
            await watch.until(lambda: dict(watch.ear.feed)["ETHUSDT"] == "live" and not halted(watch))

        watch, _ = await stand.run(exchange, broker, tmp_path, alongside=halt_and_come_back, until=lambda watch: True)
        missing = len(series) - len(exchange.tape.all("ETHUSDT"))
    assert {f.symbol for f in watch.of(TradingObserved) if f.halted} == {"ETHUSDT"}
    assert not halted(watch)
    assert not watch.of(FeedDisconnected)
    gap = next(g for g in watch.of(GapDeclared))
    assert (gap.symbol, gap.hours) == ("ETHUSDT", missing)


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "steps_ms", [(-90_000,), (90_000,), (0, -3_600_000, 3_600_000)], ids=["behind", "ahead", "jumps"]
)
async def test_our_wall_clock_is_wrong(
    steps_ms: tuple[int, ...],
    tape: dict[str, list[Candle]],
    broker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    turns = itertools.cycle(steps_ms)
    clock = Clock(wall_ms=lambda: time.time_ns() // 1_000_000 + next(turns))
    try:
        async with Exchange.replaying(tape, START, HOURS, None) as exchange:
            watch, _ = await stand.run(exchange, broker, tmp_path, clock=clock)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert not watch.of(FeedDisconnected)


@pytest.mark.fault(25)
async def test_an_exchange_that_is_away_for_hours_is_waited_for_and_said_to_be(broker: str, tmp_path: Path) -> None:
    tape = stand.market(hours=LONG)
    async with (
        Exchange.replaying(tape, START, LONG, PACED) as exchange,
        Relay(exchange.ws_url) as socket,
        Relay(exchange.rest_url) as rest,
    ):

        async def vanish(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 6)
            for relay in (socket, rest):
                relay.become("closed")
                relay.reset()
            # Until both have been tried in vain, for hours of the exchange's time.
            await watch.until(
                lambda: (
                    bool(watch.of(BackfillFailed))
                    and "unreachable" in {f.reason for f in watch.of(FeedDisconnected)}
                    and ("BTCUSDT", "stale") in watch.ear.feed
                )
            )
            for relay in (socket, rest):
                relay.become("open")
            await watch.until(lambda: dict(watch.ear.feed) == dict.fromkeys(SYMBOLS, "live"))

        watch, _ = await stand.run(
            exchange, broker, tmp_path, ws_url=socket.url, rest_url=rest.url, alongside=vanish, until=lambda watch: True
        )
    assert "unreachable" in {f.reason for f in watch.of(FeedDisconnected)}


@pytest.mark.fault(32)
@pytest.mark.parametrize("status", [301, 403, 404, 451])
async def test_an_endpoint_that_moved_or_refuses_is_named_and_not_stormed(
    status: int, broker: str, tmp_path: Path
) -> None:
    tape = stand.market(hours=4)
    async with Exchange.replaying(tape, START, 4, None) as exchange:
        exchange.fault("refuse", status=status, n=1_000, location="ws://127.0.0.1:1/stream" if status == 301 else None)
        watch, _ = await stand.run(
            exchange, broker, tmp_path, last={}, check=False, also=lambda w: bool(w.of(FeedDisconnected))
        )
        assert len(exchange.access_log.entries("refused")) == 1
    assert [f.reason for f in watch.of(FeedDisconnected)] == [f"http_{status}"]
    assert not watch.of(FeedConnected)


@pytest.mark.fault(17)
@pytest.mark.fault(33)
async def test_a_long_downtime_is_made_up_for(broker: str, tmp_path: Path) -> None:
    away, hours = 1_030, 8
    whole = stand.market(("BTCUSDT",), hours=away + hours)
    async with Exchange.replaying(whole, START, 3, None) as exchange:
        await stand.run(exchange, broker, tmp_path)
    async with Exchange.replaying(whole, hour(away), hours, None) as exchange:
        watch, _ = await stand.run(exchange, broker, tmp_path)
        asked = [e.detail["params"] for e in exchange.access_log.entries("request") if e.method == "/api/v3/klines"]
        pages = [params for params in asked if "startTime" in params]
    assert [f.open_time for f in watch.of(CandleProcessed)] == [hour(h) for h in range(3, away + hours)]
    assert len(pages) < 12
    assert not watch.of(GapDeclared)


@pytest.mark.fault(36)
async def test_a_candle_that_the_exchange_revises_is_said_again(broker: str, tmp_path: Path) -> None:
    tape = stand.market(hours=LONG)
    changed: list[int] = []
    async with Exchange.replaying(tape, START, LONG, PACED) as exchange:

        async def revise(watch: stand.Watch) -> None:
            await watch.until(lambda: watch.live() >= 20)
            changed.append(exchange.fault("revise", symbol="BTCUSDT", hours_ago=5, factor=0.97)["revised"])

        watch, ear = await stand.run(
            exchange, broker, tmp_path, alongside=revise, until=lambda w: bool(w.of(ForecastRevised))
        )
    assert [(f.symbol, f.open_time) for f in watch.of(CandleRevised)] == [("BTCUSDT", *changed)]
    again = watch.of(ForecastRevised)
    assert again[0].forecast.open_time == changed[0]
    for fact in again:
        key = (fact.forecast.id, 1)
        assert [msgspec.json.decode(p)["revision"] for p in ear.events[key]] == [1]
