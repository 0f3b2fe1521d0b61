"""What a report's pages say: the figures of its JSON, for people, above what Evidently draws, and the index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import msgspec

from monitor.markup import document, heading, link, paragraph, share, table
from monitor.reports.drift import DriftOfPeriod
from monitor.reports.figure import TrendPoint, trend
from monitor.reports.regression import Quality, Regression
from stream.core.deciding.policy import ANNUAL
from stream.core.forecasting.drift import DEFAULT_THRESHOLD, MEASURES
from stream.core.market.candle import HOUR_MS
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


def title(about: About, kind: str) -> str:
    return f"{about.symbol} {about.period}: {kind}"


def drift_parts(about: About, of: DriftOfPeriod, index: str) -> list[str]:
    """What stands above Evidently's drift page."""
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
    return [
        heading(title(about, "drift"), 1),
        *_origin(about, of.first, of.last, index),
        paragraph(
            f"{of.hours} hours, {_missing(of.missing_hours)}; {of.rows} of them can be judged. "
            f"Held against {_REFERENCES[of.reference]}."
            + (f" {of.weeks_not_judged} week(s) have too few hours to be judged." if of.weeks_not_judged else "")
        ),
        table(("verdict on", "weeks with drift"), verdicts),
        table(
            ("normed Wasserstein", "threshold", "highest week", "weeks beyond", "beyond the default", "whole period"),
            rows,
        ),
        paragraph(
            "A week is judged by the 30 days that end with it, as the daemon judges them: one measure beyond its "
            "threshold is drift; half of them beyond 0.1 is Evidently's default. Below, Evidently compares all hours "
            "of the period at once (the last column) with the same thresholds. They are made for 30 days: it can find "
            "drift where no week has any, and the other way round."
        ),
    ]


def regression_parts(about: About, of: Regression, index: str) -> list[str]:
    """What stands above Evidently's regression page."""
    residuals = ", ".join(
        f"{100 * float(level):g} %: {_percent(value):+.1f}" for level, value in of.residual_quantiles_hourly.items()
    )
    return [
        heading(title(about, "forecasts and what came"), 1),
        *_origin(about, of.first, of.last, index),
        paragraph(
            f"{of.forecasts} matured forecasts of the next 24 hours; har stood in for the model in {of.fallback}. "
            "σ is in annualized percent (hourly σ × √8760 × 100); an error is forecast less realized. "
            "MAPE is of σ, not of returns, where it has no bound."
        ),
        quality_table(of.by_forecaster),
        paragraph(
            f"Mean realized σ {_percent(of.realized_mean_hourly):.1f}. The served interval promised to hold "
            f"{of.coverage_promised:.0%} of outcomes and held {of.coverage:.1%}. "
            f"Quantiles of the served error: {residuals}. Below, Evidently on what was served."
        ),
    ]


def quality_table(by_forecaster: Mapping[str, Quality]) -> str:
    rows = [
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
    return table(("forecast", "QLIKE", "RMSE", "MAE", "bias", "MAPE"), rows)


def index_page(
    about: About,
    drifts: Mapping[str, DriftOfPeriod],
    regression: Regression,
    files: Mapping[str, str],
    points: Sequence[TrendPoint],
    notes: Sequence[str],
    span: tuple[int, int],
) -> str:
    """The page to begin with. `files`: HTML by name of a period, and of "regression"; `span`: [from, to) in ms."""
    rows = [
        (
            link(files[name], name),
            f"{day(of.first)} to {day(of.last)}",
            str(of.missing_hours),
            share(of.weeks_detected, len(of.weeks)),
            share(of.weeks_fast_detected, of.weeks_fast_judged),
            share(of.weeks_default_detected, len(of.weeks)),
            _data(files[name]),
        )
        for name, of in drifts.items()
    ]
    return document(
        title(about, "report"),
        [
            heading(title(about, "drift and forecasts"), 1),
            *_origin(about, span[0], span[1] - HOUR_MS, None),
            *(paragraph(f"Note: {note}.") for note in notes),
            trend(points, *span),
            paragraph(
                "Each mark is a week, judged by the 30 days that end with it. The score is that of the measure "
                "which is highest against its calibrated threshold: from 1 on it is drift. QLIKE is the mean over the "
                "forecasts that matured in those 30 days."
            ),
            heading("Drift"),
            table(
                ("period", "days", "missing hours", "weeks with drift", "10-day signal", "Evidently's default", "data"),
                rows,
            ),
            heading("Forecasts"),
            quality_table(regression.by_forecaster),
            f"<p>{link(files['regression'], f'{regression.forecasts} forecasts and what came')}, "
            f"σ in annualized percent; {_data(files['regression'])}. The served interval promised "
            f"{regression.coverage_promised:.0%} and held {regression.coverage:.1%}.</p>",
        ],
    )


def _origin(about: About, first: int, last: int, index: str | None) -> list[str]:
    back = f"{link(index, 'All periods')}. " if index is not None else ""
    return [
        f'<p class="note">{back}{minute(first)} to {minute(last)} UTC, from the {escape(about.source)}. Model '
        f"{escape(about.model_version)}, trained on {day(about.trained_from)} to {day(about.trained_until)}.</p>"
    ]


def _data(html: str) -> str:
    return link(html.removesuffix(".html") + ".json", "JSON")


def _missing(hours: int) -> str:
    return f"{hours} without a candle" if hours else "each with its candle"


def _percent(sigma: float) -> float:
    return 100 * ANNUAL * sigma
