"""The laws of the features: finite windows only, the same rows for one symbol, many symbols, a prefix, a look-back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.forecasting import features
from stream.core.forecasting.features import LOOKBACK_HOURS, MIN_RETURNS_24H, SEQUENCE_HOURS, SIGMA_FLOOR, compute
from stream.core.market.candle import HOUR_MS

START = 1_600_000_000_000 // HOUR_MS * HOUR_MS
SEEDS = st.integers(0, 10_000)


def grid(hours: int) -> np.ndarray:
    return START + HOUR_MS * np.arange(hours, dtype=np.int64)


def market(seed: int, hours: int, missing: float = 0.0) -> np.ndarray:
    """Simulates a random walk with ranges and volumes [hours, 5]; a share of the hours is missing."""
    chance = np.random.default_rng(seed)
    close = np.exp(np.cumsum(chance.standard_t(4, hours) * 0.006) + chance.normal(0, 3))
    opened = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(opened, close) * np.exp(chance.exponential(0.003, hours))
    low = np.minimum(opened, close) * np.exp(-chance.exponential(0.003, hours))
    out = np.stack([opened, high, low, close, chance.gamma(2, 50, hours)], axis=-1)
    out[chance.random(hours) < missing] = np.nan
    return out


def assert_rows_equal(a: features.Features, rows_a, b: features.Features, rows_b) -> None:
    """Asserts that every field is equal bit by bit."""
    for field in dataclasses.fields(features.Features):
        if field.name not in ("sequence_rows", "open_time"):
            axis = -2 if field.name == "static" else -1
            left, right = (np.take(getattr(f, field.name), r, axis) for f, r in ((a, rows_a), (b, rows_b)))
            np.testing.assert_array_equal(left, right, err_msg=field.name)
    np.testing.assert_array_equal(a.open_time[rows_a], b.open_time[rows_b])
    np.testing.assert_array_equal(a.sequences(rows_a), b.sequences(rows_b))


@given(SEEDS, st.integers(1, 900), st.sampled_from([0.0, 0.02, 0.4]))
@settings(max_examples=15)
def test_features_of_a_prefix_are_the_prefix_of_the_features(seed, cut, missing):
    candles = market(seed, 900, missing)
    rows = np.arange(cut)
    assert_rows_equal(compute(grid(900), candles), rows, compute(grid(cut), candles[:cut]), rows)


@given(SEEDS, st.integers(LOOKBACK_HOURS - 1, 1_499), st.sampled_from([0.0, 0.02, 0.4]))
@settings(max_examples=25)
def test_a_row_needs_the_declared_look_back_and_nothing_before_it(seed, row, missing):
    candles, times = market(seed, 1_500, missing), grid(1_500)
    window = slice(row - LOOKBACK_HOURS + 1, row + 1)
    whole, alone = compute(times, candles), compute(times[window], candles[window])
    last = np.array([LOOKBACK_HOURS - 1])
    for field in ("static", "realized_24h", "known_sum", "known_squares", "known_count", "ewma", "gaps", "ready"):
        axis = -2 if field == "static" else -1
        np.testing.assert_array_equal(
            np.take(getattr(whole, field), [row], axis), np.take(getattr(alone, field), last, axis), err_msg=field
        )
    np.testing.assert_array_equal(whole.sequences(np.array([row])), alone.sequences(last))


@given(SEEDS)
@settings(max_examples=10)
def test_one_call_for_many_symbols_is_many_calls_for_one(seed):
    tables = np.stack([market(seed + k, 800, 0.01 * k) for k in range(4)])
    rows = np.arange(800)
    together = compute(grid(800), tables)
    for k in range(4):
        alone = compute(grid(800), tables[k])
        for field in dataclasses.fields(features.Features):
            if field.name != "open_time":
                np.testing.assert_array_equal(
                    getattr(together, field.name)[k], getattr(alone, field.name), err_msg=field.name
                )
        np.testing.assert_array_equal(together.sequences(rows)[k], alone.sequences(rows))


@given(SEEDS, st.sampled_from([0.0, 0.05, 0.3]))
@settings(max_examples=10)
def test_realized_volatility_is_numpys_over_the_returns_that_exist(seed, missing):
    candles = market(seed, 300, missing)
    table = compute(grid(300), candles)
    returns = np.concatenate([[np.nan], np.diff(np.log(candles[:, 3]))])
    for row in range(300):
        last = returns[max(row - 23, 0) : row + 1]
        last = last[np.isfinite(last)]
        assert table.returns_24h[row] == len(last)
        assert table.ready[row] == (np.isfinite(candles[row, 3]) and len(last) >= MIN_RETURNS_24H)
        if len(last) >= 2:
            assert table.realized_24h[row] == pytest.approx(max(np.std(last, ddof=1), SIGMA_FLOOR), rel=1e-9)
        known = returns[max(row - 22, 0) : row + 1]
        known = known[np.isfinite(known)]
        assert table.known_count[row] == len(known)
        assert table.known_sum[row] == pytest.approx(known.sum(), abs=1e-12)
        assert table.known_squares[row] == pytest.approx((known**2).sum(), rel=1e-12, abs=1e-15)


def test_levels_and_ranges_are_what_their_names_say():
    candles = market(3, 800)
    table = compute(grid(800), candles)
    returns = np.diff(np.log(candles[:, 3]))
    o, h, low, c = candles[:, :4].T
    hourly = 0.5 * np.log(h / low) ** 2 - (2 * np.log(2) - 1) * np.log(c / o) ** 2
    hourly = np.maximum(hourly, 0)
    static = dict(zip(features.STATIC_NAMES, table.static[-1].astype(float), strict=True))
    level = np.log(np.sqrt(np.mean(returns[-720:] ** 2)))
    assert static["log_sigma_720h"] == pytest.approx(level, rel=1e-6)
    for hours in (6, 72, 168):
        expected = np.log(np.sqrt(np.mean(returns[-hours:] ** 2))) - level
        assert static[f"log_sigma_{hours}h"] == pytest.approx(expected, abs=1e-6)
    for hours in (1, 3, 6, 12, 24, 72, 168, 720):
        expected = np.log(np.sqrt(np.mean(hourly[-hours:]))) - level
        assert static[f"log_range_{hours}h"] == pytest.approx(expected, abs=1e-6)
    weights = 0.5 ** (np.arange(720) / features.EWMA_HALF_LIFE_HOURS)
    ewma = np.sqrt(np.sum(weights * returns[-720:][::-1] ** 2) / weights.sum())
    assert table.ewma[-1] == pytest.approx(ewma, rel=1e-12)
    assert static["log_max_24h"] == pytest.approx(
        np.log(np.abs(returns[-24:]).max()) - np.log(np.std(returns[-24:], ddof=1)), abs=1e-6
    )


def test_the_inputs_of_version_3_are_what_their_names_say():
    candles = market(8, 900)
    table = compute(grid(900), candles)
    returns = np.diff(np.log(candles[:, 3]))
    o, h, low, c = candles[:, :4].T
    variance = np.maximum(0.5 * np.log(h / low) ** 2 - (2 * np.log(2) - 1) * np.log(c / o) ** 2, 1e-9)
    log_range = 0.5 * np.log(variance)
    static = dict(zip(features.STATIC_NAMES, table.static[-1].astype(float), strict=True))
    level = np.log(np.sqrt(np.mean(returns[-720:] ** 2)))
    assert static["log_absolute_720h"] == pytest.approx(np.log(np.mean(np.abs(returns[-720:]))) - level, abs=1e-6)
    assert static["log_range_mean_24h"] == pytest.approx(log_range[-24:].mean() - level, abs=1e-6)
    before = [log_range[-168 * k - 12 : -168 * k].mean() for k in (1, 2, 3, 4)]
    assert static["log_range_change_12h"] == pytest.approx(log_range[-12:].mean() - np.mean(before), abs=1e-6)
    week = np.sqrt(np.mean(returns[-168:] ** 2))
    two_days = abs(returns[-48:].sum()) / (week * np.sqrt(48))
    assert static["return_48h_absolute"] == pytest.approx(two_days, abs=1e-6)
    seven_days = returns[-168:].sum() / (week * np.sqrt(168))
    assert static["return_168h_negative"] == pytest.approx(min(seven_days, 0.0), abs=1e-6)


@given(SEEDS, st.floats(0.0001, 0.5))
@settings(max_examples=10)
def test_one_absurd_print_moves_a_level_by_a_factor_that_does_not_depend_on_it(seed, low):
    candles = market(seed, 800)
    wick = candles.copy()
    wick[700, 2] = low * wick[700, [0, 3]].min()
    sound, struck = compute(grid(800), candles), compute(grid(800), wick)
    moved = dict(zip(features.STATIC_NAMES, (struck.static - sound.static).T.astype(float), strict=True))
    returns = np.diff(np.log(candles[:, 3]))
    names, level = features.STATIC_NAMES, struck.static[:, 0].astype(float)
    for hours, bound in ((24, 1.0), (72, 0.65), (168, 0.5), (720, 0.3)):
        for row in (730, 760, 799):
            if row - hours < 700:
                of_returns = np.log(np.sqrt(np.mean(returns[row - hours : row] ** 2)))
                of_ranges = struck.static[row, names.index(f"log_range_{hours}h")] + level[row]
                assert of_ranges <= of_returns + bound + 1e-5
    np.testing.assert_array_equal(moved["log_sigma_720h"], 0.0)
    assert moved["log_range_mean_24h"].max() < 0.4
    # A close that was wrong for an hour is two returns of any size.
    close = candles.copy()
    close[700, 2:4] *= low
    struck = compute(grid(800), close)
    moved = dict(zip(features.STATIC_NAMES, (struck.static - sound.static).T.astype(float), strict=True))
    assert moved["log_sigma_720h"].max() <= 1.0


def test_calendar_shares_count_the_coming_hours():
    hours = 168 * 5
    table = compute(grid(hours), market(1, hours))
    weekday = ((table.open_time // HOUR_MS) // 24 + 3) % 7
    names = features.STATIC_NAMES
    for ahead, name in ((1, "next_1h_weekend"), (6, "next_6h_weekend"), (12, "next_12h_weekend")):
        expected = [np.isin(weekday[t + 1 : t + 1 + ahead], (5, 6)).mean() for t in range(hours - 24)]
        np.testing.assert_allclose(table.static[: hours - 24, names.index(name)], expected, atol=1e-7)
    saturday = [(weekday[t + 1 : t + 25] == 5).mean() for t in range(hours - 24)]
    np.testing.assert_allclose(table.static[: hours - 24, names.index("next_24h_sat")], saturday, atol=1e-7)
    past = [np.isin(weekday[t - 23 : t + 1], (5, 6)).mean() for t in range(23, hours)]
    np.testing.assert_allclose(table.static[23:, names.index("last_24h_weekend")], past, atol=1e-7)


@given(SEEDS, st.floats(1e-6, 1e6))
@settings(max_examples=10)
def test_the_unit_of_prices_and_volumes_does_not_matter(seed, unit):
    candles = market(seed, 760)
    table, scaled = compute(grid(760), candles), compute(grid(760), candles * unit)
    np.testing.assert_allclose(scaled.static, table.static, atol=2e-4)
    np.testing.assert_allclose(scaled.sequence_rows, table.sequence_rows, atol=2e-4)


@pytest.mark.parametrize("volume", [0.0, 5.0])
def test_a_market_that_stands_still_stays_finite(volume):
    flat = np.full((800, 5), 100.0)
    flat[:, 4] = volume
    table = compute(grid(800), flat)
    for values in (table.static, table.sequence_rows, table.realized_24h, table.ewma):
        assert np.isfinite(values).all()
    assert table.realized_24h[-1] == SIGMA_FLOOR
    assert table.ready[-1]


def test_missing_hours_are_gaps_in_the_sequence_and_never_in_the_features():
    candles = market(5, 400)
    candles[300:303] = np.nan
    table = compute(grid(400), candles)
    missing = features.SEQUENCE_NAMES.index("missing")
    assert table.gaps[299] == 0
    assert table.gaps[303] == 3
    assert table.gaps[302 + SEQUENCE_HOURS - 1] == 1
    assert table.sequences(np.array([310]))[0, :, missing].sum() == 3
    assert np.isfinite(table.static).all()
    assert np.isfinite(table.sequence_rows).all()
    assert not table.ready[301]


def test_sequences_are_the_rows_that_end_with_the_row():
    table = compute(grid(200), market(2, 200))
    rows = np.array([0, 47, 60, 199])
    for row, sequence in zip(rows, table.sequences(rows), strict=True):
        np.testing.assert_array_equal(sequence, table.sequence_rows[row : row + SEQUENCE_HOURS])


def test_a_grid_with_a_hole_or_another_shape_is_refused():
    times = grid(30)
    with pytest.raises(ValueError, match="consecutive"):
        compute(np.delete(times, 7), market(1, 29))
    with pytest.raises(ValueError, match="does not fit"):
        compute(times, market(1, 29))
    with pytest.raises(ValueError, match="consecutive"):
        compute(times[:0], market(1, 0))
