"""Candles of a market that changed, for the drift study to find.

A change scales, hour by hour, the logarithmic moves of price and the volume. Prices are rebuilt from the scaled moves,
so opens still follow closes and high and low still enclose open and close; hours that are missing stay so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

_YEAR_HOURS = 365 * 24


@dataclass(frozen=True, slots=True)
class Change:
    """Factors on returns (and the ranges within hours) and on volume. `level_weekend`: weekends are scaled by the
    median weekday hour over the median weekend hour of the year before."""

    name: str
    returns: float = 1.0
    volume: float = 1.0
    level_weekend: bool = False


CHANGES = (
    Change("nothing"),
    Change("returns × 0.5", 0.5),
    Change("returns × 0.7", 0.7),
    Change("returns × 1.5", 1.5),
    Change("returns × 2", 2.0),
    Change("returns × 3", 3.0),
    Change("returns × 4", 4.0),
    Change("volume × 3", 1.0, 3.0),
    Change("returns and volume × 3", 3.0, 3.0),
    Change("weekend like the week", level_weekend=True),
)


def factors(change: Change, open_time: NDArray[np.int64], ohlcv: Array, rows: slice) -> tuple[Array, Array]:
    """Returns the factors of `change` on returns and on volume for each of `rows`, two arrays [n]."""
    hours = len(open_time[rows])
    returns, volume = np.full(hours, change.returns), np.full(hours, change.volume)
    if change.level_weekend:
        year = slice(max(rows.start - _YEAR_HOURS, 0), rows.start)
        by_return, by_volume = _weekend_factors(open_time[year], ohlcv[year])
        weekend = _weekend(open_time[rows])
        returns[weekend] *= by_return
        volume[weekend] *= by_volume
    return returns, volume


def changed(ohlcv: Array, returns: Array, volume: Array) -> Array:
    """Applies factors on moves and volume, each [..., T], to `ohlcv` [T, 5]: [..., T, 5].

    The first candle's open stays; a move since the last candle before a hole is scaled like any other.
    """
    logs = np.log(ohlcv[:, :4])
    exists = np.flatnonzero(np.isfinite(logs[:, 3]))
    opened, closed = logs[exists, 0], logs[exists, 3]
    jump = np.concatenate([[0.0], opened[1:] - closed[:-1]])
    k = returns[..., exists]
    # The log price at which each hour opens: the sum of all scaled moves before it.
    moves = k * jump
    moves[..., 1:] += k[..., :-1] * (closed - opened)[:-1]
    start = opened[0] + np.cumsum(moves, axis=-1)
    out = np.full((*returns.shape, 5), np.nan)
    prices = start[..., None] + k[..., None] * (logs[exists] - opened[:, None])
    out[..., exists, :4] = np.exp(prices)
    out[..., exists, 4] = ohlcv[exists, 4] * volume[..., exists]
    return out


def _weekend(open_time: NDArray[np.int64]) -> NDArray[np.bool_]:
    # Day 0 since the epoch was a Thursday; 5 and 6 are Saturday and Sunday.
    return (open_time // HOUR_MS // 24 + 3) % 7 >= 5


def _weekend_factors(open_time: NDArray[np.int64], ohlcv: Array) -> tuple[float, float]:
    size, weekend = np.abs(np.log(ohlcv[:, 3] / ohlcv[:, 0])), _weekend(open_time)

    def ratio(of: Array) -> float:
        week, end = of[~weekend], of[weekend]
        if not np.isfinite(week).any() or not np.isfinite(end).any():
            return 1.0
        return float(np.nanmedian(week) / max(float(np.nanmedian(end)), 1e-12))

    return ratio(size), ratio(ohlcv[:, 4])
