"""An evaluation as one HTML page: figures inside it, no script, nothing loaded from anywhere.

Rules of this module:
- The page is a function of the evaluation and its panel: no clock, so the same input gives the same bytes.
- Each figure has a text for who cannot see it, each table a heading that says what its numbers are.
- Its template has the headings and the prose; here are rows of text, and what depends on what was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stream.html import render
from training.data.panel import NEXT_24H, Panel
from training.pages import figures
from training.pages.numbers import number, p_value, share, spread
from training.scoring.comparison import Comparison
from training.scoring.decay import REPORTED_DAYS
from training.scoring.groups import PHASES
from training.scoring.measures import MEASURES
from training.scoring.scores import ByName, Evaluation

_DIGITS = {"rmse": 6, "mae": 6, "qlike": 4, "r2": 3, "bias": 3}
_TITLES = {"rmse": "RMSE", "mae": "MAE", "qlike": "QLIKE", "r2": "R²", "bias": "bias"}
_LOSS_TITLES = {"qlike": "QLIKE", "squared_error": "squared error"}
#: A table's rows, and a figure: its SVG and the text for who cannot see it.
Rows = list[list[str]]
Picture = tuple[bytes, str]


def page(of: Evaluation, panel: Panel, meanings: dict[str, str]) -> str:
    """The whole page. `meanings`: what each quantity is, by its name or "horizons"."""
    return render(
        "training.pages/evaluation.html.j2",
        title=f"Volatility forecasts of {of.symbol}, {of.start} to {of.end}",
        of=of,
        ours=[m.name for m in of.models],
        meanings=meanings,
        facts=_facts(of),
        pictures=list(_pictures(of, panel)),
        measures={
            "columns": ["forecast", *(_TITLES[m] for m in MEASURES)],
            "next_24h": _measures(of.next_24h),
            "rolling_24h_next": _measures(of.rolling_24h_next),
        },
        phases={"count": PHASES, "rows": _phases(of)},
        comparisons=list(_comparisons(of)),
        confidence_set={
            "level": f"{of.protocol.confidence_set_level:.0%}",
            "repetitions": f"{of.protocol.confidence_set_repetitions:,}",
            "found": list(_confidence_sets(of)),
        },
        mincer_zarnowitz=_mincer_zarnowitz(of),
        groups=list(_groups(of)),
        intervals=_intervals(of),
        decay=_decay(of),
        horizons=[(hours, _measures(by_name)) for hours, by_name in of.horizons.items()],
    )


def subject(of: Evaluation) -> str:
    """Whose forecasts the figures show: the first model's, or where none was scored those of the bar."""
    names = [*(m.name for m in of.models), figures.REFERENCE, *of.next_24h]
    return next(name for name in names if name in of.next_24h)


def _facts(of: Evaluation) -> list[tuple[str, str]]:
    return [
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


def _pictures(of: Evaluation, panel: Panel) -> Iterator[Picture]:
    name = subject(of)
    others = [n for n in of.next_24h if n != name]
    shown = [name, *(n for n in ("har", "linear", "lightgbm", "ewma") if n in others)]
    yield (
        figures.forecast_against_actual(panel, name),
        f"Line chart of the realized volatility of each coming 24 hours and of what {name} had forecast for it, "
        f"with the interval where there is one. {_in_words(of, name)}",
    )
    yield (
        figures.calibration(panel, shown),
        "Mean realized volatility by decile of the forecast, beside the diagonal on which a forecast means what "
        f"it says. {_calibrated(of, name)}",
    )
    yield (
        figures.residuals(panel, name),
        f"Histogram of ln(realized / forecast) of {name}, and its quartiles by the hour of day of the forecast.",
    )
    if panel.intervals:
        coverages = [f"{k}: {v.coverage:.1%} inside of {v.level:.0%}" for k, v in of.intervals.items()]
        yield (
            figures.coverage(panel),
            f"Share of outcomes inside the interval over the last 30 days, by day. {'; '.join(coverages)}.",
        )
    if figures.REFERENCE in of.next_24h and len(of.next_24h) > 1:
        lines = [n for n in of.next_24h if n not in (figures.REFERENCE, "persistence", "rolling_mean")]
        yield (
            figures.cumulative_losses(panel, lines),
            f"Sum over days of the QLIKE of each forecaster less that of {figures.REFERENCE}; persistence and the "
            "rolling mean are far above the others and are left out.",
        )


def _in_words(of: Evaluation, name: str) -> str:
    figures_of = of.next_24h[name]
    return f"RMSE {number(figures_of['rmse'], 6)}, QLIKE {number(figures_of['qlike'], 4)}, hourly σ."


def _calibrated(of: Evaluation, name: str) -> str:
    line = of.mincer_zarnowitz.get(name)
    return "" if line is None or line.b is None else f"Mincer-Zarnowitz slope of {name}: {line.b:.2f}."


def _measures(by_name: ByName) -> Rows:
    return [[name, *(number(values[m], _DIGITS[m]) for m in MEASURES)] for name, values in by_name.items()]


def _phases(of: Evaluation) -> Rows:
    return [
        [name, *(spread(values[m], _DIGITS[m]) for m in ("rmse", "qlike", "r2"))]
        for name, values in of.phases[NEXT_24H].items()
    ]


def _comparisons(of: Evaluation) -> Iterator[tuple[str, Rows]]:
    """A heading and its rows for each model, over the whole period and by year."""
    by_period = {"": of.diebold_mariano, **{f", {year}": found for year, found in of.diebold_mariano_by_year.items()}}
    for period, by_model in by_period.items():
        for model, others in by_model.items():
            yield f"{model} against, Diebold-Mariano on QLIKE{period}", _diebold_mariano(others)


def _diebold_mariano(others: dict[str, Comparison]) -> Rows:
    return [
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


def _confidence_sets(of: Evaluation) -> Iterator[str]:
    for loss, found in of.confidence_sets.items():
        if found.p is None:
            yield f"{_LOSS_TITLES[loss]}: no set, {found.reason}."
        else:
            members = ", ".join(found.included or [])
            yield f"{_LOSS_TITLES[loss]}, {found.days} days: in the set are {members}."


def _mincer_zarnowitz(of: Evaluation) -> Rows:
    return [
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


def _groups(of: Evaluation) -> Iterator[tuple[str, list[str], Rows]]:
    """A heading, the groups' labels and the rows, for each kind of group and measure."""
    for kind, by_label in of.groups[NEXT_24H].items():
        if len(by_label) == 1:
            continue  # the whole period again
        for measure in ("qlike", "rmse", "bias"):
            rows = [
                [name, *(number(by_name[name][measure], _DIGITS[measure]) for by_name in by_label.values())]
                for name in of.next_24h
            ]
            yield f"{_TITLES[measure]} by {kind}", list(by_label), rows


def _intervals(of: Evaluation) -> dict[str, Any]:
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
    return {"columns": columns, "rows": rows}


def _decay(of: Evaluation) -> dict[str, Any]:
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
    return {"watched": watched, "changed": changed, "served": served, "reported_days": REPORTED_DAYS}
