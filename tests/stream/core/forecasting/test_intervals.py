"""Laws of the adaptive intervals: feedback comes 24 h late, groups are separate, an accumulation equals the hours taken
one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.forecasting import intervals
from stream.core.forecasting.contract import Calibration
from stream.core.market.candle import HOUR_MS

START = 1_704_067_200_000  # a Monday
DELAY = intervals.DELAY_HOURS


def calibration(hours: int = 24 * 90, level: float = 0.9) -> Calibration:
    rng = np.random.default_rng(1)
    residuals = tuple(float(r) for r in rng.normal(0, 0.3, hours))
    return Calibration(level, -0.5, 0.6, residuals, START - hours * HOUR_MS)


CALIBRATION = calibration()


def known_at(outcomes: np.ndarray) -> np.ndarray:
    """Shifts the outcomes of each hour's forecast to the hours at which they become known."""
    return np.concatenate([np.full(DELAY, np.nan), outcomes[:-DELAY]])


def interval_after(volatility: np.ndarray, outcomes: np.ndarray) -> intervals.Interval:
    """Returns the interval of one more forecast, right after these hours."""
    later = START + len(volatility) * HOUR_MS
    known = np.append(known_at(np.append(outcomes, np.nan))[:-1], outcomes[-DELAY])
    memory = intervals.accumulate(CALIBRATION, START, np.append(volatility, np.nan), known)
    return intervals.give(CALIBRATION, memory, later, 0.005)[1]


@given(st.lists(st.floats(0.2, 5.0), min_size=DELAY - 1, max_size=DELAY - 1), st.integers(0, 2**32))
def test_what_the_last_23_hours_forecasts_came_to_changes_nothing_today(factors: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    volatility = 0.005 * np.exp(rng.normal(0, 0.3, 200))
    outcomes = volatility * np.exp(rng.normal(0, 0.3, 200))
    altered = outcomes.copy()
    altered[-(DELAY - 1) :] *= factors
    assert interval_after(volatility, altered) == interval_after(volatility, outcomes)


def test_what_the_forecast_of_24_hours_ago_came_to_does() -> None:
    volatility = np.full(200, 0.005)
    outcomes = np.full(200, 0.005)
    missed = outcomes.copy()
    missed[-DELAY] = 0.05
    usual, wider = interval_after(volatility, outcomes), interval_after(volatility, missed)
    # Hour 200 from a Monday is a Tuesday, and so was the forecast that failed.
    assert wider.high > usual.high


absent = st.sets(st.integers(0, 299), max_size=60)


@given(absent, absent, st.integers(0, 2**32), st.integers(1, 298))
def test_a_fold_is_what_was_lived_through_hour_by_hour(
    unspoken: set[int], unknown: set[int], seed: int, jump: int
) -> None:
    rng = np.random.default_rng(seed)
    volatility = 0.005 * np.exp(rng.normal(0, 0.3, 300))
    realized = 0.005 * np.exp(rng.normal(0, 0.5, 300))
    volatility[list(unspoken)] = np.nan
    realized[list(unknown)] = np.nan
    hole = slice(jump, jump + 40)
    volatility[hole] = realized[hole] = np.nan
    memory, last = intervals.start(CALIBRATION), -1
    for k in range(300):
        if not (np.isfinite(volatility[k]) or np.isfinite(realized[k])):
            continue
        memory, last = intervals.passed(memory, k - last), k
        earlier = volatility[k - DELAY] if k >= DELAY else np.nan
        if np.isfinite(realized[k]) and np.isfinite(earlier):
            memory = intervals.learn(CALIBRATION, memory, START + k * HOUR_MS, float(earlier), float(realized[k]))
        if np.isfinite(volatility[k]):
            memory, _ = intervals.give(CALIBRATION, memory, START + k * HOUR_MS, float(volatility[k]))
    accumulated = intervals.accumulate(CALIBRATION, START, volatility, realized)
    given = intervals.passed(memory, 299 - last).given if last < 299 else memory.given
    assert np.array_equal(given, accumulated.given, equal_nan=True)
    for lived, again in zip(memory.groups, accumulated.groups, strict=True):
        assert np.array_equal(lived.learnt, again.learnt)
        assert (lived.miss_below, lived.miss_above) == (again.miss_below, again.miss_above)


def test_weekends_learn_nothing_from_weekdays() -> None:
    hours = 24 * 4 - 13  # the last forecast whose coming day has its middle on a Friday
    volatility = np.full(hours + DELAY, 0.005)
    realized = known_at(np.full(hours + DELAY, 0.05))
    volatility[hours:] = np.nan
    weekday, weekend = intervals.accumulate(CALIBRATION, START, volatility, realized).groups
    untouched = intervals.start(CALIBRATION).groups[1]
    assert np.array_equal(weekend.learnt, untouched.learnt)
    assert weekend.miss_above == untouched.miss_above
    assert len(weekday.learnt) > 0
    assert weekday.miss_above < untouched.miss_above


def test_the_group_is_the_day_that_holds_the_middle_of_the_coming_24_hours() -> None:
    friday = START + 4 * 24 * HOUR_MS
    assert [intervals.group_of(friday + h * HOUR_MS) for h in (0, 10, 11, 23)] == [0, 0, 1, 1]
    assert [intervals.group_of(friday + (48 + h) * HOUR_MS) for h in (0, 10, 11, 23)] == [1, 1, 0, 0]


@pytest.mark.parametrize("spread", [0.2, 0.3, 0.6])
def test_coverage_returns_to_the_level_when_errors_become_smaller_or_larger(spread: float) -> None:
    rng = np.random.default_rng(5)
    hours = 24 * 150
    volatility = np.full(hours, 0.005)
    outcomes = volatility * np.exp(rng.normal(0, spread, hours))
    known = known_at(outcomes)
    memory, inside = intervals.start(CALIBRATION), []
    for k in range(hours):
        memory = intervals.passed(memory)
        if k >= DELAY:
            memory = intervals.learn(CALIBRATION, memory, START + k * HOUR_MS, 0.005, float(known[k]))
        memory, given_now = intervals.give(CALIBRATION, memory, START + k * HOUR_MS, 0.005)
        inside.append(given_now.low <= outcomes[k] <= given_now.high)
    assert np.mean(inside[24 * 60 :]) == pytest.approx(0.9, abs=0.03)


def test_bounds_are_numpys_quantiles_and_hold_the_forecast() -> None:
    memory = intervals.start(CALIBRATION)
    _, given_now = intervals.give(CALIBRATION, memory, START, 0.005)
    weekday = [
        r
        for k, r in enumerate(CALIBRATION.residuals)
        if intervals.group_of(CALIBRATION.residuals_from + k * HOUR_MS) == 0 and r is not None
    ]
    low, high = 0.005 * np.exp(np.quantile(weekday, [0.05, 0.95]))
    assert (given_now.low, given_now.high) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))

    biased = Calibration(0.9, -0.5, 0.6, tuple(0.5 + r for r in calibration().residuals if r), START)
    _, given_now = intervals.give(biased, intervals.start(biased), START, 0.005)
    assert given_now.low <= 0.005 <= given_now.high


def test_few_residuals_leave_the_static_bounds() -> None:
    young = Calibration(0.9, -0.5, 0.6, (0.1, None), START)
    _, given_now = intervals.give(young, intervals.start(young), START, 0.005)
    assert given_now == intervals.Interval(0.005 * math.exp(-0.5), 0.005 * math.exp(0.6), 0.9)
