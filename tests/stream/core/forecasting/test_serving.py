"""Whether the model or `har` is served: thirty matured days decide, two wild ones cannot, nothing else counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.forecasting import qlike, serving
from stream.core.market.candle import HOUR_MS

SIGMA = st.floats(1e-5, 1.0)
DAY = st.floats(-serving.BOUND, serving.BOUND) | st.just(math.nan)
MIDNIGHT = 1_704_067_200_000  # 2024-01-01 00:00 UTC


def test_the_daily_forecast_is_the_one_said_at_midnight() -> None:
    daily = [hour for hour in range(-48, 48) if serving.is_daily(MIDNIGHT + hour * HOUR_MS)]
    assert daily == [-25, -1, 23, 47]


@given(SIGMA, SIGMA)
def test_qlike_is_least_where_the_forecast_was_right_and_harder_on_one_too_low(
    realized: float, forecast: float
) -> None:
    assert qlike.loss(realized, realized) == 0
    assert qlike.loss(realized, forecast) >= 0
    assert qlike.loss(realized, realized / 1.5) > qlike.loss(realized, realized * 1.5)


@given(SIGMA, SIGMA, SIGMA, st.sampled_from([2.0**-7, 8.0]))
def test_an_excess_is_bounded_has_no_unit_and_changes_sign_with_the_sides(
    realized: float, model: float, har: float, unit: float
) -> None:
    found = serving.excess(realized, model, har)
    assert abs(found) <= serving.BOUND
    assert found == -serving.excess(realized, har, model)
    assert found == serving.excess(unit * realized, unit * model, unit * har)


@given(st.lists(DAY, max_size=80))
def test_the_newest_thirty_days_decide_and_those_that_are_unknown_do_not_count(days: list[float]) -> None:
    mean = serving.mean_excess(days)
    known = [d for d in days[-serving.DAYS :] if not math.isnan(d)]
    if len(known) < serving.MIN_DAYS:
        assert mean == 0
    else:
        assert mean == pytest.approx(math.fsum(known) / len(known), abs=1e-12)
    assert serving.behind(days) == (mean > serving.LIMIT)
    if len(days) >= serving.DAYS:
        assert serving.mean_excess([serving.BOUND] * 50 + days) == mean


@given(st.lists(st.floats(-serving.BOUND, 0.0), min_size=30, max_size=30), st.data())
def test_two_wild_days_do_not_take_the_model_away(days: list[float], data: st.DataObject) -> None:
    for _ in range(2):
        days[data.draw(st.integers(0, 29))] = serving.BOUND
    assert not serving.behind(days)


def test_a_model_that_is_always_worse_is_taken_away_after_as_many_days_as_are_needed() -> None:
    assert [n for n in range(60) if serving.behind([0.1] * n)] == list(range(serving.MIN_DAYS, 60))
    # The model is served again once it is better.
    assert not serving.behind([0.1] * 30 + [-0.1] * 10)
