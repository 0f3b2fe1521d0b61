"""Baselines without a fit: persistence, EWMA, and the reference project's rolling mean with and without its leak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream.core.forecasting import target
from stream.core.forecasting.windows import Array, Trailing
from training.data.dataset import Dataset, Rows
from training.data.panel import HORIZONS, NEXT_24H, ROLLING_24H_NEXT
from training.forecasters.forecaster import Fitted, Forecasts

#: Values of the 24 h σ in the reference project's mean.
_MEAN_HOURS = 24
_LEAK = "rolling_mean_published includes the value that it forecasts, as it was published: a leak, no forecast"


@dataclass(frozen=True, slots=True)
class Persistence:
    """Persistence: σ of the last 24 h, for every quantity."""

    name: str = "persistence"
    needs: tuple[str, ...] = ()
    extra: str = ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        return Fitted(_persistence)


@dataclass(frozen=True, slots=True)
class Ewma:
    """The EWMA of squared returns (half-life 72 h), for every quantity; the rolling one uses it for one hour."""

    name: str = "ewma"
    needs: tuple[str, ...] = ()
    extra: str = ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        return Fitted(_ewma)


@dataclass(frozen=True, slots=True)
class RollingMean:
    """Mean of the newest 24 values of the 24 h σ: the reference project's baseline, honestly lagged."""

    name: str = "rolling_mean"
    needs: tuple[str, ...] = ()
    extra: str = ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        return Fitted(_rolling_mean)


@dataclass(frozen=True, slots=True)
class RollingMeanPublished:
    """The same mean one hour later, with the value to be predicted among the 24: as the reference published it."""

    name: str = "rolling_mean_published"
    needs: tuple[str, ...] = ()
    extra: str = ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        return Fitted(_rolling_mean_published, notes=(_LEAK,))


def _persistence(data: Dataset, rows: Rows) -> Forecasts:
    sigma = data.features.realized_24h[rows]
    return dict.fromkeys((NEXT_24H, *HORIZONS, ROLLING_24H_NEXT), sigma)


def _ewma(data: Dataset, rows: Rows) -> Forecasts:
    sigma = data.features.ewma[rows]
    rolling = target.rolling_24h_next(data.features, rows, sigma)
    return dict.fromkeys((NEXT_24H, *HORIZONS), sigma) | {ROLLING_24H_NEXT: rolling}


def _rolling_mean(data: Dataset, rows: Rows) -> Forecasts:
    return dict.fromkeys((NEXT_24H, ROLLING_24H_NEXT), _mean(data)[rows])


def _rolling_mean_published(data: Dataset, rows: Rows) -> Forecasts:
    return {ROLLING_24H_NEXT: np.append(_mean(data)[1:], np.nan)[rows]}


def _mean(data: Dataset) -> Array:
    """Computes the mean of the newest 24 values, [T]; NaN where there are not yet 24."""
    out = Trailing(data.features.realized_24h).sum(_MEAN_HOURS) / _MEAN_HOURS
    out[: _MEAN_HOURS - 1] = np.nan
    return out
