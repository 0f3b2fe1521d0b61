"""An evaluation as one HTML page: figures inside it, no script, nothing loaded from anywhere.

Rules of this module:
- The page is a function of the evaluation and its panel: no clock, so the same input gives the same bytes.
- Each figure has a text for who cannot see it, each table a heading that says what its numbers are.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from training.data.panel import NEXT_24H, Panel
from training.pages import figures
from training.pages.html import (
    definitions,
    document,
    number,
    p_value,
    paragraph,
    picture,
    section,
    share,
    spread,
    table,
)
from training.scoring.comparison import Comparison
from training.scoring.decay import REPORTED_DAYS
from training.scoring.groups import PHASES
from training.scoring.measures import MEASURES
from training.scoring.scores import ByName, Evaluation

_DIGITS = {"rmse": 6, "mae": 6, "qlike": 4, "r2": 3, "bias": 3}
_TITLES = {"rmse": "RMSE", "mae": "MAE", "qlike": "QLIKE", "r2": "R²", "bias": "bias"}
_LOSS_TITLES = {"qlike": "QLIKE", "squared_error": "squared error"}


def page(of: Evaluation, panel: Panel, meanings: dict[str, str]) -> str:
    """The whole page. `meanings`: what each quantity is, by its name or "horizons"."""
    title = f"Volatility forecasts of {of.symbol}, {of.start} to {of.end}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(of),
        section("What was forecast and what came", _pictures(of, panel)),
        section("Next 24 hours", paragraph(meanings[NEXT_24H]), _measures(of, of.next_24h), _phases(of)),
        section("Is it better, or luckier?", *_tests(of)),
        section("Next 24 hours by group", *_groups(of)),
        section("Intervals of the next 24 hours", *_intervals(of)),
        section("Would its decay be noticed?", *_decay(of)),
        section("Horizons", paragraph(meanings["horizons"]), *_horizons(of)),
        section(
            "Rolling 24 hours, one hour on",
            paragraph(meanings["rolling_24h_next"]),
            _measures(of, of.rolling_24h_next),
        ),
        section("What the numbers are", _glossary(of)),
    ]
    return document(title, parts)


def subject(of: Evaluation) -> str:
    """Whose forecasts the figures show: the first model's, or where none was scored those of the bar."""
    names = [*(m.name for m in of.models), figures.REFERENCE, *of.next_24h]
    return next(name for name in names if name in of.next_24h)


def _facts(of: Evaluation) -> str:
    rows = [
        ("protocol", of.protocol.text),
        ("rows", f"{of.rows:,} hourly origins, about {of.days:,} days without overlap"),
        ("candles", f"sha256 {of.data_sha256}"),
        *((f"model {m.name}" if len(of.models) > 1 else "model", f"version {m.version}") for m in of.models),
        *(("note", note) for note in of.notes),
        *(
            ("note", f"{', '.join(names)}: no forecast of {quantity.replace('_', ' ')}")
            for quantity, names in of.silent.items()
        ),
    ]
    return definitions(rows)


def _pictures(of: Evaluation, panel: Panel) -> str:
    name = subject(of)
    others = [n for n in of.next_24h if n != name]
    shown = [name, *(n for n in ("har", "linear", "lightgbm", "ewma") if n in others)]
    found = [
        picture(
            figures.forecast_against_actual(panel, name),
            f"Line chart of the realized volatility of each coming 24 hours and of what {name} had forecast for it, "
            f"with the interval where there is one. {_in_words(of, name)}",
        ),
        picture(
            figures.calibration(panel, shown),
            "Mean realized volatility by decile of the forecast, beside the diagonal on which a forecast means what "
            f"it says. {_calibrated(of, name)}",
        ),
        picture(
            figures.residuals(panel, name),
            f"Histogram of ln(realized / forecast) of {name}, and its quartiles by the hour of day of the forecast.",
        ),
    ]
    if panel.intervals:
        coverages = [f"{k}: {v.coverage:.1%} inside of {v.level:.0%}" for k, v in of.intervals.items()]
        found.append(
            picture(
                figures.coverage(panel),
                f"Share of outcomes inside the interval over the last 30 days, by day. {'; '.join(coverages)}.",
            )
        )
    if figures.REFERENCE in of.next_24h and len(of.next_24h) > 1:
        lines = [n for n in of.next_24h if n not in (figures.REFERENCE, "persistence", "rolling_mean")]
        found.append(
            picture(
                figures.cumulative_losses(panel, lines),
                f"Sum over days of the QLIKE of each forecaster less that of {figures.REFERENCE}; persistence and the "
                "rolling mean are far above the others and are left out.",
            )
        )
    return "".join(found)


def _in_words(of: Evaluation, name: str) -> str:
    figures_of = of.next_24h[name]
    return f"RMSE {number(figures_of['rmse'], 6)}, QLIKE {number(figures_of['qlike'], 4)}, hourly σ."


def _calibrated(of: Evaluation, name: str) -> str:
    line = of.mincer_zarnowitz.get(name)
    return "" if line is None or line.b is None else f"Mincer-Zarnowitz slope of {name}: {line.b:.2f}."


def _measures(of: Evaluation, by_name: ByName) -> str:
    rows = [[name, *(number(values[m], _DIGITS[m]) for m in MEASURES)] for name, values in by_name.items()]
    return table(["forecast", *(_TITLES[m] for m in MEASURES)], rows, _ours(of))


def _phases(of: Evaluation) -> str:
    rows = [
        [name, *(spread(values[m], _DIGITS[m]) for m in ("rmse", "qlike", "r2"))]
        for name, values in of.phases[NEXT_24H].items()
    ]
    text = (
        f"The same by phase: forecasts made at one hour of the day share no hour of outcome. Median over the {PHASES} "
        "hours, and the smallest to the largest: the luck that a choice of hour would bring."
    )
    return paragraph(text) + table(["forecast", "RMSE", "QLIKE", "R²"], rows, _ours(of))


def _tests(of: Evaluation) -> list[str]:
    if not of.mincer_zarnowitz:
        return [paragraph("No tests were asked for.")]
    sets = []
    for loss, found in of.confidence_sets.items():
        if found.p is None:
            sets.append(paragraph(f"{_LOSS_TITLES[loss]}: no set, {found.reason}."))
        else:
            members = ", ".join(found.included or [])
            sets.append(paragraph(f"{_LOSS_TITLES[loss]}, {found.days} days: in the set are {members}."))
    lines = [
        [
            name,
            number(line.a and 1e3 * line.a, 3),
            number(line.a_error and 1e3 * line.a_error, 3),
            f"{number(line.b, 3)} ({number(line.b_min, 2)} to {number(line.b_max, 2)})",
            number(line.b_error, 3),
            number(line.r2, 3),
            p_value(line.p),
        ]
        if line.reason is None
        else [name, line.reason, *[""] * 5]
        for name, line in of.mincer_zarnowitz.items()
    ]
    columns = ["forecast", "a·10³", "its error", "b (by phase)", "its error", "R²", "p of a=0, b=1"]
    return [
        *(_diebold_mariano(model, others, "") for model, others in of.diebold_mariano.items()),
        *(
            _diebold_mariano(model, others, year)
            for year, by_model in of.diebold_mariano_by_year.items()
            for model, others in by_model.items()
        ),
        f"<h3>Model confidence set, {of.protocol.confidence_set_level:.0%}</h3>",
        *sets,
        "<h3>Mincer-Zarnowitz: realized = a + b forecast</h3>",
        table(columns, lines, _ours(of)),
    ]


def _diebold_mariano(model: str, others: dict[str, Comparison], year: str) -> str:
    rows = [
        [
            other,
            number(found.difference, 4),
            number(found.statistic, 2),
            f"{p_value(found.p)} ({p_value(found.p_min)} to {p_value(found.p_max)})",
            str(found.days),
        ]
        if found.reason is None
        else [other, found.reason, "", "", ""]
        for other, found in others.items()
    ]
    heading = f"<h3>{escape(model)} against, Diebold-Mariano on QLIKE{f', {year}' if year else ''}</h3>"
    return heading + table(["against", "mean difference", "t", "p (by phase)", "days"], rows, ())


def _groups(of: Evaluation) -> list[str]:
    found = [
        paragraph(
            "Weekend: at least half of the coming 24 hours lie on a Saturday or Sunday, UTC. Volatility before: "
            "terciles, over this period, of the realized volatility that is known when the forecast is made; not of "
            "the outcome, since among wild outcomes every forecast looks too low."
        )
    ]
    for kind, by_label in of.groups[NEXT_24H].items():
        if len(by_label) == 1:
            continue  # the whole period again
        for measure in ("qlike", "rmse", "bias"):
            rows = [
                [name, *(number(by_name[name][measure], _DIGITS[measure]) for by_name in by_label.values())]
                for name in of.next_24h
            ]
            found.append(f"<h3>{_TITLES[measure]} by {escape(kind)}</h3>")
            found.append(table(["forecast", *by_label], rows, _ours(of)))
    return found


def _intervals(of: Evaluation) -> list[str]:
    if not of.intervals:
        return [paragraph("No forecaster said one.")]
    rows = []
    labels: list[str] = []
    for name, scored in of.intervals.items():
        groups = [(label, values) for by_label in scored.groups.values() for label, values in by_label.items()]
        labels = [label for label, _ in groups]
        thirty = (
            f"{share(scored.coverage_30d_min)} to {share(scored.coverage_30d_max)}"
            if scored.reason is None
            else scored.reason
        )
        rows.append(
            [
                name,
                f"{scored.level:.0%}",
                share(scored.coverage),
                *(share(values["coverage"]) for _, values in groups),
                thirty,
                number(scored.width, 3),
                number(1e3 * scored.width_hourly, 3),
                number(1e3 * scored.winkler, 3),
            ]
        )
    columns = ["interval", "level", "inside", *labels, "inside, 30 days", "width, ln", "width, σ·10³", "score, σ·10³"]
    return [
        paragraph(
            "Share of outcomes inside. Score: the interval score (Gneiting & Raftery 2007), width plus a fine for what "
            "lies outside; lower is better."
        ),
        table(columns, rows, ()),
    ]


def _decay(of: Evaluation) -> list[str]:
    if not of.decay:
        return [paragraph("No forecaster brings its usual errors, or har is not among them: nothing was watched.")]
    watched, changed = [], []
    for name, study in of.decay.items():
        alarms = "; ".join(f"{a.date} {a.kind}" for a in study.false_alarms) or "none"
        watched.append([name, str(study.days), study.reason or alarms, number(study.false_alarms_a_year, 2)])
        changed += [
            [name, factor, str(c.within_days), share(c.share), number(c.median_days, 0), share(c.once_share)]
            for factor, c in study.changes.items()
            if c.share is not None
        ]
    served = [
        [
            name,
            factor,
            share(by.har_share),
            *(number(value, 4) for value in (by.served, by.model, by.har)),
        ]
        for name, found in of.decay.items()
        for factor, by in found.serving.items()
    ]
    return [
        paragraph(
            "The daemon's detectors on these forecasts, one a day, each fit watched anew. An alarm about them as they "
            "are is a false one."
        ),
        table(["watched", "days", "false alarms", "a year"], watched, _ours(of)),
        "<h3>What is found</h3>",
        paragraph(
            "Every forecast from some day on is multiplied by a factor. Found: the share of those days from which an "
            f"alarm comes in time. Once: a change that stays is told no second time within {REPORTED_DAYS} days."
        ),
        table(["watched", "factor", "within days", "found", "median days", "once"], changed, _ours(of)),
        "<h3>Who is served</h3>",
        paragraph("har is served while the model is behind it over 30 matured days; mean QLIKE of all hours."),
        table(["model", "factor", "hours of har", "served", "the model", "har"], served, _ours(of)),
    ]


def _horizons(of: Evaluation) -> Iterable[str]:
    return (f"<h3>{hours}</h3>" + _measures(of, by_name) for hours, by_name in of.horizons.items())


def _glossary(of: Evaluation) -> str:
    rows = {
        "σ": "hourly standard deviation of log returns; the figures show it times √8760, in percent a year",
        "QLIKE": "mean of x - ln x - 1 with x = (realized / forecast)²: robust to the noise in a realized variance, "
        "and harder on forecasts that are too low (Patton 2011)",
        "R²": "1 - SSE / SST on σ; under 0 the mean of the period would have been the better forecast",
        "bias": "mean(forecast - realized) / mean realized",
        "Diebold-Mariano": "of the loss differences on one forecast a day, for each of the 24 hours at which it can "
        f"be made: median t and p, two-sided, Newey-West over {of.protocol.hac_lag_days} days, corrected for small "
        "samples (Harvey, Leybourne & Newbold 1997); t under 0 is for the model",
        "model confidence set": "who cannot be told from the best (Hansen, Lunde & Nason 2011), on the forecasts made "
        f"at 00:00 UTC: stationary bootstrap, blocks of {of.protocol.confidence_set_block_days} days, "
        f"{of.protocol.confidence_set_repetitions:,} repetitions, seeded",
        "Mincer-Zarnowitz": "an honest forecast has a = 0 and b = 1; medians over the 24 phases",
    }
    return definitions(rows.items())


def _ours(of: Evaluation) -> list[str]:
    return [m.name for m in of.models]
