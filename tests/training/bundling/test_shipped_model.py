"""The committed bundle: what its recipe scored on 2024 before it was fitted again, and that the fit is sound."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from repository import SHIPPED_BUNDLE

from stream import times
from stream.adapters import predictor
from stream.core.forecasting import contract
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from training import forecasters
from training.data.dataset import load, load_others, of_grid
from training.evaluation import walk
from training.evaluation.evaluate import fixed
from training.scoring import measures
from training.scoring.scores import Evaluation


@pytest.fixture(scope="module")
def bundle() -> predictor.Predictor:
    return predictor.load(SHIPPED_BUNDLE)


def test_what_its_recipe_scored_on_2024_keeps_the_limits(bundle: predictor.Predictor) -> None:
    scores = bundle.model.contract.scores
    next_24h = {name: value for name, value in scores.items() if name.startswith("2024-01-01.next_24h.")}
    for who in ("model", "served"):
        assert next_24h[f"2024-01-01.next_24h.{who}.rmse"] <= 0.00190
        assert next_24h[f"2024-01-01.next_24h.{who}.qlike"] <= 0.256
        for baseline in ("persistence", "ewma", "log_har", "har"):
            assert next_24h[f"2024-01-01.next_24h.{who}.qlike"] < next_24h[f"2024-01-01.next_24h.{baseline}.qlike"]
    assert 0.88 <= scores["2024-01-01.interval.adaptive.coverage"] <= 0.92
    assert {"base", "trees", "base+trees", "base+lstm"} <= {name.split(".")[2] for name in next_24h}
    assert bundle.model.contract.training.trained_until == times.parse("2025-01-01") - HOUR_MS


def test_one_absurd_print_does_not_multiply_its_forecasts_for_a_month(bundle: predictor.Predictor) -> None:
    start, hours, struck = times.parse("2024-01-01"), 1_700, 800
    candles = simulate_symbol("BTCUSDT", start, hours, seed=5)
    spoilt = list(candles)
    low = 0.277 * min(candles[struck].open, candles[struck].close)
    spoilt[struck] = msgspec.structs.replace(candles[struck], low=low)
    sound, wick = (
        of_grid(
            "BTCUSDT",
            np.array([c.open_time for c in series], np.int64),
            np.array([[c.open, c.high, c.low, c.close, c.volume] for c in series]),
        ).features
        for series in (candles, spoilt)
    )
    rows = np.arange(struck, struck + 721)
    (plain, hit) = (bundle(f.sequences(rows), f.static[rows]).astype(float) for f in (sound, wick))
    ratio = hit / plain
    assert ratio[0].max() > 1.01, "it was seen"
    assert ratio[:25, 0].max() < 3
    assert ratio[25:, 0].max() < 1.35
    assert ratio[48:].mean() < 1.1
    assert ratio.shape[1] == contract.OUTPUT_WIDTH


@cache
def learnt_2024(candles: Path) -> Evaluation:
    """Returns figures of 2024 itself: the bundle learnt from it, so they are no test, and must be better than one."""
    return fixed(candles, [SHIPPED_BUNDLE], start="2024-01-01", end="2025-01-01", tests=False).evaluation


@pytest.mark.real_data
def test_it_has_learnt_the_year_that_it_was_fitted_on(real_data: Path) -> None:
    year = learnt_2024(real_data / "btcusdt_1h.parquet")
    assert any("no test of the hours before" in note for note in year.notes)
    assert year.next_24h["model"]["rmse"] <= 0.00189
    assert year.next_24h["model"]["qlike"] <= 0.256
    assert abs(year.next_24h["model"]["bias"]) <= 0.05
    assert year.rolling_24h_next["persistence"]["rmse"] == pytest.approx(0.000395, abs=2e-6)
    for by_name in year.horizons.values():
        assert by_name["model"]["qlike"] < min(by_name["persistence"]["qlike"], by_name["ewma"]["qlike"])
    assert 0.88 <= year.intervals["adaptive"].coverage <= 0.92
    assert year.intervals["adaptive"].coverage_30d_min >= 0.75


@pytest.mark.real_data
def test_its_base_learnt_before_2024_keeps_the_limits_on_2024(real_data: Path) -> None:
    data = load(real_data / "btcusdt_1h.parquet", "BTCUSDT")
    chosen = forecasters.named(["linear"], pool=load_others(real_data / "other_1h.parquet", "BTCUSDT"))
    panel = walk.walk_forward(data, walk.years([2024], start_ms=times.parse("2018-03-01")), chosen)
    scored = measures.measures(panel.realized["next_24h"], panel.forecasts["next_24h"]["linear"])
    assert scored["rmse"] <= 0.00190
    assert scored["qlike"] <= 0.256


@pytest.mark.real_data
@pytest.mark.parametrize("symbol", ["ETHUSDT", "LTCUSDT"])
def test_it_beats_the_log_har_of_other_pairs_without_a_refit(real_data: Path, symbol: str) -> None:
    candles = real_data / "other_1h.parquet"
    scored = fixed(
        candles,
        [SHIPPED_BUNDLE],
        symbol=symbol,
        start="2024-01-01",
        end="2025-01-01",
        baselines=("log_har",),
        tests=False,
    )
    next_24h = scored.evaluation.next_24h
    assert next_24h["model"]["qlike"] < next_24h["log_har"]["qlike"]


@pytest.mark.real_data
def test_squares_of_its_horizons_are_level_on_the_pool(real_data: Path, bundle: predictor.Predictor) -> None:
    forecast, realized = [], []
    for data in load_others(real_data / "other_1h.parquet", "BTCUSDT"):
        rows = data.rows(times.parse("2021-01-01"), times.parse("2025-01-01"))[::7]
        sigma = bundle(data.features.sequences(rows), data.features.static[rows]).astype(float)
        forecast.append((sigma * bundle.model.contract.levels(data.symbol))[:, 1:])
        realized.append(data.labels[rows, 1:])
    f, y = np.concatenate(forecast), np.concatenate(realized)
    ratios = np.mean(f**2, axis=0, where=np.isfinite(y)) / np.nanmean(y**2, axis=0)
    assert np.abs(ratios - 1).max() <= 0.05
