"""Trailing windows against numpy, and their law: a window's rows and nothing else, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stream.core.forecasting.windows import NewestSums, Trailing, delayed, trailing_max

ARRAYS = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6))
ROWS = st.integers(1, 80)


@given(ARRAYS, ROWS, st.sampled_from([1.0, 0.5, 0.99]))
def test_a_trailing_sum_is_the_weighted_sum_of_its_rows(x, rows, decay):
    got = Trailing(x, decay).sum(rows)
    for t in range(len(x)):
        window = x[max(t - rows + 1, 0) : t + 1][::-1]
        expected = float(np.sum(window * decay ** np.arange(len(window))))
        assert got[t] == pytest.approx(expected, rel=1e-12, abs=1e-12 * np.abs(window).sum() + 1e-300)


@given(ARRAYS, ARRAYS, ROWS, st.sampled_from([1.0, 0.99]))
def test_what_came_before_a_window_does_not_touch_it(before, x, rows, decay):
    if rows > len(x):
        return
    alone = Trailing(x, decay).sum(rows)[rows - 1 :]
    after = Trailing(np.concatenate([before, x]), decay).sum(rows)[len(before) + rows - 1 :]
    np.testing.assert_array_equal(after, alone)


@given(ARRAYS, ROWS)
def test_what_comes_later_does_not_touch_it(x, rows):
    cut = len(x) // 2 + 1
    np.testing.assert_array_equal(Trailing(x).sum(rows)[:cut], Trailing(x[:cut]).sum(rows))


@given(ARRAYS, ROWS)
def test_a_trailing_maximum_is_the_maximum(x, rows):
    expected = [x[max(t - rows + 1, 0) : t + 1].max() for t in range(len(x))]
    np.testing.assert_array_equal(trailing_max(x, rows), expected)


@given(hnp.arrays(np.float64, (3, 20), elements=st.floats(-10, 10)), ROWS)
def test_leading_axes_are_independent(x, rows):
    for k in range(3):
        np.testing.assert_array_equal(Trailing(x).sum(rows)[k], Trailing(x[k]).sum(rows))
        np.testing.assert_array_equal(trailing_max(x, rows)[k], trailing_max(x[k], rows))


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 90), st.just(2), st.just(3)), elements=st.floats(-1e6, 1e6)),
    st.lists(ROWS, min_size=1, max_size=5),
    st.sampled_from([1.0, 0.99]),
)
def test_the_newest_sums_are_those_of_every_row_to_the_last_bit(x, windows, decay):
    newest, every = NewestSums(np.ascontiguousarray(x[::-1]), decay), Trailing(np.moveaxis(x, 0, -1), decay)
    for rows in (rows for rows in windows if rows <= len(x)):
        np.testing.assert_array_equal(newest.sum(rows), every.sum(rows)[..., -1])


@given(ARRAYS, st.integers(0, 80))
def test_delayed_shifts_and_fills(x, rows):
    expected = np.concatenate([np.full(min(rows, len(x)), -7.0), x[: max(len(x) - rows, 0)]])
    np.testing.assert_array_equal(delayed(x, rows, -7.0), expected)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        Trailing(np.zeros(3)).sum(0)
    with pytest.raises(ValueError, match="at least one row"):
        trailing_max(np.zeros(3), 0)
