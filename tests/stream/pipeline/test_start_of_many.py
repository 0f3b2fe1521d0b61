"""The start of many symbols: what is asked of REST and in which order, who waits for whom, and what is logged of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from intake_stand import BEGIN_MS, NEWEST, START, SYMBOL, Stand, running

from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.outputs import Due
from stream.pipeline.health import Health
from stream.pipeline.progress import MANY, Progress
from stream.pipeline.publishing import EventPublisher
from stream.pipeline.warmup import _HISTORIES
from stream.ports import Urgency
from stream.telemetry import BackfillFailed, Fact, MissingCounted, WarmupProgressed
from stream.testing.market import simulate_symbol

SYMBOLS = tuple(f"S{n:02}USDT" for n in range(MANY + 5))


@pytest.fixture(scope="module")
def tape() -> list[Candle]:
    return simulate_symbol(SYMBOL, START, 140, 5)


@pytest.fixture
async def stand(tmp_path: Path, tape: list[Candle]) -> AsyncIterator[Stand]:
    made = await asyncio.to_thread(Stand, tmp_path, tape, SYMBOLS)
    async with running(made):
        yield made


def health(stand: Stand) -> Health:
    def monotonic_s() -> float:
        return stand.now_s

    clock = Clock(monotonic_s=monotonic_s)
    publisher = EventPublisher(
        instance="a",
        session="b",
        journal=stand.journal,
        worker=stand.worker,
        clock=clock,
        exchange_now_ms=stand.now_ms,
        observe=stand.facts.append,
    )
    return Health(
        stand.symbols,
        intake=stand.intake,
        processor=stand.processor,
        worker=stand.worker,
        publisher=publisher,
        journal=stand.journal,
        exchange_time=stand.time,
        time_scale=1.0,
        clock=clock,
        is_idle=stand.queue.empty,
    )


async def processed(stand: Stand, count: int) -> dict[str, int]:
    """Processes the next candles that pass, one by one; returns their open times by symbol."""
    await stand.until(lambda: stand.queue.qsize() >= count)
    done: dict[str, int] = {}
    for _ in range(count):
        due: Due = stand.queue.get_nowait()
        await stand.processor.process([due])
        done[due.candle.symbol] = due.candle.open_time
    return done


async def test_each_symbol_asks_for_its_history_and_once_for_its_newest_hours(stand: Stand) -> None:
    """The question that confirms the history shows the first candle as well: none more is asked."""
    assert set(await processed(stand, len(SYMBOLS))) == set(SYMBOLS)
    newest = START + NEWEST * HOUR_MS
    for symbol in SYMBOLS:
        history, confirming = [q[1:] for q in stand.rest.questions if q[0] == symbol]
        assert (history[0], history[2]) == (Urgency.HISTORY, newest - HOUR_MS)
        assert confirming == (Urgency.NOW, newest - 2 * HOUR_MS, None)


async def test_histories_come_a_few_at_a_time_and_in_order(tmp_path: Path, tape: list[Candle]) -> None:
    made = await asyncio.to_thread(Stand, tmp_path, tape, SYMBOLS)
    made.rest.open.clear()
    async with running(made):
        await made.until(lambda: len(made.rest.questions) >= _HISTORIES)
        await made.rest_of_the_loop()
        asked = {q[0] for q in made.rest.questions}
        assert len(asked) == len(made.rest.questions) == _HISTORIES
        # Who read the time first may be last to know that it is known.
        assert asked <= set(SYMBOLS[: _HISTORIES + 1])
        made.rest.open.set()
        assert set(await processed(made, len(SYMBOLS))) == set(SYMBOLS)


async def test_symbols_that_rest_fails_for_keep_no_other_waiting(tmp_path: Path, tape: list[Candle]) -> None:
    """More of them than histories may be in memory at a time, and all before the others."""
    made = await asyncio.to_thread(Stand, tmp_path, tape, SYMBOLS)
    made.rest.fails = set(SYMBOLS[: _HISTORIES + 3])
    async with running(made):
        well = set(SYMBOLS) - made.rest.fails
        assert set(await processed(made, len(well))) == well
        made.rest.fails = set()
        assert set(await processed(made, _HISTORIES + 3)) == set(SYMBOLS[: _HISTORIES + 3])


async def test_symbols_that_rest_hides_an_hour_of_keep_no_other_waiting(tmp_path: Path, tape: list[Candle]) -> None:
    """Their holes are proven by a second answer, half a minute later; meanwhile the others are warmed up."""
    made = await asyncio.to_thread(Stand, tmp_path, tape, SYMBOLS)
    made.rest.lacks = {START + 50 * HOUR_MS}
    async with running(made):
        await made.until(lambda: {q[0] for q in made.rest.questions} == set(SYMBOLS))
        assert made.queue.empty()
        assert set(await processed(made, len(SYMBOLS))) == set(SYMBOLS)
        stored = await made.worker.call(made.journal.candles, SYMBOLS[-1], 0, 2**60)
    assert START + 50 * HOUR_MS not in {c.open_time for c in stored}


async def test_what_closes_while_the_history_comes_is_asked_for(tmp_path: Path, tape: list[Candle]) -> None:
    """The answer that confirmed the history is older than the close: it is no answer about it."""
    made = await asyncio.to_thread(Stand, tmp_path, tape)
    confirmed = asyncio.Event()
    warm = made.processor.warm

    async def slowly(*args: object) -> None:
        confirmed.set()
        made.at(BEGIN_MS + HOUR_MS + 90_000)
        await warm(*args)  # type: ignore[arg-type]

    made.processor.warm = slowly  # type: ignore[assignment]
    async with running(made):
        assert await made.passed(2) == [(NEWEST, "backfill"), (NEWEST + 1, "backfill")]
    assert confirmed.is_set()


async def test_a_stream_that_opens_after_the_newest_hours_were_asked_for_makes_us_ask_again(
    tmp_path: Path, tape: list[Candle]
) -> None:
    made = await asyncio.to_thread(Stand, tmp_path, tape)
    warm = made.processor.warm

    async def connecting(*args: object) -> None:
        made.intake.connected()
        await warm(*args)  # type: ignore[arg-type]

    made.processor.warm = connecting  # type: ignore[assignment]
    async with running(made):
        assert await made.passed(1) == [(NEWEST, "backfill")]
        await made.idle()
    assert [q[3] for q in made.rest.questions] == [START + (NEWEST - 1) * HOUR_MS, None, None]


async def test_of_many_symbols_one_reason_says_how_far_they_are(stand: Stand) -> None:
    asked = health(stand)
    await stand.until(lambda: stand.queue.qsize() >= len(SYMBOLS))
    asked.begin()
    done = await processed(stand, 7)
    asked.end(done)
    (reason,) = [r for r in asked.readiness().reasons if "warming up" in r]
    assert reason == f"warming up: 7 of {len(SYMBOLS)} symbols are ready"
    rest = await processed(stand, len(SYMBOLS) - 7 - 2)
    asked.end(rest)
    waiting = [r for r in asked.readiness().reasons if "warming up" in r]
    assert waiting == [f"{s}: warming up" for s in SYMBOLS if s not in done and s not in rest]
    asked.end(await processed(stand, 2))
    stand.at(BEGIN_MS + 2 * HOUR_MS + 300_000)
    (late,) = [r for r in asked.readiness().reasons if "not processed" in r]
    assert late == f"25 of 25 symbols, {SYMBOLS[0]} among them: 2 due candle(s) not processed"


async def test_what_many_symbols_meet_is_told_of_a_few(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.rest.reachable = False
    with caplog.at_level(logging.DEBUG):
        await stand.until(lambda: {f.symbol for f in stand.facts if isinstance(f, BackfillFailed)} == set(SYMBOLS))
    logged = [r for r in caplog.records if "REST does not answer" in r.getMessage()]
    assert len(logged) >= len(SYMBOLS)
    assert 1 <= sum(r.levelno >= logging.WARNING for r in logged) <= 10


async def test_observers_hear_of_a_symbol_what_has_changed(stand: Stand) -> None:
    await processed(stand, len(SYMBOLS))
    stand.intake.watch()
    count = sum(isinstance(f, MissingCounted) for f in stand.facts)
    for _ in range(5):
        stand.intake.watch()
    assert sum(isinstance(f, MissingCounted) for f in stand.facts) == count
    stand.at(BEGIN_MS + HOUR_MS)
    stand.intake.watch()
    newest = {f.symbol: f.hours for f in stand.facts if isinstance(f, MissingCounted)}
    assert newest == dict.fromkeys(SYMBOLS, 1)


def test_the_log_tells_the_progress_of_many_at_a_pace_that_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    facts: list[Fact] = []
    progress = Progress(1_000, clock=Clock(monotonic_s=lambda: now_s), observe=facts.append)
    with caplog.at_level(logging.INFO):
        for second in range(101):
            now_s = float(second)
            progress.report(second * 10, 1_000 - second * 10)
        for _ in range(50):
            now_s += 1.0
            progress.report(1_000, 0)
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "warming up: 100 of 1,000 symbols are ready"
    assert lines[-1] == "1,000 of 1,000 symbols are ready, 100 s after the start"
    assert len(lines) == 10
    assert [f.ready for f in facts if isinstance(f, WarmupProgressed)] == list(range(0, 1_001, 10))


def test_a_symbol_that_is_not_traded_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    progress = Progress(50, clock=Clock(monotonic_s=lambda: now_s), observe=lambda fact: None)
    with caplog.at_level(logging.INFO):
        for second in range(100):
            now_s = float(second)
            progress.report(40, 9)
        assert progress.starting
        progress.report(49, 0)
    assert not progress.starting
    # A number is not repeated as long as it does not change.
    assert [r.getMessage() for r in caplog.records] == [
        "warming up: 40 of 50 symbols are ready",
        "49 of 50 symbols are ready, 99 s after the start",
    ]


def test_of_a_few_symbols_their_own_lines_tell_enough(caplog: pytest.LogCaptureFixture) -> None:
    facts: list[Fact] = []
    progress = Progress(2, clock=Clock(), observe=facts.append)
    with caplog.at_level(logging.INFO):
        for ready in (0, 1, 2):
            progress.report(ready, 2 - ready)
    assert not caplog.records
    assert [f.ready for f in facts if isinstance(f, WarmupProgressed)] == [0, 1, 2]
