"""The intake with a REST that answers what the test lets it: holes wait for it, order does not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from stream.adapters.journal import SqliteJournal
from stream.core.binance import ExchangeInfo, KlineUpdate, SymbolInfo, UnknownSymbolError
from stream.core.candle import HOUR_MS, Candle
from stream.core.exchange_time import ExchangeTime
from stream.core.fold import Rules
from stream.core.policy import Policy
from stream.pipeline.intake import Intake
from stream.pipeline.processing import Due, Processor
from stream.ports import (
    Answer,
    CandleRepeated,
    CandleRevised,
    Clock,
    Fact,
    FrameRejected,
    RefusedError,
    UnreachableError,
)
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
SYMBOL = "BTCUSDT"
#: The newest closed candle when the test begins.
NEWEST = 100


class Rest:
    """Knows the candles up to its own time, and answers while `open` is set."""

    def __init__(self, candles: list[Candle]) -> None:
        self.candles_ = candles
        self.now_ms = START + (NEWEST + 1) * HOUR_MS + 60_000
        self.reachable = True
        self.status = "TRADING"
        self.knows = True
        self.asked = 0
        self.asked_for_candles = 0
        self.lacks: set[int] = set()
        self.heard = asyncio.Event()

    async def server_time_ms(self) -> int:
        await self._answer()
        return self.now_ms

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        await self._answer()
        return ExchangeInfo(self.now_ms, [SymbolInfo(symbol, self.status)])

    async def candles(self, symbol: str, from_open_time: int, to_open_time: int | None = None) -> Answer:
        self.asked_for_candles += 1
        await self._answer()
        last = 2**60 if to_open_time is None else to_open_time
        found = [c for c in self.candles_ if from_open_time <= c.open_time <= last and c.close_time < self.now_ms]
        return Answer([c for c in found if c.open_time not in self.lacks], self.now_ms)

    async def _answer(self) -> None:
        self.asked += 1
        self.heard.set()
        await asyncio.sleep(0)
        if not self.reachable:
            raise UnreachableError("nobody there")
        if not self.knows:
            raise UnknownSymbolError(SYMBOL)


class Predictor:
    model = sample_model()

    def __call__(self, sequence, static):  # type: ignore[no-untyped-def]
        return sample_predict(sequence, static)


class Stand:
    def __init__(self, data_dir: Path, tape: list[Candle]) -> None:
        self.tape = tape
        self.rest = Rest(tape)
        self.facts: list[Fact] = []
        self.states: list[str] = []
        self.journal = SqliteJournal(data_dir)
        self.now_s = 0.0
        clock = Clock(monotonic_s=lambda: self.now_s)
        self.processor = Processor(
            journal=self.journal,
            predictor=Predictor(),
            rules=Rules.of(Policy(), Predictor.model.contract),
            clock=clock,
            observe=self.facts.append,
            offer=lambda events, retained: None,
        )
        self.queue: asyncio.Queue[Due] = asyncio.Queue(100)
        self.time = ExchangeTime()
        self.intake = Intake(
            [SYMBOL],
            history=self.rest,
            journal=self.journal,
            processor=self.processor,
            queue=self.queue,
            exchange_time=self.time,
            time_scale=1.0,
            clock=clock,
            observe=self.facts.append,
            tell_feed=lambda symbol, state, first, last: self.states.append(state),
        )

    async def close(self, hour: int) -> None:
        """The socket brings the close of an hour."""
        candle = self.tape[hour]
        self.rest.now_ms = max(self.rest.now_ms, candle.close_time + 1_000)
        await self.intake.closed(KlineUpdate(candle, candle.close_time + 80, True), self.now_s)

    async def idle(self) -> None:
        """Until the repair in hand, if any, is done."""
        repairing = self.intake.lanes[SYMBOL].repairing
        if repairing is not None:
            await asyncio.wait([repairing])

    async def passed(self, count: int) -> list[tuple[int, str]]:
        """The next candles that pass: (hour, channel)."""
        found = []
        async with asyncio.timeout(120):
            for _ in range(count):
                due = await self.queue.get()
                found.append(((due.candle.open_time - START) // HOUR_MS, due.provenance))
        return found


@pytest.fixture(scope="module")
def tape() -> list[Candle]:
    return simulate_symbol(SYMBOL, START, 140, 5)


@pytest.fixture
async def stand(tmp_path: Path, tape: list[Candle]) -> AsyncIterator[Stand]:
    made = await asyncio.to_thread(Stand, tmp_path, tape)
    running = asyncio.create_task(made.intake.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.to_thread(made.processor.close)
    await asyncio.to_thread(made.journal.close)


async def test_a_fresh_start_begins_with_the_newest_closed_candle(stand: Stand) -> None:
    assert await stand.passed(1) == [(NEWEST, "backfill")]
    await stand.close(NEWEST + 1)
    assert await stand.passed(1) == [(NEWEST + 1, "live")]


async def test_a_hole_waits_for_rest_and_nothing_passes_before_it_is_filled(stand: Stand) -> None:
    await stand.passed(1)
    stand.rest.reachable = False
    stand.rest.heard.clear()
    await stand.close(NEWEST + 3)
    await stand.rest.heard.wait()
    await stand.close(NEWEST + 4)
    assert stand.queue.empty()
    stand.rest.reachable = True
    expected = [(NEWEST + 1, "backfill"), (NEWEST + 2, "backfill"), (NEWEST + 3, "live"), (NEWEST + 4, "live")]
    assert await stand.passed(4) == expected


async def test_what_comes_in_order_does_not_wait_for_a_rest_that_is_away(stand: Stand) -> None:
    await stand.passed(1)
    stand.rest.reachable = False
    stand.rest.heard.clear()
    stand.intake.connected()
    await stand.rest.heard.wait()
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
    spoken = stand.tape[NEWEST + 2]
    wrong = Candle(SYMBOL, spoken.open_time, spoken.open, spoken.high * 2, spoken.low, spoken.close, spoken.volume)
    stand.rest.now_ms = spoken.close_time + 60_000
    await stand.intake.closed(KlineUpdate(wrong, spoken.close_time + 80, True), 0.0)
    assert await stand.passed(2) == [(NEWEST + 1, "backfill"), (NEWEST + 2, "backfill")]


async def test_a_frame_from_far_ahead_leads_nobody_astray(stand: Stand) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.now_s = 100.0
    now_ms = START + (NEWEST + 1) * HOUR_MS + 60_000
    stand.time.observe(now_ms, stand.now_s)
    known = stand.tape[NEWEST]
    later = msgspec.structs.replace(known, open_time=4_070_908_800_000)
    for candle in (later, msgspec.structs.replace(later, symbol="DOGEUSDT")):
        stand.intake.forming(KlineUpdate(candle, candle.open_time + 5_000, False), stand.now_s)
        await stand.intake.closed(KlineUpdate(candle, candle.close_time + 80, True), stand.now_s)
    assert stand.time.now_ms(stand.now_s) == now_ms
    assert [f.reason for f in stand.facts if isinstance(f, FrameRejected)] == ["time_range"] * 2
    await stand.idle()
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
    stand.now_s = 40.0
    stand.time.observe(due_close + 59_000, stand.now_s)
    stand.rest.now_ms = due_close + 70_000
    asked = stand.rest.asked
    stand.intake.watch()
    await asyncio.sleep(0)
    assert stand.rest.asked == asked
    stand.now_s = 41.5
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
    stand.now_s = 100.0
    stand.time.observe(START + (NEWEST + 3) * HOUR_MS, stand.now_s)
    stand.intake.watch()
    await stand.idle()
    assert stand.states[-1] == state
    asked = stand.rest.asked
    for _ in range(29):
        stand.now_s += 1.0
        stand.intake.watch()
        await asyncio.sleep(0)
    assert stand.rest.asked == asked
    # The next candle ends it.
    stand.intake.connected()
    await stand.idle()
    stand.rest.lacks = {START + (NEWEST + 1) * HOUR_MS}
    await stand.close(NEWEST + 2)
    assert await stand.passed(1) == [(NEWEST + 2, "live")]
    assert not stand.intake.lanes[SYMBOL].halted


async def test_a_late_close_that_comes_after_all_ends_the_gap(stand: Stand) -> None:
    await stand.passed(1)
    await stand.idle()
    stand.intake.feed_connected = True
    stand.rest.lacks = {c.open_time for c in stand.tape[NEWEST + 1 :]}
    stand.now_s = 100.0
    stand.time.observe(START + (NEWEST + 2) * HOUR_MS + 75_000, stand.now_s)
    stand.intake.watch()
    await stand.idle()
    assert stand.states[-1] == "gap"
    await stand.close(NEWEST + 1)
    assert stand.states[-1] == "live"


async def test_a_symbol_that_neither_exchange_nor_journal_knows_is_refused(tmp_path: Path, tape: list[Candle]) -> None:
    made = await asyncio.to_thread(Stand, tmp_path, tape)
    made.rest.knows = False
    with pytest.raises(ExceptionGroup) as group:
        await made.intake.run()
    assert group.value.subgroup(RefusedError) is not None
    with contextlib.suppress(Exception):
        await asyncio.to_thread(made.processor.close)
    await asyncio.to_thread(made.journal.close)


@pytest.mark.fault(36)
async def test_the_past_is_held_against_rest_once_an_hour(stand: Stand) -> None:
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST], "backfill")])
    await stand.idle()
    # Once at the start, for what happened while we were away; then ten minutes after each full hour.
    assert await audited(stand, minutes=1) == 1
    assert await audited(stand, minutes=9) == 0
    revised = msgspec.structs.replace(stand.tape[NEWEST], close=stand.tape[NEWEST].open, volume=1.0)
    stand.rest.candles_ = [revised if c.open_time == revised.open_time else c for c in stand.tape]
    assert await audited(stand, minutes=10) == 1
    assert [f.open_time for f in stand.facts if isinstance(f, CandleRevised)] == [revised.open_time]
    assert await audited(stand, minutes=40) == 0
    assert await audited(stand, minutes=70) == 1
    assert len([f for f in stand.facts if isinstance(f, CandleRevised)]) == 1


async def test_an_audit_that_rest_does_not_answer_is_tried_again_later(stand: Stand) -> None:
    await stand.passed(1)
    await stand.processor.process([Due(stand.tape[NEWEST], "backfill")])
    await stand.idle()
    stand.rest.reachable = False
    assert await audited(stand, minutes=10) == 1
    assert await audited(stand, minutes=10, later_s=59) == 0
    stand.rest.reachable = True
    assert await audited(stand, minutes=10, later_s=60) == 1
    assert await audited(stand, minutes=10, later_s=300) == 0


async def test_a_second_copy_that_differs_makes_rest_the_judge(stand: Stand) -> None:
    await stand.passed(1)
    await stand.idle()
    await stand.close(NEWEST + 1)
    await stand.passed(1)
    for due in (Due(stand.tape[NEWEST], "backfill"), Due(stand.tape[NEWEST + 1], "live", 0.0)):
        await stand.processor.process([due])
    assert await audited(stand, minutes=75) == 1
    assert await audited(stand, minutes=75) == 0
    spoken = stand.tape[NEWEST + 1]
    other = msgspec.structs.replace(spoken, volume=spoken.volume + 1)
    await stand.intake.closed(KlineUpdate(other, spoken.close_time + 900, True), stand.now_s)
    assert await audited(stand, minutes=75) == 1
    assert not [f for f in stand.facts if isinstance(f, CandleRevised)]


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
        stand.rest.now_ms = flat.close_time + 1_000
        await stand.intake.closed(KlineUpdate(flat, flat.close_time + 80, True), stand.now_s)
    await stand.passed(25)
    await audited(stand, minutes=25 * 60 + 15)
    assert stand.intake.lanes[SYMBOL].halted is halted
    assert (stand.states[-1] == "halted") is halted
    # One trade and it goes on.
    await stand.close(NEWEST + 26)
    assert not stand.intake.lanes[SYMBOL].halted
    assert stand.states[-1] == "live"


async def audited(stand: Stand, minutes: int, later_s: float = 0.0) -> int:
    """How often REST was asked for the past by looks at this many minutes after the newest candle's close."""
    now_ms = START + (NEWEST + 1) * HOUR_MS + minutes * 60_000
    stand.rest.now_ms = max(stand.rest.now_ms, now_ms)
    stand.time.observe(now_ms, stand.now_s)
    stand.now_s += later_s
    asked = stand.rest.asked_for_candles
    stand.intake.audit()
    async with asyncio.timeout(120):
        while stand.intake.lanes[SYMBOL].auditing:  # noqa: ASYNC110 - a fake clock has no events
            await asyncio.sleep(0)
    return stand.rest.asked_for_candles - asked
