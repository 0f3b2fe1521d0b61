"""The committed bundle on calendar 2024, which no choice was made on: the figures that the README may quote."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from repository import SHIPPED_BUNDLE

from training.evaluation.evaluate import fixed
from training.scoring.scores import Evaluation


@cache
def scored(candles: Path) -> Evaluation:
    return fixed(candles, [SHIPPED_BUNDLE], tests=False).evaluation


@pytest.fixture
def year(real_data: Path) -> Evaluation:
    return scored(real_data / "btcusdt_1h.parquet")


@pytest.mark.real_data
def test_the_committed_bundle_keeps_its_limits_on_2024(year: Evaluation) -> None:
    next_24h, rolling = year.next_24h, year.rolling_24h_next
    assert next_24h["model"]["rmse"] <= 0.00196
    assert next_24h["model"]["qlike"] <= 0.295
    assert next_24h["model"]["r2"] >= 0.345
    assert abs(next_24h["model"]["bias"]) <= 0.08
    assert rolling["model"]["rmse"] <= 0.000276
    assert rolling["persistence"]["rmse"] == pytest.approx(0.000395, abs=2e-6)
    assert next_24h["persistence"]["rmse"] == pytest.approx(0.00268, abs=1e-5)
    assert next_24h["log_har"]["rmse"] == pytest.approx(0.00224, abs=2e-5)
    for baseline in ("persistence", "ewma", "log_har", "har", "linear"):
        assert next_24h["model"]["rmse"] < next_24h[baseline]["rmse"]
        assert next_24h["model"]["qlike"] < next_24h[baseline]["qlike"]
    for by_name in year.horizons.values():
        assert by_name["model"]["qlike"] < min(by_name["persistence"]["qlike"], by_name["ewma"]["qlike"])


@pytest.mark.real_data
def test_its_intervals_hold_what_they_say_on_2024(year: Evaluation) -> None:
    adaptive, static = year.intervals["adaptive"], year.intervals["static"]
    assert 0.88 <= adaptive.coverage <= 0.92
    for kind in ("weekday", "weekend"):
        assert 0.86 <= adaptive.groups["coming 24 h"][kind]["coverage"] <= 0.94
    assert adaptive.coverage_30d_min >= 0.75
    assert abs(adaptive.coverage - 0.9) < abs(static.coverage - 0.9)


@pytest.mark.real_data
@pytest.mark.parametrize("symbol", ["ETHUSDT", "LTCUSDT"])
def test_it_beats_the_log_har_of_other_pairs_without_a_refit(real_data: Path, symbol: str) -> None:
    candles = real_data / "other_1h.parquet"
    next_24h = fixed(candles, [SHIPPED_BUNDLE], symbol=symbol, baselines=("log_har",), tests=False).evaluation.next_24h
    assert next_24h["model"]["qlike"] < next_24h["log_har"]["qlike"]
