"""The usual errors of a fit, the study of its watch, and on real candles the limits that docs/decay.md states."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from repository import ROOT

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay, to_grid
from stream.core.forecasting import decay as core
from stream.core.forecasting import serving
from stream.core.forecasting.contract import Usual
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict
from training import forecasters
from training.bundling import usual_errors
from training.data import dataset
from training.data.dataset import Dataset, DatasetError
from training.data.panel import NEXT_24H, QUANTITIES, Panel, Watch
from training.evaluation import evaluate, walk
from training.scoring import decay
from training.scoring.decay import DecayStudy

BUNDLE = ROOT / "export" / "models" / "btcusdt-1h.onnx"
START = 1_704_067_200_000  # 2024-01-01 00:00 UTC
HOURS = 4_600
CANDLES = simulate_symbol("BTCUSDT", START, HOURS, seed=5)
# A night, and one of the hours that close a day.
del CANDLES[4_007]
del CANDLES[3_600:3_603]
DAY_MS = 24 * HOUR_MS


def at(hour: int) -> int:
    return START + hour * HOUR_MS


@pytest.fixture(scope="module")
def data() -> Dataset:
    return dataset.of_grid("BTCUSDT", *to_grid(CANDLES))


class Bundle:
    """The sample model behind a bundle's interface, too low by so much that it is behind `har` now and then."""

    model = sample_model()

    def __call__(self, sequence, static):
        return np.float32(0.75) * sample_predict(sequence, static)


def watch_of(days: int, *, first: int = START, seed: int = 3) -> Watch:
    """A sound forecaster: right but for noise of 0.3, beside a `har` with more of it."""
    chance = np.random.default_rng(seed)
    true = np.exp(-5 + 0.3 * chance.standard_normal(days))
    realized = true * np.exp(0.3 * chance.standard_normal(days))
    har = true * np.exp(0.15 * chance.standard_normal(days))
    open_time = first - HOUR_MS + DAY_MS * np.arange(days, dtype=np.int64)
    excess = np.array([serving.excess(*row) for row in zip(realized, true, har, strict=True)])
    ratio = np.log(realized / true)
    usual = Usual(float(excess.mean()), float(excess.std()), float(ratio.mean()), float(ratio.std()))
    return Watch(usual, open_time, realized, true, har, int(open_time[0]), int(open_time[-1]))


def panel_of(*watches: Watch) -> Panel:
    """Of daily rows only."""
    realized, forecast, har = (
        np.concatenate([getattr(w, name) for w in watches]) for name in ("realized", "forecast", "har")
    )
    return Panel(
        symbol="BTCUSDT",
        open_time=np.concatenate([w.open_time for w in watches]),
        realized=dict.fromkeys(QUANTITIES, realized),
        forecasts={NEXT_24H: {"model": forecast, "har": har}},
        watches={"model": watches},
    )


def test_usual_errors_are_of_one_forecast_a_day_in_four_digits(data: Dataset) -> None:
    rows = data.rows(at(1_000), at(4_500))
    model, har = (np.full(len(rows), sigma) for sigma in (0.004, 0.006))
    found = usual_errors.usual(data, rows, model, har)
    daily = rows[(data.open_time[rows] // HOUR_MS % 24 == 23) & np.isfinite(data.labels[rows, 0])]
    realized = data.labels[daily, 0]
    ratio = np.log(realized / 0.004)
    excess = [serving.excess(float(r), 0.004, 0.006) for r in realized]
    exact = (np.mean(excess), np.std(excess), np.mean(ratio), np.std(ratio))
    assert msgspec.structs.astuple(found) == pytest.approx(exact, rel=5e-4)
    for value in msgspec.structs.astuple(found):
        assert value == float(f"{value:.4g}")
    # What other threads would have added up in another order comes to the same.
    assert usual_errors.usual(data, rows, model * (1 + 1e-9), har) == found


def test_errors_that_never_vary_have_a_deviation_that_days_can_be_held_against() -> None:
    still = [msgspec.structs.replace(c, open=1.0, high=1.0, low=1.0, close=1.0)
             for c in simulate_symbol("BTCUSDT", START, 1_000, 3)]  # fmt: skip
    of = dataset.of_grid("BTCUSDT", *to_grid(still))
    rows = of.rows(START, START + 1_000 * HOUR_MS)
    same = np.full(len(rows), 1e-5)
    usual = usual_errors.usual(of, rows, same, same)
    assert (usual.excess_deviation, usual.ratio_deviation) == (1e-3, 1e-3)
    assert core.step(usual, core.DecayMemory(), core.Day(START, 0.0, 0.0))[1] is None


def test_a_range_without_days_is_refused_in_one_line(data: Dataset) -> None:
    rows = data.rows(at(1_000), at(1_050))
    with pytest.raises(DatasetError, match="cannot be told from 1 days; learn from a longer range"):
        usual_errors.usual(data, rows, np.ones(len(rows)), np.ones(len(rows)))


def test_who_is_watched_knows_its_usual_errors_and_stands_beside_har(data: Dataset) -> None:
    def watches(*names: str) -> dict[str, tuple[Watch, ...]]:
        panel = walk.fixed({"model": Bundle()}, data, at(3_000), at(4_500), forecasters.named(names))
        return dict(panel.watches)

    # The sample bundle's training range is not in this file, so nothing but it can have learnt.
    assert watches("persistence") == {}
    (watch,) = watches("har", "persistence")["model"]
    assert watch.usual == sample_model().contract.usual
    assert {serving.is_daily(t) for t in watch.open_time.tolist()} == {True}
    assert (watch.first, watch.last) == (at(3_000), at(4_500 - 25))
    assert at(3_000) - watch.open_time[0] <= (serving.DAYS + 1) * DAY_MS
    # The hour that closes a day and does not exist is no day.
    assert at(4_007) not in watch.open_time


def test_har_is_served_in_the_hours_in_which_the_operator_serves_it(data: Dataset) -> None:
    bundle, since = Bundle(), at(3_000)
    rules = Rules.of(Policy(), bundle.model.contract)
    issued = [e for _, e in replay(rules, "BTCUSDT", CANDLES, bundle.model, bundle, since) if isinstance(e, Issued)]
    panel = walk.fixed({"model": bundle}, data, since, at(HOURS), forecasters.named(["har"]))
    (watch,) = panel.watches["model"]
    asked = [e for e in issued if watch.first <= e.prediction.open_time <= watch.last]
    times = np.array([e.prediction.open_time for e in asked])
    expected = np.array([e.serving == "har" for e in asked])
    np.testing.assert_array_equal(decay.behind(watch, 1.0, times), expected)
    assert 0 < expected.mean() < 1


def test_a_sound_forecaster_is_left_alone_and_a_changed_one_is_found() -> None:
    found = decay.study(panel_of(watch_of(400)))["model"]
    assert found.days == 400
    assert len(found.false_alarms) <= 1
    assert found.changes["0.7"].starts == 400 - 21 + 1
    for factor in ("0.7", "1.3"):
        assert (found.changes[factor].share or 0) > 0.8
    assert found.serving["1"].har_share == 0
    assert found.serving["1"].served == found.serving["1"].model < found.serving["1"].har
    for factor in ("0.5", "2"):
        assert found.serving[factor].har_share > 0.9
        assert found.serving[factor].served < found.serving[factor].model


def test_its_figures_are_those_of_the_detectors_day_by_day() -> None:
    watch = watch_of(150)
    wrong = dataclasses.replace(watch, forecast=watch.forecast * 0.7)
    found = decay.study(panel_of(wrong))["model"]
    memory, alarms = core.DecayMemory(), []
    rows = zip(*(a.tolist() for a in (watch.open_time, watch.realized, wrong.forecast, watch.har)), strict=True)
    for time, realized, forecast, har in rows:
        day = core.Day(time, serving.excess(realized, forecast, har), float(np.log(realized / forecast)))
        memory, alarm = core.step(watch.usual, memory, day)
        alarms += [alarm] if alarm else []
    assert alarms
    assert [(a.kind, a.days) for a in found.false_alarms] == [(a.kind, a.days) for a in alarms]
    # The outcome of a forecast made on a date is known a day later.
    assert found.false_alarms[0].since == "2024-01-01"
    assert found.false_alarms_a_year == pytest.approx(len(alarms) / (151 - 23 / 24) * 365.25)


def test_each_fit_is_watched_anew() -> None:
    first, second = watch_of(120), watch_of(120, first=START + 120 * DAY_MS, seed=4)
    both = decay.study(panel_of(first, second))["model"]
    apart = [decay.study(panel_of(w))["model"] for w in (first, second)]
    assert both.days == 240
    assert both.false_alarms == [a for one in apart for a in one.false_alarms]
    for factor, change in both.changes.items():
        assert change.starts == sum(one.changes[factor].starts for one in apart)


def test_a_short_period_says_null_and_why() -> None:
    found = decay.study(panel_of(watch_of(60)))["model"]
    assert found.reason == "60 matured days are watched, 90 are needed to say how often it alarms"
    assert found.false_alarms_a_year is None
    assert {change.share for change in found.changes.values()} == {None}
    assert found.serving == {}
    assert msgspec.json.decode(msgspec.json.encode(found), type=DecayStudy) == found


@cache
def linear(candles: Path) -> DecayStudy:
    pool, years = candles.parent / "other_1h.parquet", [2022, 2023, 2024]
    scored = evaluate.walk_forward(
        candles, years, pool=pool, baselines=("har", "linear"), with_model=False, tests=False
    )
    return scored.evaluation.decay["linear"]


@cache
def bundle(candles: Path) -> DecayStudy:
    """Returns figures of 2024, which the bundle has learnt from."""
    return evaluate.fixed(
        candles, [BUNDLE], start="2024-01-01", end="2025-01-01", baselines=("har",), tests=False
    ).evaluation.decay["model"]


STUDIES = {"linear, walk forward 2022-2024": linear, "the bundle on 2024, which it learnt from": bundle}


@pytest.mark.real_data
@pytest.mark.parametrize("name", STUDIES)
def test_decay_is_found_and_soundness_left_alone(real_data: Path, name: str) -> None:
    found = STUDIES[name](real_data / "btcusdt_1h.parquet")
    assert found.false_alarms_a_year is not None
    assert found.false_alarms_a_year <= 1
    assert (found.changes["0.7"].within_days, found.changes["1.3"].within_days) == (21, 45)
    for factor in ("0.7", "1.3"):
        assert (found.changes[factor].share or 0) >= 0.8
        # One alarm per change.
        assert (found.changes[factor].once_share or 0) >= 0.75
    # Serving costs a model that is sound next to nothing, and spares most of what a broken one would.
    sound = found.serving["1"]
    assert sound.har_share <= 0.06
    assert sound.served <= 1.01 * sound.model
    for factor in ("0.5", "2"):
        assert found.serving[factor].har_share >= 0.9
        assert found.serving[factor].served <= 0.5 * found.serving[factor].model


@pytest.mark.real_data
@pytest.mark.parametrize("name", STUDIES)
def test_the_page_states_what_is_computed(real_data: Path, name: str) -> None:
    found = STUDIES[name](real_data / "btcusdt_1h.parquet")
    page = (ROOT / "docs" / "decay.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    alarms, low, high, share, cost = (float(n) for n in re.findall(r"\d+(?:\.\d+)?", line.removeprefix(f"| {name} |")))
    sound = found.serving["1"]
    assert alarms == len(found.false_alarms)
    # Other threads make another network in the last digits: a start day more or less.
    assert low == pytest.approx(100 * found.changes["0.7"].share, abs=1.5)
    assert high == pytest.approx(100 * found.changes["1.3"].share, abs=1.5)
    assert share == pytest.approx(100 * sound.har_share, abs=0.5)
    assert cost == pytest.approx(100 * (sound.served / sound.model - 1), abs=0.15)
