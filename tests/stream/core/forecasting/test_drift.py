"""The drift statistic against an oracle, the measures against one-liners, and the laws of their windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.deciding.accumulation import HISTORY_HOURS
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import drift, features
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HOURS = 1_500


@pytest.fixture(scope="module")
def ohlcv() -> Array:
    tape = simulate_symbol("BTCUSDT", START, HOURS, seed=5)
    del tape[700:704]
    return to_grid(tape)[1]


def measures_of(ohlcv: Array) -> Array:
    times = START + HOUR_MS * np.arange(ohlcv.shape[-2], dtype=np.int64)
    return drift.measures(features.compute(times, ohlcv), ohlcv)


samples = st.lists(st.floats(-100, 100), min_size=1, max_size=40).map(np.array)


@given(samples, samples)
def test_the_distance_is_the_area_between_the_quantile_functions(first, second):
    # With both samples repeated to one length the distance is the mean gap between the sorted values.
    n = len(first) * len(second)
    gap = np.abs(np.sort(np.repeat(first, n // len(first))) - np.sort(np.repeat(second, n // len(second))))
    assert drift.wasserstein(first, second) == pytest.approx(gap.mean(), rel=1e-9, abs=1e-9)


@given(samples, samples, samples)
def test_the_distance_is_a_metric(a, b, c):
    assert drift.wasserstein(a, a) == 0
    assert drift.wasserstein(a, b) == pytest.approx(drift.wasserstein(b, a), rel=1e-9, abs=1e-9)
    assert drift.wasserstein(a, c) <= drift.wasserstein(a, b) + drift.wasserstein(b, c) + 1e-9


@given(samples, samples, st.floats(0.01, 100), st.floats(-50, 50))
def test_the_normed_distance_knows_no_unit(current, reference, scale, shift):
    reference = np.append(reference, [reference[0] + 1, reference[0] - 1])
    before = drift.normed_wasserstein(current, reference)
    if scale * np.std(reference) > 1e-3:
        after = drift.normed_wasserstein(current * scale + shift, reference * scale + shift)
        assert after == pytest.approx(before, rel=1e-6, abs=1e-6)


def test_the_distance_of_shifted_values_is_the_shift_in_deviations():
    values = np.random.default_rng(1).normal(size=5_000)
    marks = np.quantile(values, drift.levels())
    assert drift.normed_wasserstein(values, marks) < 0.03
    assert drift.normed_wasserstein(marks + 2.0, marks) == pytest.approx(2.0 / marks.std(), rel=1e-9)
    assert drift.normed_wasserstein(np.full(9, 0.5), np.full(100, 0.5)) == 0.0
    # The deviation of a reference that hardly varies counts as 0.001, as in Evidently.
    assert drift.normed_wasserstein(np.full(9, 0.5), np.zeros(100)) == pytest.approx(500.0)
    assert np.isnan(drift.normed_wasserstein(values[:0], marks))


@given(st.integers(drift.LOOKBACK_HOURS - 1, HOURS - 1))
def test_a_row_is_what_its_look_back_alone_gives(ohlcv, row):
    alone = measures_of_rows(ohlcv, row - drift.LOOKBACK_HOURS + 1, row + 1)
    np.testing.assert_array_equal(measures_of(ohlcv)[row], alone[-1])
    assert np.isnan(alone[:-1]).all()


def measures_of_rows(ohlcv: Array, first: int, end: int) -> Array:
    times = START + HOUR_MS * np.arange(first, end, dtype=np.int64)
    return drift.measures(features.compute(times, ohlcv[first:end]), ohlcv[first:end])


def test_the_measures_are_what_they_say(ohlcv):
    row = 1_200  # all of its 480 hours exist from 720 on; the hole before is in its usual level
    got = dict(zip(drift.MEASURES, measures_of(ohlcv)[row], strict=True))
    close, volume = ohlcv[:, 3], ohlcv[:, 4]
    r = np.diff(np.log(close))  # r[t - 1] is the return of row t

    def sigma(t: int) -> float:
        return float(np.log(np.std(r[t - 24 : t], ddof=1)))

    def traded(t: int) -> float:
        return float(np.log(np.mean(volume[t - 23 : t + 1])))

    usual = range(row - 455, row + 1)
    assert row - 455 - 24 > 704
    assert got["log_volatility_24h"] == pytest.approx(sigma(row))
    assert got["log_volatility_change_24h"] == pytest.approx(sigma(row) - np.mean([sigma(t) for t in usual]))
    assert got["log_volume_24h"] == pytest.approx(traded(row))
    assert got["log_volume_change_24h"] == pytest.approx(traded(row) - np.mean([traded(t) for t in usual]))
    assert got["log_volume_per_volatility_24h"] == pytest.approx(traded(row) - sigma(row))
    for name in ("log_max_24h", "return_24h", "negative_share_24h"):
        static = features.compute(START + HOUR_MS * np.arange(HOURS, dtype=np.int64), ohlcv).static
        assert got[name] == static[row, features.STATIC_NAMES.index(name)]


def test_none_of_the_measures_is_one_that_evidently_mutes(ohlcv):
    assert (np.std(drift.measured(measures_of(ohlcv)), axis=0) > 20 * drift.MIN_DEVIATION).all()


@given(st.integers(0, HOURS - 1), st.integers(1, 400), st.sampled_from(["missing", "flat", "dead"]))
def test_holes_and_dead_markets_give_numbers_or_no_row(ohlcv, first, hours, kind):
    broken = ohlcv.copy()
    rows = slice(first, first + hours)
    if kind == "missing":
        broken[rows] = np.nan
    elif kind == "dead":
        broken[rows, 4] = 0.0
    else:
        broken[rows, :4] = 100.0
    values = measures_of(broken)
    complete = np.isfinite(values).all(axis=1)
    assert np.isnan(values[~complete]).all()
    # At most a hundred: a market without moves is far from usual, but not infinitely far.
    assert (np.abs(values[complete]) < 100).all()


def test_symbols_side_by_side_are_measured_as_alone(ohlcv):
    both = np.stack([ohlcv, ohlcv * [2, 2, 2, 2, 5]])
    values = measures_of(both)
    np.testing.assert_array_equal(values[0], measures_of(both[0]))
    np.testing.assert_array_equal(values[1], measures_of(both[1]))
    # No measure depends on the scale of prices, and only those of the level of volume on that of volume.
    moved = np.nanmax(np.abs(values[1] - values[0]), axis=0)
    by_level = {"log_volume_24h": np.log(5), "log_volume_per_volatility_24h": np.log(5)}
    expected = [by_level.get(name, 0.0) for name in drift.MEASURES]
    np.testing.assert_allclose(moved, expected, atol=2e-6)


def test_a_hundred_days_of_whole_rows_fit_into_what_a_fresh_start_has():
    assert drift.FAST_HOURS + drift.FAST_REFERENCE_HOURS + drift.LOOKBACK_HOURS - 1 <= HISTORY_HOURS


@given(st.integers(-50, 200), st.integers(1, 200), st.integers(0, 199))
def test_a_window_is_whole_and_half_measured_or_none(first, hours, missing):
    values = np.zeros((200, 2))
    values[:missing] = np.nan
    got = drift.window(values, first, first + hours)
    inside = range(max(first, 0), min(first + hours, 200))
    known = sum(row >= missing for row in inside)
    assert (got is None) == (first < 0 or known < hours / 2)
    assert got is None or len(got) == known


def test_verdicts():
    limits = np.array([0.5, 1.0, 2.0, 3.0])
    assert not drift.detected(np.array([0.4, 0.9, 1.9, 2.9]), limits)
    assert drift.detected(np.array([0.4, 1.0, 0.0, 0.0]), limits)
    assert drift.default_detected(np.array([0.1, 0.2, 0.0, 0.0]))
    assert not drift.default_detected(np.array([9.0, 0.09, 0.0, 0.0]))


def test_the_references_and_distances_of_a_row_look_only_back():
    chance = np.random.default_rng(3)
    hours = drift.OWN_REFERENCE_HOURS + drift.WINDOW_HOURS
    values = chance.normal(size=(hours + 100, 2))
    own = drift.own_reference(values, hours)
    assert own is not None
    np.testing.assert_allclose(own, np.quantile(values[: drift.OWN_REFERENCE_HOURS], drift.levels(), axis=0))
    assert drift.own_reference(values, hours - 1) is None
    later = values.copy()
    later[hours:] = 99.0
    for of in (values, later):
        slow, fast = drift.slow_distances(of, hours, own), drift.fast_distances(of, hours)
        assert slow is not None
        assert fast is not None
        assert (slow < 0.2).all()
        assert (fast < 0.3).all()
    changed = values.copy()
    changed[hours - drift.FAST_HOURS : hours] += 1.0
    fast = drift.fast_distances(changed, hours)
    assert fast is not None
    assert (fast > 0.7).all()
    assert drift.fast_distances(values, drift.FAST_HOURS + drift.FAST_REFERENCE_HOURS - 1) is None
