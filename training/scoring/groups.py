"""When a forecast was made, and which forecasts are scored as a group.

Rules of this module:
- A row's origin is the close of its candle: the forecast is made then, and its 24 hours begin there.
- A group is known at the origin. None is made of outcomes: among hours that turned out volatile every forecast looks
  too low, and among calm ones too high, however good it is.
- All is UTC.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

Mask = NDArray[np.bool_]
Times = NDArray[np.int64]
PHASES = 24
TERCILES = ("low", "medium", "high")
_COMING_HOURS = 24
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def phases(open_time: Times) -> NDArray[np.int64]:
    """Returns the hour of day at which each forecast is made, [n]. Forecasts of one phase share no hour of outcome."""
    return (open_time // HOUR_MS + 1) % PHASES


def years(open_time: Times) -> NDArray[np.int64]:
    """Returns the calendar year of each origin, [n]."""
    origin = (open_time + HOUR_MS).astype("datetime64[ms]")
    return origin.astype("datetime64[Y]").astype(np.int64) + 1970


def weekend(open_time: Times) -> Mask:
    """Returns whether at least half of the coming 24 hours lie on a Saturday or Sunday, [n]."""
    coming = (open_time // HOUR_MS + 1)[:, None] + np.arange(_COMING_HOURS)
    on_weekend = (coming // 24 + _EPOCH_WEEKDAY) % 7 >= 5
    return np.asarray(on_weekend.sum(axis=1) * 2 >= _COMING_HOURS)


def terciles(known: Array) -> NDArray[np.int64]:
    """Returns 0, 1 or 2 by the volatility known at each origin, -1 where it is not, [n]; bounds are the period's."""
    out = np.full(len(known), -1, np.int64)
    finite = np.isfinite(known)
    if finite.any():
        out[finite] = np.searchsorted(np.quantile(known[finite], [1 / 3, 2 / 3]), known[finite])
    return out


def groups(open_time: Times, known: Array) -> dict[str, dict[str, Mask]]:
    """Returns masks [n] by kind ("year", "coming 24 h", "volatility before") and label; empty groups are left out.

    known: [n], realized volatility of the 24 hours before each origin.
    """
    year, rest, tercile = years(open_time), weekend(open_time), terciles(known)
    found = {
        "year": {str(y): year == y for y in np.unique(year)},
        "coming 24 h": {"weekday": ~rest, "weekend": rest},
        "volatility before": {label: tercile == k for k, label in enumerate(TERCILES)},
    }
    return {kind: {label: m for label, m in masks.items() if m.any()} for kind, masks in found.items()}
