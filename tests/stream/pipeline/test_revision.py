"""The law of revision: after it journal and state are those of a node that received the right candles at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_bench import HOURS, START, SYMBOL, assert_close, bench, wrong

from stream.clock import Clock
from stream.core.market.candle import HOUR_MS
from stream.core.messages.schemas import Scored
from stream.pipeline.revision import REVISED_HOURS
from stream.telemetry import CandleRevised, ForecastRevised
from stream.testing.market import simulate_symbol

TAPE = simulate_symbol(SYMBOL, START, HOURS, 5)


async def law(folder: Path, wrong_hours: dict[int, float], absent: set[int], whole: bool) -> None:
    """Asserts the law for `wrong_hours`, which came with another close, and `absent`, which did not come; then REST
    brings all hours (`whole`), or only those that changed."""
    at_first = [wrong(c, wrong_hours[h]) if h in wrong_hours else c for h, c in enumerate(TAPE) if h not in absent]
    async with bench(folder / "revised") as revised, bench(folder / "right") as right:
        await revised.live(at_first)
        await right.live(TAPE)
        differing = [c for h, c in enumerate(TAPE) if h in wrong_hours or h in absent]
        count = await revised.processor.revise(SYMBOL, TAPE[-REVISED_HOURS:] if whole else differing)
        assert count == len(differing)
        a, b = await asyncio.to_thread(revised.recorded), await asyncio.to_thread(right.recorded)
        assert_close(a, b)
        assert await asyncio.to_thread(revised.gaps) == []
        state, expected = revised.processor._states[SYMBOL], right.processor._states[SYMBOL]
        assert_close(msgspec.to_builtins(state.recent), msgspec.to_builtins(expected.recent))
        assert (state.anchor, state.last_open_time) == (expected.anchor, expected.last_open_time)
        np.testing.assert_array_equal(state.window.rows, expected.window.rows)
        assert state.past is not None
        assert expected.past is not None
        for name in ("model", "har"):
            found, right_one = (past.each.rows[name] for past in (state.past, expected.past))
            np.testing.assert_allclose(found, right_one, rtol=1e-7 if name == "model" else 1e-8)
        # The newest revisions of the forecasts that are not scored yet are waited for.
        assert revised.processor._unscored[SYMBOL].keys() == right.processor._unscored[SYMBOL].keys()
        boards = [made.processor._scores._boards[SYMBOL].score(state, 5) for made in (revised, right)]
        assert_close(*(msgspec.to_builtins(board) for board in boards))
        revised.published()
        # The same revision again changes nothing.
        before = len(revised.offered)
        assert await revised.processor.revise(SYMBOL, TAPE[-REVISED_HOURS:]) == 0
        assert len(revised.offered) == before


_recent = st.integers(HOURS - REVISED_HOURS, HOURS - 2)


@settings(max_examples=8)
@given(
    wrong_hours=st.dictionaries(_recent, st.sampled_from([0.9, 0.999, 1.02]), max_size=3),
    absent=st.sets(_recent, max_size=2),
    whole=st.booleans(),
)
def test_after_a_revision_all_is_as_if_the_candles_had_come_right(
    tmp_path_factory: pytest.TempPathFactory, wrong_hours: dict[int, float], absent: set[int], whole: bool
) -> None:
    wrong_hours = {h: f for h, f in wrong_hours.items() if h not in absent}
    if wrong_hours or absent:
        asyncio.run(law(tmp_path_factory.mktemp("law"), wrong_hours, absent, whole))


@pytest.mark.fault(36)
async def test_what_a_revision_changes_is_issued_again_under_the_same_id(tmp_path: Path) -> None:
    hour = HOURS - 5
    async with bench(tmp_path) as made:
        await made.live([wrong(c, 0.97) if h == hour else c for h, c in enumerate(TAPE)])
        first = made.published()
        made.offered.clear()
        assert await made.processor.revise(SYMBOL, TAPE[hour : hour + 1]) == 1
        again = [msgspec.json.decode(e.payload) for e in made.offered if e.topic.endswith("forecast.issued")]
        assert [(m["open_time"] - START) // HOUR_MS for m in again] == list(range(hour, HOURS))
        assert {(m["revision"], m["provenance"]) for m in again} == {(1, "backfill")}
        assert {(m["id"], 0) for m in again} <= first.keys()
        decided = [msgspec.json.decode(e.payload) for e in made.offered if e.topic.endswith("decision.issued")]
        assert [(d["forecast_id"], d["revision"]) for d in decided] == [(m["id"], 1) for m in again]
        # The forecasts of the 24 hours before the candle include it: their outcomes were scored with the old value.
        scores = [e for e in made.offered if e.topic.endswith("forecast.scored")]
        reported = [msgspec.json.decode(e.payload, type=Scored) for e in scores]
        assert {(s.open_time - START) // HOUR_MS for s in reported} == set(range(hour - 24, HOURS - 24))
        assert {s.revision for s in reported} == {1}
        newest = made.retained[f"volcast/v1/binance/spot/{SYMBOL}/1h/forecast"]
        assert msgspec.json.decode(newest.payload) == again[-1]
        assert [f.open_time for f in made.facts if isinstance(f, CandleRevised)] == [TAPE[hour].open_time]
        assert [f.newest for f in made.facts if isinstance(f, ForecastRevised)] == [False] * 4 + [True]
        # Another revision has the next number.
        made.offered.clear()
        await made.processor.revise(SYMBOL, [wrong(TAPE[hour], 1.01)])
        assert {msgspec.json.decode(e.payload)["revision"] for e in made.offered} == {2}


async def test_an_old_candle_stays_as_it_was_processed(tmp_path: Path) -> None:
    old = HOURS - REVISED_HOURS - 1
    async with bench(tmp_path) as made:
        await made.live(TAPE)
        before = await asyncio.to_thread(made.recorded)
        assert await made.processor.revise(SYMBOL, [wrong(TAPE[old], 0.9)]) == 0
        assert await asyncio.to_thread(made.recorded) == before


async def test_a_candle_that_rest_lacks_is_not_taken_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.live(TAPE)
        assert await made.processor.revise(SYMBOL, [c for c in TAPE[-REVISED_HOURS:-1] if c is not TAPE[-5]]) == 0
        assert await made.processor.revise(SYMBOL, []) == 0


async def test_a_revision_is_published_only_when_the_journal_has_it(tmp_path: Path) -> None:
    tried, again = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        tried.set()
        await again.wait()

    async with bench(tmp_path, Clock(sleep=sleep)) as made:
        await made.live([wrong(c, 0.97) if h == HOURS - 1 else c for h, c in enumerate(TAPE)])
        made.journal.has_space = False
        issued = len(made.offered)
        revising = asyncio.create_task(made.processor.revise(SYMBOL, TAPE[-2:]))
        async with asyncio.timeout(120):
            await tried.wait()
        assert "disk is full" in (made.worker.failing or "")
        assert len(made.offered) == issued
        made.journal.has_space = True
        again.set()
        assert await revising == 1
        assert made.worker.failing is None
        assert len(made.offered) > issued
