"""The rolling features are those of the whole window, to the last bit, whatever symbols come, miss hours or change."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream.core.forecasting import features
from stream.core.forecasting.features import LOOKBACK_HOURS, Features
from stream.core.forecasting.rolling import Rolling
from stream.core.forecasting.tail import Tail
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

FIRST_HOUR = 473_000
SYMBOLS = 6


def market(hours: int, rng: np.random.Generator) -> Array:
    """Returns OHLCV [SYMBOLS, hours, 5] with flat hours and hours without volume, some missing."""
    moves = rng.normal(0.0, 0.01, (2, SYMBOLS, hours, 1)) * (rng.random((2, SYMBOLS, hours, 1)) > 0.05)
    close = 100.0 * np.exp(np.cumsum(moves[0], axis=1))
    before = np.concatenate([close[:, :1], close[:, :-1]], axis=1)
    high, low = np.maximum(before, close) * np.exp(np.abs(moves[1])), np.minimum(before, close)
    volume = rng.exponential(5.0, close.shape) * (rng.random(close.shape) > 0.05)
    ohlcv = np.concatenate([before, high, low, close, volume], axis=-1)
    ohlcv[rng.random((SYMBOLS, hours)) < 0.01] = np.nan
    return ohlcv


def assert_the_same(hour: int, windows: list[Array], found: Features, sequences: NDArray[np.float32]) -> None:
    grid = HOUR_MS * np.arange(hour - LOOKBACK_HOURS + 1, hour + 1, dtype=np.int64)
    expected = features.compute(grid, np.stack(windows), newest=1)
    for name in (f.name for f in fields(expected)):
        if name not in ("open_time", "sequence_rows"):
            assert np.array_equal(getattr(expected, name)[:, 0], getattr(found, name)), name
    assert np.array_equal(expected.sequences(np.array([0]))[:, 0], sequences)
    assert found.open_time.tolist() == [hour * HOUR_MS] * len(windows)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    hours=st.lists(
        st.tuples(
            st.lists(st.integers(0, SYMBOLS - 1), unique=True, min_size=1),
            st.sets(st.integers(0, SYMBOLS - 1), max_size=2),
        ),
        min_size=2,
        max_size=30,
    ),
)
def test_each_row_is_that_of_its_window(seed: int, hours: list[tuple[list[int], set[int]]]) -> None:
    """`hours`: which symbols have a candle, in which order, and whose past was revised before it."""
    rng = np.random.default_rng(seed)
    ohlcv = market(LOOKBACK_HOURS + len(hours), rng)
    rolling, newest = Rolling(), dict[int, tuple[int, Tail]]()
    for k, (present, revised) in enumerate(hours):
        end = LOOKBACK_HOURS + k
        for symbol in revised:
            ohlcv[symbol, end - int(rng.integers(1, 100)), 1:4] *= 1.01
            newest.pop(symbol, None)
        present = [symbol for symbol in present if np.isfinite(ohlcv[symbol, end, 3])]
        if not present:
            continue
        for symbol in set(range(SYMBOLS)) - set(present):
            ohlcv[symbol, end] = np.nan
        windows = [Tail.of(ohlcv[symbol, end - LOOKBACK_HOURS + 1 : end + 1]) for symbol in present]
        follows = [newest[s][1] if s in newest and newest[s][0] == end - 1 else None for s in present]
        found, sequences = rolling.newest(
            (FIRST_HOUR + end) * HOUR_MS, [f"S{symbol}" for symbol in present], windows, follows
        )
        assert_the_same(FIRST_HOUR + end, [window.rows for window in windows], found, sequences)
        newest |= {symbol: (end, window) for symbol, window in zip(present, windows, strict=True)}


@pytest.mark.parametrize("symbols", [1, 7, 300])
def test_many_symbols_together_are_what_each_is_alone(symbols: int) -> None:
    rng = np.random.default_rng(symbols)
    hours = 4
    ohlcv = market(LOOKBACK_HOURS + hours + symbols // SYMBOLS + 1, rng)
    ohlcv[..., -hours - symbols // SYMBOLS - 1 :, :] = np.abs(
        np.nan_to_num(ohlcv[..., -hours - symbols // SYMBOLS - 1 :, :], nan=100.0)
    )
    # Different symbols are different stretches of a few markets.
    paths = [ohlcv[k % SYMBOLS, k // SYMBOLS :] for k in range(symbols)]
    names = [f"S{k}" for k in range(symbols)]
    together, alone = Rolling(), [Rolling() for _ in names]
    before: list[Tail | None] = [None] * symbols
    for k in range(hours):
        windows = [Tail.of(path[k : k + LOOKBACK_HOURS]) for path in paths]
        at = (FIRST_HOUR + k) * HOUR_MS
        found, sequences = together.newest(at, names, windows, before)
        for i, name in enumerate(names):
            one, sequence = alone[i].newest(at, [name], [windows[i]], [before[i]])
            assert np.array_equal(one.static[0], found.static[i])
            assert np.array_equal(sequence[0], sequences[i])
            assert one.ewma[0] == found.ewma[i]
        before = list(windows)
