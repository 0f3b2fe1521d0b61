"""An evaluation in the terminal. The JSON has the same figures with all digits."""

from __future__ import annotations

from rich import box
from rich.table import Table

from training.data.panel import NEXT_24H
from training.pages.numbers import NONE, number, p_value, share
from training.scoring.comparison import Comparison
from training.scoring.decay import REPORTED_DAYS
from training.scoring.measures import MEASURES, Scores
from training.scoring.scores import ByName, Evaluation

_LEAST_WIDTH = 72  # for titles of tables with few columns
_DIGITS = {"rmse": 6, "mae": 6, "qlike": 4, "r2": 3, "bias": 3}
_HEADINGS = {"rmse": "RMSE", "mae": "MAE", "qlike": "QLIKE", "r2": "R²", "bias": "bias"}


def tables(of: Evaluation) -> list[Table]:
    """Measures by quantity; the tests of the next 24 h; its QLIKE by group; its intervals; its watch over decay."""
    found = [_measures(of), _tests(of), _groups(of), _intervals(of), _decay(of), _found(of), _served(of)]
    return [table for table in found if table.row_count]


def _measures(of: Evaluation) -> Table:
    table = _table(
        f"{of.symbol} {of.start} to {of.end}, {of.rows:,} hours, model {of.model_version or 'none'}",
        "hourly σ; bias: mean(forecast - realized) / mean realized",
        "forecast",
        *(_HEADINGS[m] for m in MEASURES),
    )
    parts: dict[str, ByName] = {"next 24 h, none of them known": of.next_24h}
    parts |= {f"horizon {hours}": by_name for hours, by_name in of.horizons.items()}
    parts["rolling 24 h next, 23 known"] = of.rolling_24h_next
    for part, by_name in parts.items():
        if by_name:
            table.add_row(part, style="italic")
        for name, values in by_name.items():
            cells = (number(values[m], _DIGITS[m]) for m in MEASURES)
            table.add_row(f"  {name}", *cells, style=_style(of, name))
    return table


def _tests(of: Evaluation) -> Table:
    size = 1 - of.protocol.confidence_set_level
    table = _table(
        "next 24 h on one forecast a day: medians over the 24 phases",
        f"b, MZ R²: Mincer-Zarnowitz, realized = a + b forecast. set: p of the {of.protocol.confidence_set_level:.0%} "
        "model confidence set at 00:00 UTC by QLIKE and squared error, * in it. "
        f"t, p: Diebold-Mariano on QLIKE, Newey-West {of.protocol.hac_lag_days} days; t < 0 is for the model named",
        *("forecast", "QLIKE", "by phase", "b", "MZ R²", "set Q", "set S"),
        *(heading for model in of.diebold_mariano for heading in (f"{model} t", "p")),
    )
    sets = [of.confidence_sets[loss].p for loss in of.confidence_sets]
    for name, line in of.mincer_zarnowitz.items():
        spread = of.phases[NEXT_24H][name]["qlike"]
        table.add_row(
            name,
            number(spread["median"], 3),
            f"{number(spread['min'], 2)}-{number(spread['max'], 2)}",
            number(line.b, 2),
            number(line.r2, 3),
            *(_in_set(p, name, size) for p in sets),
            *(cell for by_other in of.diebold_mariano.values() for cell in _compared(by_other.get(name))),
            style=_style(of, name),
        )
    return table


def _groups(of: Evaluation) -> Table:
    grouped = of.groups[NEXT_24H]
    short = {"low": "low σ", "medium": "mid σ", "high": "high σ"}
    table = _table(
        "next 24 h, QLIKE by group",
        "weekend: at least half of the coming 24 h; σ: terciles of what is known at the origin",
        "forecast",
        *(short.get(label, label) for by_label in grouped.values() for label in by_label),
    )
    for name in of.next_24h:
        cells = (number(by_name[name]["qlike"], 3) for by_label in grouped.values() for by_name in by_label.values())
        table.add_row(name, *cells, style=_style(of, name))
    return table


def _intervals(of: Evaluation) -> Table:
    table = _table(
        "next 24 h, share of outcomes inside the interval",
        "width: mean ln(high / low); score: interval score, hourly σ·10³, lower is better",
        *("", *of.intervals),
    )
    every = list(of.intervals.values())
    if not every:
        return table
    table.add_row("promised", *(share(i.level) for i in every))
    table.add_row("inside", *(share(i.coverage) for i in every))
    for kind, by_label in every[0].groups.items():
        for label in by_label:
            cells = (share(i.groups[kind].get(label, {}).get("coverage")) for i in every)
            table.add_row(f"  {label} σ before" if kind == "volatility before" else f"  {label}", *cells)
    table.add_row("30 days, least", *(share(i.coverage_30d_min) for i in every))
    table.add_row("30 days, most", *(share(i.coverage_30d_max) for i in every))
    table.add_row("width", *(number(i.width, 3) for i in every))
    table.add_row("score", *(number(1e3 * i.winkler, 2) for i in every))
    return table


def _decay(of: Evaluation) -> Table:
    table = _table(
        "watched for decay, one forecast a day",
        "alarms: false ones, about these forecasts as they are, with the first day that counts",
        *("", "days", "alarms", "a year"),
    )
    for name, found in of.decay.items():
        alarms = NONE if found.false_alarms_a_year is None else str(len(found.false_alarms))
        table.add_row(name, str(found.days), alarms, number(found.false_alarms_a_year, 2), style=_style(of, name))
        for alarm in found.false_alarms:
            table.add_row(f"  {alarm.date} {alarm.kind}, since {alarm.since}")
    return table


def _found(of: Evaluation) -> Table:
    table = _table(
        "watched for decay: forecasts that are so many times themselves from some day on",
        "found: share of those days from which an alarm comes in time; median: days until it; once: share of alarms "
        f"about a change that stays which are the only one in {REPORTED_DAYS} days",
        *("", "factor", "within days", "found", "median", "once"),
    )
    for name, study in of.decay.items():
        for factor, found in study.changes.items():
            if found.share is not None:
                cells = (share(found.share), number(found.median_days, 0), share(found.once_share))
                table.add_row(name, factor, str(found.within_days), *cells, style=_style(of, name))
    return table


def _served(of: Evaluation) -> Table:
    table = _table(
        "who is served: har while the model is behind it, QLIKE of all hours",
        "factor: on the model's forecasts; 1 is the model as it is",
        *("model", "factor", "hours of har", "served", "the model", "har"),
    )
    for name, found in of.decay.items():
        for factor, by in found.serving.items():
            figures = (number(value, 4) for value in (by.served, by.model, by.har))
            table.add_row(name, factor, share(by.har_share), *figures, style=_style(of, name))
    return table


def _table(title: str, caption: str, first: str, *others: str) -> Table:
    table = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        min_width=_LEAST_WIDTH,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _style(of: Evaluation, name: str) -> str:
    return "bold" if name in [m.name for m in of.models] else ""


def _in_set(p: Scores | None, name: str, size: float) -> str:
    value = None if p is None else p[name]
    return NONE if value is None else f"{value:.3f}" + ("*" if value > size else " ")


def _compared(of: Comparison | None) -> tuple[str, str]:
    if of is None or of.statistic is None or of.p is None:
        return NONE, NONE
    return f"{of.statistic:+.2f}", p_value(of.p)
