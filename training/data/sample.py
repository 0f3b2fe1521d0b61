"""The training sample of a model: every hour of the symbol that it is for, and a thinned, lighter share of other pairs.

Rules of this module:
- Features are free of scale, so that hours of other pairs follow the same law, and they show what one pair's few years
  cannot (Bollerslev, Hood, Huss & Pedersen, Review of Financial Studies 31, 2018). All other pairs together weigh
  `POOL_SHARE` of the symbol itself.
- An hour weighs half as much as one that is `HALF_LIFE_YEARS` younger: weekends have grown quieter by the year.
- Another pair's first month after its listing is left out: its 30-day windows are not full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.features import LOOKBACK_HOURS
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.dataset import Dataset, Rows, require_rows

#: Chosen by walk-forward over 2021-2023 (docs/decisions), as are the other constants here.
POOL_SHARE = 0.3
HALF_LIFE_YEARS = 3.0
#: Of another pair every seventh hour is used: labels of neighbouring hours share 23 of their 24 hours. 7 and 24 have no
#: common divisor, so that every hour of the day occurs.
POOL_EVERY_HOURS = 7
_YEAR_MS = 365.25 * 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of one or more symbols, the first of them the one that the model is for; one weight per row, mean 1."""

    parts: tuple[tuple[Dataset, Rows], ...]
    weight: Array

    @property
    def sequence(self) -> NDArray[np.float32]:
        """Sequence inputs [n, 48, F]."""
        return np.concatenate([data.features.sequences(rows) for data, rows in self.parts])

    @property
    def static(self) -> NDArray[np.float32]:
        """Static inputs [n, S]."""
        return np.concatenate([data.features.static[rows] for data, rows in self.parts])

    @property
    def labels(self) -> Array:
        """Labels [n, 5], NaN where unknown."""
        return np.concatenate([data.labels[rows] for data, rows in self.parts])

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(data.symbol for data, _ in self.parts)


def of_range(data: Sequence[Dataset], start_ms: int, end_ms: int, *, held_out: bool = False) -> Sample:
    """Returns the rows of [start, end), labels included; `data[0]` is the symbol that the model is for.

    Other symbols without rows there are left out. Raises `DatasetError` where `data[0]` has too few to learn from,
    which does not matter for rows that are `held_out`.
    """
    scored, others = data[0], data[1:]
    parts = [(scored, scored.rows(start_ms, end_ms) if held_out else require_rows(scored, start_ms, end_ms))]
    weights = [_recency(scored, parts[0][1], end_ms)]
    for other in others:
        rows = _thinned(other, start_ms, end_ms)
        if len(rows):
            parts.append((other, rows))
            weights.append(_recency(other, rows, end_ms) * (POOL_SHARE * POOL_EVERY_HOURS / len(others)))
    weight = np.concatenate(weights)
    return Sample(tuple(parts), weight / weight.mean())


def _thinned(data: Dataset, start_ms: int, end_ms: int) -> Rows:
    grown_up = int(data.open_time[0]) + (LOOKBACK_HOURS - 1) * HOUR_MS
    rows = data.rows(max(start_ms, grown_up), end_ms)
    thinned: Rows = rows[data.open_time[rows] // HOUR_MS % POOL_EVERY_HOURS == 0]
    return thinned


def _recency(data: Dataset, rows: Rows, end_ms: int) -> Array:
    age = (end_ms - data.open_time[rows]) / _YEAR_MS
    weight: Array = 0.5 ** (age / HALF_LIFE_YEARS)
    return weight
