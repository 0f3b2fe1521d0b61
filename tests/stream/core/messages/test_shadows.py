"""A shadow's score: both models on the same hours, by plain arithmetic."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.deciding.operator import Matured
from stream.core.forecasting import qlike
from stream.core.market.candle import HOUR_MS
from stream.core.messages import shadows
from stream.core.messages.scoring import Outcome
from stream.core.messages.shadows import ShadowForecast

START = 1_704_067_200_000
sigmas = st.floats(1e-4, 0.1)


def forecast(hour: int, sigma: float, realized: float | None) -> ShadowForecast:
    return ShadowForecast("BTCUSDT", "beside", START + hour * HOUR_MS, sigma, sigma * 0.5, sigma * 2, realized)


def outcome(hour: int, sigma: float, realized: float) -> Outcome:
    at = START + hour * HOUR_MS
    return Outcome(
        f"id:{at}", 0, "BTCUSDT", at, "live", "present", realized, sigma * 3, sigma * 0.9, sigma * 1.1, 0.9,
        sigma, sigma, sigma, model_volatility=sigma,
    )  # fmt: skip


@given(
    st.dictionaries(st.integers(0, 400), st.tuples(sigmas, sigmas), min_size=1, max_size=40),
    st.dictionaries(st.integers(0, 400), sigmas, max_size=40),
    sigmas,
)
def test_both_are_scored_on_the_hours_that_both_have(
    happened: dict[int, tuple[float, float]], ours_by_hour: dict[int, float], newest: float
) -> None:
    outcomes = [outcome(hour, sigma, realized) for hour, (sigma, realized) in sorted(happened.items())]
    forecasts = [
        forecast(hour, sigma, happened[hour][1] if hour in happened else None)
        for hour, sigma in sorted(ours_by_hour.items())
    ]
    score = shadows.score([*forecasts, forecast(500, newest, None)], outcomes)
    assert score.annualized == pytest.approx(newest * math.sqrt(8_760))
    both = sorted(happened.keys() & ours_by_hour.keys())
    assert bool(score.windows) == bool(both)
    for window in score.windows:
        hours = [hour for hour in both if hour > both[-1] - window.days * 24]
        assert window.matured == len(hours)
        ours = [qlike.loss(happened[hour][1], ours_by_hour[hour]) for hour in hours]
        theirs = [qlike.loss(happened[hour][1], happened[hour][0]) for hour in hours]
        assert (window.qlike, window.model_qlike) == pytest.approx((np.mean(ours), np.mean(theirs)), rel=1e-6, abs=1e-9)
        covered = [ours_by_hour[hour] / 2 <= happened[hour][1] <= ours_by_hour[hour] * 2 for hour in hours]
        assert window.coverage == pytest.approx(np.mean(covered))


def test_an_outcome_is_kept_with_its_forecast_and_others_are_left_out() -> None:
    known = {START: forecast(0, 0.01, None)}
    found = shadows.taken(
        known, [Matured("BTCUSDT", START, 0.02), Matured("BTCUSDT", START + HOUR_MS, 0.5)], "BTCUSDT", "beside"
    )
    assert found == {START: msgspec.structs.replace(known[START], realized=0.02)}
    assert known[START].realized is None
