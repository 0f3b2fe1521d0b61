"""The figures of matured forecasts against plain arithmetic, and Evidently's page of them against the figures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.reports import regression
from monitor.reports.regression import FORECASTERS, Matured, Regression
from stream.core.forecasting import qlike
from stream.core.market.candle import HOUR_MS
from stream.core.messages.scoring import Outcome

START = 1_704_067_200_000
SIGMA = st.floats(1e-5, 0.2)
PERCENT = 100 * math.sqrt(8_760)


def outcome(hour: int, realized: float, served: float, **others: float) -> Outcome:
    named = {"low": served * 0.6, "high": served * 1.7, "level": 0.9} | others
    return Outcome(
        forecast_id=f"{hour}",
        revision=0,
        symbol="BTCUSDT",
        open_time=START + hour * HOUR_MS,
        provenance="replay",
        model_version="abc",
        realized=realized,
        volatility=served,
        low=named["low"],
        high=named["high"],
        level=named["level"],
        persistence=named.get("persistence", served),
        ewma=named.get("ewma", served),
        har=named.get("har", served),
        serving="har" if "model" in named else "model",
        model_volatility=named.get("model", served),
    )


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """A quarter, of which the last tenth was served by har."""
    draw = np.random.default_rng(5)
    found = []
    for hour in range(2_184):
        realized = float(np.exp(draw.normal(-5.4, 0.5)))
        model, har = (realized * float(np.exp(draw.normal(0, s))) for s in (0.3, 0.4))
        behind = {"model": model} if hour >= 1_966 else {}
        found.append(outcome(hour, realized, har if behind else model, har=har, ewma=0.004, **behind))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("regression") / "regression.html"


@pytest.fixture(scope="module")
def found(outcomes: list[Outcome], page: Path) -> Regression:
    return regression.regression(Matured.of(outcomes), page)


@given(st.lists(st.tuples(SIGMA, SIGMA), min_size=1, max_size=30))
def test_quality_is_what_its_names_say(pairs: list[tuple[float, float]]) -> None:
    realized, forecast = np.array(pairs).T
    of = regression.quality(realized, forecast)
    n = len(pairs)
    expected = {
        "qlike": sum(qlike.loss(r, f) for r, f in pairs) / n,
        "mae_hourly": sum(abs(f - r) for r, f in pairs) / n,
        "rmse_hourly": math.sqrt(sum((f - r) ** 2 for r, f in pairs) / n),
        "bias_hourly": sum(f - r for r, f in pairs) / n,
        "mape": sum(abs(f - r) / r for r, f in pairs) / n,
    }
    assert {k: getattr(of, k) for k in expected} == {
        k: pytest.approx(v, rel=1e-9, abs=1e-12) for k, v in expected.items()
    }


def test_a_report_judges_what_was_served_beside_the_others(outcomes: list[Outcome], found: Regression) -> None:
    assert list(found.by_forecaster) == list(FORECASTERS)
    assert (found.forecasts, found.fallback) == (2_184, 218)
    assert (found.first, found.last) == (outcomes[0].open_time, outcomes[-1].open_time)
    realized = np.array([o.realized for o in outcomes])
    for name, field in (("served", "volatility"), ("model", "model_volatility"), ("har", "har"), ("ewma", "ewma")):
        forecast = np.array([getattr(o, field) for o in outcomes])
        assert found.by_forecaster[name].rmse_hourly == pytest.approx(
            float(np.std(forecast - realized, mean=0.0)), rel=1e-9
        )
    assert found.by_forecaster["served"] != found.by_forecaster["model"]
    assert found.coverage == sum(o.low <= o.realized <= o.high for o in outcomes) / len(outcomes)
    assert found.coverage_promised == 0.9
    errors = np.sort([o.volatility - o.realized for o in outcomes])
    assert found.residual_quantiles_hourly["0.5"] == pytest.approx(float(np.median(errors)))
    assert list(found.residual_quantiles_hourly) == ["0.05", "0.25", "0.5", "0.75", "0.95"]


def test_evidently_says_the_same_in_annualized_percent(found: Regression) -> None:
    served = found.by_forecaster["served"]
    assert found.evidently["rmse_annualized_percent"] == pytest.approx(served.rmse_hourly * PERCENT, rel=1e-6)
    assert found.evidently["mae_annualized_percent"] == pytest.approx(served.mae_hourly * PERCENT, rel=1e-6)
    assert found.evidently["bias_annualized_percent"] == pytest.approx(served.bias_hourly * PERCENT, rel=1e-6)
    assert found.evidently["mape_percent"] == pytest.approx(100 * served.mape, rel=1e-6)
    assert set(found.evidently) >= {"r2", "largest_error_annualized_percent"}


def test_the_page_is_one_file_of_bearable_size(found: Regression, page: Path) -> None:
    assert found.forecasts
    assert page.stat().st_size < 5_000_000
    text = page.read_text()
    assert "Predicted vs Actual" in text
    assert not re.search(r"<(script|link|img|iframe|source)[^>]+(src|href)=.?(https?:)?//", text)


@given(st.integers(-60, 120), st.integers(0, 200))
def test_a_period_holds_the_forecasts_whose_day_lies_in_it(first: int, hours: int) -> None:
    matured = Matured.of([outcome(hour, 0.005, 0.004) for hour in range(100)])
    inside = matured.within(START + first * HOUR_MS, START + (first + hours) * HOUR_MS)
    # The candle of hour h is followed by 24 hours of outcome, h + 1 to h + 24.
    expected = [h for h in range(100) if first <= h and h + 24 < first + hours]
    assert ((inside.open_time - START) // HOUR_MS).tolist() == expected
    assert len(inside.forecasts["har"]) == len(inside.low) == len(inside.fallback) == len(expected)


@given(st.lists(st.integers(0, 40), max_size=4))
def test_pieces_joined_are_the_whole(sizes: list[int]) -> None:
    rows = [outcome(hour, 0.005 + hour * 1e-5, 0.004) for hour in range(sum(sizes))]
    pieces, done = [], 0
    for size in sizes:
        pieces.append(Matured.of(rows[done : done + size]))
        done += size
    joined, whole = Matured.joined(pieces), Matured.of(rows)
    assert joined.open_time.tolist() == whole.open_time.tolist()
    assert joined.realized.tolist() == whole.realized.tolist()
    assert {k: v.tolist() for k, v in joined.forecasts.items()} == {k: v.tolist() for k, v in whole.forecasts.items()}
    assert joined.level == whole.level or not rows


def test_fewer_than_a_day_of_forecasts_is_no_report() -> None:
    with pytest.raises(ValueError, match="23 matured"):
        regression.regression(Matured.of([outcome(hour, 0.005, 0.004) for hour in range(23)]), None)
