"""Interval calibration and regimes of a bundle's training range."""

from __future__ import annotations

import numpy as np

from stream.core.forecasting.contract import Calibration, Regimes
from stream.core.forecasting.windows import Array
from training.data.dataset import Dataset, DatasetError, Rows

LEVEL = 0.9
RESIDUAL_HOURS = 90 * 24


def calibration(data: Dataset, rows: Rows, forecast: Array) -> Calibration:
    """Computes the interval calibration from out-of-fold forecasts [n] of the next 24 h (hourly σ) for `rows`, in time
    order.

    Raises `DatasetError` where none of their outcomes is known.
    """
    realized = data.labels[rows, 0]
    known = np.isfinite(realized)
    if not known.any():
        raise DatasetError(
            f"{data.symbol}: what intervals start from cannot be told, since no hour of the last stretch before the "
            "period has an outcome: its candles are missing; choose another period or fetch more"
        )
    rows, residual = rows[known], np.log(realized[known] / forecast[known])
    first = max(int(rows[-1]) - RESIDUAL_HOURS + 1, int(rows[0]))
    newest = np.full(int(rows[-1]) - first + 1, np.nan)
    newest[rows[rows >= first] - first] = residual[rows >= first]
    low, high = np.quantile(residual, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Calibration(
        level=LEVEL,
        low=low,
        high=high,
        residuals=tuple(None if np.isnan(r) else round(float(r), 5) for r in newest),
        residuals_from=int(data.open_time[first]),
    )


def regimes(data: Dataset, start_ms: int, end_ms: int) -> Regimes:
    """Computes the regimes of the range: a third of its hours is low, a fifth high."""
    inside = (data.open_time >= start_ms) & (data.open_time < end_ms) & (data.features.returns_24h == 24)
    return Regimes.of(data.features.realized_24h[inside])
