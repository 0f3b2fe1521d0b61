"""Measures of a book: impact on risk, cost and stability. Ratios are empyrical's, annualized with 8,760 hours.

Rules of this module:
- Returns are hourly and simple; CVaR and the bootstrap are on UTC days, whose returns are compounded.
- Hours and days without a candle have no return. Annual figures count calendar time, holes included.
- A figure that does not exist, such as a ratio to an account that never moved, is None.
- Tracking: σ (ddof 1) of the book's last 168 hourly returns, annualized, against the target, hour by hour.
- Intervals come from a stationary bootstrap over days (Politis & Romano 1994). Book and constant weight are drawn on
  the same days, so that their ratio keeps what they have in common.
Importing this module loads pandas.
"""

from __future__ import annotations

import math
from typing import Any

import empyrical
import msgspec
import numpy as np
from arch.bootstrap import StationaryBootstrap
from numpy.typing import NDArray

from stream.core.deciding.policy import ANNUAL
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, HOURS_PER_YEAR
from training.backtest.benchmarks import reference_figures
from training.backtest.execution import TRACKING_HOURS, Book

DAY_HOURS = 24
#: Mean length of the bootstrap's blocks.
BLOCK_DAYS = 20
REPETITIONS = 500
#: With fewer days than this nothing is resampled.
LEAST_DAYS = 10
LEVEL = 0.9
_DAYS_PER_YEAR = HOURS_PER_YEAR / DAY_HOURS


class Impact(msgspec.Struct, frozen=True):
    """The figures of a book: shares of the equity; σ, returns and turnover per year; null where one does not exist."""

    cagr: float | None
    volatility_annualized: float | None
    #: RMSE of the 7-day volatility against the target, and mean realized / target.
    tracking_rmse: float | None
    realized_over_target: float | None
    #: The RMSE of the constant weight with the same mean exposure, and this book's over that.
    tracking_rmse_constant: float | None
    tracking_ratio: float | None
    sharpe: float | None
    sortino: float | None
    calmar: float | None
    drawdown: float
    longest_drawdown_days: float
    #: Mean of the worst 5 % of the days' returns; negative.
    cvar_95: float | None
    turnover: float
    fees: float
    mean_exposure: float
    share_at_cap: float
    risk_off_share: float
    exposure_changes: float
    mean_holding_hours: float
    #: The reference project's avg_return, volatility, max_drawdown and risk_off_rate, by its formulas, on this book.
    reference: dict[str, float | None]


class Part(msgspec.Struct, frozen=True):
    """The figures of one year or regime of a book; null where one does not exist."""

    hours: int
    growth: float
    volatility_annualized: float | None
    tracking_rmse: float | None
    mean_exposure: float
    turnover: float
    drawdown: float


#: Bounds of a central interval, null where the figure does not exist.
Bounds = tuple[float, float] | None


def impact(book: Book, held: Array, constant: Book, target: float, cap: float) -> Impact:
    """Computes the figures of a book. `held` [n]: the decided exposure in force in each hour; `constant`: the book of
    the constant weight that it is compared with."""
    exists = np.isfinite(book.returns)
    returns, years = book.returns[exists], len(exists) / HOURS_PER_YEAR
    # For what counts calendar time: an hour without a return adds nothing and still takes an hour.
    hourly = np.where(exists, book.returns, 0.0)
    realized = book.volatility_7d
    tracking, compared = (_rmse(sigma, target) for sigma in (realized, constant.volatility_7d))
    changes = int(np.count_nonzero(np.diff(held)))
    days = daily(book)
    days = days[np.isfinite(days)]
    return Impact(
        cagr=_ratio(empyrical.cagr, hourly),
        volatility_annualized=float(returns.std(ddof=1)) * ANNUAL if len(returns) > 1 else None,
        tracking_rmse=tracking,
        realized_over_target=float(np.nanmean(realized)) / target if np.isfinite(realized).any() else None,
        tracking_rmse_constant=compared,
        tracking_ratio=_over(tracking, compared),
        sharpe=_ratio(empyrical.sharpe_ratio, returns),
        sortino=_ratio(empyrical.sortino_ratio, returns),
        calmar=_ratio(empyrical.calmar_ratio, hourly),
        drawdown=float(empyrical.max_drawdown(hourly)),
        longest_drawdown_days=_longest_drawdown(book.equity) / DAY_HOURS,
        cvar_95=float(empyrical.conditional_value_at_risk(days, 0.05)) if len(days) else None,
        turnover=float(book.traded.sum()) / years,
        fees=float(book.cost.sum()) / years,
        mean_exposure=mean_exposure(book),
        share_at_cap=float((held >= cap).mean()),
        risk_off_share=float((held == 0).mean()),
        exposure_changes=changes / years,
        mean_holding_hours=len(held) / (changes + 1),
        reference=reference_figures(returns, held[exists]),
    )


def part(book: Book, target: float, inside: NDArray[np.bool_]) -> Part:
    """Computes the figures of some of the hours, put end to end. Tracking looks back on the hours before them."""
    returns = book.returns[inside]
    returns = returns[np.isfinite(returns)]
    realized = book.volatility_7d[inside]
    equity, weight = np.cumprod(np.append(1.0, 1 + returns)), book.weight[inside]
    return Part(
        hours=int(inside.sum()),
        growth=float(equity[-1] - 1),
        volatility_annualized=float(returns.std(ddof=1)) * ANNUAL if len(returns) > 1 else None,
        tracking_rmse=_rmse(realized, target),
        mean_exposure=float(np.nanmean(weight)) if np.isfinite(weight).any() else 0.0,
        turnover=float(book.traded[inside].sum()) * HOURS_PER_YEAR / int(inside.sum()),
        drawdown=float((equity / np.maximum.accumulate(equity) - 1).min()),
    )


def mean_exposure(book: Book) -> float:
    """Computes the mean weight of the hours that have a candle."""
    return float(np.nanmean(book.weight)) if np.isfinite(book.weight).any() else 0.0


def daily(book: Book) -> Array:
    """Computes the returns of whole UTC days, [days]; NaN for a day without a candle, 0 once no equity is left."""
    first = _first(book)
    ends = book.equity[first + DAY_HOURS - 1 :: DAY_HOURS]
    before = np.concatenate([[1.0 if first == 0 else book.equity[first - 1]], ends[:-1]])[: len(ends)]
    returns = np.divide(ends, before, out=np.ones_like(before), where=before > 0) - 1
    return np.where(_by_day(np.isfinite(book.weight), first).any(axis=1), returns, np.nan)


def intervals(book: Book, constant: Book, target: float, *, seed: int) -> dict[str, Bounds]:
    """Computes central 90 % bootstrap intervals by name: what other orders of the same days would have shown.

    None where there are fewer than `LEAST_DAYS`, or where the figure does not exist in over a tenth of the draws.
    """
    days, compared = daily(book), daily(constant)
    errors = [_squared_by_day(one, target) for one in (book, constant)]
    rows = np.stack([days, compared, *errors], axis=-1)
    rows = rows[np.isfinite(rows).all(axis=-1)]
    if len(rows) < LEAST_DAYS:
        return dict.fromkeys(_RESAMPLED)
    drawn = StationaryBootstrap(BLOCK_DAYS, rows, seed=np.random.default_rng(seed))
    with np.errstate(all="ignore"):
        found = drawn.apply(_resampled, REPETITIONS)
    return {name: _central(values) for name, values in zip(_RESAMPLED, found.T, strict=True)}


def _central(values: Array) -> Bounds:
    exists = values[np.isfinite(values)]
    if len(exists) < LEVEL * len(values):
        return None
    low, high = np.quantile(exists, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


_RESAMPLED = (
    "cagr", "volatility_annualized", "sharpe", "drawdown", "cvar_95", "tracking_rmse", "tracking_ratio",
    "drawdown_over_constant", "cvar_95_over_constant",
)  # fmt: skip


def _resampled(rows: Array) -> Array:
    # In one piece each: all that follows takes longer where values lie apart.
    days, compared, error, compared_error = np.ascontiguousarray(rows.T)
    own, other = _drawdown(days), _drawdown(compared)
    tail, compared_tail = _worst(days), _worst(compared)
    sigma = days.std(ddof=1)
    tracking = np.sqrt(error.mean())
    return np.array(
        [
            np.prod(1 + days) ** (_DAYS_PER_YEAR / len(days)) - 1,
            sigma * np.sqrt(_DAYS_PER_YEAR),
            days.mean() / sigma * np.sqrt(_DAYS_PER_YEAR),
            own,
            tail,
            tracking,
            tracking / np.sqrt(compared_error.mean()),
            own / other,
            tail / compared_tail,
        ]
    )


def _drawdown(returns: Array) -> np.float64:
    equity = np.cumprod(1 + returns)
    return np.float64((equity / np.maximum(np.maximum.accumulate(equity), 1.0) - 1).min())


def _worst(returns: Array) -> np.float64:
    count = max(int((len(returns) - 1) * 0.05), 0) + 1
    return np.float64(np.partition(returns, count - 1)[:count].mean())


def _squared_by_day(book: Book, target: float) -> Array:
    """Computes the mean squared tracking error of each whole day, over its hours with a 7-day volatility, [days]; NaN
    where none has one."""
    squared = (book.volatility_7d - target) ** 2
    days = _by_day(squared, _first(book))
    # A day that begins before the first 168 hours are full is not counted in part.
    known = np.isfinite(days) & (np.arange(len(days)) >= (TRACKING_HOURS - 1 - _first(book)) / DAY_HOURS)[:, None]
    total, count = np.where(known, days, 0.0).sum(axis=1), known.sum(axis=1)
    means: Array = np.divide(total, count, out=np.full(len(days), np.nan), where=count > 0)
    return means


def _by_day(values: NDArray[Any], first: int) -> NDArray[Any]:
    """Reshapes hourly values to [days, 24], whole UTC days only."""
    return values[first : first + max(len(values) - first, 0) // DAY_HOURS * DAY_HOURS].reshape(-1, DAY_HOURS)


def _first(book: Book) -> int:
    """Returns the number of rows before the first midnight."""
    return int(-(int(book.open_time[0]) // HOUR_MS) % DAY_HOURS)


def _rmse(realized: Array, target: float) -> float | None:
    return float(np.sqrt(np.nanmean((realized - target) ** 2))) if np.isfinite(realized).any() else None


def _over(of: float | None, other: float | None) -> float | None:
    """Returns the ratio of two figures; None where one of them or the ratio does not exist."""
    if of is None or other is None or other == 0:
        return None
    value = of / other
    return value if math.isfinite(value) else None


def _ratio(of: Any, returns: Array) -> float | None:
    if len(returns) < 2:
        return None
    try:
        with np.errstate(all="ignore"):
            value = float(of(returns, annualization=HOURS_PER_YEAR))
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _longest_drawdown(equity: Array) -> int:
    """Returns the length of the longest drawdown: hours from a peak to the next, or to the end."""
    below = equity < np.maximum(np.maximum.accumulate(equity), 1.0)
    edges = np.diff(np.concatenate([[0], below.astype(np.int8), [0]]))
    lengths = np.nonzero(edges == -1)[0] - np.nonzero(edges == 1)[0]
    return int(lengths.max()) if len(lengths) else 0
