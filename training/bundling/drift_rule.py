"""The drift reference of a bundle, and thresholds under which its training range was mostly quiet.

Rules of this module:
- The reference is the quantiles of the training range's last five years: what came before moved in ways that the market
  has not come back to, and would make the thresholds wide. Each week, the last 30 days of those years are compared with
  it, and the last 10 days with the 90 before them; the distances that come of it are the usual ones.
- A signal alarms where any measure reaches its threshold, so the thresholds are set together: each measure's 95 %
  quantile, all times the one factor under which `QUIET_SHARE` of the weeks have no alarm.
- Stored numbers are rounded, and the distances are taken to the rounded reference: the bundle is the same on whatever
  machine and with however many threads it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from stream.core.forecasting import drift
from stream.core.forecasting.contract import Reference
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.dataset import Dataset

STEP_HOURS = 7 * 24
#: Hours of the reference at most: five years, one leap day among them.
REFERENCE_HOURS = 1_826 * 24
#: Share of the training range's weeks in which a signal stays quiet.
QUIET_SHARE = 0.95
#: No threshold is lower: weeks are few, and a distance of a tenth of a deviation is no drift.
MIN_THRESHOLD = 0.1
#: A range with fewer weeks than this cannot calibrate a threshold, which is then one deviation.
MIN_WEEKS = 20
UNCALIBRATED_THRESHOLD = 1.0
_REFERENCE_DIGITS = 6
_THRESHOLD_DIGITS = 4


def reference(data: Dataset, start_ms: int, end_ms: int) -> dict[str, Reference]:
    """Computes the drift reference of the last five years of [start, end), by measure. Raises `ValueError` where none
    of their hours has the look-back that drift needs."""
    rows = slice(*np.searchsorted(data.open_time, (max(start_ms, end_ms - REFERENCE_HOURS * HOUR_MS), end_ms)))
    values = drift.measures(data.features, data.ohlcv)[rows]
    known = drift.measured(values)
    if not len(known):
        raise ValueError(f"no hour of the range has the {drift.LOOKBACK_HOURS} hours of candles that drift looks back")
    marks = np.maximum.accumulate(np.round(np.quantile(known, drift.levels(), axis=0), _REFERENCE_DIGITS), axis=0)
    limits = thresholds(against(values, marks))
    fast_limits = thresholds(against_before(values))
    return {
        name: Reference(tuple(marks[:, k].tolist()), float(limits[k]), float(fast_limits[k]))
        for k, name in enumerate(drift.MEASURES)
    }


def thresholds(scores: Array) -> Array:
    """Computes one threshold for each measure, [k], from the distances of past weeks [n, k]."""
    if len(scores) < MIN_WEEKS:
        return np.full(scores.shape[-1], UNCALIBRATED_THRESHOLD)
    usual = np.maximum(np.quantile(scores, QUIET_SHARE, axis=0), MIN_THRESHOLD)
    factor = np.quantile(np.max(scores / usual, axis=1), QUIET_SHARE)
    out: Array = np.maximum(np.round(usual * factor, _THRESHOLD_DIGITS), MIN_THRESHOLD)
    return out


def against(values: Array, marks: Array) -> Array:
    """Computes the distances of 30 days to `marks` [m, k], for each week of `values` [T, k] that has them: [n, k]."""
    return _scored(values, drift.WINDOW_HOURS, lambda end: drift.slow_distances(values, end, marks))


def against_before(values: Array) -> Array:
    """Computes the distances of 10 days to the 90 before, for each week of `values` [T, k] that has them: [n, k]."""
    return _scored(values, drift.FAST_HOURS + drift.FAST_REFERENCE_HOURS, lambda end: drift.fast_distances(values, end))


def weeks(first: int, end: int) -> Iterator[int]:
    """Iterates over the rows at which a week ends: `first`, and every 168 hours on, up to `end`."""
    return iter(range(first, end + 1, STEP_HOURS))


def _scored(values: Array, hours: int, score: Callable[[int], Array | None]) -> Array:
    found = [scores for end in weeks(hours, len(values)) if (scores := score(end)) is not None]
    return np.array(found).reshape(-1, values.shape[-1])
