"""A backtest as one HTML page and as tables in the terminal; no script, nothing loaded from anywhere, no clock."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.table import Table

from stream.html import render
from training.backtest import figures
from training.backtest.benchmarks import REFERENCE_FIGURES
from training.backtest.runner import Backtest, Line, Tested
from training.pages.numbers import between, number, share

_PARTS = ("growth", "σ", "7-day RMSE", "mean exposure", "turnover", "drawdown")
_RESAMPLED = {
    "cagr": "CAGR",
    "sharpe": "Sharpe",
    "drawdown": "drawdown",
    "cvar_95": "CVaR 95",
    "tracking_rmse": "tracking RMSE",
    "tracking_ratio": "tracking / constant",
    "drawdown_over_constant": "drawdown / constant",
    "cvar_95_over_constant": "CVaR / constant",
}


def page(tested: Tested) -> str:
    """The whole page."""
    of = tested.backtest
    ours = [line.name for line in of.lines if line.kind == "policy"]
    return render(
        "training.backtest/backtest.html.j2",
        title=f"Risk decisions for {of.symbol}, {of.start} to {of.end}",
        of=of,
        ours=ours,
        facts=_facts(of),
        overview={"svg": figures.overview(tested), "alt": _in_words(of)},
        tradeoff=figures.tradeoff(tested),
        turnover=figures.turnover(tested),
        regimes=figures.regimes(tested),
        risk={"columns": _RISK, "rows": [_risk(line) for line in of.lines]},
        cost={"columns": _COST, "rows": [_cost(line) for line in of.lines]},
        luck={
            "columns": ["", *_RESAMPLED.values()],
            "rows": [[line.name, *(_between(line, key) for key in _RESAMPLED)] for line in of.lines],
        },
        parts={"columns": ["", *_PARTS], **{kind: _by(of, ours[0], kind) for kind in ("years", "regimes")}},
        reasons=[[code, share(value)] for code, value in of.reasons.items()],
        reference={"columns": ["", *REFERENCE_FIGURES], "rows": _reference(of)},
    )


def tables(of: Backtest) -> list[Table]:
    """For the terminal: risk and return, cost and stability."""
    found = []
    caption = (
        f"fees {of.fee_bp:g} bp and slippage {of.slippage_bp:g} bp a side; RMSE: 7-day σ against the target; ratio: "
        "over the constant weight of the same mean exposure"
    )
    for title, headings, row in (("risk and return", _RISK, _risk), ("cost and stability", _COST, _cost)):
        shown = Table(
            title=f"{of.symbol} {of.start} to {of.end}: {title}",
            caption=caption,
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
            title_justify="left",
            caption_justify="left",
        )
        for k, heading in enumerate(headings):
            shown.add_column(heading, justify="right" if k else "left", no_wrap=True)
        for line in of.lines:
            shown.add_row(*row(line), style="bold" if line.kind == "policy" else "")
        found.append(shown)
    return found


_RISK = ("", "σ", "7-day RMSE", "ratio", "drawdown", "longest, days", "CVaR 95", "CAGR", "Sharpe", "Sortino", "Calmar")
_COST = ("", "turnover", "fees", "exposure", "at cap", "risk-off", "changes", "held, h")


def _risk(line: Line) -> list[str]:
    i = line.impact
    return [
        line.name,
        share(i.volatility_annualized),
        number(i.tracking_rmse, 3),
        number(i.tracking_ratio, 2),
        share(i.drawdown),
        number(i.longest_drawdown_days, 0),
        share(i.cvar_95, 2),
        share(i.cagr),
        number(i.sharpe, 2),
        number(i.sortino, 2),
        number(i.calmar, 2),
    ]


def _cost(line: Line) -> list[str]:
    i = line.impact
    return [
        line.name,
        number(i.turnover, 1),
        share(i.fees, 2),
        share(i.mean_exposure),
        share(i.share_at_cap),
        share(i.risk_off_share, 2),
        number(i.exposure_changes, 0),
        number(i.mean_holding_hours, 0),
    ]


def _facts(of: Backtest) -> list[tuple[str, str]]:
    return [
        ("hours", f"{of.hours:,}"),
        ("forecasts", ", ".join(of.models)),
        ("target", f"{of.target_volatility_annualized:.0%} a year; 8,760 hours are a year"),
        ("costs", f"{of.fee_bp:g} bp fee and {of.slippage_bp:g} bp slippage a side, filled at the next hour's open"),
        ("regimes", regimes_in_words(of).removeprefix("regimes: ")),
        *((f"policy {line.name}", f"version {line.version}") for line in of.lines if line.version),
        *(("note", note) for note in of.notes),
    ]


def regimes_in_words(of: Backtest) -> str:
    """The thresholds in force at the end of the period, whose they are, and how often they changed."""
    levels = (
        f"{name} from σ " + ", ".join(f"{share(level, _digits(level))} {unit}" for unit, level in by_unit.items())
        for name, by_unit in of.regime_thresholds.items()
    )
    last = of.regimes_used[-1]
    whose = {
        "bundle": f"of {last.symbol}",
        "own": f"of {last.symbol}'s own 180 days of forecasts before the fold, in force since {last.since}",
        "uncalibrated": f"of {last.symbol}, for want of the symbol's own",
        "policy": "the policy's own",
    }[last.source]
    return f"regimes: {'; '.join(levels)} ({whose}); {of.regime_flips:.0f} changes a year"


def _digits(level: float) -> int:
    """Decimals of a percentage that leave three digits."""
    return max(2, -math.floor(math.log10(level))) if level > 0 else 2


def _in_words(of: Backtest) -> str:
    first = of.lines[0]
    own = first.impact
    return (
        f"Price with exposure, equity, drawdown and 7-day volatility of {first.name}, of a constant weight and of buy "
        f"and hold. Drawdown {share(own.drawdown)}, CVaR 95 {share(own.cvar_95, 2)}, mean exposure "
        f"{share(own.mean_exposure, 0)}."
    )


def _between(line: Line, key: str) -> str:
    return between(line.intervals[key], 3 if "cvar" in key else 2)


def _by(of: Backtest, name: str, kind: str) -> dict[str, Any]:
    """The judged policy and the constant weight beside it, year by year or regime by regime."""
    shown = [of.line(name), next(line for line in of.lines if line.name.startswith("constant "))]
    rows = []
    for line in shown:
        for label, p in getattr(line, kind).items():
            cells = (share(p.growth), share(p.volatility_annualized), number(p.tracking_rmse, 3))
            more = (share(p.mean_exposure), number(p.turnover, 1), share(p.drawdown))
            rows.append([f"{line.name}, {label}", *cells, *more])
    return {"rows": rows, "ours": [row[0] for row in rows if row[0].startswith(f"{name}, ")]}


def _reference(of: Backtest) -> list[list[str]]:
    names = REFERENCE_FIGURES
    rows = [[line.name, *(number(line.impact.reference[n], 6) for n in names)] for line in of.lines]
    if of.reference_as_published:
        rows.append(["reference, evaluated as published", *(number(of.reference_as_published[n], 6) for n in names)])
    return rows
