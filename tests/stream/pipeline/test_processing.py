"""Processing: a commit that fails changes no state; a model with nonsensical output stops no symbol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from stream.adapters.journal.store import SqliteJournal
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import features
from stream.core.forecasting.serving import is_daily
from stream.core.forecasting.target import labels
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.outputs import Due
from stream.core.messages.records import EventMessage, Outgoing, Record, Retained
from stream.core.messages.schemas import Decay, DecayState, Score
from stream.core.messages.scoreboard import Scoreboard
from stream.errors import JournalError
from stream.pipeline.processing import Processor
from stream.pipeline.worker import Worker
from stream.telemetry import (
    CommitFailed,
    DecayFound,
    Fact,
    ForecastCommitted,
    ForecastFailed,
    ForecastScored,
    ScoreChanged,
)
from stream.testing.market import simulate
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")


class Model:
    """The sample model, except that for the static inputs in `rows` it returns `nonsense`."""

    def __init__(self) -> None:
        self.model = sample_model()
        self.nonsense = 0.0
        self.scale = 1.0
        self.rows: NDArray[np.float32] | None = None

    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
        volatility = sample_predict(sequence, static) * np.float32(self.scale)
        if self.rows is not None:
            volatility[[bool((row == self.rows).all(axis=1).any()) for row in static]] = self.nonsense
        return volatility


class FullDisk(SqliteJournal):
    """A journal whose disk is full until it `has_space`: with SQLite's error, raised where SQLite raises it."""

    has_space = True
    posts = True

    def post(self, events: Sequence[EventMessage], retained: Sequence[Retained]) -> list[int]:
        if not self.posts:
            raise JournalError("journal cannot be written: database or disk is full")
        return super().post(events, retained)

    def commit(self, records: Sequence[Record]) -> list[int]:
        if not self.has_space:
            raise JournalError("journal cannot be written: database or disk is full")
        return super().commit(records)


class Bench:
    def __init__(self, data_dir: Path, model: Model) -> None:
        self.journal = FullDisk(data_dir)
        self.model = model
        self.facts: list[Fact] = []
        self.offered: list[Outgoing] = []
        self.retained: list[Retained] = []
        self.failed = asyncio.Event()
        self.worker = Worker(clock=Clock(), observe=self._observe)
        self.processor = Processor(
            journal=self.journal,
            worker=self.worker,
            predictor=model,
            rules=Rules.of(Policy(), model.model.contract),
            clock=Clock(),
            observe=self._observe,
            offer=lambda events, retained: (self.offered.extend(events), self.retained.extend(retained))[0],
        )

    def _observe(self, fact: Fact) -> None:
        self.facts.append(fact)
        if isinstance(fact, CommitFailed):
            self.failed.set()

    def forecasts(self) -> list[tuple[str, int]]:
        return [(f.forecast.symbol, f.forecast.open_time) for f in self.facts if isinstance(f, ForecastCommitted)]


@pytest.fixture(scope="module")
def tape() -> dict[str, list[Candle]]:
    return simulate(SYMBOLS, START, 60, 5)


@contextlib.asynccontextmanager
async def bench(data_dir: Path, tape: dict[str, list[Candle]], model: Model):  # type: ignore[no-untyped-def]
    made = await asyncio.to_thread(Bench, data_dir, model)
    for symbol in SYMBOLS:
        await made.processor.warm(symbol, tape[symbol][:50], None)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.worker.close)
        await asyncio.to_thread(made.journal.close)


def round_of(tape: dict[str, list[Candle]], hour: int) -> list[Due]:
    return [Due(tape[symbol][hour], "live", 0.0) for symbol in SYMBOLS]


async def test_nothing_is_said_and_nothing_moves_until_the_journal_has_it(
    tmp_path: Path, tape: dict[str, list[Candle]]
) -> None:
    async with bench(tmp_path, tape, Model()) as made:
        made.journal.has_space = False
        working = asyncio.create_task(made.processor.process(round_of(tape, 50)))
        await made.failed.wait()
        assert (made.offered, made.forecasts()) == ([], [])
        assert "disk is full" in made.worker.failing
        made.journal.has_space = True
        await working
        assert made.worker.failing is None
        await made.processor.process(round_of(tape, 51))
        times = [START + 50 * HOUR_MS] * 2 + [START + 51 * HOUR_MS] * 2
        assert made.forecasts() == list(zip(SYMBOLS * 2, times, strict=True))
        # In the journal's order, each numbered once, and only what is in the journal.
        stored = await made.worker.call(made.journal.outbox)
        assert [o.seq for o in made.offered] == [o.seq for o in stored]


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), 0.0, -1.0])
async def test_a_model_that_answers_nonsense_for_one_symbol_stops_nobody_and_no_restart(
    tmp_path: Path, tape: dict[str, list[Candle]], nonsense: float
) -> None:
    model = Model()
    model.nonsense = nonsense
    # The features of BTCUSDT's fiftieth hour, by which the model recognises it, live and at the next start.
    model.rows = features.compute(*to_grid(tape["BTCUSDT"][:51]), newest=1).static
    async with bench(tmp_path, tape, model) as made:
        await made.processor.process(round_of(tape, 50))
        assert made.forecasts() == [("ETHUSDT", START + 50 * HOUR_MS)]
        assert made.processor.unforecast == {"BTCUSDT"}
        await made.processor.process(round_of(tape, 51))
        assert made.forecasts()[1:] == [(symbol, START + 51 * HOUR_MS) for symbol in SYMBOLS]
        assert made.processor.unforecast == set()
        assert [f.symbol for f in made.facts if isinstance(f, ForecastFailed)] == ["BTCUSDT"]
        kept = await made.worker.call(made.journal.candles, "BTCUSDT", START + 50 * HOUR_MS, 2**60)
        assert [c.open_time for c in kept] == [START + 50 * HOUR_MS, START + 51 * HOUR_MS]
        # A start finds the same hour in its past and must not stumble over it.
        live = made.processor._states["BTCUSDT"]
        done = await made.worker.call(made.journal.processed, "BTCUSDT")
        await made.processor.warm("BTCUSDT", tape["BTCUSDT"][:52], done)
        again = made.processor._states["BTCUSDT"]
        assert (again.memory, again.recent, again.anchor) == (live.memory, live.recent, live.anchor)
        assert again.past == live.past


class Poisoned(Model):
    """A model that raises for the whole call where those rows are in it."""

    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.rows is not None and any((row == self.rows).all(axis=1).any() for row in static):
            raise RuntimeError("this row is poison")
        return sample_predict(sequence, static)


@pytest.mark.fault(27)
async def test_a_candle_that_makes_the_model_fail_costs_its_symbol_one_forecast(
    tmp_path: Path, tape: dict[str, list[Candle]]
) -> None:
    model = Poisoned()
    async with bench(tmp_path, tape, model) as made:
        model.rows = features.compute(*to_grid(tape["BTCUSDT"][:51]), newest=1).static
        await made.processor.process(round_of(tape, 50))
        assert made.forecasts() == [("ETHUSDT", START + 50 * HOUR_MS)]
        assert made.processor.unforecast == {"BTCUSDT"}
        await made.processor.process(round_of(tape, 51))
        assert made.forecasts()[1:] == [(symbol, START + 51 * HOUR_MS) for symbol in SYMBOLS]


async def test_a_start_whose_newest_candle_gets_no_answer_goes_on_with_the_next(
    tmp_path: Path, tape: dict[str, list[Candle]]
) -> None:
    model = Model()
    model.nonsense = float("nan")
    model.rows = features.compute(*to_grid(tape["BTCUSDT"][:50]), newest=1).static
    async with bench(tmp_path, tape, model) as made:
        await made.processor.process(round_of(tape, 50))
        assert made.forecasts() == [(symbol, START + 50 * HOUR_MS) for symbol in SYMBOLS]


def scores(made: Bench, symbol: str) -> dict[int, float]:
    found = [f.outcome for f in made.facts if isinstance(f, ForecastScored) and f.outcome.symbol == symbol]
    assert len({o.open_time for o in found}) == len(found)
    return {o.open_time: o.realized for o in found}


@pytest.mark.parametrize("stopped_after", [51, 60, 75, 84, 99])
async def test_each_published_forecast_is_scored_once_when_its_24_hours_are_whole(
    tmp_path: Path, stopped_after: int
) -> None:
    hours, hole = 110, 80
    tape = simulate(SYMBOLS, START, hours, 5)
    tape["BTCUSDT"] = [c for c in tape["BTCUSDT"] if c.open_time != START + hole * HOUR_MS]
    found: dict[int, float] = {}
    reported: list[str] = []
    for first, last in ((50, stopped_after), (stopped_after, hours)):
        made = await asyncio.to_thread(Bench, tmp_path, Model())
        past = [c for c in tape["BTCUSDT"] if c.open_time < START + first * HOUR_MS]
        await made.processor.warm("BTCUSDT", past, await made.worker.call(made.journal.processed, "BTCUSDT"))
        for candle in tape["BTCUSDT"]:
            if START + first * HOUR_MS <= candle.open_time < START + last * HOUR_MS:
                await made.processor.process([Due(candle, "live", 0.0)])
        reported += [o.topic for o in made.offered]
        assert not found.keys() & scores(made, "BTCUSDT").keys()
        found |= scores(made, "BTCUSDT")
        stored = await made.worker.call(made.journal.outcomes, "BTCUSDT", 0, 2**60)
        await asyncio.to_thread(made.worker.close)
        await asyncio.to_thread(made.journal.close)

    _, ohlcv = to_grid(tape["BTCUSDT"])
    outcome = labels(ohlcv[:, 3]).next_24h
    published = [h for h in range(50, hours) if h != hole]
    expected = {START + h * HOUR_MS: outcome[h] for h in published if np.isfinite(outcome[h])}
    assert len(expected) == (hole - 24 - 50) + (hours - 24 - hole - 1)
    assert found == pytest.approx(expected, rel=1e-9)
    assert {o.open_time: o.realized for o in stored} == found
    assert sum(topic.endswith("event/forecast.scored") for topic in reported) == len(expected)


@contextlib.asynccontextmanager
async def resumed(data_dir: Path, model: Model, past: Sequence[Candle]):  # type: ignore[no-untyped-def]
    made = await asyncio.to_thread(Bench, data_dir, model)
    try:
        before = await made.worker.call(made.journal.processed, "BTCUSDT")
        await made.processor.warm("BTCUSDT", past, before)
        await made.processor.publish_scores()
        yield made
    finally:
        await asyncio.to_thread(made.worker.close)
        await asyncio.to_thread(made.journal.close)


def reported_scores(made: Bench) -> list[Score]:
    payloads = [r.payload for r in made.retained if r.topic.endswith("/score")]
    return [msgspec.json.decode(payload, type=Score) for payload in payloads]


async def test_a_model_that_is_wrong_is_scored_told_once_and_not_served(tmp_path: Path) -> None:
    """Over a restart, which changes nothing: the score is that of the journal's outcomes."""
    first, restart, last = 800, 950, 1_100
    tape = simulate(["BTCUSDT"], START, last, 5)["BTCUSDT"]
    model = Model()
    model.scale = 0.3
    alarms: list[Decay] = []
    events: list[str] = []
    for since, until in ((first, restart), (restart, last)):
        async with resumed(tmp_path, model, tape[:since]) as made:
            gauges = [f.score for f in made.facts if isinstance(f, ScoreChanged)]
            assert [g.decay.detected for g in gauges] == [since != first]
            for candle in tape[since:until]:
                await made.processor.process([Due(candle, "live", 0.0)])
                await made.processor.publish_scores()
            alarms += [f.decay for f in made.facts if isinstance(f, DecayFound)]
            events += [e.topic for e in made.offered if e.topic.endswith("event/decay.detected")]
            scores = reported_scores(made)
            # One at the start, one after each candle that made an outcome known, each with its fact.
            assert scores == [f.score for f in made.facts if isinstance(f, ScoreChanged)]
            assert len(scores) == 1 + until - since - (24 if since == first else 0)
            retained = await made.worker.call(made.journal.retained)
            (kept,) = [r.payload for r in retained if r.topic.endswith("/score")]
            assert msgspec.json.decode(kept, type=Score) == scores[-1]
            (why,) = made.processor.serving_baseline().values()
            assert "BTCUSDT: har is served" in why
            stored = await made.worker.call(made.journal.outcomes, "BTCUSDT", 0, 2**60)
            assert {o.serving for o in stored} == {"har"}
            assert all(o.volatility == o.har != o.model_volatility for o in stored)
            usual, version = model.model.contract.usual, model.model.version
            anew = Scoreboard.of(usual, version, stored, [o for o in stored if is_daily(o.open_time)])
            state = made.processor._states["BTCUSDT"]
            assert anew.score(state, scores[-1].issued_at) == scores[-1]
    assert len(alarms) == len(events) == 1
    assert (alarms[0].kind, alarms[0].model_version) == ("excess_qlike", version)
    assert scores[-1].decay == DecayState(True, "excess_qlike", alarms[0].since)
    assert scores[-1].rule.serving == "har"
    assert scores[-1].rule.excess > scores[-1].rule.limit
    by_name = {w.model: w for w in scores[-1].windows if w.days == 7}
    assert by_name["model"].qlike > 3 * by_name["served"].qlike == 3 * by_name["har"].qlike


async def test_a_new_model_starts_with_a_score_of_its_own(tmp_path: Path) -> None:
    tape = simulate(["BTCUSDT"], START, 130, 5)["BTCUSDT"]
    async with resumed(tmp_path, Model(), tape[:80]) as made:
        for candle in tape[80:120]:
            await made.processor.process([Due(candle, "live", 0.0)])
            await made.processor.publish_scores()
        assert reported_scores(made)[-1].windows
    other = Model()
    other.model = msgspec.structs.replace(other.model, sha256="cd" * 32)
    async with resumed(tmp_path, other, tape[:120]) as made:
        # Else the old model's alarm would stay at the broker and in the API until the new model has been scored.
        (first,) = reported_scores(made)
        assert (first.model_version, first.open_time, first.windows) == (other.model.version, None, ())
        for candle in tape[120:130]:
            await made.processor.process([Due(candle, "live", 0.0)])
            await made.processor.publish_scores()
        # The outcomes that mature now are of the old model's forecasts, and do not count for the new one.
        assert {s.windows for s in reported_scores(made)} == {()}


async def test_a_score_that_cannot_be_written_is_said_with_the_next(tmp_path: Path) -> None:
    tape = simulate(["BTCUSDT"], START, 130, 5)["BTCUSDT"]
    async with resumed(tmp_path, Model(), tape[:100]) as made:
        for candle in tape[100:125]:
            await made.processor.process([Due(candle, "live", 0.0)])
            await made.processor.publish_scores()
        # One at the start, which reports whose forecast is served, and one with the first outcome.
        assert [len(s.windows) for s in reported_scores(made)] == [0, 15]
        made.journal.posts = False
        await made.processor.process([Due(tape[125], "live", 0.0)])
        await made.processor.publish_scores()
        assert made.failed.is_set()
        assert made.worker.failing is None
        made.journal.posts = True
        await made.processor.process([Due(tape[126], "live", 0.0)])
        await made.processor.publish_scores()
        assert [s.windows[0].matured for s in reported_scores(made)[1:]] == [1, 3]
