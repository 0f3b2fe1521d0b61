"""`volcast backtest`: the results of the decisions, compared with those of the benchmarks.

The operator and the policies are the daemon's (training/backtest/decisions.py); a book executes what they decided
(training/backtest/execution.py) and is measured (training/backtest/measures.py). No alpha is claimed: `findings` states
what the forecast gains in risk over a constant weight and simpler forecasts, and where it gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.deciding.policy import PER_UNIT, REGIMES, Policy
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOURS_PER_YEAR, Candle
from training.backtest import measures
from training.backtest.benchmarks import BUY_AND_HOLD, ORACLE, constant, oracle, published, rivals, unique
from training.backtest.decisions import Calibrated, Decided, Term, decide
from training.backtest.execution import Book, Costs, execute
from training.backtest.measures import Bounds, Impact, Part
from training.data.dataset import Dataset
from training.data.holes import Hole, holes, jump_notes
from training.pages.numbers import between, number, share

SEED = 7
_MATCHING_STEPS = 3
#: 30 days: a shorter period has hardly four 7-day volatilities without overlap, and a tail of a day or two.
_LEAST_HOURS = 720


class Line(msgspec.Struct, frozen=True):
    """The results of one policy or benchmark."""

    name: str
    #: Of a policy: the version in the ids of its decisions.
    version: str
    kind: str
    impact: Impact
    #: Of 90 %, by measure; null where there is none.
    intervals: dict[str, Bounds]
    years: dict[str, Part]
    regimes: dict[str, Part]


class RegimesFrom(msgspec.Struct, frozen=True):
    """Regime thresholds that decisions of the first policy used, from the candle of `since` (ISO time) on.

    `source`: `bundle`, `own` (the symbol's own 180 days before the accumulation), `uncalibrated` (the bundle's for want
    of those) or `policy` (thresholds of its own). `symbol`: whose they are, empty for a policy's.
    """

    since: str
    source: str
    symbol: str
    medium_from_hourly: float
    high_from_hourly: float


class Backtest(msgspec.Struct, frozen=True):
    """All figures of a backtest; shares of the equity unless named otherwise."""

    symbol: str
    start: str
    end: str
    hours: int
    models: list[str]
    target_volatility_annualized: float
    fee_bp: float
    slippage_bp: float
    #: Thresholds of the regimes at the end of the period, by unit.
    regime_thresholds: dict[str, dict[str, float]]
    #: All thresholds that were used in it, whose they are, and since when.
    regimes_used: list[RegimesFrom]
    regime_flips: float
    #: The share of the first policy's decisions that have each reason.
    reasons: dict[str, float]
    lines: list[Line]
    #: The reference project's own evaluation, look-ahead included, on these candles.
    reference_as_published: dict[str, float | None]
    #: Hours without a candle between two candles of the period.
    holes: list[Hole]
    findings: list[str]
    notes: list[str]

    def line(self, name: str) -> Line:
        return next(one for one in self.lines if one.name == name)


@dataclass(frozen=True, slots=True)
class Tested:
    """A finished backtest: the figures, what was decided, and the books by line name."""

    backtest: Backtest
    decided: Decided
    books: dict[str, Book]
    #: Exposure in force in each hour, by line name.
    held: dict[str, Array]


def run(
    data: Dataset,
    candles: Sequence[Candle],
    terms: Sequence[Term],
    policies: Sequence[Policy],
    references: Sequence[Policy] = (),
    costs: Costs | None = None,
    *,
    seed: int = SEED,
) -> Tested:
    """Runs a backtest. The first of `policies` is the one that is judged: benchmarks are built around it. `references`:
    further policies that are shown as benchmarks (the reference project's rule).

    Raises `ValueError` with a one-line message where two different policies share a name, or fewer than 720 hours of
    the terms have a decision.
    """
    costs = costs or Costs()
    judged = policies[0]
    kinds = {p.name: kind for kind, group in _groups(policies, references) for p in group}
    everyone = unique([p for _, group in _groups(policies, references) for p in group])
    decided = decide(data, candles, terms, everyone)
    if len(decided.issued) < _LEAST_HOURS:
        raise ValueError(
            f"{len(decided.issued)} hour(s) of the period have a decision, a backtest needs {_LEAST_HOURS}: choose a "
            "longer one, or fetch more"
        )
    own = decided.exposure[judged.name]
    plans = dict(decided.exposure)
    plans[BUY_AND_HOLD] = constant(1.0, own)
    plans[ORACLE] = oracle(judged, terms[-1].regimes, decided.open_time, decided.next_24h)
    kinds |= {BUY_AND_HOLD: "benchmark", ORACLE: "oracle"}

    def booked(plan: Array) -> Book:
        return execute(decided.open_time, decided.opens, decided.closes, plan, costs)

    books = {name: booked(plan) for name, plan in plans.items()}

    def match(book: Book) -> tuple[Array, Book]:
        """Finds the constant weight with the same mean exposure, and its book: it drifts a little above the plan."""
        wanted = weight = measures.mean_exposure(book)
        for _ in range(_MATCHING_STEPS):
            plan = constant(weight, own)
            found = booked(plan)
            held = measures.mean_exposure(found)
            if held <= 0:
                break
            weight *= wanted / held
        return plan, found

    matches = {name: match(book) for name, book in books.items()}
    matched = {name: found for name, (_, found) in matches.items()}
    compared = f"constant {measures.mean_exposure(books[judged.name]):.0%}"
    plans[compared], books[compared] = matches[judged.name]
    matched[compared] = books[compared]
    kinds[compared] = "benchmark"
    held = {name: _in_force(plan) for name, plan in plans.items()}
    by_name = {p.name: p for p in everyone}
    regime = _in_force(np.where(decided.regime < 0, np.nan, decided.regime))
    # Before the first decision there is no regime.
    regime[: int(np.argmax(decided.regime >= 0))] = np.nan
    year, stripes = _years(decided.open_time), regime[np.isfinite(regime)]
    lines = []
    for name, book in books.items():
        policy = by_name.get(name, judged)
        target = policy.target_volatility_annualized
        lines.append(
            Line(
                name,
                by_name[name].version if name in by_name else "",
                kinds[name],
                measures.impact(book, held[name], matched[name], target, policy.max_exposure),
                measures.intervals(book, matched[name], target, seed=seed),
                {str(y): measures.part(book, target, year == y) for y in np.unique(year).tolist()},
                {r: measures.part(book, target, regime == k) for k, r in enumerate(REGIMES) if (regime == k).sum() > 1},
            )
        )
    steps = next((p.thresholds for p in references if p.thresholds is not None), None)
    inside = np.searchsorted(data.open_time, decided.open_time)
    thresholds = decided.calibrated[-1].regimes
    missing = holes(decided.open_time, decided.opens, decided.closes)
    backtest = Backtest(
        symbol=data.symbol,
        start=_day(terms[0].since),
        end=_day(terms[-1].until),
        hours=len(decided.open_time),
        models=[term.model for term in terms],
        target_volatility_annualized=judged.target_volatility_annualized,
        fee_bp=costs.fee_bp,
        slippage_bp=costs.slippage_bp,
        regime_thresholds={
            name: {unit: level * per for unit, per in PER_UNIT.items()}
            for name, level in (("medium", thresholds.medium_from), ("high", thresholds.high_from))
        },
        regimes_used=[_used(one) for one in decided.calibrated],
        regime_flips=int(np.count_nonzero(np.diff(stripes))) * HOURS_PER_YEAR / len(stripes),
        reasons=_reasons(decided),
        lines=lines,
        reference_as_published=(
            published(decided.closes, data.features.realized_24h[inside], steps) if steps is not None else {}
        ),
        holes=missing,
        findings=_findings(lines, judged.name, compared),
        notes=[
            *sorted({note for term in terms for note in (term.note, term.borrowed) if note}),
            *_borrowed(decided),
            *jump_notes(missing),
        ],
    )
    return Tested(backtest, decided, books, held)


def _groups(policies: Sequence[Policy], references: Sequence[Policy]) -> list[tuple[str, Sequence[Policy]]]:
    judged = policies[0]
    around = () if judged.thresholds is not None else rivals(judged)
    return [("policy", policies), ("other forecast", around), ("reference", references)]


def _in_force(plan: Array) -> Array:
    """Returns what was decided last, from the row of the deciding hour on, [n]; 0 before the first decision."""
    known = np.where(np.isfinite(plan), np.arange(len(plan)), -1)
    last = np.maximum.accumulate(known)
    return np.where(last >= 0, plan[np.maximum(last, 0)], 0.0)


def _used(one: Calibrated) -> RegimesFrom:
    since = times.iso(one.since)
    return RegimesFrom(since, one.source, one.described, one.regimes.medium_from, one.regimes.high_from)


def _borrowed(decided: Decided) -> list[str]:
    """Returns a note where regimes of another symbol were used."""
    borrowed = [one for one in decided.calibrated if one.source == "uncalibrated"]
    if not borrowed:
        return []
    own = next((_day(one.since) for one in decided.calibrated if one.source == "own"), None)
    until = f"before {own}" if own else "in all of the period"
    return [
        f"{until} the regimes are by the thresholds of {borrowed[0].described}: {decided.symbol} has no 180 days of "
        "forecasts of its own before them in this file"
    ]


def _reasons(decided: Decided) -> dict[str, float]:
    counts: dict[str, int] = {}
    for event in decided.issued:
        for reason in event.verdict.reasons:
            counts[reason.code] = counts.get(reason.code, 0) + 1
    return {code: count / len(decided.issued) for code, count in sorted(counts.items(), key=lambda c: -c[1])}


def _findings(lines: Sequence[Line], name: str, compared: str) -> list[str]:
    """States what the forecast gains and what it does not, a line each, from the figures alone."""
    by_name = {line.name: line for line in lines}
    own, other = by_name[name].impact, by_name[compared].impact
    band = by_name[name].intervals
    found = [
        f"risk: the 7-day volatility misses its target by {number(own.tracking_rmse, 3)}, a constant weight of the "
        f"same mean exposure by {number(other.tracking_rmse, 3)}: {number(own.tracking_ratio, 2)} of it "
        f"(90 %: {between(band['tracking_ratio'])})",
        _compared("worst drawdown", own.drawdown, other.drawdown, band["drawdown_over_constant"]),
        _compared("CVaR 95 of a day", own.cvar_95, other.cvar_95, band["cvar_95_over_constant"]),
        f"cost: {own.turnover:.1f} times the equity is traded a year, for {own.fees:.2%} a year in fees",
        f"return: {share(own.cagr)} a year against {share(other.cagr)} of the constant weight, Sharpe "
        f"{number(own.sharpe, 2)} against {number(other.sharpe, 2)} (90 %: {between(band['sharpe'])}); no alpha is "
        "claimed",
    ]
    for line in lines:
        if line.kind == "other forecast":
            theirs = line.impact
            found.append(
                f"forecast: {line.name} tracks with {number(theirs.tracking_rmse, 3)} at a turnover of "
                f"{theirs.turnover:.1f}, drawdown {theirs.drawdown:.1%}, CVaR {share(theirs.cvar_95, 2)}"
            )
    return found


def _compared(what: str, own: float | None, other: float | None, ratio: Bounds) -> str:
    word = "beside" if own is None or other is None else "not worse than" if own >= other else "WORSE than"
    return (
        f"risk: {what} {share(own, 2)}, {word} the constant weight's {share(other, 2)} (ratio 90 %: {between(ratio)})"
    )


def _years(open_time: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(open_time.astype("datetime64[ms]").astype("datetime64[Y]").astype(np.int64) + 1970)


def _day(time_ms: int) -> str:
    return times.day(time_ms)
