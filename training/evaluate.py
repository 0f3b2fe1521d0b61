"""Scores of a model beside the baselines, over any period. Thin on purpose: one pass, no resampling.

The headline is the volatility of the *next* 24 h, which shares no hour with what is known. `rolling_24h_next` is
the reference project's quantity, of which 23 of 24 hours are known; there persistence looks good and is the bar.
QLIKE is on variances: x - ln x - 1 with x = (realized / forecast)² (Patton 2011). σ are hourly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.table import Table

from stream.adapters import predictor
from stream.core import baselines as core_baselines
from stream.core import target
from stream.core.candle import HOUR_MS
from stream.core.contract import Calibration, Har
from stream.core.target import HORIZON_HOURS
from stream.core.windows import Array
from training import baselines, linear
from training.dataset import MIN_ROWS, Dataset, Rows, load, require_rows, time_ms, walk_forward

Scores = dict[str, float]
_BATCH_ROWS = 8_192


class Evaluation(msgspec.Struct, frozen=True):
    """Scores by forecaster. `next_24h[name]` has rmse, mae, qlike, r2; the others what they say."""

    symbol: str
    start: str
    end: str
    model_version: str
    rows: int
    next_24h: dict[str, Scores]
    rolling_24h_next: dict[str, Scores]
    #: "1h", "6h", … to forecaster to rmse, qlike.
    horizons: dict[str, dict[str, Scores]]
    #: level, coverage (share of outcomes inside), width (mean of log high - log low).
    interval: Scores

    def flat(self) -> Scores:
        """The bundle's form: "2024.next_24h.model.rmse" and the like."""
        year = self.start[:4]
        parts = {"next_24h": self.next_24h, "rolling_24h_next": self.rolling_24h_next}
        parts |= {f"horizon_{hours}": by_name for hours, by_name in self.horizons.items()}
        out = {
            f"{year}.{part}.{name}.{measure}": value
            for part, by_name in parts.items()
            for name, values in by_name.items()
            for measure, value in values.items()
        }
        return out | {f"{year}.interval.{measure}": value for measure, value in self.interval.items()}


def evaluate(
    candles: Path, model: Path, *, symbol: str = "BTCUSDT", start: str = "2024-01-01", end: str = "2025-01-01"
) -> dict[str, Any]:
    """Scores of the bundle `model` over [start, end) of the candle file; `render` makes a table of them.

    Plain log-HAR and the linear part are fitted on the bundle's training range, from the same file; they are left
    out where it does not hold that range.
    """
    predict = predictor.load(Path(model))
    data = load(Path(candles), symbol)
    rows = require_rows(data, time_ms(start), time_ms(end))
    contract = predict.model.contract
    sigma = np.concatenate(
        [
            predict(data.features.sequences(chunk), data.features.static[chunk])
            for chunk in np.split(rows, range(_BATCH_ROWS, len(rows), _BATCH_ROWS))
        ]
    ).astype(np.float64)
    trained = (contract.training.trained_from, contract.training.trained_until)
    forecasts = {"model": sigma[:, 0]} | references(data, rows, trained, contract.har)
    result = scores(data, rows, sigma, forecasts, contract.calibration, (start, end), predict.model.version)
    return msgspec.to_builtins(result)  # type: ignore[no-any-return]


def references(data: Dataset, rows: Rows, trained: tuple[int, int], har: Har) -> dict[str, Array]:
    """Forecasts of the next 24 h that stand beside the model's. `trained`: first and last open time, ms."""
    features = data.features
    out = {"persistence": features.realized_24h[rows], "ewma": features.ewma[rows]}
    start, end = trained[0], trained[1] + HOUR_MS
    if len(before := data.rows(start, end)) >= MIN_ROWS:
        folds = walk_forward(start, end)
        plain = baselines.fit(data, before, folds, baselines.PLAIN)
        out["log_har"] = core_baselines.har(features.static[rows], plain)
    out["har"] = core_baselines.har(features.static[rows], har)
    if len(before) >= MIN_ROWS:
        out["linear"] = linear.forecast_next_24h(data, before, folds, rows)
    return out


def scores(
    data: Dataset,
    rows: Rows,
    sigma: Array,
    next_24h: dict[str, Array],
    calibration: Calibration,
    period: tuple[str, str],
    model_version: str,
) -> Evaluation:
    """`sigma`: the model's output for `rows` [n, 5]; `next_24h`: forecasts of the headline by name."""
    realized, features = data.labels[rows], data.features
    rolling = {
        "model": target.rolling_24h_next(features, rows, sigma[:, 1]),
        "persistence": features.realized_24h[rows],
        "ewma": target.rolling_24h_next(features, rows, features.ewma[rows]),
    }
    inside = np.log(realized[:, 0] / sigma[:, 0])
    inside = inside[np.isfinite(inside)]
    covered = (inside >= calibration.low) & (inside <= calibration.high)
    return Evaluation(
        symbol=data.symbol,
        start=period[0],
        end=period[1],
        model_version=model_version,
        rows=len(rows),
        next_24h={name: measures(realized[:, 0], f) for name, f in next_24h.items()},
        rolling_24h_next={n: _only(measures(data.targets.rolling_24h_next[rows], f)) for n, f in rolling.items()},
        horizons={
            f"{hours}h": {
                name: _only(measures(realized[:, k], f), "rmse", "qlike")
                for name, f in (
                    ("model", sigma[:, k]),
                    ("persistence", features.realized_24h[rows]),
                    ("ewma", features.ewma[rows]),
                )
            }
            for k, hours in enumerate(HORIZON_HOURS, 1)
        },
        interval={
            "level": calibration.level,
            "coverage": float(covered.mean()),
            "width": calibration.high - calibration.low,
        },
    )


def measures(realized: Array, forecast: Array) -> Scores:
    """Of the hours whose outcome is known."""
    known = np.isfinite(realized)
    y, f = realized[known], forecast[known]
    x = (y / f) ** 2
    return {
        "rmse": float(np.sqrt(np.mean((y - f) ** 2))),
        "mae": float(np.mean(np.abs(y - f))),
        "qlike": float(np.mean(x - np.log(x) - 1)),
        "r2": float(1 - np.sum((y - f) ** 2) / np.sum((y - y.mean()) ** 2)),
    }


def render(result: dict[str, Any]) -> Table:
    """The table for people."""
    level, coverage = result["interval"]["level"], result["interval"]["coverage"]
    table = Table(
        title=f"{result['symbol']} {result['start']} to {result['end']}, {result['rows']:,} hours, "
        f"model {result['model_version']}",
        caption=f"σ hourly; the {level:.0%} interval held {coverage:.1%} of outcomes",
    )
    table.add_column("quantity")
    table.add_column("forecast")
    for measure in ("RMSE", "MAE", "QLIKE", "R²"):
        table.add_column(measure, justify="right")
    parts = {"next 24 h": result["next_24h"], "rolling 24 h, next": result["rolling_24h_next"]}
    parts |= {f"horizon {hours}": by_name for hours, by_name in result["horizons"].items()}
    for part, by_name in parts.items():
        for k, (name, values) in enumerate(by_name.items()):
            cells = (
                f"{values[m]:.{digits}f}" if m in values else ""
                for m, digits in (("rmse", 6), ("mae", 6), ("qlike", 4), ("r2", 3))
            )
            table.add_row("" if k else part, name, *cells, style="bold" if name == "model" else "")
        table.add_section()
    return table


def _only(values: Scores, *names: str) -> Scores:
    return {name: values[name] for name in names or ("rmse", "mae", "r2")}
