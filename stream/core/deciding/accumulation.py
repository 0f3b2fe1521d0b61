"""Accumulation: what the operator carries since its anchor, computed from nothing: intervals, policy memories, days
that decide what is served, own regimes.

Rules of this module:
- An accumulation begins at `anchor(t)`, a multiple of 30 days, 60 to 90 days back, and starts over when the anchor
  moves. So a fresh start and a daemon that ran for a year agree: both compute the same from the same hours.
- Carrying a memory on by one hour and accumulating all hours up to it are the same additions in the same order;
  tests/stream/core/deciding/test_operator.py compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.deciding import policy as risk
from stream.core.forecasting import intervals, serving
from stream.core.forecasting.contract import Calibration, Contract, Regimes
from stream.core.forecasting.features import LOOKBACK_HOURS
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

#: How many candles a forecast and its decision can depend on: 120 days.
HISTORY_HOURS = 2_880
ANCHOR_STEP_HOURS = 720
#: The accumulation covers the last 1,440 to 2,159 hours; the first of them needs `LOOKBACK_HOURS` before it.
ACCUMULATION_HOURS = HISTORY_HOURS - LOOKBACK_HOURS + 1
#: A symbol that the bundle does not describe takes its regimes from its own forecasts of this many hours before its
#: accumulation, once nearly all of them are known. Only each fifth hour is used: every hour of the week as often as
#: any other, for a fifth of the model calls at a fresh start.
OWN_REGIME_HOURS = 180 * 24
OWN_STEP_HOURS = 5
_MIN_OWN_FORECASTS = 170 * 24 // OWN_STEP_HOURS
#: How many candles such a symbol's decisions can depend on.
OWN_HISTORY_HOURS = HISTORY_HOURS + OWN_REGIME_HOURS

Serving = Literal["model", "har"]
#: Whose regimes are used; `uncalibrated`: the bundle's, because the symbol's own past is too short.
RegimesFrom = Literal["bundle", "own", "uncalibrated"]


class Rules(msgspec.Struct, frozen=True):
    """What stays the same for all symbols of one run. `described` is the symbol that the bundle describes."""

    policy: risk.Policy
    #: Those of the described symbol.
    regimes: Regimes
    calibration: Calibration
    har_calibration: Calibration
    described: str
    #: Further policies that are carried along for comparison; nothing is published about them.
    compared: tuple[risk.Policy, ...] = ()
    #: Whose forecasts must be remembered: the model's, har's, and whatever else policies act on.
    sources: tuple[str, ...] = ("model", "har")

    def __post_init__(self) -> None:
        others = {p.forecast for p in self.policies} - {"model", "har"}
        msgspec.structs.force_setattr(self, "sources", ("model", "har", *sorted(others)))

    @classmethod
    def of(cls, policy: risk.Policy, contract: Contract, compared: tuple[risk.Policy, ...] = ()) -> Rules:
        described = contract.training.symbols[0]
        return cls(policy, contract.regimes, contract.calibration, contract.har_calibration, described, compared)

    @property
    def policies(self) -> tuple[risk.Policy, ...]:
        return (self.policy, *self.compared)

    def sigma_hours(self, symbol: str) -> int:
        """Returns for how many hours the operator of a symbol keeps forecasts."""
        return ACCUMULATION_HOURS if symbol == self.described else ACCUMULATION_HOURS + OWN_REGIME_HOURS

    def history_hours(self, symbol: str) -> int:
        """Returns how many candles a forecast and its decision can depend on: 120 days, and 300 if the symbol's regimes
        are its own."""
        return HISTORY_HOURS if symbol == self.described else OWN_HISTORY_HOURS


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What an accumulation leads to, up to the newest hour, whose own forecast is not there yet."""

    calibrated: intervals.IntervalMemory
    #: None if `har` was never served in the accumulation.
    har_calibrated: intervals.IntervalMemory | None
    #: One for each of `Rules.policies`.
    memories: tuple[risk.PolicyMemory, ...]
    #: Excess of each forecast that closes a UTC day, newest last, at most `serving.DAYS`; NaN where one has no outcome.
    days: tuple[float, ...]
    #: One for each of `Rules.sources`: a source is compared with thresholds of its own, or one that forecasts more than
    #: another would always be in a higher regime.
    regimes: tuple[Regimes, ...]
    regimes_from: RegimesFrom


def anchor(open_time: int) -> int:
    """Returns where the accumulation behind a decision on this candle begins (ms, open time)."""
    oldest = open_time // HOUR_MS - (ACCUMULATION_HOURS - ANCHOR_STEP_HOURS)
    return oldest // ANCHOR_STEP_HOURS * ANCHOR_STEP_HOURS * HOUR_MS


def forecast_hours(open_time: NDArray[np.int64], start: int, own: bool) -> NDArray[np.bool_]:
    """Returns for each of n hours whether an accumulation from `start` on, or its regimes, depend on its forecast.

    own: whether the regimes are the symbol's own (`Contract.describes` is False).
    """
    asked: NDArray[np.bool_] = open_time >= start
    if own:
        hour = open_time // HOUR_MS
        asked |= (hour >= start // HOUR_MS - OWN_REGIME_HOURS) & (hour % OWN_STEP_HOURS == 0)
    return asked


def accumulate(rules: Rules, symbol: str, start: int, sigmas: Array, realized: Array, before: Array) -> Accumulated:
    """Accumulates from nothing over the hours from `start` to the newest, whose own forecast is not there yet.

    sigmas: [sources + 1, n], σ by source (`Rules.sources`) and the missing hours of the last 48. realized: [>= n], σ of
    the 24 hours that end with each hour. before: [sources + 1, m], the same as `sigmas` for the hours before `start`,
    for the regimes. Hourly σ, NaN where there is none.
    """
    past = realized[-sigmas.shape[1] :]
    regimes, regimes_from = regimes_of(rules, symbol, start, before)
    calibrated, highs = intervals.accumulated(rules.calibration, start, sigmas[0], past)
    days, har_served = served_days(start, sigmas, past)
    har_calibrated: intervals.IntervalMemory | None = None
    volatility = sigmas[0]
    if har_served.any():
        har_calibrated, har_highs = intervals.accumulated(rules.har_calibration, start, sigmas[1], past)
        volatility, highs = (
            np.where(har_served, sigmas[1], sigmas[0]),
            np.where(har_served, har_highs, highs),
        )
    memories = policy_memories(rules, regimes, start, sigmas, volatility, highs, har_served)
    now = tuple(of_policy[-1] for of_policy in memories)
    return Accumulated(calibrated, har_calibrated, now, days, regimes, regimes_from)


def har_intervals(rules: Rules, start: int, sigmas: Array, realized: Array) -> intervals.IntervalMemory:
    """Returns the memory of har's intervals over the same hours, for when `har` is served for the first time in an
    accumulation."""
    return intervals.accumulate(rules.har_calibration, start, sigmas[1], realized[-sigmas.shape[1] :])


def served_days(start: int, sigmas: Array, realized: Array) -> tuple[tuple[float, ...], NDArray[np.bool_]]:
    """Returns the days as they are at the end, and whether `har` was served at each hour: [n]."""
    first, hours = start // HOUR_MS, sigmas.shape[1]
    har_served = np.zeros(hours, np.bool_)
    days: list[float] = []
    # Hours whose candle closes a day: then the outcome of the day before becomes known.
    for k in range((23 - first) % 24, hours, 24):
        known = k >= intervals.DELAY_HOURS
        model, har = (float(sigmas[row, k - intervals.DELAY_HOURS]) if known else math.nan for row in (0, 1))
        days.append(excess(float(realized[k]), model, har))
        har_served[k:] = serving.behind(days)
    return tuple(days[-serving.DAYS :]), har_served


def excess(realized: float, model: float, har: float) -> float:
    """Returns a day's excess (stream/core/forecasting/serving.py), NaN if any of the three is."""
    if realized != realized or model != model or har != har:
        return math.nan
    return serving.excess(realized, model, har)


def regimes_of(rules: Rules, symbol: str, start: int, before: Array) -> tuple[tuple[Regimes, ...], RegimesFrom]:
    """The regimes of an accumulation, one for each source, and where they come from; `before` as in `accumulate`."""
    sources = len(rules.sources)
    of_bundle = (rules.regimes,) * sources
    if symbol == rules.described:
        return of_bundle, "bundle"
    first = max(before.shape[1] - OWN_REGIME_HOURS, 0)
    hour = start // HOUR_MS - before.shape[1] + np.arange(first, before.shape[1])
    looked_at = before[:sources, first:][:, hour % OWN_STEP_HOURS == 0]
    known = looked_at[:, np.isfinite(looked_at[0])]
    if known.shape[1] < _MIN_OWN_FORECASTS:
        return of_bundle, "uncalibrated"
    return tuple(Regimes.of(one) for one in known), "own"


def regimes_for(rules: Rules, policy: risk.Policy, regimes: tuple[Regimes, ...], har_served: bool) -> Regimes:
    """Returns the regimes of the forecast that the policy acts on; a policy that acts on the model's acts on `har`'s
    while that is served."""
    source = "har" if har_served and policy.forecast == "model" else policy.forecast
    return regimes[rules.sources.index(source)]


def policy_memories(
    rules: Rules,
    regimes: tuple[Regimes, ...],
    start: int,
    sigmas: Array,
    volatility: Array,
    highs: Array,
    har_served: NDArray[np.bool_],
    shown: int = 0,
) -> tuple[list[risk.PolicyMemory], ...]:
    """Returns the memories of all policies over the last `shown` forecasts of these hours: the one before the first of
    them, and the one after each; `volatility` and `highs` are those of what was served."""
    rows = np.nonzero(np.isfinite(sigmas[0]))[0]
    columns = dict(zip(rules.sources, sigmas[:, rows], strict=False))
    columns["model"] = volatility[rows]
    relative, hours, gaps = highs[rows] / volatility[rows], start // HOUR_MS + rows, sigmas[-1, rows].astype(np.int64)
    seen = {
        name: list(zip(*(of.tolist() for of in (hours, sigma, sigma * relative, gaps)), strict=True))
        for name, sigma in columns.items()
    }
    served = har_served[rows].tolist()

    def limits(policy: risk.Policy) -> Iterable[Regimes]:
        by_who = [regimes_for(rules, policy, regimes, har) for har in (False, True)]
        return map(by_who.__getitem__, served)

    return tuple(risk.accumulate(policy, limits(policy), seen[policy.forecast], shown) for policy in rules.policies)
