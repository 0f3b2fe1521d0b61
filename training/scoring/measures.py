"""Losses and measures of point forecasts and of intervals.

QLIKE is on variances: x - ln x - 1 with x = (realized / forecast)². It and the squared error of variances are the
losses that are robust to a noisy outcome (Patton, J. Econometrics 160, 2011); errors of σ are given as well because
people read them. σ are hourly. Nothing here knows which quantity was forecast, or when it could have been known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import qlike
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.panel import IntervalSeries

#: By measure; None where it is not defined.
Scores = dict[str, float | None]
Mask = NDArray[np.bool_]
MEASURES = ("rmse", "mae", "qlike", "r2", "bias")
COVERAGE_WINDOW_HOURS = 720


def squared_errors(realized: Array, forecast: Array) -> Array:
    losses: Array = (realized - forecast) ** 2
    return losses


def measures(realized: Array, forecast: Array) -> Scores:
    """Computes rmse, mae, qlike, r2 (1 - SSE / SST) and bias (mean(forecast - realized) / mean realized) of [n] each.

    Only rows whose outcome and forecast are known count; raises `ValueError` where there is none. `r2` is None where
    all outcomes are equal: there is nothing to explain.
    """
    known = np.isfinite(realized) & np.isfinite(forecast)
    if not known.any():
        raise ValueError("no row has both an outcome and a forecast")
    y, f = realized[known], forecast[known]
    squares = squared_errors(y, f)
    # Where all outcomes are equal the sum of squares would be the rounding error of their mean.
    spread = float(np.sum((y - y.mean()) ** 2)) if np.ptp(y) > 0 else 0.0
    return {
        "rmse": float(np.sqrt(squares.mean())),
        "mae": float(np.abs(y - f).mean()),
        "qlike": float(qlike.losses(y, f).mean()),
        "r2": float(1 - squares.sum() / spread) if spread > 0 else None,
        "bias": float((f - y).mean() / y.mean()),
    }


def inside(realized: Array, interval: IntervalSeries) -> Mask:
    """Returns whether each outcome lies within its bounds, which count as inside, [n]."""
    return (realized >= interval.low) & (realized <= interval.high)


def interval_measures(realized: Array, interval: IntervalSeries) -> dict[str, float]:
    """Computes coverage (share of outcomes inside), width (mean ln high - ln low), width_hourly (mean high - low) and
    winkler. Raises `ValueError` where no row has both an outcome and an interval.

    winkler: the interval score of Gneiting & Raftery (JASA 102, 2007), width plus 2/α times the distance by which an
    outcome lies outside, α = 1 - level: lower is better, and too wide costs as too narrow does. Hourly σ.
    """
    known = np.isfinite(realized) & np.isfinite(interval.low) & np.isfinite(interval.high)
    if not known.any():
        raise ValueError("no row has both an outcome and an interval")
    y, low, high = realized[known], interval.low[known], interval.high[known]
    outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return {
        "coverage": float(inside(y, IntervalSeries(low, high, interval.level)).mean()),
        "width": float(np.log(high / low).mean()),
        "width_hourly": float((high - low).mean()),
        "winkler": float((high - low + 2 / (1 - interval.level) * outside).mean()),
    }


def rolling_coverage(open_time: NDArray[np.int64], covered: Mask) -> Array:
    """Returns the share covered of the rows in the 30 days that end with each, [n]; NaN before 30 days are full.

    open_time: ms, rising, holes allowed: a window is 30 days of time, however many rows it holds.
    """
    window_ms = COVERAGE_WINDOW_HOURS * HOUR_MS
    first = np.searchsorted(open_time, open_time - window_ms, side="right")
    total = np.concatenate([[0], np.cumsum(covered)])
    share = (total[1:] - total[first]) / (np.arange(len(open_time)) + 1 - first)
    full = open_time - open_time[:1] >= window_ms - HOUR_MS
    return np.where(full, share, np.nan)
