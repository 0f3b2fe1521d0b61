"""Drift: which measures are watched, and the statistic: how far their values lie from those of a reference.

Training calibrates the thresholds over historical windows and the monitor measures drift; both call this module.

Rules of this module:
- A measure is a logarithm or in the symbol's own σ: Evidently divides by a deviation of at least 0.001, so a variance
  of 1e-5 would never be seen to move.
- OHLCV only. Levels carry the symbol's own scale, so they are compared with that symbol's own past.
- A measure needs `LOOKBACK_HOURS` candles, fewer than the model: 10 + 90 days of whole rows fit into the 2,880 hours
  that a fresh start has.
- A signal is `detected` if any measure reaches its threshold: the thresholds were set for all of them together.

The measures, of the last 24 hours each:

    log_volatility              the level of ln σ
    log_volatility_change       ln σ less its mean over the 456 hours that end here: a new level, before it is usual
    log_max                     shape: the largest return in σ, a few jumps or many moves
    return                      trend, in σ of the last week
    negative_share              asymmetry: what share of the squares came from falls
    log_volume                  the level of the mean hourly volume
    log_volume_change           the same less its mean over 456 hours
    log_volume_per_volatility   the volume that goes with a σ: whether one of the two moved without the other

A measure of the weekend against the week was tried and left out (docs/decisions/0008-watching.md).
"""

from __future__ import annotations

import numpy as np

from stream.core.forecasting.features import STATIC_NAMES, Features
from stream.core.forecasting.windows import Array, Trailing

MEASURES = (
    "log_volatility_24h",
    "log_volatility_change_24h",
    "log_max_24h",
    "return_24h",
    "negative_share_24h",
    "log_volume_24h",
    "log_volume_change_24h",
    "log_volume_per_volatility_24h",
)
#: Candles that a measure needs, its own included: a usual level of 456 hours of which the first has 24 returns.
LOOKBACK_HOURS = 480
_USUAL_HOURS = LOOKBACK_HOURS - 24
#: Units of the base currency an hour, for a market in which nothing was traded.
_VOLUME_FLOOR = 1e-8
_FEATURES = [STATIC_NAMES.index(name) for name in ("log_max_24h", "return_24h", "negative_share_24h")]

#: A distance is divided by this if the reference's own deviation is smaller, as Evidently does.
MIN_DEVIATION = 1e-3
#: Levels at which a reference is stored: 0.005, 0.015, … 0.995.
REFERENCE_LEVELS = 100
#: The slow signal compares the newest hours, this many, with the reference.
WINDOW_HOURS = 30 * 24
#: The fast signal compares the newest hours, as many as the first, with those before them, as many as the second.
FAST_HOURS = 10 * 24
FAST_REFERENCE_HOURS = 90 * 24
#: How much of its own past is the reference of a symbol that the bundle does not describe.
OWN_REFERENCE_HOURS = 180 * 24
#: A window of which a smaller share can be measured is not judged.
MIN_MEASURED = 0.5
#: Evidently's default verdict: its threshold, and the share of measures that must reach it.
DEFAULT_THRESHOLD = 0.1
DEFAULT_SHARE = 0.5


def measures(table: Features, ohlcv: Array) -> Array:
    """Returns every row's measures, [..., T, len(MEASURES)]; all NaN where the row may not be forecast or lacks its
    whole look-back.

    `table`: the features of every row of `ohlcv` [..., T, 5].
    """
    ready = table.ready & (np.arange(table.open_time.shape[0]) >= LOOKBACK_HOURS - 1)
    volume = ohlcv[..., 4]
    traded = np.isfinite(volume)
    summed = Trailing(np.stack([np.where(traded, volume, 0.0), traded.astype(np.float64)], axis=-2)).sum(24)
    log_volume = np.log(np.maximum(summed[..., 0, :] / np.maximum(summed[..., 1, :], 1.0), _VOLUME_FLOOR))
    log_volatility = np.log(table.realized_24h)
    # Hours that may not be forecast have too few returns to count as usual.
    counted = table.ready.astype(np.float64)
    usual = Trailing(np.stack([log_volatility * counted, log_volume * counted, counted], axis=-2)).sum(_USUAL_HOURS)
    number = np.maximum(usual[..., 2, :], 1.0)
    log_max, scaled, negative = np.moveaxis(table.static[..., _FEATURES].astype(np.float64), -1, 0)
    values = np.stack(
        [
            log_volatility,
            log_volatility - usual[..., 0, :] / number,
            log_max,
            scaled,
            negative,
            log_volume,
            log_volume - usual[..., 1, :] / number,
            log_volume - log_volatility,
        ],
        axis=-1,
    )
    values[~ready] = np.nan
    return values


def measured(values: Array) -> Array:
    """Returns the rows of `values` [T, k] that could be measured: [n, k]."""
    out: Array = values[np.isfinite(values).all(axis=-1)]
    return out


def levels() -> Array:
    """Returns the levels of the stored quantiles."""
    out: Array = (np.arange(REFERENCE_LEVELS) + 0.5) / REFERENCE_LEVELS
    return out


def wasserstein(first: Array, second: Array) -> float:
    """Returns the area between the distribution functions of two samples, [n] and [m], in their unit."""
    first, second = np.sort(first), np.sort(second)
    both = np.sort(np.concatenate([first, second]))
    left = np.searchsorted(first, both[:-1], side="right") / len(first)
    right = np.searchsorted(second, both[:-1], side="right") / len(second)
    return float(np.sum(np.abs(left - right) * np.diff(both)))


def normed_wasserstein(current: Array, reference: Array) -> float:
    """Returns the Wasserstein distance of two samples, [n] and [m], in deviations of the second, as Evidently does.

    NaN if either is empty. The caller leaves out rows that could not be measured.
    """
    if not len(current) or not len(reference):
        return float("nan")
    return wasserstein(current, reference) / max(float(np.std(reference)), MIN_DEVIATION)


def distances(current: Array, reference: Array) -> Array:
    """Returns `normed_wasserstein` of each column: [n, k] against [m, k] gives [k]."""
    pairs = zip(current.T, reference.T, strict=True)
    return np.array([normed_wasserstein(of, against) for of, against in pairs])


def window(values: Array, first: int, end: int) -> Array | None:
    """Returns the measured ones of rows [first, end) of `values` [T, k]: [n, k]. Returns None if the range reaches
    before row 0 or less than half of it was measured."""
    found = measured(values[max(first, 0) : end])
    return found if first >= 0 and len(found) >= MIN_MEASURED * (end - first) else None


def own_reference(values: Array, end: int) -> Array | None:
    """Returns the reference at row `end` of a symbol that the bundle does not describe: quantiles [100, k] of the 180
    days before the current 30. Returns None if there is no such window."""
    first = end - WINDOW_HOURS
    before = window(values, first - OWN_REFERENCE_HOURS, first)
    return None if before is None else np.quantile(before, levels(), axis=0)


def slow_distances(values: Array, end: int, reference: Array) -> Array | None:
    """Returns the distances [k] of the 30 days before row `end` of `values` [T, k] to a reference [m, k]; None without
    such a window."""
    current = window(values, end - WINDOW_HOURS, end)
    return None if current is None else distances(current, reference)


def fast_distances(values: Array, end: int) -> Array | None:
    """Returns the distances [k] of the 10 days before row `end` of `values` [T, k] to the 90 before them; None without
    such windows."""
    split = end - FAST_HOURS
    current, before = window(values, split, end), window(values, split - FAST_REFERENCE_HOURS, split)
    return None if current is None or before is None else distances(current, before)


def detected(scores: Array, thresholds: Array) -> bool:
    """Returns the calibrated verdict: whether any of the distances [k] reaches its threshold [k]."""
    return bool(np.any(scores >= thresholds))


def default_detected(scores: Array) -> bool:
    """Returns Evidently's default verdict: whether at least half of the distances [k] reach 0.1."""
    return bool(np.mean(scores >= DEFAULT_THRESHOLD) >= DEFAULT_SHARE)
