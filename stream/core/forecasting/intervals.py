"""Adaptive conformal intervals for the volatility of the next 24 hours, learning only from outcomes that are known.

Rules of this module:
- The outcome of a forecast is known 24 hours later and changes nothing before then, here as in reality.
- Weekday and weekend are calibrated separately: their errors differ, and pooled intervals miss the level on one of
  them.
- The memory is an accumulation from the bundle's starting calibration over a finite history, so a fresh start agrees
  with a daemon that ran for a year.

Scores are residuals log(realized / forecast). Bounds are their empirical quantiles over the starting residuals and
what was learnt since, at miss rates that each tail adapts: rate += GAMMA × (aimed - missed) (Gibbs & Candès 2021,
arXiv 2106.00170), one step an hour. GAMMA and the limits were chosen on 2021-2023 (docs/decisions/0005).
"""

from __future__ import annotations

import math
from bisect import insort_left
from functools import lru_cache

import msgspec
import numpy as np

from stream.core.forecasting.contract import Calibration
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

#: Hours from a forecast to its outcome.
DELAY_HOURS = 24
GAMMA = 0.001
#: The miss rate of a tail stays within these: at the lower one a bound is near the pool's extreme, and beyond it
#: there is nothing to read a bound from.
MISS_RATE_RANGE = (0.01, 0.25)
#: With fewer residuals than this a group uses the bundle's static bounds.
MIN_RESIDUALS = 50
_DAY_HOURS = 24
#: Hour 0 since the epoch was the first of a Thursday.
_EPOCH_WEEKDAY = 3


class Interval(msgspec.Struct, frozen=True, gc=False):
    """Bounds, hourly σ, that are to contain the outcome with probability `level`."""

    low: float
    high: float
    level: float


class Group(msgspec.Struct, frozen=True):
    """One kind of day, weekday or weekend: the bundle's residuals, the same list for every symbol, and those that were
    learnt since. Both are sorted and never written to."""

    starting: list[float]
    learnt: Array
    miss_below: float
    miss_above: float


class IntervalMemory(msgspec.Struct, frozen=True):
    groups: tuple[Group, Group]
    #: log bounds relative to the forecast, by hour: [DELAY_HOURS + 1, 2], the newest last, NaN where none was given.
    given: Array = msgspec.field(default_factory=lambda: np.full((DELAY_HOURS + 1, 2), np.nan))


def group_of(open_time: int) -> int:
    """Returns 1 if the middle of the 24 hours that follow this candle lies on a Saturday or Sunday (UTC), else 0."""
    middle = open_time // HOUR_MS + 1 + DELAY_HOURS // 2
    return int((middle // _DAY_HOURS + _EPOCH_WEEKDAY) % 7 >= 5)


@lru_cache(maxsize=8)
def _starting(calibration: Calibration) -> tuple[list[float], list[float]]:
    """Returns the bundle's residuals of weekdays and of weekends. Cached, so that all symbols share them."""
    parts: tuple[list[float], list[float]] = ([], [])
    for k, residual in enumerate(calibration.residuals):
        if residual is not None:
            parts[group_of(calibration.residuals_from + k * HOUR_MS)].append(residual)
    return sorted(parts[0]), sorted(parts[1])


def start(calibration: Calibration) -> IntervalMemory:
    """Returns the memory before anything was learnt: the bundle's residuals, and the nominal miss rate."""
    rate = (1 - calibration.level) / 2
    weekday, weekend = (Group(part, np.empty(0), rate, rate) for part in _starting(calibration))
    return IntervalMemory((weekday, weekend))


def passed(memory: IntervalMemory, hours: int = 1) -> IntervalMemory:
    """Returns the memory when the next candle is `hours` later: the given bounds move on by as many rows."""
    given = np.empty_like(memory.given)
    kept = max(len(given) - hours, 0)
    given[:kept] = memory.given[len(given) - kept :]
    given[kept:] = np.nan
    return IntervalMemory(memory.groups, given)


def learn(
    calibration: Calibration, memory: IntervalMemory, open_time: int, volatility: float, realized: float
) -> IntervalMemory:
    """Returns the memory after an outcome: at the candle of `open_time` it is known that the forecast of 24 hours
    before, `volatility`, was followed by `realized`. Both hourly σ."""
    residual = math.log(realized / volatility)
    index = group_of(open_time - DELAY_HOURS * HOUR_MS)
    group = memory.groups[index]
    low, high = memory.given[0].tolist()
    rate = (1 - calibration.level) / 2
    below = _within(group.miss_below + GAMMA * (rate - (residual < low)))
    above = _within(group.miss_above + GAMMA * (rate - (residual > high)))
    at = int(group.learnt.searchsorted(residual))
    learnt = np.empty(len(group.learnt) + 1)
    learnt[:at], learnt[at], learnt[at + 1 :] = group.learnt[:at], residual, group.learnt[at:]
    after = Group(group.starting, learnt, below, above)
    return IntervalMemory((after, memory.groups[1]) if index == 0 else (memory.groups[0], after), memory.given)


def give(
    calibration: Calibration, memory: IntervalMemory, open_time: int, volatility: float
) -> tuple[IntervalMemory, Interval]:
    """Returns the memory after giving an interval, and that interval: for the forecast `volatility` of this candle."""
    group = memory.groups[group_of(open_time)]
    low, high = _bounds(calibration, group.starting, group.learnt, group.miss_below, group.miss_above)
    given = memory.given.copy()
    given[-1] = low, high
    return IntervalMemory(memory.groups, given), Interval(
        volatility * math.exp(low), volatility * math.exp(high), calibration.level
    )


def accumulate(calibration: Calibration, open_time: int, volatility: Array, realized: Array) -> IntervalMemory:
    """Returns the memory after a stretch of hours, accumulated from nothing. Rows are hours from `open_time` on.

    `volatility`: the forecast of each hour's candle; `realized`: the realized volatility of the 24 hours that end with
    it. Both [n], hourly σ, NaN where there is none.
    """
    return accumulated(calibration, open_time, volatility, realized)[0]


def accumulated(
    calibration: Calibration, open_time: int, volatility: Array, realized: Array
) -> tuple[IntervalMemory, Array]:
    """Returns what `accumulate` does, and the upper ends of the intervals given on the way: [n], NaN where none was."""
    memory, _, highs = _lived(calibration, open_time, volatility, realized)
    return memory, _ends(volatility, highs)


def given_hours(calibration: Calibration, open_time: int, volatility: Array, realized: Array) -> tuple[Array, Array]:
    """Returns the lower and the upper ends of the intervals given on the way of `accumulate`: [n] each, NaN where there
    was no forecast."""
    _, lows, highs = _lived(calibration, open_time, volatility, realized)
    return _ends(volatility, lows), _ends(volatility, highs)


def _ends(volatility: Array, bounds: list[float]) -> Array:
    exp = math.exp
    return np.array([forecast * exp(bound) for forecast, bound in zip(volatility.tolist(), bounds, strict=True)])


def _lived(
    calibration: Calibration, open_time: int, volatility: Array, realized: Array
) -> tuple[IntervalMemory, list[float], list[float]]:
    """Returns the memory after these hours, and the log bounds given on the way, lower and upper, NaN where none were.

    Does the arithmetic of `passed`, `learn` and `give` on lists: the hours are many, and the memories between them are
    not needed. A group is one sorted list here.
    """
    memory = start(calibration)
    starting, learnt = [group.starting for group in memory.groups], (list[float](), list[float]())
    pools = [list(part) for part in starting]
    below, above = [g.miss_below for g in memory.groups], [g.miss_above for g in memory.groups]
    forecasts, outcomes, log = volatility.tolist(), realized.tolist(), math.log
    lows, highs = [math.nan] * len(forecasts), [math.nan] * len(forecasts)
    rate = (1 - calibration.level) / 2
    groups = [group_of(open_time + k * HOUR_MS) for k in range(len(forecasts))]
    forecasts_before = [math.nan] * DELAY_HOURS + forecasts[:-DELAY_HOURS]
    for k, (forecast, outcome, earlier) in enumerate(zip(forecasts, outcomes, forecasts_before, strict=False)):
        if outcome == outcome and earlier == earlier:
            residual, then = log(outcome / earlier), k - DELAY_HOURS
            i = groups[then]
            below[i] = _within(below[i] + GAMMA * (rate - (residual < lows[then])))
            above[i] = _within(above[i] + GAMMA * (rate - (residual > highs[then])))
            insort_left(pools[i], residual)
            learnt[i].append(residual)
        if forecast == forecast:
            i = groups[k]
            lows[k], highs[k] = _bounds_of_list(calibration, pools[i], below[i], above[i])
    weekday, weekend = (Group(starting[i], np.array(sorted(learnt[i])), below[i], above[i]) for i in (0, 1))
    newest = np.full((DELAY_HOURS + 1, 2), np.nan)
    kept = min(len(lows), len(newest))
    if kept:
        newest[-kept:, 0], newest[-kept:, 1] = lows[-kept:], highs[-kept:]
    return IntervalMemory((weekday, weekend), newest), lows, highs


def _within(rate: float) -> float:
    least, most = MISS_RATE_RANGE
    return least if rate < least else most if rate > most else rate


def _bounds(
    calibration: Calibration, starting: list[float], learnt: Array, miss_below: float, miss_above: float
) -> tuple[float, float]:
    """Returns log bounds relative to the forecast, from sorted residuals."""
    if len(starting) + len(learnt) < MIN_RESIDUALS:
        return calibration.low, calibration.high
    # An interval contains its forecast, whatever has happened lately.
    return (
        min(_quantile(starting, learnt, miss_below), 0.0),
        max(_quantile(starting, learnt, 1 - miss_above), 0.0),
    )


def _bounds_of_list(
    calibration: Calibration, residuals: list[float], miss_below: float, miss_above: float
) -> tuple[float, float]:
    """Returns what `_bounds` does, of residuals in one sorted list, where the place of an order statistic is its index:
    for a quarter of the time."""
    last = len(residuals) - 1
    if last + 1 < MIN_RESIDUALS:
        return calibration.low, calibration.high
    place = miss_below * last
    below = int(place)
    low = residuals[below]
    if below < last:
        low += (residuals[below + 1] - low) * (place - below)
    place = (1 - miss_above) * last
    below = int(place)
    high = residuals[below]
    if below < last:
        high += (residuals[below + 1] - high) * (place - below)
    return low if low < 0.0 else 0.0, high if high > 0.0 else 0.0


def _quantile(starting: list[float], learnt: Array, share: float) -> float:
    """Interpolates linearly between order statistics of both together, as numpy does by default."""
    number = len(starting) + len(learnt)
    place = share * (number - 1)
    below = int(place)
    # How many of the `below` smallest are among `starting`.
    first, last = max(below - len(learnt), 0), min(below, len(starting))
    while first < last:
        middle = (first + last) // 2
        if starting[middle] < learnt.item(below - middle - 1):
            first = middle + 1
        else:
            last = middle
    lower, first, at = _smaller(starting, first, learnt, below - first)
    if below + 1 == number:
        return lower
    upper, _, _ = _smaller(starting, first, learnt, at)
    return lower + (upper - lower) * (place - below)


def _smaller(starting: list[float], first: int, learnt: Array, at: int) -> tuple[float, int, int]:
    """Returns the smaller of two next values, and which are the next ones after it."""
    if at == len(learnt) or (first < len(starting) and starting[first] <= learnt.item(at)):
        return starting[first], first + 1, at
    return learnt.item(at), first, at + 1
