"""The law of revision: after it journal and state are those of a node to which the candles came right at once."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.adapters.journal.store import FILE_NAME, SqliteJournal
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import Policy
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.schemas import Decision, Forecast, Scored
from stream.pipeline.processing import Due, Processor
from stream.pipeline.revision import REVISED_HOURS
from stream.ports import (
    CandleRevised,
    Clock,
    Fact,
    ForecastRevised,
    JournalError,
    Outgoing,
    Retained,
    Revision,
)
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
SYMBOL = "BTCUSDT"
#: Hours of history before the first candle that is processed, and all hours of the tape.
FIRST, HOURS = 50, 130


class Predictor:
    model = sample_model()

    def __call__(self, sequence: Any, static: Any) -> Any:
        return sample_predict(sequence, static)


class FullDisk(SqliteJournal):
    room = True

    def revise(self, revision: Revision) -> list[int]:
        if not self.room:
            raise JournalError("journal cannot be written: database or disk is full")
        return super().revise(revision)


class Bench:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.journal = FullDisk(folder)
        self.facts: list[Fact] = []
        self.offered: list[Outgoing] = []
        self.retained: dict[str, Retained] = {}
        self.processor = Processor(
            journal=self.journal,
            predictor=Predictor(),
            rules=Rules.of(Policy(), Predictor.model.contract),
            clock=Clock(),
            observe=self.facts.append,
            offer=self._offer,
        )

    def _offer(self, events: Sequence[Outgoing], retained: Sequence[Retained]) -> None:
        self.offered.extend(events)
        self.retained |= {r.topic: r for r in retained}

    async def live(self, candles: Sequence[Candle]) -> None:
        await self.processor.in_journal(self.journal.store_history, candles[:FIRST])
        await self.processor.warm(SYMBOL, candles[:FIRST], None)
        for candle in candles[FIRST:]:
            await self.processor.process([Due(candle, "live", 0.0)])

    def said(self) -> dict[str, Any]:
        """The journal's newest word on everything."""

        def newest(table: str, kind: type[Any]) -> dict[str, Any]:
            rows = self.journal.messages(table, SYMBOL, None, None, 10_000)
            found = {m.id: m for m in (msgspec.json.decode(row, type=kind) for row in rows)}
            assert len(found) == len(rows)
            return {k: _plain(m) for k, m in found.items()}

        return {
            "candles": {c.open_time: c.ohlcv for c in self.journal.candles(SYMBOL, 0, 2**60)},
            "forecasts": newest("forecasts", Forecast),
            "decisions": newest("decisions", Decision),
            "outcomes": {o.forecast_id: _plain(o) for o in self.journal.outcomes(SYMBOL, 0, 2**60)},
        }

    def gaps(self) -> list[tuple[int, int]]:
        with contextlib.closing(sqlite3.connect(self.folder / FILE_NAME)) as db:
            rows = db.execute("SELECT from_open_time, to_open_time FROM gaps ORDER BY 1").fetchall()
        return [((a - START) // HOUR_MS, (b - START) // HOUR_MS) for a, b in rows]

    def spoken(self) -> dict[tuple[str, int], bytes]:
        """(id, revision) of every event offered; each with one value only."""
        found: dict[tuple[str, int], bytes] = {}
        for event in self.offered:
            if "gap." in event.topic:
                continue
            message = msgspec.json.decode(event.payload)
            key = (message["id"], message["revision"])
            assert key not in found, key
            found[key] = event.payload
        return found


def _plain(message: Any) -> dict[str, Any]:
    skipped = ("issued_at", "provenance", "revision", "score_revision")
    return {k: v for k, v in msgspec.to_builtins(message).items() if k not in skipped}


def assert_close(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-14)
    else:
        assert a == b


@contextlib.asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    made = await asyncio.to_thread(Bench, folder)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.processor.close)
        await asyncio.to_thread(made.journal.close)


def wrong(candle: Candle, factor: float) -> Candle:
    close = candle.close * factor
    return msgspec.structs.replace(
        candle, close=close, high=max(candle.high, close), low=min(candle.low, close), volume=candle.volume * 2
    )


TAPE = simulate_symbol(SYMBOL, START, HOURS, 5)


async def law(folder: Path, wrong_hours: dict[int, float], absent: set[int], whole: bool) -> None:
    """`wrong_hours` came with another close, `absent` not at all; then REST says all, or only what changed."""
    at_first = [wrong(c, wrong_hours[h]) if h in wrong_hours else c for h, c in enumerate(TAPE) if h not in absent]
    async with bench(folder / "revised") as revised, bench(folder / "right") as right:
        await revised.live(at_first)
        await right.live(TAPE)
        differing = [c for h, c in enumerate(TAPE) if h in wrong_hours or h in absent]
        count = await revised.processor.revise(SYMBOL, TAPE[-REVISED_HOURS:] if whole else differing)
        assert count == len(differing)
        a, b = await asyncio.to_thread(revised.said), await asyncio.to_thread(right.said)
        assert_close(a, b)
        assert await asyncio.to_thread(revised.gaps) == []
        state, expected = revised.processor._states[SYMBOL], right.processor._states[SYMBOL]
        assert_close(msgspec.to_builtins(state.recent), msgspec.to_builtins(expected.recent))
        assert (state.anchor, state.last_open_time) == (expected.anchor, expected.last_open_time)
        np.testing.assert_array_equal(state.window, expected.window)
        np.testing.assert_allclose(state.volatilities, expected.volatilities, rtol=1e-8)
        # What is waited for is what is not scored yet, in its newest revision.
        assert revised.processor._unscored[SYMBOL].keys() == right.processor._unscored[SYMBOL].keys()
        boards = [made.processor._scores._boards[SYMBOL].score(state, 5) for made in (revised, right)]
        assert_close(*(msgspec.to_builtins(board) for board in boards))
        revised.spoken()
        # Said once more it is nothing new.
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
        first = made.spoken()
        made.offered.clear()
        assert await made.processor.revise(SYMBOL, TAPE[hour : hour + 1]) == 1
        again = [msgspec.json.decode(e.payload) for e in made.offered if e.topic.endswith("forecast.issued")]
        assert [(m["open_time"] - START) // HOUR_MS for m in again] == list(range(hour, HOURS))
        assert {(m["revision"], m["provenance"]) for m in again} == {(1, "backfill")}
        assert {(m["id"], 0) for m in again} <= first.keys()
        decided = [msgspec.json.decode(e.payload) for e in made.offered if e.topic.endswith("decision.issued")]
        assert [(d["forecast_id"], d["revision"]) for d in decided] == [(m["id"], 1) for m in again]
        # The day before the candle spoke of it: those outcomes were scored with the old value.
        scores = [e for e in made.offered if e.topic.endswith("forecast.scored")]
        told = [msgspec.json.decode(e.payload, type=Scored) for e in scores]
        assert {(s.open_time - START) // HOUR_MS for s in told} == set(range(hour - 24, HOURS - 24))
        assert {s.revision for s in told} == {1}
        newest = made.retained[f"volcast/v1/binance/spot/{SYMBOL}/1h/forecast"]
        assert msgspec.json.decode(newest.payload) == again[-1]
        assert [f.open_time for f in made.facts if isinstance(f, CandleRevised)] == [TAPE[hour].open_time]
        assert [f.newest for f in made.facts if isinstance(f, ForecastRevised)] == [False] * 4 + [True]
        # And once more: the number goes on.
        made.offered.clear()
        await made.processor.revise(SYMBOL, [wrong(TAPE[hour], 1.01)])
        assert {msgspec.json.decode(e.payload)["revision"] for e in made.offered} == {2}


async def test_an_old_candle_stays_as_it_was_processed(tmp_path: Path) -> None:
    old = HOURS - REVISED_HOURS - 1
    async with bench(tmp_path) as made:
        await made.live(TAPE)
        before = await asyncio.to_thread(made.said)
        assert await made.processor.revise(SYMBOL, [wrong(TAPE[old], 0.9)]) == 0
        assert await asyncio.to_thread(made.said) == before


async def test_a_candle_that_rest_lacks_is_not_taken_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await made.live(TAPE)
        assert await made.processor.revise(SYMBOL, [c for c in TAPE[-REVISED_HOURS:-1] if c is not TAPE[-5]]) == 0
        assert await made.processor.revise(SYMBOL, []) == 0


async def test_a_revision_is_said_only_when_the_journal_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.pipeline.processing._COMMIT_RETRY_S", 0.0)
    async with bench(tmp_path) as made:
        await made.live([wrong(c, 0.97) if h == HOURS - 1 else c for h, c in enumerate(TAPE)])
        made.journal.room = False
        said = len(made.offered)
        revising = asyncio.create_task(made.processor.revise(SYMBOL, TAPE[-2:]))
        async with asyncio.timeout(120):
            while made.processor.failing is None:  # noqa: ASYNC110 - an observer would need the same look
                await asyncio.sleep(0)
        assert len(made.offered) == said
        made.journal.room = True
        assert await revising == 1
        assert made.processor.failing is None
        assert len(made.offered) > said
