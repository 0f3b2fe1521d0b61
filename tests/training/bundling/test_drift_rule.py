"""Thresholds: quiet by construction, the same wherever they are made, and careful where history is short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding.replay import to_grid
from stream.core.forecasting import drift
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from training.bundling import drift_rule
from training.data import dataset
from training.data.dataset import Dataset

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HOURS = 9_000


@pytest.fixture(scope="module")
def data() -> Dataset:
    tape = simulate_symbol("BTCUSDT", START, HOURS, seed=5)
    del tape[2_000:2_003]
    return dataset.of_grid("BTCUSDT", *to_grid(tape))


@given(st.integers(drift_rule.MIN_WEEKS, 300), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_under_its_thresholds_a_signal_was_quiet_in_95_of_100_weeks(weeks, measures, seed):
    chance = np.random.default_rng(seed)
    scores = chance.gamma(2.0, chance.uniform(0.1, 2.0, measures), (weeks, measures))
    limits = drift_rule.thresholds(scores)
    alarms = np.mean([drift.detected(s, limits) for s in scores])
    # The quantile lies between two weeks.
    assert alarms <= 1 - drift_rule.QUIET_SHARE + 1 / weeks
    assert (limits >= drift_rule.MIN_THRESHOLD).all()
    np.testing.assert_array_equal(limits, np.round(limits, 4))


def test_thresholds_of_too_few_weeks_are_one_deviation_and_of_still_ones_a_tenth():
    few = drift_rule.thresholds(np.full((drift_rule.MIN_WEEKS - 1, 3), 0.3))
    np.testing.assert_array_equal(few, drift_rule.UNCALIBRATED_THRESHOLD)
    np.testing.assert_array_equal(drift_rule.thresholds(np.zeros((50, 3))), drift_rule.MIN_THRESHOLD)


def test_the_reference_is_the_quantiles_of_the_range(data):
    end = START + 8_000 * HOUR_MS
    reference = drift_rule.reference(data, START, end)
    assert tuple(reference) == drift.MEASURES
    values = drift.measured(drift.measures(data.features, data.ohlcv)[:8_000])
    for k, of in enumerate(reference.values()):
        np.testing.assert_allclose(of.quantiles, np.quantile(values[:, k], drift.levels()), atol=1e-6)
        assert list(of.quantiles) == sorted(of.quantiles)
        assert drift.normed_wasserstein(values[:, k], np.array(of.quantiles)) < 0.03
        assert drift.normed_wasserstein(values[:, k] + 5 * values[:, k].std(), np.array(of.quantiles)) > of.threshold


def test_the_weeks_of_the_range_itself_are_mostly_quiet_and_nothing_beyond_it_counts(data):
    end = START + 8_000 * HOUR_MS
    reference = drift_rule.reference(data, START, end)
    marks = np.array([r.quantiles for r in reference.values()]).T
    limits = np.array([r.threshold for r in reference.values()])
    inside = drift.measures(data.features, data.ohlcv)[:8_000]
    # The first 30 days have too short a look-back for half of their hours; every other week counts.
    slow = drift_rule.against(inside, marks)
    assert len(slow) in ((8_000 - drift.WINDOW_HOURS) // 168, (8_000 - drift.WINDOW_HOURS) // 168 + 1)
    assert np.mean([drift.detected(s, limits) for s in slow]) <= 0.1
    later = dataset.of_grid("BTCUSDT", data.open_time[:8_000], data.ohlcv[:8_000])
    assert drift_rule.reference(later, START, end) == reference


def test_what_is_stored_does_not_hang_on_the_last_bits(data):
    end = int(data.open_time[-1]) + HOUR_MS
    nudged = data.ohlcv * (1 + 1e-14)
    again = dataset.of_grid("BTCUSDT", data.open_time, nudged)
    before, after = drift_rule.reference(data, START, end), drift_rule.reference(again, START, end)
    for name in drift.MEASURES:
        np.testing.assert_allclose(before[name].quantiles, after[name].quantiles, atol=1.1e-6)
        assert before[name].threshold == pytest.approx(after[name].threshold, abs=1.1e-4)


def test_a_range_without_look_back_is_refused(data):
    with pytest.raises(ValueError, match="480 hours"):
        drift_rule.reference(data, START, START + 400 * HOUR_MS)
