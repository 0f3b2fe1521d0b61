"""Tests of whether one forecaster is better than another or only luckier: three, each on one forecast a day.

Rules of this module:
- Forecasts of one phase (made at one hour of the day) share no hour of outcome, so days are counted, not hours. Every
  phase is tested; the median is reported with the spread, since a single phase is not a result.
- The tests are those of statsmodels and arch. The constants here were fixed before any figure was seen.
- A test that cannot be made is reported with the reason, never as a number.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import qlike
from stream.core.forecasting.windows import Array
from training.scoring.groups import PHASES
from training.scoring.measures import Scores

#: Newey-West lag. Loss differences of non-overlapping days are correlated through the week's season and through
#: spells of unrest: one week. Between the rule 4 (T/100)^(2/9), 5 for a year, and T^(1/3), 8.
HAC_LAG_DAYS = 7
#: Fewer days than this are not tested: Newey-West over a week needs some weeks.
MIN_DAYS = 30
SET_LEVEL = 0.9
SET_BLOCK_DAYS = 10
SET_REPETITIONS = 1_000
_SEED = 7
_ROUNDING = 1e-9

Mask = NDArray[np.bool_]


class Comparison(msgspec.Struct, frozen=True):
    """Diebold-Mariano test, two-sided, of one forecaster against another. A negative statistic favours the first.

    Medians over the phases that could be tested, with the smallest and largest p; all null where there is a `reason`.
    """

    phases: int
    #: Median over the phases.
    days: int
    statistic: float | None = None
    p: float | None = None
    p_min: float | None = None
    p_max: float | None = None
    #: Mean QLIKE of the first less that of the second, over all rows.
    difference: float | None = None
    reason: str | None = None


class PhaseTest(NamedTuple):
    """The test of one phase, two-sided; a negative statistic favours the first forecaster."""

    phase: int
    days: int
    statistic: float
    p: float

    @property
    def p_better(self) -> float:
        """Of the one-sided test that the first is better: small where it is."""
        return self.p / 2 if self.statistic < 0 else 1 - self.p / 2


class ConfidenceSet(msgspec.Struct, frozen=True):
    """Model confidence set (Hansen, Lunde & Nason 2011): the forecasters that are not distinguishable from the best at
    the 90 % level."""

    days: int
    included: list[str] | None = None
    #: Smallest size of the test at which each would leave the set.
    p: Scores | None = None
    reason: str | None = None


class Regression(msgspec.Struct, frozen=True):
    """Mincer-Zarnowitz regression: realized = a + b forecast. An unbiased forecast has a = 0 and b = 1.

    Medians over the phases; standard errors are Newey-West; `p` tests a = 0 and b = 1 jointly.
    """

    phases: int
    a: float | None = None
    b: float | None = None
    a_error: float | None = None
    b_error: float | None = None
    b_min: float | None = None
    b_max: float | None = None
    r2: float | None = None
    p: float | None = None
    reason: str | None = None


def diebold_mariano(realized: Array, first: Array, second: Array, phase: NDArray[np.int64]) -> Comparison:
    """Tests two forecasts by Diebold & Mariano 1995 on QLIKE, with the correction of Harvey, Leybourne & Newbold 1997;
    [n] each.

    The forecasts of a phase are daily and reach one day ahead, so the correction's horizon is 1.
    """
    results, reason = phase_tests(realized, first, second, phase)
    if reason is not None:
        return _no_comparison(reason)
    known = _known(realized, first, second)
    losses = qlike.losses(realized[known], first[known]), qlike.losses(realized[known], second[known])
    statistic, p = np.array([(r.statistic, r.p) for r in results]).T
    return Comparison(
        phases=len(results),
        days=int(np.median([r.days for r in results])),
        statistic=float(np.median(statistic)),
        p=float(np.median(p)),
        p_min=float(p.min()),
        p_max=float(p.max()),
        difference=float((losses[0] - losses[1]).mean()),
    )


def phase_tests(
    realized: Array, first: Array, second: Array, phase: NDArray[np.int64], *, bound: float | None = None
) -> tuple[list[PhaseTest], str | None]:
    """Returns the test of each phase that has enough days, or none and the reason why nothing can be tested.

    bound: a day's difference of losses counts for no more than this, in either direction.
    """
    known = _known(realized, first, second)
    losses = qlike.losses(realized[known], first[known]), qlike.losses(realized[known], second[known])
    if known.any() and _differ_by_a_constant(*losses):
        return [], "their losses differ by a constant: there is nothing to test"
    results: list[PhaseTest] = []
    by_phase = _by_phase(known, phase)
    for rows in by_phase:
        y, a, b = realized[rows], first[rows], second[rows]
        if not _differ_by_a_constant(qlike.losses(y, a), qlike.losses(y, b)):
            with np.errstate(all="ignore"):
                done = _tested(y, a, b, bound)
            if np.isfinite([done.statistic, done.pvalue]).all():
                of = int(phase[rows][0])
                results.append(PhaseTest(of, int(rows.sum()), float(done.statistic), float(done.pvalue)))
    if not results:
        return [], "their losses hardly vary: there is nothing to test" if by_phase else _too_few()
    return results, None


def _tested(realized: Array, first: Array, second: Array, bound: float | None) -> Any:
    """Returns the test of one phase, as statsmodels has it."""
    from statsmodels.tsa.stattools import diebold_mariano_test

    options = {"lags": HAC_LAG_DAYS, "harvey_adj": True, "horizon": 1}
    if bound is None:
        return diebold_mariano_test(realized, first, second, criterion=qlike.losses, **options)
    # The test is one of differences: that of the bounded ones to nothing is the same.
    difference = np.clip(qlike.losses(realized, first) - qlike.losses(realized, second), -bound, bound)
    nothing = np.zeros_like(realized)
    return diebold_mariano_test(nothing, difference, nothing, criterion=lambda _, loss: loss, **options)


def _known(realized: Array, first: Array, second: Array) -> Mask:
    return np.isfinite(realized) & np.isfinite(first) & np.isfinite(second)


def confidence_set(losses: Mapping[str, Array]) -> ConfidenceSet:
    """Computes the model confidence set of daily losses [days] by forecaster, none unknown: those of one phase. The
    bootstrap is stationary and seeded."""
    from arch.bootstrap import MCS

    names = list(losses)
    days = len(losses[names[0]]) if names else 0
    reason = None
    if len(names) < 2:
        reason = "a set of one: nothing to compare"
    elif days < MIN_DAYS:
        reason = _too_few()
    else:
        pairs = combinations(names, 2)
        twins = [f"{a} and {b}" for a, b in pairs if _differ_by_a_constant(losses[a], losses[b])]
        reason = f"the losses of {twins[0]} differ by a constant" if twins else None
    if reason is not None:
        return ConfidenceSet(days, reason=reason)
    test = MCS(
        np.column_stack([losses[name] for name in names]),
        size=1 - SET_LEVEL,
        reps=SET_REPETITIONS,
        block_size=SET_BLOCK_DAYS,
        method="R",
        bootstrap="stationary",
        seed=_SEED,
    )
    with np.errstate(all="ignore"):
        test.compute()
    p = test.pvalues["Pvalue"]
    if not np.isfinite(p).all():
        return ConfidenceSet(days, reason="the losses hardly vary: there is nothing to test")
    return ConfidenceSet(
        days, [names[i] for i in test.included], {name: float(p.loc[i]) for i, name in enumerate(names)}
    )


def mincer_zarnowitz(realized: Array, forecast: Array, phase: NDArray[np.int64]) -> Regression:
    """Regresses realized on forecast σ, [n] each (Mincer & Zarnowitz 1969)."""
    from statsmodels.regression.linear_model import OLS

    results = []
    for rows in _by_phase(np.isfinite(realized) & np.isfinite(forecast), phase):
        y, f = realized[rows], forecast[rows]
        if np.ptp(f) > 0 and np.ptp(y) > 0:
            # Where forecasts hardly vary the covariance is rounding error: without rank, or with no square root.
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                line = OLS(y, np.column_stack([np.ones(len(f)), f])).fit(
                    cov_type="HAC", cov_kwds={"maxlags": HAC_LAG_DAYS, "use_correction": True}, use_t=True
                )
                together = line.f_test((np.eye(2), np.array([0.0, 1.0])))
                found = [*line.params, *line.bse, line.rsquared, float(together.pvalue)]
            if np.isfinite(found).all():
                results.append(found)
    if not results:
        return Regression(phases=0, reason=_too_few() + " of one phase, or nothing varies")
    table = np.array(results)
    a, b, a_error, b_error, r2, p = np.median(table, axis=0).tolist()
    b_min, b_max = table[:, 1].min().item(), table[:, 1].max().item()
    return Regression(len(results), a, b, a_error, b_error, b_min, b_max, r2, p)


def _by_phase(known: Mask, phase: NDArray[np.int64]) -> list[Mask]:
    """Returns the rows of each phase that has enough known days, as masks."""
    return [rows for k in range(PHASES) if (rows := known & (phase == k)).sum() >= MIN_DAYS]


def _differ_by_a_constant(first: Array, second: Array) -> bool:
    """Returns whether the losses differ by a constant up to rounding, of which a test would find something."""
    return bool(np.ptp(first - second) <= _ROUNDING * (first.mean() + second.mean()))


def _no_comparison(reason: str) -> Comparison:
    return Comparison(phases=0, days=0, reason=reason)


def _too_few() -> str:
    return f"fewer than {MIN_DAYS} days"
