"""What a bundle tells about its training range: interval calibration, regimes, drift reference and thresholds."""

from __future__ import annotations

import numpy as np

from stream.core.candle import HOUR_MS
from stream.core.contract import Calibration, Reference, Regimes
from stream.core.drift import levels, normed_wasserstein
from stream.core.features import STATIC_NAMES
from stream.core.windows import Array
from training.dataset import Dataset, Rows

LEVEL = 0.9
RESIDUAL_HOURS = 90 * 24
WINDOW_HOURS = 30 * 24
STEP_HOURS = 7 * 24
THRESHOLD_QUANTILE = 0.95
#: Calendar features hardly move between months: under a tenth of a deviation nothing is called drift.
MIN_THRESHOLD = 0.1


def calibration(data: Dataset, rows: Rows, forecast: Array) -> Calibration:
    """Of out-of-fold forecasts [n] of the next 24 h (hourly σ) for `rows`, in time order."""
    realized = data.labels[rows, 0]
    known = np.isfinite(realized)
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
    """A third of the hours of the range is low, a fifth high."""
    inside = (data.open_time >= start_ms) & (data.open_time < end_ms) & (data.features.returns_24h == 24)
    medium, high = np.quantile(data.features.realized_24h[inside], [1 / 3, 4 / 5]).tolist()
    return Regimes(medium_from=medium, high_from=high)


def reference(data: Dataset, start_ms: int, end_ms: int) -> dict[str, Reference]:
    """Per static feature: its quantiles over the range, and what the distance to them is usually less than."""
    inside = np.nonzero((data.open_time >= start_ms) & (data.open_time < end_ms) & data.features.ready)[0]
    static = data.features.static[inside].astype(np.float64)
    marks = np.quantile(static, levels(), axis=0)
    hour = (data.open_time[inside] - start_ms) // HOUR_MS
    starts = range(0, max(int(hour[-1]) - WINDOW_HOURS, 0) + 1, STEP_HOURS)
    windows = [np.searchsorted(hour, [first, first + WINDOW_HOURS]) for first in starts]
    out = {}
    for k, name in enumerate(STATIC_NAMES):
        distances = [normed_wasserstein(static[a:b, k], marks[:, k]) for a, b in windows if b > a]
        threshold = max(float(np.quantile(distances, THRESHOLD_QUANTILE)), MIN_THRESHOLD)
        out[name] = Reference(tuple(np.maximum.accumulate(marks[:, k]).tolist()), threshold)
    return out
