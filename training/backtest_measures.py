"""What a book was: impact on risk, cost and stability. Ratios are empyrical's, annualized with 8,760 hours.

Rules of this room:
- Returns are hourly and simple; CVaR and the bootstrap look at UTC days, whose returns are compounded.
- Tracking: σ (ddof 1) of the book's last 168 hourly returns, annualized, against the target, hour by hour.
- Intervals come from a stationary bootstrap over days (Politis & Romano 1994), the constant weight drawn with the book,
  so that their ratio keeps what they share.
Importing this module loads pandas.
"""

from __future__ import annotations

from typing import Any

import empyrical
import msgspec
import numpy as np
from arch.bootstrap import StationaryBootstrap
from numpy.typing import NDArray

from stream.core.candle import HOUR_MS, HOURS_PER_YEAR
from stream.core.policy import ANNUAL
from stream.core.windows import Array
from training.backtest_benchmarks import reference_figures
from training.backtest_execution import Book

TRACKING_HOURS = 168
DAY_HOURS = 24
#: Mean length of the bootstrap's blocks.
BLOCK_DAYS = 20
REPETITIONS = 500
LEVEL = 0.9
_DAYS_PER_YEAR = HOURS_PER_YEAR / DAY_HOURS


class Impact(msgspec.Struct, frozen=True):
    """Shares of the equity; σ, returns and turnover a year; null where a ratio does not exist."""

    cagr: float
    volatility_annualized: float
    #: RMSE of the 7-day volatility against the target, and mean realized / target.
    tracking_rmse: float
    realized_over_target: float
    #: The same RMSE of the constant weight with the same mean exposure, and this book's over it.
    tracking_rmse_constant: float
    tracking_ratio: float
    sharpe: float | None
    sortino: float | None
    calmar: float | None
    drawdown: float
    longest_drawdown_days: float
    #: Mean of the worst 5 % of the days' returns; negative.
    cvar_95: float
    turnover: float
    fees: float
    mean_exposure: float
    share_at_cap: float
    risk_off_share: float
    exposure_changes: float
    mean_holding_hours: float
    #: The reference project's avg_return, volatility, max_drawdown and risk_off_rate, by its formulas, on this book.
    reference: dict[str, float]


class Part(msgspec.Struct, frozen=True):
    """A year's or a regime's share of a book."""

    hours: int
    growth: float
    volatility_annualized: float
    tracking_rmse: float | None
    mean_exposure: float
    turnover: float
    drawdown: float


def realized_volatility(returns: Array) -> Array:
    """σ of the last 168 hourly returns, annualized, [n]; NaN for the first 167."""
    out, window = np.full(len(returns), np.nan), TRACKING_HOURS
    if len(returns) >= window:
        views = np.lib.stride_tricks.sliding_window_view(returns, window)
        # Means of views: a running sum of squares would lose the digits of quiet weeks.
        mean = views.mean(axis=1)
        square = np.einsum("ij,ij->i", views, views)
        out[window - 1 :] = np.sqrt(np.maximum(square - window * mean * mean, 0.0) / (window - 1)) * ANNUAL
    return out


def impact(book: Book, held: Array, constant: Book, target: float, cap: float) -> Impact:
    """The figures of a book. `held` [n]: the decided exposure in force in each hour; `constant`: the book beside it."""
    returns = book.returns
    years = len(returns) / HOURS_PER_YEAR
    realized = realized_volatility(returns)
    tracking, beside = (_rmse(sigma, target) for sigma in (realized, realized_volatility(constant.returns)))
    changes = int(np.count_nonzero(np.diff(held)))
    return Impact(
        cagr=float(empyrical.cagr(returns, annualization=HOURS_PER_YEAR)),
        volatility_annualized=float(returns.std(ddof=1)) * ANNUAL,
        tracking_rmse=tracking,
        realized_over_target=float(np.nanmean(realized)) / target,
        tracking_rmse_constant=beside,
        tracking_ratio=tracking / beside,
        sharpe=_ratio(empyrical.sharpe_ratio, returns),
        sortino=_ratio(empyrical.sortino_ratio, returns),
        calmar=_ratio(empyrical.calmar_ratio, returns),
        drawdown=float(empyrical.max_drawdown(returns)),
        longest_drawdown_days=_longest_drawdown(book.equity) / DAY_HOURS,
        cvar_95=float(empyrical.conditional_value_at_risk(daily(book), 0.05)),
        turnover=float(book.traded.sum()) / years,
        fees=float(book.cost.sum()) / years,
        mean_exposure=float(book.weight.mean()),
        share_at_cap=float((held >= cap).mean()),
        risk_off_share=float((held == 0).mean()),
        exposure_changes=changes / years,
        mean_holding_hours=len(held) / (changes + 1),
        reference=reference_figures(returns, held),
    )


def part(book: Book, target: float, inside: NDArray[np.bool_]) -> Part:
    """The figures of some of the hours, put end to end. Tracking looks back over what came before them."""
    returns = book.returns[inside]
    realized = realized_volatility(book.returns)[inside]
    equity = np.cumprod(1 + returns)
    return Part(
        hours=int(inside.sum()),
        growth=float(equity[-1] - 1),
        volatility_annualized=float(returns.std(ddof=1)) * ANNUAL,
        tracking_rmse=_rmse(realized, target) if np.isfinite(realized).any() else None,
        mean_exposure=float(book.weight[inside].mean()),
        turnover=float(book.traded[inside].sum()) * HOURS_PER_YEAR / int(inside.sum()),
        drawdown=float((equity / np.maximum.accumulate(np.concatenate([[1.0], equity]))[1:] - 1).min()),
    )


def daily(book: Book) -> Array:
    """Returns of whole UTC days, [days]."""
    first = _first(book)
    ends = book.equity[first + DAY_HOURS - 1 :: DAY_HOURS]
    before = 1.0 if first == 0 else book.equity[first - 1]
    returns: Array = ends / np.concatenate([[before], ends[:-1]]) - 1
    return returns


def intervals(book: Book, constant: Book, target: float, *, seed: int) -> dict[str, tuple[float, float]]:
    """Central 90 % intervals by name: what other orders of the same days would have shown."""
    days, beside = daily(book), daily(constant)
    errors = [_squared_by_day(one, target) for one in (book, constant)]
    known = np.isfinite(errors[0]) & np.isfinite(errors[1])
    rows = np.stack([days, beside, *errors], axis=-1)[known]
    drawn = StationaryBootstrap(BLOCK_DAYS, rows, seed=np.random.default_rng(seed))
    found = drawn.apply(_resampled, REPETITIONS)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(_RESAMPLED, low, high, strict=True)}


_RESAMPLED = (
    "cagr", "volatility_annualized", "sharpe", "drawdown", "cvar_95", "tracking_rmse", "tracking_ratio",
    "drawdown_over_constant", "cvar_95_over_constant",
)  # fmt: skip


def _resampled(rows: Array) -> Array:
    days, beside, error, error_beside = rows.T
    own, other = _drawdown(days), _drawdown(beside)
    tail, tail_beside = _worst(days), _worst(beside)
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
            tracking / np.sqrt(error_beside.mean()),
            own / other,
            tail / tail_beside,
        ]
    )


def _drawdown(returns: Array) -> float:
    equity = np.cumprod(1 + returns)
    return float((equity / np.maximum(np.maximum.accumulate(equity), 1.0) - 1).min())


def _worst(returns: Array) -> float:
    count = max(int((len(returns) - 1) * 0.05), 0) + 1
    return float(np.partition(returns, count - 1)[:count].mean())


def _squared_by_day(book: Book, target: float) -> Array:
    realized = realized_volatility(book.returns)
    squared: Array = (realized - target) ** 2
    first = _first(book)
    days = squared[first : first + (len(squared) - first) // DAY_HOURS * DAY_HOURS].reshape(-1, DAY_HOURS)
    return np.asarray(days.mean(axis=1))


def _first(book: Book) -> int:
    """Rows before the first midnight."""
    return int(-(int(book.open_time[0]) // HOUR_MS) % DAY_HOURS)


def _rmse(realized: Array, target: float) -> float:
    return float(np.sqrt(np.nanmean((realized - target) ** 2)))


def _ratio(of: Any, returns: Array) -> float | None:
    value = float(of(returns, annualization=HOURS_PER_YEAR))
    return value if np.isfinite(value) else None


def _longest_drawdown(equity: Array) -> int:
    """Hours from a peak to the next, or to the end."""
    below = equity < np.maximum(np.maximum.accumulate(equity), 1.0)
    edges = np.diff(np.concatenate([[0], below.astype(np.int8), [0]]))
    lengths = np.nonzero(edges == -1)[0] - np.nonzero(edges == 1)[0]
    return int(lengths.max()) if len(lengths) else 0
