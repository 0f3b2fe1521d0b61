"""Drift: do the candles of the last 30 days still look like those the model was trained on? Evidently's door.

Rules of this module:
- pandas and Evidently are imported here and in monitor/reports/regression.py, inside the call, in a process that does
  nothing more: importing them takes seconds and hundreds of megabytes.
- What is measured, over which windows and with which verdict is the core's (stream/core/forecasting/drift.py).
  Evidently computes the distances of the 30 days and draws them; those of the 10 days, for which no page is drawn, are
  our own arithmetic of the same number.
- A page is written whole or not at all, and nothing is sent anywhere. Its words are our verdict: Evidently is given the
  calibrated thresholds, and what it does not judge is said above its figures.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monitor.drift.evidently_page import headed
from stream import files
from stream.core.deciding.replay import to_grid
from stream.core.forecasting import drift, features
from stream.core.forecasting.contract import Contract
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.schemas import Drift, DriftFeature, FastDrift
from stream.errors import VolcastError
from stream.extras import installing, missing
from stream.times import minute

METHOD = "wasserstein (normed)"
#: Hours that a run needs: 30 days, and the look-back of the first of them.
LEAST_HOURS = drift.WINDOW_HOURS + drift.LOOKBACK_HOURS - 1
#: Hours that it can use: an own reference and its look-back before the 30 days.
MOST_HOURS = LEAST_HOURS + drift.OWN_REFERENCE_HOURS


class DriftError(VolcastError, RuntimeError):
    """The run could not be made; one line for people."""


def evidently_missing() -> str | None:
    """Why drift cannot run here, or None."""

    if missing(["evidently"]):
        return f"evidently is not installed: {installing('drift')}"
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
    """One run over the last 30 days of `candles`, whose newest `MOST_HOURS` are looked at.

    Writes Evidently's HTML to `report` where given. `DriftError` where there are too few candles or no Evidently.
    """
    missing = evidently_missing()
    if missing is not None:
        raise DriftError(f"drift needs Evidently: {missing}")
    grid, ohlcv = to_grid(candles)
    grid, ohlcv = grid[-MOST_HOURS:], ohlcv[-MOST_HOURS:]
    if len(grid) < LEAST_HOURS:
        raise DriftError(
            f"{symbol}: {len(grid)} hours of candles are too few for drift, which compares 30 days and needs "
            f"{LEAST_HOURS}: fetch more, or let the daemon collect them"
        )
    values = drift.measures(features.compute(grid, ohlcv), ohlcv)
    current = drift.window(values, len(grid) - drift.WINDOW_HOURS, len(grid))
    if current is None:
        raise DriftError(
            f"{symbol}: under half of the last {drift.WINDOW_HOURS} hours can be judged: too many candles are missing"
        )
    reference, source = _reference(symbol, contract, values)
    thresholds = {name: contract.reference[name].threshold for name in drift.MEASURES}
    fast = _fast(grid, values, contract)

    def judged(by_name: Mapping[str, float]) -> Drift:
        scores, limits = (np.array([of[name] for name in drift.MEASURES]) for of in (by_name, thresholds))
        return Drift(
            symbol=symbol,
            issued_at=issued_at,
            from_=int(grid[-1]) - (drift.WINDOW_HOURS - 1) * HOUR_MS,
            to=int(grid[-1]),
            rows=len(current),
            method=METHOD,
            detected=drift.detected(scores, limits),
            default_detected=drift.default_detected(scores),
            drifted_share=float(np.mean(scores >= limits)),
            features=_judged(scores, limits),
            reference=source,
            fast=fast,
            report=report.name if report is not None else None,
            model_version=model_version,
        )

    return judged(
        evidently_scores(
            _columns(current),
            _columns(reference),
            report,
            thresholds=thresholds,
            page=lambda evidently, by_name: _page(evidently, judged(by_name)),
        )
    )


def _page(evidently: str, found: Drift) -> str:
    """Evidently's page, both verdicts above its figures."""
    return headed(
        evidently,
        "monitor.drift/drift.html.j2",
        title=f"Drift of {found.symbol}, {minute(found.from_)} to {minute(found.to)} UTC",
        verdict=_verdict(found.detected, found.features),
        fast_verdict="not judged" if found.fast is None else _verdict(found.fast.detected, found.fast.features),
    )


def _verdict(detected: bool, features: Sequence[DriftFeature]) -> str:
    beyond = ", ".join(f.feature for f in features if f.detected)
    return f"detected: {beyond}" if detected else "not detected"


def _reference(
    symbol: str, contract: Contract, values: Array
) -> tuple[Array, Literal["bundle", "own", "uncalibrated"]]:
    """Quantiles [100, k] to hold the 30 days against, and whose they are."""
    bundle = np.array([contract.reference[name].quantiles for name in drift.MEASURES]).T
    if contract.describes(symbol):
        return bundle, "bundle"
    own = drift.own_reference(values, len(values))
    return (bundle, "uncalibrated") if own is None else (own, "own")


def _fast(grid: NDArray[np.int64], values: Array, contract: Contract) -> FastDrift | None:
    if len(grid) < drift.FAST_HOURS + drift.FAST_REFERENCE_HOURS + drift.LOOKBACK_HOURS - 1:
        return None
    scores = drift.fast_distances(values, len(values))
    if scores is None:
        return None
    limits = np.array([contract.reference[name].fast_threshold for name in drift.MEASURES])
    return FastDrift(
        from_=int(grid[-drift.FAST_HOURS]),
        to=int(grid[-1]),
        reference_from=int(grid[-drift.FAST_HOURS - drift.FAST_REFERENCE_HOURS]),
        rows=len(drift.measured(values[-drift.FAST_HOURS :])),
        detected=drift.detected(scores, limits),
        features=_judged(scores, limits),
    )


def _judged(scores: Array, limits: Array) -> tuple[DriftFeature, ...]:
    return tuple(
        DriftFeature(
            feature=name,
            score=float(score),
            threshold=float(limit),
            detected=bool(score >= limit),
            default_detected=bool(score >= drift.DEFAULT_THRESHOLD),
        )
        for name, score, limit in zip(drift.MEASURES, scores, limits, strict=True)
    )


def _columns(values: Array) -> dict[str, Array]:
    return {name: values[:, k] for k, name in enumerate(drift.MEASURES)}


@contextlib.contextmanager
def _kept_for_good() -> Iterator[None]:
    """Makes objects that stay: a million of them come with Evidently, and to search them for garbage again and again
    while they come would take an eighth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


# Evidently correlates the columns too, and of one that stays the same that does not exist.
@np.errstate(divide="ignore", invalid="ignore")
def evidently_scores(
    current: Mapping[str, Array],
    reference: Mapping[str, Array],
    html: Path | None,
    *,
    thresholds: Mapping[str, float] | None = None,
    page: Callable[[str, Mapping[str, float]], str] = lambda evidently, scores: evidently,
) -> dict[str, float]:
    """Evidently's normed Wasserstein distance of each column of `current` [n] to that of `reference` [m], by name.

    Writes its page of them to `html` where given: one file of some MB that loads nothing, there whole or not at all.
    The page finds drift where any column reaches its own of the `thresholds` (Evidently's default without them); it is
    what `page` makes of Evidently's and the scores. Imports Evidently: seconds, and hundreds of megabytes.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    with _kept_for_good():
        import pandas
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift
        from evidently.presets import DataDriftPreset

    names = list(current)
    definition = DataDefinition(numerical_columns=names)
    preset = DataDriftPreset(
        columns=names,
        num_method="wasserstein",
        num_threshold=drift.DEFAULT_THRESHOLD,
        per_column_threshold=dict(thresholds) if thresholds is not None else None,
        drift_share=drift.DEFAULT_SHARE if thresholds is None else 1 / len(names),
    )
    # The preset is these distances and a verdict over them, for which it computes all of them once more: for the page.
    values = [ValueDrift(column=name, method="wasserstein") for name in names]
    snapshot = Report([preset] if html is not None else values).run(
        Dataset.from_pandas(pandas.DataFrame(dict(current)), data_definition=definition),
        Dataset.from_pandas(pandas.DataFrame(dict(reference)), data_definition=definition),
    )
    scores = {
        metric["config"]["column"]: float(metric["value"])
        for metric in snapshot.dict()["metrics"]
        if metric["config"]["type"].endswith("ValueDrift")
    }
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        files.write(html, page(snapshot.get_html_str(as_iframe=False), scores).encode())
    return scores
