"""The sample: who is learnt from, how much each weighs, and that nothing of another range gets in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding.replay import to_grid
from stream.core.forecasting.features import LOOKBACK_HOURS
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from training.data import dataset, sample
from training.data.dataset import Dataset, DatasetError

START = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HOURS = 4_000
LISTED = 1_500


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset, Dataset]:
    tapes = {
        "BTCUSDT": simulate_symbol("BTCUSDT", START, HOURS, seed=5),
        "ETHUSDT": simulate_symbol("ETHUSDT", START, HOURS, seed=6),
        "NEWUSDT": simulate_symbol("NEWUSDT", START + LISTED * HOUR_MS, HOURS - LISTED, seed=7),
    }
    first, second, third = (dataset.of_grid(name, *to_grid(tape)) for name, tape in tapes.items())
    return first, second, third


@given(st.integers(0, 2_000), st.integers(600, 3_500))
@settings(max_examples=30)
def test_every_row_and_its_label_lie_in_the_range(data, first, hours):
    start, end = START + first * HOUR_MS, START + (first + hours) * HOUR_MS
    for one, rows in sample.of_range(data, start, end).parts:
        assert (one.open_time[rows] >= start).all()
        assert (one.open_time[rows] + 25 * HOUR_MS <= end).all()


@given(st.integers(0, 2_000), st.integers(600, 3_500))
@settings(max_examples=30)
def test_what_lies_outside_of_the_range_and_its_look_back_changes_nothing(data, first, hours):
    start, end = START + first * HOUR_MS, START + (first + hours) * HOUR_MS
    given_ = sample.of_range(data, start, end)

    def changed(one: Dataset) -> Dataset:
        ohlcv = one.ohlcv.copy()
        outside = (one.open_time >= end) | (one.open_time < start - (LOOKBACK_HOURS + 47) * HOUR_MS)
        ohlcv[outside, :4] *= 1.5
        ohlcv[outside, 4] *= 7
        return dataset.of_grid(one.symbol, one.open_time, ohlcv)

    other = sample.of_range(tuple(changed(one) for one in data), start, end)
    np.testing.assert_array_equal(given_.weight, other.weight)
    np.testing.assert_array_equal(given_.labels, other.labels)
    np.testing.assert_array_equal(given_.static, other.static)
    np.testing.assert_array_equal(given_.sequence, other.sequence)


def test_the_symbol_itself_is_whole_and_the_others_are_thinned_over_every_hour_of_the_day(data):
    end = START + HOURS * HOUR_MS
    (scored, rows), *others = sample.of_range(data, START, end).parts
    np.testing.assert_array_equal(rows, scored.rows(START, end))
    for one, thinned in others:
        hours = one.open_time[thinned] // HOUR_MS
        assert (np.diff(hours) % sample.POOL_EVERY_HOURS == 0).all()
        assert set((hours % 24).tolist()) == set(range(24))
    # The first month of a listing has no full windows.
    assert others[1][0].open_time[others[1][1][0]] >= START + (LISTED + LOOKBACK_HOURS - 1) * HOUR_MS


def test_others_together_weigh_their_share_and_an_older_hour_less(data):
    end = START + HOURS * HOUR_MS
    taken = sample.of_range(data[:2], START, end)
    own = len(taken.parts[0][1])
    assert taken.weight.mean() == pytest.approx(1.0)
    assert taken.weight[own:].sum() / taken.weight[:own].sum() == pytest.approx(sample.POOL_SHARE, rel=0.2)
    assert (np.diff(taken.weight[:own]) > 0).all()
    years = (taken.parts[0][0].open_time[taken.parts[0][1][[0, own - 1]]]) / (365.25 * 24 * HOUR_MS)
    expected = 0.5 ** (np.diff(years)[0] / sample.HALF_LIFE_YEARS)
    assert taken.weight[0] / taken.weight[own - 1] == pytest.approx(expected)


def test_a_pair_without_hours_in_the_range_is_not_among_the_symbols(data):
    assert sample.of_range(data, START, START + 2_000 * HOUR_MS).symbols == ("BTCUSDT", "ETHUSDT")
    assert sample.of_range(data, START, START + HOURS * HOUR_MS).symbols == ("BTCUSDT", "ETHUSDT", "NEWUSDT")
    with pytest.raises(DatasetError, match="hours of NEWUSDT with a known outcome"):
        sample.of_range(data[::-1], START, START + LISTED * HOUR_MS)
