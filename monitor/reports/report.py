"""The report of a period: drift pages, a page of the forecasts' quality, an index with the trend; beside each its JSON.

Rules of this module:
- It works on arrays; where they came from, a candle file or the journal, is told to it and is on every page.
- A page's figures and those of the `.json` beside it are the same numbers.
- A report is of one model: its training range, its reference, its thresholds, its forecasts. What other models said is
  counted and left out.
- Files go into the folder that is handed in; to make them appear at once is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.reports import drift, regression
from monitor.reports import page as pages
from monitor.reports.drift import DriftOfPeriod, Measured, Period
from monitor.reports.page import About
from monitor.reports.regression import Matured, Regression
from monitor.reports.trend import trend
from stream.core.forecasting.contract import Model
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.errors import VolcastError
from stream.extras import installing, missing
from stream.times import minute


class ReportError(VolcastError, RuntimeError):
    """The report could not be made; one line for people."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a report is made of: a symbol's hourly grid ([T] ms, [T, 5]; NaN where no candle exists), its matured
    forecasts by one model, and where both came from, in words."""

    symbol: str
    open_time: NDArray[np.int64]
    ohlcv: Array
    matured: Matured
    origin: str
    #: How many matured forecasts of the period other models made, by version.
    others: Mapping[str, int] = field(default_factory=dict)
    #: What else a reader must know of it.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What a report came to; `files` are names, the index last; `notes` say what was left out, for people."""

    drifts: dict[str, DriftOfPeriod]
    regression: Regression
    files: tuple[str, ...]
    notes: tuple[str, ...]


def write(
    source: Source,
    periods: Sequence[Period],
    whole: Period,
    model: Model,
    folder: Path,
    progress: Callable[[str], None] = lambda text: None,
) -> Written:
    """Writes the report of `periods`, which lie in `whole`, into `folder`.

    `ReportError` where there is too little to judge, or the extra is missing. Imports Evidently and matplotlib.
    """
    refuse_without_extra()
    from monitor.reports import figure

    matured = source.matured.within(whole.from_ms, whole.to_ms)
    if len(matured) < regression.MIN_FORECASTS:
        raise ReportError(_too_few(source, whole, model, len(matured)))
    measured = Measured.of(source.symbol, source.open_time, source.ohlcv)
    training = model.contract.training
    about = About(
        source.symbol, whole.name, source.origin, model.version, training.trained_from, training.trained_until
    )
    index = f"{source.symbol}-{whole.name}-index.html"
    files = {"regression": f"{source.symbol}-{whole.name}-regression.html"}
    notes = list(_notes(source, whole, measured, model))
    drifts: dict[str, DriftOfPeriod] = {}
    for period in periods:
        progress(f"drift {period.name}")
        html = folder / f"{source.symbol}-{period.name}-drift.html"
        found = drift.judged(measured, model.contract, period, html)
        if found is None:
            notes.append(f"{period.name} has no drift page: too few of its hours have 30 days of candles before them")
            continue
        drifts[period.name], files[period.name] = found, html.name
        of = msgspec.structs.replace(about, period=period.name)
        _finish(html, "drift", of, found, pages.drift_page(_read(html), of, found, index))
    if not drifts:
        raise ReportError(
            f"{source.symbol}: too few hours of {whole.name} have 30 days of candles before them in the "
            f"{source.origin}: choose a later period, or candles that reach further back"
        )
    progress(f"regression {whole.name}")
    html = folder / files["regression"]
    quality = regression.regression(matured, html)
    _finish(html, "regression", about, quality, pages.regression_page(_read(html), about, quality, index))
    points = trend(drifts, source.matured)
    span = (whole.from_ms, whole.to_ms)
    page = pages.index_page(about, drifts, quality, files, figure.trend(points, *span), notes, span)
    (folder / index).write_text(page, encoding="utf-8")
    figures = {
        "drift": {name: _summary(files[name], of) for name, of in drifts.items()},
        "regression": {"file": files["regression"], **msgspec.to_builtins(quality)},
        "trend": msgspec.to_builtins(points),
        "notes": notes,
    }
    _write_json(folder / index, {"kind": "index", **msgspec.to_builtins(about), **figures})
    names = [*(files[name] for name in drifts), files["regression"], index]
    return Written(drifts, quality, tuple(f for n in names for f in (pages.json_name(n), n)), tuple(notes))


def refuse_without_extra() -> None:
    """`ReportError` naming what of the extra `drift` is not installed, and the cure."""
    if lacking := missing(["evidently", "matplotlib"]):
        names = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed"
        raise ReportError(f"a report needs Evidently and matplotlib: {names}: {installing('drift')}")


def _read(html: Path) -> str:
    return html.read_text(encoding="utf-8")


def _finish(html: Path, kind: str, about: About, figures: Any, page: str) -> None:
    """The page in place of Evidently's own, and the figures beside it."""
    html.write_text(page, encoding="utf-8")
    _write_json(html, {"kind": kind, **msgspec.to_builtins(about), **msgspec.to_builtins(figures)})


def _write_json(html: Path, figures: dict[str, Any]) -> None:
    text = json.dumps(figures, indent=2, allow_nan=False)
    html.with_name(pages.json_name(html.name)).write_text(text + "\n", encoding="utf-8")


def _summary(file: str, of: DriftOfPeriod) -> dict[str, Any]:
    """A period's drift without its weeks, which are in the trend."""
    return {"file": file, "weeks": len(of.weeks), **{k: v for k, v in msgspec.to_builtins(of).items() if k != "weeks"}}


def _notes(source: Source, whole: Period, measured: Measured, model: Model) -> list[str]:
    notes = list(source.notes)
    if whole.to_ms < whole.asked_to_ms:
        notes.append(f"{whole.name} is not complete: its candles end with {minute(whole.to_ms - HOUR_MS)}")
    missing = measured.missing(whole)
    if missing:
        notes.append(
            f"hours without a candle: {missing} of {whole.hours}; forecasts of days that hold one have no outcome"
        )
    if source.others:
        counts = ", ".join(f"{count} by {version}" for version, count in source.others.items())
        notes.append(f"forecasts of other models are left out ({counts}); this report is of {model.version}")
    training = model.contract.training
    if whole.from_ms <= training.trained_until and training.trained_from < whole.to_ms:
        notes.append("the model was trained on part of this period, where its forecasts look better than they are")
    return notes


def _too_few(source: Source, whole: Period, model: Model, found: int) -> str:
    others = f" ({', '.join(source.others)} made others: name its bundle with --model)" if source.others else ""
    return (
        f"{source.symbol}: {found} matured forecast(s) of model {model.version} in {whole.name} in the {source.origin}"
        f"{others}: a report needs at least {regression.MIN_FORECASTS}; choose a longer period or one that has them"
    )
