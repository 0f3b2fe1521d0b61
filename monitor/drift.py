"""Drift: do the features of the last 30 days still look like those the model was trained on? Evidently's door.

pandas and Evidently are imported here and nowhere else, inside the call, in a process that does nothing more:
importing them takes seconds and hundreds of megabytes. The reference travels in the bundle as quantiles.

Evidently floors its norm at 0.001, so only features on a log scale or in their own σ may pass; all of ours are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream.core import features
from stream.core.candle import HOUR_MS, Candle
from stream.core.contract import Contract
from stream.core.messages import Drift, DriftFeature
from stream.core.replay import to_grid

#: The current window: 30 days.
WINDOW_HOURS = 720
METHOD = "wasserstein (normed)"
#: Calendar features follow the clock; whether they drift says nothing about the market.
MARKET_FEATURES = tuple(
    name for name in features.STATIC_NAMES if not name.startswith(("next_", "last_", "hour_", "weekend_"))
)
#: Share of features beyond their thresholds from which a run says `detected`.
DETECTED_SHARE = 0.5


class DriftError(RuntimeError):
    """The run could not be made; one line for people."""


def evidently_missing() -> str | None:
    """Why drift cannot run here, or None."""
    import importlib.util

    if importlib.util.find_spec("evidently") is None:
        return "evidently is not installed: pip install -c constraints.txt '.[drift]' in the clone"
    return None


def run(
    symbol: str,
    candles: Sequence[Candle],
    contract: Contract,
    *,
    model_version: str,
    issued_at: int,
    report: Path | None,
) -> Drift:
    """One run over the last 30 days of `candles`, which need the look-back of the first of them before it.

    Writes Evidently's HTML to `report` where given. `DriftError` where there are too few candles or no Evidently.
    """
    missing = evidently_missing()
    if missing is not None:
        raise DriftError(f"drift needs Evidently: {missing}")
    grid, ohlcv = to_grid(candles)
    if len(grid) < WINDOW_HOURS + features.LOOKBACK_HOURS - 1:
        raise DriftError(
            f"{symbol}: {len(grid)} hours of candles are too few for drift, which compares 30 days and needs "
            f"{WINDOW_HOURS + features.LOOKBACK_HOURS - 1}"
        )
    table = features.compute(grid, ohlcv)
    rows = np.nonzero(table.ready[-WINDOW_HOURS:])[0] + len(grid) - WINDOW_HOURS
    if len(rows) < WINDOW_HOURS // 2:
        raise DriftError(f"{symbol}: only {len(rows)} of the last {WINDOW_HOURS} hours can be judged: too many gaps")
    columns = [features.STATIC_NAMES.index(name) for name in MARKET_FEATURES]
    current = {n: table.static[rows, c].astype(np.float64) for n, c in zip(MARKET_FEATURES, columns, strict=True)}
    reference = {name: np.array(contract.reference[name].quantiles) for name in MARKET_FEATURES}
    scores = _evidently(current, reference, report)
    found = tuple(
        DriftFeature(
            feature=name,
            score=scores[name],
            threshold=contract.reference[name].threshold,
            detected=scores[name] >= contract.reference[name].threshold,
        )
        for name in MARKET_FEATURES
    )
    share = sum(f.detected for f in found) / len(found)
    return Drift(
        symbol=symbol,
        issued_at=issued_at,
        from_=int(grid[-1]) - (WINDOW_HOURS - 1) * HOUR_MS,
        to=int(grid[-1]),
        rows=len(rows),
        method=METHOD,
        detected=share >= DETECTED_SHARE,
        drifted_share=share,
        features=found,
        report=report.name if report is not None else None,
        model_version=model_version,
    )


def _evidently(current: dict[str, Any], reference: dict[str, Any], report: Path | None) -> dict[str, float]:
    os.environ["DO_NOT_TRACK"] = "1"
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = list(current)
    definition = DataDefinition(numerical_columns=names)
    preset = DataDriftPreset(columns=names, num_method="wasserstein", num_threshold=0.1, drift_share=DETECTED_SHARE)
    snapshot = Report([preset]).run(
        Dataset.from_pandas(pandas.DataFrame(current), data_definition=definition),
        Dataset.from_pandas(pandas.DataFrame(reference), data_definition=definition),
    )
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        beside = report.with_suffix(".part")
        snapshot.save_html(str(beside))
        beside.replace(report)
    return {
        metric["config"]["column"]: float(metric["value"])
        for metric in snapshot.dict()["metrics"]
        if metric["config"]["type"].endswith("ValueDrift")
    }
