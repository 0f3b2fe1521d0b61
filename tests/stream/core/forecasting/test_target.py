"""Labels against numpy, and the arithmetic of the rolling volatility against all the windows it averages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.forecasting import target
from stream.core.forecasting.features import SIGMA_FLOOR, compute
from stream.core.forecasting.target import HORIZON_HOURS, labels, rolling_24h_next
from stream.core.market.candle import HOUR_MS

SEEDS = st.integers(0, 10_000)


def closes(seed: int, hours: int, missing: float = 0.0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    out = 100 * np.exp(np.cumsum(chance.standard_t(4, hours) * 0.005))
    out[chance.random(hours) < missing] = np.nan
    return out


@given(SEEDS, st.sampled_from([0.0, 0.01, 0.1]))
@settings(max_examples=15)
def test_labels_are_numpys_over_the_coming_returns_and_nan_across_a_hole(seed, missing):
    close = closes(seed, 150, missing)
    returns = np.concatenate([[np.nan], np.diff(np.log(close))])
    got = labels(close)
    for t in range(150):
        ahead = returns[t + 1 : t + 25]
        _same(got.next_24h[t], np.std(ahead, ddof=1) if len(ahead) == 24 else np.nan)
        rolling = returns[t - 22 : t + 2] if t >= 22 else np.array([])
        _same(got.rolling_24h_next[t], np.std(rolling, ddof=1) if len(rolling) == 24 else np.nan)
        for hours in HORIZON_HOURS:
            ahead = returns[t + 1 : t + 1 + hours]
            expected = max(np.mean(ahead**2), SIGMA_FLOOR**2) if len(ahead) == hours else np.nan
            _same(got.mean_square[hours][t], expected, 1e-20)


@given(SEEDS, st.sampled_from([0.0, 0.01, 0.1]), st.integers(1, 120))
def test_the_outcome_of_an_hour_is_the_same_number_alone_and_among_others(seed, missing, hours):
    close = closes(seed, hours, missing)
    alone = [target.realized(close[t - 24 : t + 1]) if t >= 24 else np.nan for t in range(hours)]
    np.testing.assert_array_equal(target.realized_hours(close), alone)


def _same(got: float, expected: float, absolute: float = 1e-12) -> None:
    if np.isnan(expected):
        assert np.isnan(got)
    else:
        assert got == pytest.approx(expected, rel=1e-9, abs=absolute)


@given(SEEDS)
@settings(max_examples=10)
def test_many_symbols_at_once_are_each_alone(seed):
    table = np.stack([closes(seed + k, 80, 0.02 * k) for k in range(3)])
    together = labels(table)
    for k in range(3):
        alone = labels(table[k])
        np.testing.assert_array_equal(together.next_24h[k], alone.next_24h)
        np.testing.assert_array_equal(together.rolling_24h_next[k], alone.rolling_24h_next)
        for hours in HORIZON_HOURS:
            np.testing.assert_array_equal(together.mean_square[hours][k], alone.mean_square[hours])


@given(SEEDS, st.integers(30, 140))
@settings(max_examples=10)
def test_a_label_sees_nothing_of_the_past_but_its_own_close(seed, row):
    close = closes(seed, 170)
    changed = close.copy()
    changed[:row] *= np.linspace(0.5, 2.0, row)
    assert labels(changed).next_24h[row] == labels(close).next_24h[row]
    for hours in HORIZON_HOURS:
        assert labels(changed).mean_square[hours][row] == labels(close).mean_square[hours][row]


@given(SEEDS, st.floats(1e-5, 0.05), st.sampled_from([0.0, 0.1]))
@settings(max_examples=15)
def test_the_rolling_forecast_averages_the_windows_that_the_coming_return_can_make(seed, sigma, missing):
    close = closes(seed, 60, missing)
    ohlcv = np.stack([close, close, close, close, np.ones(60)], axis=-1)
    table = compute(HOUR_MS * np.arange(500_000, 500_060, dtype=np.int64), ohlcv)
    row = 59
    known = np.concatenate([[np.nan], np.diff(np.log(close))])[row - 22 : row + 1]
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return
    sizes = sigma * np.array(target._COMING_RETURN)
    expected = np.mean([np.std([*known, x], ddof=1) for x in (*sizes, *-sizes)])
    got = rolling_24h_next(table, np.array([row]), np.array([sigma]))[0]
    assert got == pytest.approx(max(expected, SIGMA_FLOOR), rel=1e-9)


def test_the_coming_return_has_the_octiles_of_a_t_distribution():
    chance = np.random.default_rng(0)
    sizes = np.sort(np.abs(chance.standard_t(4, 2_000_000))) / np.sqrt(2)
    octiles = [part.mean() for part in np.array_split(sizes, 8)]
    np.testing.assert_allclose(target._COMING_RETURN, octiles, rtol=0.01)


def test_a_flat_market_has_the_floor_for_a_label_and_a_forecast():
    flat = np.full(100, 7.0)
    got = labels(flat)
    assert got.next_24h[50] == SIGMA_FLOOR
    assert got.mean_square[6][50] == SIGMA_FLOOR**2
    ohlcv = np.stack([flat] * 5, axis=-1)
    table = compute(HOUR_MS * np.arange(500_000, 500_100, dtype=np.int64), ohlcv)
    assert rolling_24h_next(table, np.array([99]), np.array([SIGMA_FLOOR]))[0] == SIGMA_FLOOR
