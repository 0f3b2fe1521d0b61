"""Measures are their definitions, and groups are known when the forecast is made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.forecasting import qlike
from stream.core.market.candle import HOUR_MS
from training.data.panel import IntervalSeries
from training.scoring import groups
from training.scoring.measures import interval_measures, measures, rolling_coverage

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC, a Friday
sigma = st.floats(1e-5, 0.5)


def hours(count: int, first_ms: int = START) -> np.ndarray:
    return first_ms + HOUR_MS * np.arange(count, dtype=np.int64)


def test_measures_are_their_definitions():
    got = measures(np.array([1.0, 2.0, np.nan, 5.0]), np.array([1.0, 1.0, 9.0, np.nan]))
    assert got["rmse"] == pytest.approx(np.sqrt(0.5))
    assert got["mae"] == 0.5
    assert got["qlike"] == pytest.approx((0 + 4 - np.log(4) - 1) / 2)
    assert got["r2"] == -1.0
    assert got["bias"] == pytest.approx(-0.5 / 1.5)


def test_what_cannot_be_measured_is_refused_or_undefined():
    with pytest.raises(ValueError, match="both an outcome and a forecast"):
        measures(np.array([np.nan, 1.0]), np.array([1.0, np.nan]))
    assert measures(np.array([2.0, 2.0]), np.array([1.0, 2.0]))["r2"] is None
    # The mean of equal numbers is none of them in the last digit.
    for still in (np.full(7, 1.1e-5), np.full(1_000, 0.1)):
        assert measures(still, 1.2 * still)["r2"] is None
    with pytest.raises(ValueError, match="both an outcome and an interval"):
        interval_measures(np.array([np.nan]), IntervalSeries(np.array([1.0]), np.array([2.0]), 0.9))


@given(sigma, sigma, st.floats(1.01, 3.0))
def test_qlike_is_least_where_the_forecast_is_right_and_dearer_below(realized, forecast, factor):
    y = np.array([realized])
    assert qlike.losses(y, y)[0] == 0
    assert qlike.losses(y, np.array([forecast]))[0] >= 0
    assert qlike.losses(y, y / factor)[0] > qlike.losses(y, y * factor)[0]


def test_interval_measures_are_their_definitions():
    realized = np.array([1.0, 2.0, 4.0, np.nan])
    interval = IntervalSeries(np.array([1.0, 2.5, 1.0, 1.0]), np.array([2.0, 4.0, 3.0, 2.0]), 0.9)
    got = interval_measures(realized, interval)
    assert got["coverage"] == pytest.approx(1 / 3)  # a bound is inside
    assert got["width"] == pytest.approx(np.mean(np.log([2, 4 / 2.5, 3])))
    assert got["width_hourly"] == pytest.approx((1 + 1.5 + 2) / 3)
    assert got["winkler"] == pytest.approx(((1 + 0) + (1.5 + 20 * 0.5) + (2 + 20 * 1.0)) / 3)


def test_no_wider_and_no_narrower_interval_scores_better_than_the_true_one():
    realized = np.random.default_rng(5).standard_normal(40_000) + 10
    scores = [
        interval_measures(realized, IntervalSeries(np.full(40_000, 10 - z), np.full(40_000, 10 + z), 0.9))["winkler"]
        for z in (1.0, 1.645, 2.5)
    ]
    assert scores[1] == min(scores)


def test_rolling_coverage_is_of_thirty_days_of_time_whatever_is_missing():
    open_time = np.delete(hours(2_000), slice(900, 960))
    covered = np.random.default_rng(2).random(len(open_time)) < 0.9
    got = rolling_coverage(open_time, covered)
    assert np.isnan(got[:719]).all()
    for row in (719, 899, 900, 1_200, len(open_time) - 1):
        inside = (open_time > open_time[row] - 720 * HOUR_MS) & (open_time <= open_time[row])
        assert got[row] == pytest.approx(covered[inside].mean())


def test_twelve_of_the_coming_hours_make_a_weekend():
    week = hours(7 * 24)
    origins = [datetime.fromtimestamp(t / 1e3, UTC) + timedelta(hours=1) for t in week]
    expected = [sum((o + timedelta(hours=k)).weekday() >= 5 for k in range(24)) >= 12 for o in origins]
    assert groups.weekend(week).tolist() == expected
    assert sum(expected) == 49  # Friday 12:00 to Sunday 12:00


@given(st.integers(0, 100_000))
def test_a_phase_a_year_and_a_weekend_are_what_the_calendar_says(offset):
    open_time = hours(1, START + offset * HOUR_MS)
    origin = datetime.fromtimestamp(open_time[0] / 1e3, UTC) + timedelta(hours=1)
    assert groups.phases(open_time)[0] == origin.hour
    assert groups.years(open_time)[0] == origin.year
    coming = [(origin + timedelta(hours=k)).weekday() >= 5 for k in range(24)]
    assert groups.weekend(open_time)[0] == (sum(coming) >= 12)


def test_every_row_is_in_one_group_of_each_kind_and_terciles_are_thirds():
    open_time = hours(9_000)
    known = np.exp(np.random.default_rng(1).normal(size=9_000))
    known[:100] = np.nan
    found = groups.groups(open_time, known)
    assert list(found["year"]) == ["2021", "2022"]
    for kind in ("year", "coming 24 h"):
        assert (np.sum(list(found[kind].values()), axis=0) == 1).all()
    assert (np.sum(list(found["volatility before"].values()), axis=0) == np.isfinite(known)).all()
    assert [m.sum() for m in found["volatility before"].values()] == [2_967, 2_966, 2_967]
    low, _, high = (known[m] for m in found["volatility before"].values())
    assert low.max() < high.min()


def test_a_right_forecast_is_right_in_every_tercile_and_would_not_be_by_outcome():
    # What groups of the outcome would do: the law that groups are known at the origin is this bias.
    chance = np.random.default_rng(3)
    known = np.exp(chance.normal(-5, 0.4, 60_000))
    realized = known * np.exp(chance.normal(-0.045, 0.3, 60_000))
    by_known = groups.terciles(known)
    for k in range(3):
        assert abs(measures(realized[by_known == k], known[by_known == k])["bias"] or 1.0) < 0.01
    by_outcome = groups.terciles(realized)
    assert abs(measures(realized[by_outcome == 2], known[by_outcome == 2])["bias"] or 0.0) > 0.05
