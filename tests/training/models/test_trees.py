"""Trees as arrays forecast what LightGBM does, and weights leave out whole trees."""

from __future__ import annotations

import numpy as np
import pytest

from stream.testing.market import simulate_symbol
from training.data import dataset, sample
from training.models import trees

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC


@pytest.fixture(scope="module")
def learnt() -> sample.Sample:
    candles = simulate_symbol("BTCUSDT", START, 3_000, seed=4)
    grid = np.array([c.open_time for c in candles], np.int64)
    ohlcv = np.array([[c.open, c.high, c.low, c.close, c.volume] for c in candles])
    data = dataset.of_grid("BTCUSDT", grid, ohlcv)
    return sample.of_range([data], START, START + 3_000 * 3_600_000)


@pytest.fixture(scope="module")
def grown(learnt) -> trees.Trees:
    return trees.fit(learnt, seed=3, most=20)


def test_they_forecast_what_lightgbm_does(learnt, monkeypatch):
    import lightgbm

    boosters, train = [], lightgbm.train

    def kept(*arguments, **more):
        boosters.append(train(*arguments, **more))
        return boosters[-1]

    monkeypatch.setattr(lightgbm, "train", kept)
    grown = trees.fit(learnt, seed=3, most=20)
    raw = np.stack([b.predict(learnt.static, raw_score=True) for b in boosters], axis=-1)
    raw[:, 1:] /= 2
    np.testing.assert_allclose(grown.sums(learnt.static), raw, atol=1e-12)
    assert np.ptp(raw, axis=0).min() > 0.01, "they forecast something"


def test_log_sigma_is_relative_to_the_mean_size_of_returns(learnt, grown):
    level = sum(learnt.static[:, trees.STATIC_NAMES.index(name)].astype(float) for name in trees.ANCHOR)
    np.testing.assert_allclose(grown.log_sigma(learnt.static), grown.sums(learnt.static) + level[:, None], atol=1e-12)


def test_a_threshold_between_two_float32_sends_the_same_rows_left():
    threshold = 0.1  # float32(0.1) lies above it
    rounded = np.float32(trees._rounded_down(threshold))
    assert float(rounded) <= threshold
    near = np.array([np.nextafter(rounded, np.float32(side)) for side in (-np.inf, np.inf)] + [rounded])
    np.testing.assert_array_equal(near <= rounded, near.astype(np.float64) <= threshold)


def test_weights_scale_the_leaves_and_leave_trees_out(learnt, grown, tmp_path):
    weight = np.array([0.3, 0.0, 1.0, 0.0, 0.1])
    fewer = grown.times(weight)
    np.testing.assert_allclose(fewer.sums(learnt.static), grown.sums(learnt.static) * weight, atol=1e-12)
    assert len(fewer.root) == 3 * 20
    assert len(grown.times(np.zeros(5)).root) == 0
    fewer.save(tmp_path / "trees.npz")
    again = trees.load(tmp_path / "trees.npz")
    np.testing.assert_array_equal(again.sums(learnt.static), fewer.sums(learnt.static))


def test_the_same_seed_grows_the_same_trees(learnt, grown):
    again = trees.fit(learnt, seed=3, most=20)
    for name in trees.Trees.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(grown, name))
