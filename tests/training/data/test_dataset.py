"""Rows, splits and the closed-form models: nothing reaches over a split, and the fits are the optimum they claim."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.adapters.candles import files
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import baselines as core_baselines
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from training.bundling import describe
from training.data import dataset
from training.data.dataset import Dataset, DatasetError
from training.models import linear, log_har

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC


@pytest.fixture(scope="module")
def data() -> Dataset:
    tape = simulate_symbol("BTCUSDT", START, 4_000, seed=5)
    del tape[2_000:2_003]
    return dataset.of_grid("BTCUSDT", *to_grid(tape))


@given(st.integers(0, 3_900), st.integers(1, 2_000))
@settings(max_examples=40)
def test_no_rows_label_reaches_over_the_end_of_its_range(data, first, hours):
    start, end = START + first * HOUR_MS, START + (first + hours) * HOUR_MS
    rows = data.rows(start, end)
    assert (data.open_time[rows] >= start).all()
    # The last hour of the label opens 24 h after the candle: it must close within the range.
    assert (data.open_time[rows] + 25 * HOUR_MS <= end).all()
    assert np.isfinite(data.labels[rows]).any(axis=1).all()


@given(st.integers(0, 10_000), st.integers(50, 50_000))
def test_folds_walk_forward_and_cover_the_last_three_fifths(first, hours):
    start, end = first * HOUR_MS, (first + hours) * HOUR_MS
    folds = dataset.walk_forward(start, end)
    assert folds[-1].end == end
    assert folds[0].split - start == pytest.approx(0.4 * (end - start), abs=HOUR_MS)
    for before, after in pairwise(folds):
        assert before.end == after.split > before.split
    assert all(f.start == start for f in folds)


def test_labels_across_a_hole_are_not_learnt_from(data):
    touching = np.arange(2_000 - 24, 2_003)
    assert np.isnan(data.labels[touching, 0]).all()
    assert np.isfinite(data.labels[:1_975, 0]).all()


def test_the_hash_is_of_the_candles_that_were_used_and_of_no_other(data):
    start, end = START + 1_000 * HOUR_MS, START + 3_000 * HOUR_MS
    original = data.sha256(start, end)

    def changed(row: int) -> str:
        ohlcv = data.ohlcv.copy()
        ohlcv[row, 4] += 1
        return dataset.of_grid("BTCUSDT", data.open_time, ohlcv).sha256(start, end)

    assert changed(2_999) != original
    assert changed(1_000 - 720) != original
    assert changed(1_000 - 721) == original
    assert changed(3_000) == original


def test_a_range_without_enough_hours_names_what_the_file_holds(data, tmp_path):
    with pytest.raises(DatasetError, match="the file holds 2021-01-01 to 2021-06-16"):
        dataset.require_rows(data, START - 10**10, START)


def test_a_file_and_a_grid_give_the_same_dataset(tmp_path):
    tape = simulate_symbol("ETHUSDT", START, 1_000, seed=2)
    files.write(tape, tmp_path / "a.parquet")
    left, right = dataset.load(tmp_path / "a.parquet", "ETHUSDT"), dataset.of_grid("ETHUSDT", *to_grid(tape))
    np.testing.assert_array_equal(left.labels, right.labels)
    np.testing.assert_array_equal(left.features.static, right.features.static)


def test_qlike_fit_is_stationary_and_recovers_a_known_model():
    chance = np.random.default_rng(4)
    x = chance.normal(size=(20_000, 3))
    weights, bias = np.array([0.3, -0.2, 0.0]), -5.0
    sigma = np.exp(x @ weights + bias) * np.abs(chance.standard_normal(20_000))
    sigma[::50] = np.nan
    got, intercept = linear.fit_qlike(x, sigma, ridge=0.0)
    np.testing.assert_allclose(got, weights, atol=0.02)
    assert intercept == pytest.approx(bias, abs=0.02)
    known = np.isfinite(sigma)
    surprise = (sigma[known] / np.exp(x[known] @ got + intercept)) ** 2 - 1
    # At the optimum the surprises are orthogonal to every input: the mean square is right on average.
    assert np.abs(surprise.mean()) < 1e-3
    assert np.abs(x[known].T @ surprise / known.sum()).max() < 1e-3


def test_log_fit_is_least_squares():
    chance = np.random.default_rng(4)
    x = chance.normal(size=(500, 4))
    sigma = np.exp(x @ [0.1, 0.2, 0.3, 0.4] - 5 + chance.normal(size=500))
    got, intercept = linear.fit_log(x, sigma, ridge=0.0)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(500)]), np.log(sigma), rcond=None)[0]
    np.testing.assert_allclose([*got, intercept], expected, rtol=1e-9)


def test_a_row_of_weight_two_counts_as_two_rows():
    chance = np.random.default_rng(6)
    x, sigma = chance.normal(size=(900, 3)), np.exp(chance.normal(-5, 0.5, 900))
    weight = np.where(np.arange(900) < 300, 2.0, 1.0)
    twice = np.concatenate([np.arange(300), np.arange(900)])
    for fit in (linear.fit_log, linear.fit_qlike):
        got, intercept = fit(x, sigma, ridge=0.1, weight=weight)
        expected, expected_intercept = fit(x[twice], sigma[twice], ridge=0.1)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-8)
        assert intercept == pytest.approx(expected_intercept, abs=1e-5)


def test_a_ridge_of_a_column_shrinks_that_column():
    chance = np.random.default_rng(6)
    x = chance.normal(size=(2_000, 2))
    sigma = np.exp(x @ [0.5, 0.5] - 5 + 0.1 * chance.normal(size=2_000))
    (kept, shrunk), _ = linear.fit_log(x, sigma, ridge=np.array([0.0, 1.0]))
    assert kept == pytest.approx(0.5, abs=0.02)
    assert shrunk == pytest.approx(0.25, abs=0.02)


def test_the_hash_of_several_symbols_is_of_each_and_of_one_is_its_own(data):
    start, end = START, START + 2_000 * HOUR_MS
    other = dataset.of_grid("ETHUSDT", data.open_time, data.ohlcv)
    assert dataset.sha256((data,), start, end) == data.sha256(start, end)
    digests = {dataset.sha256(those, start, end) for those in ((data,), (other,), (data, other), (other, data))}
    assert len(digests) == 4


def test_others_are_all_but_the_symbol_and_a_file_without_any_is_refused(tmp_path):
    tapes = {name: simulate_symbol(name, START, 200, seed=2) for name in ("ETHUSDT", "BTCUSDT", "LTCUSDT")}
    files.write([c for tape in tapes.values() for c in tape], tmp_path / "all.parquet")
    assert [d.symbol for d in dataset.load_others(tmp_path / "all.parquet", "btcusdt")] == ["ETHUSDT", "LTCUSDT"]
    files.write(tapes["BTCUSDT"], tmp_path / "one.parquet")
    with pytest.raises(DatasetError, match="no pair but BTCUSDT to learn from"):
        dataset.load_others(tmp_path / "one.parquet", "BTCUSDT")


def test_the_bundles_har_is_the_regression_and_right_on_average(data):
    end = int(data.open_time[-1]) + HOUR_MS
    rows, folds = data.rows(START, end), dataset.walk_forward(START, end)
    har = log_har.fit(data, rows, folds, log_har.PLAIN)
    x = np.column_stack([core_baselines.har_inputs(data.features.static[rows], har.names), np.ones(len(rows))])
    known = np.isfinite(data.labels[rows, 0])
    expected = np.linalg.lstsq(x[known], np.log(data.labels[rows, 0][known]), rcond=None)[0]
    np.testing.assert_allclose([*har.coefficients, har.intercept], expected, atol=1e-3)
    assert 0.8 < har.retransform < 1.5
    assert set(log_har.WITH_CALENDAR) > set(log_har.PLAIN)


def test_calibration_is_the_quantiles_and_the_newest_residuals_in_time_order(data):
    rows = data.rows(START + 1_000 * HOUR_MS, START + 3_900 * HOUR_MS)
    forecast = np.full(len(rows), 0.005)
    got = describe.calibration(data, rows, forecast)
    residual = np.log(data.labels[rows, 0] / forecast)
    assert (got.low, got.high) == pytest.approx(np.nanquantile(residual, [0.05, 0.95]))
    assert len(got.residuals) == describe.RESIDUAL_HOURS
    first = int(np.searchsorted(data.open_time, got.residuals_from))
    for k, value in enumerate(got.residuals):
        expected = np.log(data.labels[first + k, 0] / 0.005)
        assert (value is None) == (not np.isfinite(expected))
        assert value is None or value == pytest.approx(expected, abs=6e-6)
    assert None in got.residuals


def test_regimes_describe_the_range(data):
    end = START + 4_000 * HOUR_MS
    regimes = describe.regimes(data, START, end)
    realized = data.features.realized_24h[data.features.returns_24h == 24]
    assert (realized < regimes.medium_from).mean() == pytest.approx(1 / 3, abs=0.01)
    assert (realized > regimes.high_from).mean() == pytest.approx(1 / 5, abs=0.01)
