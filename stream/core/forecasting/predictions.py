"""From features and the model's output to predictions: the numbers of a forecast, before anything is published.

Pure and vectorised over rows: the daemon's one row and batch prediction's seven years take the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from typing import Literal, NewType

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import baselines, target
from stream.core.forecasting.contract import OUTPUT_WIDTH, Model
from stream.core.forecasting.features import SIGMA_FLOOR, Features
from stream.errors import VolcastError

Quality = Literal["good", "repaired", "degraded"]
#: Up to this many of the 48 hours missing is `repaired`, beyond it `degraded`.
REPAIRED_GAPS = 2
#: Of the 720 hours that the long inputs look back over, up to so many may be missing for `good`, and for `repaired`:
#: a twentieth and a quarter.
GOOD_MISSING_720H = 36
REPAIRED_MISSING_720H = 180

ForecastId = NewType("ForecastId", str)


class PredictorError(VolcastError, RuntimeError):
    """The model's output is not a volatility, which is its fault or its runtime's."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """What model and baselines forecast at one symbol's closed candle. σ are hourly; see docs/contract.md §3."""

    symbol: str
    open_time: int
    model_version: str
    volatility: float
    horizon_1h: float
    horizon_6h: float
    horizon_12h: float
    horizon_24h: float
    rolling_24h_next: float
    realized_24h: float
    baseline_persistence: float
    baseline_ewma: float
    baseline_har: float
    gaps: int
    quality: Quality

    @property
    def id(self) -> ForecastId:
        return forecast_id(self.symbol, self.open_time, self.model_version)


def forecast_id(symbol: str, open_time: int, model_version: str) -> ForecastId:
    """Returns a forecast's id: a pure function of what was forecast and by which model, so that repetitions collapse
    by it."""
    return ForecastId(f"binance:spot:{symbol}:1h:{open_time}:{model_version}")


def quality(gaps: int, missing_720h: int) -> Quality:
    """Returns what the inputs rest on, from the missing hours among the last 48 and the last 720."""
    if gaps == 0 and missing_720h <= GOOD_MISSING_720H:
        return "good"
    return "repaired" if gaps <= REPAIRED_GAPS and missing_720h <= REPAIRED_MISSING_720H else "degraded"


def assemble(
    symbols: str | Sequence[str],
    features: Features,
    rows: NDArray[np.int64],
    volatility: NDArray[np.float32],
    model: Model,
) -> list[Prediction]:
    """Returns the predictions for `rows` of features, given the model's output for them ([n, 5]). The rows are all of
    one symbol, or each of its own.

    A row for which the model gave no positive finite volatility has no prediction and is left out.
    Raises `PredictorError` if the shape of the output does not fit the rows.
    """
    if volatility.shape != (len(rows), OUTPUT_WIDTH):
        raise PredictorError(f"the model answered with shape {volatility.shape} to {len(rows)} rows")
    usable = np.all(np.isfinite(volatility) & (volatility > 0), axis=1)
    names = repeat(symbols) if isinstance(symbols, str) else compress(symbols, usable.tolist())
    if isinstance(symbols, str):
        levels = np.array(model.contract.levels(symbols))
    else:
        levels = np.array([model.contract.levels(symbol) for symbol in symbols]).reshape(-1, OUTPUT_WIDTH)[usable]
    rows, volatility = rows[usable], volatility[usable]
    sigma = np.maximum(volatility.astype(np.float64) * levels, SIGMA_FLOOR)
    columns = (
        features.open_time[rows],
        sigma[:, 0],
        *(sigma[:, k] for k in range(1, OUTPUT_WIDTH)),
        target.rolling_24h_next(features, rows, sigma[:, 1]),
        features.realized_24h[rows],
        features.ewma[rows],
        baselines.har(features.static[rows], model.contract.har),
        features.gaps[rows],
        features.missing_720h[rows],
    )
    return [
        Prediction(
            symbol=name,
            open_time=t,
            model_version=model.version,
            volatility=v,
            horizon_1h=h1,
            horizon_6h=h6,
            horizon_12h=h12,
            horizon_24h=h24,
            rolling_24h_next=rolling,
            realized_24h=realized,
            baseline_persistence=realized,
            baseline_ewma=ewma,
            baseline_har=har,
            gaps=gaps,
            quality=quality(gaps, missing),
        )
        # Not strict: one symbol's name is repeated without an end.
        for name, (t, v, h1, h6, h12, h24, rolling, realized, ewma, har, gaps, missing) in zip(
            names, zip(*(c.tolist() for c in columns), strict=True), strict=False
        )
    ]
