"""The intake with a REST that the test controls: holes wait for it, candles that come in order do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from intake_stand import BEGIN_MS, NEWEST, START, SYMBOL, Stand, running

from stream.core.market.binance import KlineUpdate
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.core.market.outputs import Due
from stream.telemetry import CandleRepeated, CandleRevised, FrameRejected
from stream.testing.market import simulate_symbol


@pytest.fixture(scope="module")
def tape() -> list[Candle]:
    return simulate_symbol(SYMBOL, START, 140, 5)


@pytest.fixture(scope="module")
def past() -> list[Candle]:
    """Candles up to the beginning of the tape, more than any start needs."""
    return simulate_symbol(SYMBOL, START - 4_500 * HOUR_MS, 4_500, 6)


@pytest.fixture
async def stand(tmp_path: Path, tape: list[Candle]) -> AsyncIterator[Stand]:
    made = await asyncio.to_thread(Stand, tmp_path, tape)
    async with running(made):
        yield made


async def test_a_fresh_start_begins_with_the_newest_closed_candle(stand: Stand) -> None:
    assert await stand.passed(1) == [(NEWEST, "backfill")]
    await stand.close(NEWEST + 1)
    assert await stand.passed(1) == [(NEWEST + 1, "live")]


@pytest.mark.parametrize("holes", ["none", "across-the-beginning", "across-weeks", "within", "to-the-end", "young"])
async def test_a_fresh_start_has_all_of_the_past_that_there_is(
    holes: str, tmp_path: Path, tape: list[Candle], past: list[Candle]
) -> None:
    made = await asyncio.to_thread(Stand, tmp_path, tape)
    begin = START + NEWEST * HOUR_MS
    oldest = begin - (made.processor.history_hours(SYMBOL) - 1) * HOUR_MS
    lacks = {
        "none": range(0),
        "across-the-beginning": range(oldest - 5 * HOUR_MS, oldest + 5 * HOUR_MS, HOUR_MS),
        "across-weeks": range(oldest - 300 * HOUR_MS, oldest + 36 * HOUR_MS, HOUR_MS),
        "within": range(begin - 90 * HOUR_MS, begin - 80 * HOUR_MS, HOUR_MS),
        "to-the-end": range(begin - 6 * HOUR_MS, begin, HOUR_MS),
        "young": range(0, begin - 500 * HOUR_MS, HOUR_MS),
    }[holes]
    made.rest.candles_ = [c for c in past + tape if c.open_time not in lacks]
    async with running(made):
        assert await made.passed(1) == [(NEWEST, "backfill")]
        stored = await made.worker.call(made.journal.candles, SYMBOL, 0, begin)
    there = [c for c in made.rest.candles_ if oldest <= c.open_time < begin]
    assert [(c.open_time, c.ohlcv) for c in stored] == [(c.open_time, c.ohlcv) for c in there]


async def test_a_hole_waits_for_rest_and_nothing_passes_before_it_is_filled(stand: Stand) -> None:
    await stand.passed(1)
    stand.rest.reachable = False
    stand.rest.queried.clear()
    await stand.close(NEWEST + 3)
    await stand.rest.queried.wait()
    await stand.close(NEWEST + 4)
    assert stand.queue.empty()
    stand.rest.reachable = True
    expected = [(NEWEST + 1, "backfill"), (NEWEST + 2, "backfill"), (NEWEST + 3, "live"), (NEWEST + 4, "live")]
    assert await stand.passed(4) == expected


async def test_what_comes_in_order_does_not_wait_for_a_rest_that_is_away(stand: Stand) -> None:
    await stand.passed(1)
    stand.rest.reachable = False
    stand.rest.queried.clear()
    stand.intake.connected()
    await stand.rest.queried.wait()
    for hour in (1, 2, 3):
        await stand.close(NEWEST + hour)
    assert await stand.passed(3) == [(NEWEST + h, "live") for h in (1, 2, 3)]
    stand.rest.reachable = True
    # REST now knows the same three: they do not pass again.
    await stand.close(NEWEST + 5)
    assert await stand.passed(2) == [(NEWEST + 4, "backfill"), (NEWEST + 5, "live")]


async def test_an_hour_that_rest_does_not_have_either_is_left_out_once_that_is_proven(stand: Stand) -> None:
    await stand.passed(1)
    stand.rest.lacks = {START + (NEWEST + 1) * HOUR_MS}
    await stand.close(NEWEST + 2)
    assert await stand.passed(1) == [(NEWEST + 2, "live")]


async def test_where_rest_and_socket_disagree_rest_is_the_truth(stand: Stand) -> None:
    await stand.passed(1)
    true_candle = stand.tape[NEWEST + 2]
    wrong = Candle(
        SYMBOL,
        true_candle.open_time,
        true_candle.open,
        true_candle.high * 2,
        true_candle.low,
        true_candle.close,
        true_candle.volume,
    )
    stand.at(true_candle.close_time + 60_000)
    await stand.intake.closed(KlineUpdate(wrong, true_candle.close_time + 80, True), stand.now_s)
    assert await stand.passed(2) == [(NEWEST + 1, "backfill"), (NEWEST + 2, "backfill")]


@pytest.mark.parametrize("ahead_ms", [4_070_908_800_000 - BEGIN_MS, 50 * 60_000, 3_000])
async def test_a_frame_from_ahead_of_the_exchange_leads_nobody_astray(stand: Stand, ahead_ms: int) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.at(BEGIN_MS + 3_000)
    early = msgspec.structs.replace(stand.tape[NEWEST + 1], open_time=grid_floor(stand.now_ms() + ahead_ms) - HOUR_MS)
    reported_ms = stand.now_ms() + ahead_ms
    stand.intake.forming(KlineUpdate(early, reported_ms, False), stand.now_s)
    await stand.intake.closed(KlineUpdate(early, reported_ms, True), stand.now_s)
    assert stand.time.now_ms(stand.now_s) == stand.now_ms()
    assert [f.reason for f in stand.facts if isinstance(f, FrameRejected)] == ["time_range"] * 2
    # The exchange is asked for its time, and confirms the earlier one.
    assert stand.time.doubt_ms == ahead_ms
    stand.intake.watch()
    await stand.until(lambda: stand.time.doubt_ms is None)
    assert stand.queue.empty()
    await stand.close(NEWEST + 1)
    assert await stand.passed(1) == [(NEWEST + 1, "live")]


async def test_repetitions_are_counted_and_never_pass(stand: Stand) -> None:
    await stand.passed(1)
    await stand.close(NEWEST + 1)
    await stand.close(NEWEST + 1)
    await stand.close(NEWEST - 5)
    await stand.close(NEWEST + 2)
    assert await stand.passed(2) == [(NEWEST + 1, "live"), (NEWEST + 2, "live")]
    assert [f.out_of_order for f in stand.facts if isinstance(f, CandleRepeated)] == [False, True]


async def test_a_close_that_never_comes_is_fetched_when_it_is_overdue(stand: Stand) -> None:
    await stand.passed(1)
    await stand.idle()
    due_close = START + (NEWEST + 2) * HOUR_MS
    stand.at(due_close + 59_000)
    asked = stand.rest.asked
    stand.intake.watch()
    await stand.rest_of_the_loop()
    assert stand.rest.asked == asked
    stand.at(due_close + 60_500)
    stand.intake.watch()
    assert await stand.passed(1) == [(NEWEST + 1, "backfill")]


@pytest.mark.parametrize(("status", "state"), [("TRADING", "gap"), ("BREAK", "halted"), ("HALT", "halted")])
async def test_an_exchange_that_stands_still_is_told_apart_and_not_asked_without_pause(
    stand: Stand, status: str, state: str
) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.rest.lacks = {c.open_time for c in stand.tape[NEWEST + 1 :]}
    stand.rest.status = status
    stand.at(START + (NEWEST + 3) * HOUR_MS)
    stand.intake.watch()
    await stand.idle()
    assert stand.states[-1] == state
    asked = stand.rest.asked
    for _ in range(29):
        stand.at(stand.now_ms() + 1_000)
        stand.intake.watch()
        await stand.rest_of_the_loop()
    assert stand.rest.asked == asked
    # The next candle ends the halt, once REST has shown twice that it has that one and not the one before.
    stand.intake.connected()
    await stand.idle()
    stand.rest.lacks = {START + (NEWEST + 1) * HOUR_MS}
    await stand.close(NEWEST + 2)
    assert await stand.passed(1) == [(NEWEST + 2, "live")]
    assert not stand.sequencer.halted


async def test_a_late_close_that_comes_after_all_ends_the_gap(stand: Stand) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.sequencer.connected = True
    stand.rest.lacks = {c.open_time for c in stand.tape[NEWEST + 1 :]}
    stand.at(START + (NEWEST + 2) * HOUR_MS + 75_000)
    stand.intake.watch()
    await stand.idle()
    assert stand.states[-1] == "gap"
    await stand.close(NEWEST + 1)
    assert stand.states[-1] == "live"


@pytest.mark.fault(60)
async def test_a_status_that_cannot_be_had_keeps_no_candle_back(stand: Stand) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.rest.knows_status = False
    stand.rest.lacks = {c.open_time for c in stand.tape[NEWEST + 1 :]}
    stand.at(START + (NEWEST + 2) * HOUR_MS + 75_000)
    stand.intake.watch()
    await stand.idle()
    assert stand.states[-1] == "gap"
    stand.rest.lacks = set()
    stand.at(stand.now_ms() + 31_000)
    stand.intake.watch()
    assert await stand.passed(1) == [(NEWEST + 1, "backfill")]


@pytest.mark.fault(61)
async def test_a_symbol_that_the_exchange_denies_is_told_and_asked_for_again(stand: Stand) -> None:
    stand.rest.knows = False
    await stand.until(lambda: stand.sequencer.unlisted)
    assert stand.subscription.settled.is_set()
    assert stand.states[-1] == "halted"
    stand.rest.knows = True
    assert await stand.passed(1) == [(NEWEST, "backfill")]
    assert not stand.sequencer.unlisted


@pytest.mark.fault(36)
async def test_the_past_is_held_against_rest_after_each_close(stand: Stand) -> None:
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST], "backfill")])
    await stand.idle()
    # Once at the start, for what happened while the node was down; then half a minute after each close.
    assert await audited(stand, minutes=1) == 1
    assert await audited(stand, minutes=59) == 0
    await stand.close(NEWEST + 1)
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST + 1], "live")])
    assert await audited(stand, minutes=60.4) == 0
    revised = msgspec.structs.replace(stand.tape[NEWEST], close=stand.tape[NEWEST].open, volume=1.0)
    stand.rest.candles_ = [revised if c.open_time == revised.open_time else c for c in stand.tape]
    assert await audited(stand, minutes=60.6) == 1
    assert [f.open_time for f in stand.facts if isinstance(f, CandleRevised)] == [revised.open_time]
    assert await audited(stand, minutes=119) == 0


async def test_a_rest_that_is_behind_revises_nothing_and_is_asked_again_ever_more_rarely(stand: Stand) -> None:
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST], "backfill")])
    await stand.idle()
    assert await audited(stand, minutes=1) == 1
    await stand.close(NEWEST + 1)
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST + 1], "live")])
    # As of fifty minutes ago: the row of the hour that closed last is the one that was forming then.
    half = msgspec.structs.replace(stand.tape[NEWEST + 1], close=stand.tape[NEWEST + 1].open, volume=1.0)
    stand.rest.candles_ = [half if c.open_time == half.open_time else c for c in stand.tape]
    stand.rest.lag_ms = 50 * 60_000
    asked = [await audited(stand, minutes=61 + n / 60) for n in range(60)]
    assert 3 <= sum(asked) <= 5
    stand.rest.candles_, stand.rest.lag_ms = stand.tape, 0
    assert await audited(stand, minutes=75) == 1
    assert await audited(stand, minutes=76) == 0
    assert not [f for f in stand.facts if isinstance(f, CandleRevised)]


async def test_an_audit_that_rest_does_not_answer_is_tried_again_later(stand: Stand) -> None:
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST], "backfill")])
    await stand.idle()
    stand.rest.reachable = False
    assert await audited(stand, minutes=10) == 1
    assert await audited(stand, minutes=10.9) == 0
    stand.rest.reachable = True
    assert await audited(stand, minutes=11) == 1
    assert await audited(stand, minutes=15) == 0


@pytest.mark.parametrize("second_is_right", [True, False])
async def test_a_second_copy_that_differs_makes_rest_the_judge(stand: Stand, second_is_right: bool) -> None:
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST], "backfill")])
    await stand.idle()
    assert await audited(stand, minutes=1) == 1
    right = stand.tape[NEWEST + 1]
    wrong = msgspec.structs.replace(right, volume=right.volume + 1)
    copies = [wrong, right] if second_is_right else [right, wrong]
    stand.at(right.close_time + 100)
    await stand.intake.closed(KlineUpdate(copies[0], right.close_time + 80, True), stand.now_s)
    await stand.passed(1)
    await stand.processor.process([Due(copies[0], "live", 0.0)])
    await stand.intake.closed(KlineUpdate(copies[1], right.close_time + 90, True), stand.now_s)
    # REST's row is too young at first: it decides nothing, and REST is asked again.
    assert await audited(stand, minutes=60.02) == 1
    assert await audited(stand, minutes=60.2) == 1
    assert await audited(stand, minutes=61) == 0
    revised = [f.open_time for f in stand.facts if isinstance(f, CandleRevised)]
    assert revised == ([right.open_time] if second_is_right else [])


@pytest.mark.fault(21)
@pytest.mark.parametrize(("status", "halted"), [("TRADING", False), ("BREAK", True)])
async def test_a_day_without_a_trade_makes_us_ask_whether_there_is_any_trading(
    stand: Stand, status: str, halted: bool
) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.rest.status = status
    price = stand.tape[NEWEST].close
    for n in range(1, 26):
        flat = Candle(SYMBOL, START + (NEWEST + n) * HOUR_MS, price, price, price, price, 0.0)
        stand.at(flat.close_time + 1_000)
        await stand.intake.closed(KlineUpdate(flat, flat.close_time + 80, True), stand.now_s)
    await stand.passed(25)
    await audited(stand, minutes=25 * 60 + 15)
    assert stand.sequencer.halted is halted
    assert (stand.states[-1] == "halted") is halted
    # One trade ends the halt.
    await stand.close(NEWEST + 26)
    assert not stand.sequencer.halted
    assert stand.states[-1] == "live"


async def audited(stand: Stand, minutes: float) -> int:
    """Audits so many minutes after the close with which the test began; returns how often REST was asked."""
    stand.at(START + (NEWEST + 1) * HOUR_MS + round(minutes * 60_000))
    asked = stand.rest.asked_for_candles
    stand.intake.audit()
    await stand.until(lambda: not stand.subscription.auditing)
    return stand.rest.asked_for_candles - asked
