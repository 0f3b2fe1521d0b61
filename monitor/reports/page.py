"""What a report's pages say: the figures of its JSON, for people, above what Evidently draws, and the index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from monitor.drift.evidently_page import headed
from monitor.reports.drift import DriftOfPeriod
from monitor.reports.regression import Quality, Regression
from stream.core.deciding.policy import ANNUAL
from stream.core.forecasting.drift import DEFAULT_THRESHOLD, MEASURES
from stream.core.market.candle import HOUR_MS
from stream.html import render
from stream.times import day, minute

_REFERENCES = {
    "bundle": "the model's training range",
    "own": "the symbol's own 180 days before: the model was not trained on it",
    "uncalibrated": "the model's training range, of another symbol: its own 180 days before are not there",
}


class About(msgspec.Struct, frozen=True):
    """What every page and file of a report says of itself. Times are ms."""

    symbol: str
    period: str
    #: Where the candles and forecasts came from, in words.
    source: str
    model_version: str
    trained_from: int
    trained_until: int


def drift_page(evidently: str, about: About, of: DriftOfPeriod, index: str) -> str:
    """Evidently's drift page with ours above it; `index`: the file to go back to."""
    rows = [
        (
            name,
            f"{of.thresholds[name]:.3f}",
            f"{max(week.scores[name] for week in of.weeks):.3f}",
            str(sum(week.scores[name] >= of.thresholds[name] for week in of.weeks)),
            str(sum(week.scores[name] >= DEFAULT_THRESHOLD for week in of.weeks)),
            f"{of.evidently_scores[name]:.3f}",
        )
        for name in MEASURES
    ]
    verdicts = [
        ("30 days, calibrated thresholds", share(of.weeks_detected, len(of.weeks))),
        ("10 days against the 90 before", share(of.weeks_fast_detected, of.weeks_fast_judged)),
        (f"30 days, Evidently's default of {DEFAULT_THRESHOLD:g}", share(of.weeks_default_detected, len(of.weeks))),
    ]
    return headed(
        evidently,
        "monitor.reports/drift.html.j2",
        title=_title(about, "drift"),
        **_origin(about, of.first, of.last, index),
        of=of,
        missing=f"{of.missing_hours} without a candle" if of.missing_hours else "each with its candle",
        reference=_REFERENCES[of.reference],
        verdicts=verdicts,
        measures=rows,
    )


def regression_page(evidently: str, about: About, of: Regression, index: str) -> str:
    """Evidently's regression page with ours above it."""
    residuals = [
        f"{100 * float(level):g} %: {_percent(value):+.1f}" for level, value in of.residual_quantiles_hourly.items()
    ]
    return headed(
        evidently,
        "monitor.reports/regression.html.j2",
        title=_title(about, "regression"),
        heading=_title(about, "forecasts and what came"),
        **_origin(about, of.first, of.last, index),
        of=of,
        qualities=_qualities(of.by_forecaster),
        realized_mean=f"{_percent(of.realized_mean_hourly):.1f}",
        coverage=_coverage(of),
        residuals=", ".join(residuals),
    )


def index_page(
    about: About,
    drifts: Mapping[str, DriftOfPeriod],
    regression: Regression,
    files: Mapping[str, str],
    trend: str,
    notes: Sequence[str],
    span: tuple[int, int],
) -> str:
    """The page to begin with. `files`: HTML by name of a period, and of "regression"; `trend`: its figure, as SVG;
    `span`: [from, to) in ms."""
    periods = [
        {
            "name": name,
            "html": files[name],
            "json": json_name(files[name]),
            "cells": (
                f"{day(of.first)} to {day(of.last)}",
                str(of.missing_hours),
                share(of.weeks_detected, len(of.weeks)),
                share(of.weeks_fast_detected, of.weeks_fast_judged),
                share(of.weeks_default_detected, len(of.weeks)),
            ),
        }
        for name, of in drifts.items()
    ]
    return render(
        "monitor.reports/index.html.j2",
        title=_title(about, "report"),
        **_origin(about, span[0], span[1] - HOUR_MS, None),
        heading=_title(about, "drift and forecasts"),
        notes=notes,
        trend=trend,
        periods=periods,
        qualities=_qualities(regression.by_forecaster),
        regression={"html": files["regression"], "json": json_name(files["regression"]), "of": regression},
        coverage=_coverage(regression),
    )


def json_name(html: str) -> str:
    """The file with a page's figures."""
    return html.removesuffix(".html") + ".json"


def share(part: int, whole: int) -> str:
    """How many, and of how many."""
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none judged"


def _title(about: About, kind: str) -> str:
    return f"{about.symbol} {about.period}: {kind}"


def _origin(about: About, first: int, last: int, index: str | None) -> dict[str, object]:
    """For origin.html.j2."""
    trained = f"{day(about.trained_from)} to {day(about.trained_until)}"
    return {"about": about, "hours": f"{minute(first)} to {minute(last)}", "trained": trained, "index": index}


def _qualities(by_forecaster: Mapping[str, Quality]) -> list[tuple[str, ...]]:
    """For quality.html.j2."""
    return [
        (
            name,
            f"{q.qlike:.3f}",
            f"{_percent(q.rmse_hourly):.2f}",
            f"{_percent(q.mae_hourly):.2f}",
            f"{_percent(q.bias_hourly):+.2f}",
            f"{q.mape:.1%}",
        )
        for name, q in by_forecaster.items()
    ]


def _coverage(of: Regression) -> dict[str, str]:
    return {"promised": f"{of.coverage_promised:.0%}", "held": f"{of.coverage:.1%}"}


def _percent(sigma: float) -> float:
    return 100 * ANNUAL * sigma
