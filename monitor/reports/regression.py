"""How good forecasts were, once their 24 hours were over: figures of any period, and Evidently's page of it.

Rules of this module:
- A forecast is judged as it was served at the time; the model's own σ and the baselines' stand beside it.
- Figures are our own arithmetic in hourly units and say so in their names. Evidently draws σ in annualized percent:
  it prints two decimals, and of an hourly σ of 0.005 they would leave nothing.
- MAPE is of σ, which has a floor. Of returns, which come near zero, it would be without bound.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.deciding.policy import ANNUAL
from stream.core.forecasting import qlike
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.core.messages.scoring import Outcome

#: Fewer matured forecasts than of one day say nothing about a period.
MIN_FORECASTS = 24
#: A forecast is of so many hours after its candle.
AHEAD_HOURS = 24
RESIDUAL_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Whose σ is judged. `served` is what was published, whoever said it.
FORECASTERS = ("served", "model", "har", "ewma", "persistence")


@dataclass(frozen=True, slots=True)
class Matured:
    """Forecasts whose outcome is known, oldest first. Hourly σ, [n]; `low` and `high` are of what was served."""

    open_time: NDArray[np.int64]
    realized: Array
    low: Array
    high: Array
    #: By name of `FORECASTERS`.
    forecasts: Mapping[str, Array]
    #: Whether `har` was served in the model's place.
    fallback: NDArray[np.bool_]
    #: Share of outcomes that the intervals promised to hold; of the newest forecast, NaN of none.
    level: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Matured:
        rows = [
            (o.realized, o.low, o.high, o.volatility, o.model_volatility, o.har, o.ewma, o.persistence)
            for o in outcomes
        ]
        realized, low, high, *forecasts = np.array(rows, np.float64).reshape(-1, 3 + len(FORECASTERS)).T
        return cls(
            open_time=np.array([o.open_time for o in outcomes], np.int64),
            realized=realized,
            low=low,
            high=high,
            forecasts=dict(zip(FORECASTERS, forecasts, strict=True)),
            fallback=np.array([o.serving != "model" for o in outcomes], np.bool_),
            level=outcomes[-1].level if outcomes else float("nan"),
        )

    @classmethod
    def joined(cls, parts: Sequence[Matured]) -> Matured:
        """One after the other, in their order."""
        if not parts:
            return cls.of(())
        return cls(
            open_time=np.concatenate([p.open_time for p in parts]),
            realized=np.concatenate([p.realized for p in parts]),
            low=np.concatenate([p.low for p in parts]),
            high=np.concatenate([p.high for p in parts]),
            forecasts={name: np.concatenate([p.forecasts[name] for p in parts]) for name in FORECASTERS},
            fallback=np.concatenate([p.fallback for p in parts]),
            level=next((p.level for p in reversed(parts) if len(p)), float("nan")),
        )

    def __len__(self) -> int:
        return len(self.open_time)

    def within(self, from_ms: int, to_ms: int) -> Matured:
        """Those of candles from `from_ms` on of which every hour of the outcome lies before `to_ms`."""
        first = int(np.searchsorted(self.open_time, from_ms))
        end = max(first, int(np.searchsorted(self.open_time, to_ms - AHEAD_HOURS * HOUR_MS)))
        rows = slice(first, end)
        return Matured(
            self.open_time[rows],
            self.realized[rows],
            self.low[rows],
            self.high[rows],
            {name: sigma[rows] for name, sigma in self.forecasts.items()},
            self.fallback[rows],
            self.level,
        )


class Quality(msgspec.Struct, frozen=True):
    """One forecaster over a period. Errors are forecast less realized; `mape` is a share of the realized σ."""

    qlike: float
    mae_hourly: float
    rmse_hourly: float
    bias_hourly: float
    mape: float


class Regression(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a period: `forecasts` matured forecasts of candles from `first` to `last` (ms, open times)."""

    forecasts: int
    first: int
    last: int
    #: Forecasts in which `har` stood in for the model.
    fallback: int
    realized_mean_hourly: float
    by_forecaster: dict[str, Quality]
    #: Of what was served: share of outcomes inside the interval, and the share that it promised.
    coverage: float
    coverage_promised: float
    #: Of what was served: quantiles of forecast less realized.
    residual_quantiles_hourly: dict[str, float]
    #: What the HTML shows of what was served: Evidently's figures, σ in annualized percent, MAPE in percent.
    evidently: dict[str, float]


def quality(realized: Array, forecast: Array) -> Quality:
    """Of hourly σ, each [n], n > 0."""
    error = forecast - realized
    return Quality(
        qlike=float(np.mean(qlike.losses(realized, forecast))),
        mae_hourly=float(np.mean(np.abs(error))),
        rmse_hourly=float(np.sqrt(np.mean(error**2))),
        bias_hourly=float(np.mean(error)),
        mape=float(np.mean(np.abs(error) / realized)),
    )


def regression(matured: Matured, html: Path | None) -> Regression:
    """The figures of at least `MIN_FORECASTS` matured forecasts; writes Evidently's page to `html` where given.

    `ValueError` of fewer. Imports Evidently: seconds, and hundreds of megabytes.
    """
    if len(matured) < MIN_FORECASTS:
        raise ValueError(f"{len(matured)} matured forecast(s) are too few: at least {MIN_FORECASTS} are needed")
    realized, served = matured.realized, matured.forecasts["served"]
    marks = np.quantile(served - realized, RESIDUAL_LEVELS)
    return Regression(
        forecasts=len(matured),
        first=int(matured.open_time[0]),
        last=int(matured.open_time[-1]),
        fallback=int(np.count_nonzero(matured.fallback)),
        realized_mean_hourly=float(np.mean(realized)),
        by_forecaster={name: quality(realized, matured.forecasts[name]) for name in FORECASTERS},
        coverage=float(np.mean((matured.low <= realized) & (realized <= matured.high))),
        coverage_promised=matured.level,
        residual_quantiles_hourly={f"{q:g}": float(m) for q, m in zip(RESIDUAL_LEVELS, marks, strict=True)},
        evidently=_evidently(matured, html),
    )


def _evidently(matured: Matured, html: Path | None) -> dict[str, float]:
    os.environ["DO_NOT_TRACK"] = "1"
    # Of the age of its own parts, and of plots with a single point in the last bin: nothing that a reader could mend.
    with warnings.catch_warnings(action="ignore"):
        return _described(matured, html)


def _described(matured: Matured, html: Path | None) -> dict[str, float]:
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently import Regression as Columns
    from evidently.presets import RegressionPreset

    # The names are what the page calls its axes and headings.
    target, prediction, time = "realized σ, annualized %", "served σ, annualized %", "time"
    frame = pandas.DataFrame(
        {
            time: pandas.to_datetime(matured.open_time, unit="ms"),
            target: annualized_percent(matured.realized),
            prediction: annualized_percent(matured.forecasts["served"]),
        }
    )
    definition = DataDefinition(
        timestamp=time,
        numerical_columns=[target, prediction],
        regression=[Columns(target=target, prediction=prediction)],
    )
    snapshot = Report([RegressionPreset()]).run(Dataset.from_pandas(frame, data_definition=definition), None)
    if html is not None:
        snapshot.save_html(str(html))
    return _named(snapshot.dict()["metrics"])


_EVIDENTLY_NAMES = {
    "MeanError": "bias_annualized_percent",
    "MAE": "mae_annualized_percent",
    "RMSE": "rmse_annualized_percent",
    "MAPE": "mape_percent",
    "R2Score": "r2",
    "AbsMaxError": "largest_error_annualized_percent",
}


def _named(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for metric in metrics:
        name = _EVIDENTLY_NAMES.get(metric["config"]["type"].rpartition(":")[2])
        if name is not None:
            value = metric["value"]
            found[name] = float(value["mean"] if isinstance(value, Mapping) else value)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def annualized_percent(sigma: Array) -> Array:
    """Hourly σ as percent a year."""
    return sigma * (100 * ANNUAL)
