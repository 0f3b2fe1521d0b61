"""Executes decided exposures, with next-bar fills, fees and slippage: one book, hour by hour.

Rules of this module:
- A decision on the candle of hour t is filled at the open of hour t + `delay_hours`, never at a price that it saw.
- A decision that has expired (stream/core/messages/builders.py: two hours after its candle's close) is not filled;
  what is held stays held, and across hours without a candle nothing can be traded.
- No return exists across hours without a candle, here as in features and target: what is held is worth at the first
  price after them what it was worth before. A swap of tokens in a halt is no profit, and a crash in one is not seen.
- Between fills units are held and the weight drifts. It is brought back once it is off by `drift_band`.
- No interest on cash, none on borrowed cash; an equity of zero stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stream.core.deciding.policy import ANNUAL
from stream.core.forecasting.windows import Array

#: From a candle to the last open at which the decision on it may be filled: `valid_until` is its close + 2 h.
VALID_HOURS = 2
TRACKING_HOURS = 168
_BASIS_POINT = 1e-4


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs and limits of fills. `fee_bp` and `slippage_bp`: hundredths of a percent of the value traded, each time.

    Raises `ValueError` where the delay is not 1 to `VALID_HOURS` hours, or another number is negative.
    """

    fee_bp: float = 10.0
    slippage_bp: float = 0.0
    delay_hours: int = 1
    drift_band: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.delay_hours <= VALID_HOURS:
            raise ValueError(f"a delay of {self.delay_hours} h: a decision can be filled after 1 to {VALID_HOURS} h")
        if not (self.fee_bp >= 0 and self.slippage_bp >= 0 and self.drift_band >= 0):
            raise ValueError("fee, slippage and drift band must be at least 0")

    @property
    def rate(self) -> float:
        return (self.fee_bp + self.slippage_bp) * _BASIS_POINT


@dataclass(frozen=True)
class Book:
    """The account by hour of the grid, [n] each; equity starts at 1."""

    open_time: NDArray[np.int64]
    #: At the hour's close, after costs; where an hour has no candle, that of the last one.
    equity: Array
    #: Share of the equity in the asset, at the hour's close; NaN where an hour has no candle.
    weight: Array
    #: Value traded at the hour's open, as a share of the equity then.
    traded: Array
    #: Fees and slippage paid at the hour's open, as a share of the equity then.
    cost: Array

    @cached_property
    def returns(self) -> Array:
        """Simple returns of each hour, costs included; NaN where an hour has no candle."""
        before = np.concatenate([[1.0], self.equity[:-1]])
        growth: Array = np.divide(self.equity, before, out=np.ones_like(before), where=before > 0) - 1
        return np.where(np.isfinite(self.weight), growth, np.nan)

    @cached_property
    def volatility_7d(self) -> Array:
        """σ of the last 168 hourly returns, annualized, as `realized_volatility` computes it."""
        return realized_volatility(self.returns)


def execute(
    open_time: NDArray[np.int64], opens: Array, closes: Array, exposure: Array, costs: Costs | None = None
) -> Book:
    """Computes the book of these decisions. All [n] on the hourly grid.

    `opens`, `closes`: NaN where an hour has no candle. `exposure`: decided at the hour's close; NaN where nothing was.
    """
    costs = costs or Costs()
    rate, delay, band = costs.rate, costs.delay_hours, costs.drift_band
    n = len(open_time)
    orders = np.full(n, np.nan)
    for ago in range(VALID_HOURS, delay - 1, -1):
        newer = exposure[: n - ago] if ago < n else exposure[:0]
        orders[n - len(newer) :] = np.where(np.isfinite(newer), newer, orders[n - len(newer) :])
    # Lists: an element of an array costs more to set than the whole hour to compute.
    there = np.nonzero(np.isfinite(opens))[0]
    resumed = (np.diff(there, prepend=-1) > 1).tolist()
    hours = zip(*(of[there].tolist() for of in (opens, closes, orders)), resumed, strict=True)
    worths, helds, fills = list[float](), list[float](), list[tuple[int, float, float]]()
    cash, units, filled = 1.0, 0.0, 0.0
    worth, held = 1.0, 0.0
    for first, last, wanted, after_hole in hours:
        if worth > 0:
            if after_hole:
                units = held / first
            if wanted == wanted:
                value = units * first
                before = cash + value
                if before > 0:
                    off = abs(wanted - value / before)
                    if wanted != filled or (off >= band and off > 0):
                        moved = wanted * before - value
                        paid = abs(moved) * rate
                        units, cash, filled = units + moved / first, cash - moved - paid, wanted
                        fills.append((len(worths), abs(moved) / before, paid / before))
            held = units * last
            worth = cash + held
            if worth <= 0:
                worth = cash = units = held = 0.0
        worths.append(worth)
        helds.append(held)
    return _book(open_time, there, np.array(worths), np.array(helds), fills)


def _book(
    open_time: NDArray[np.int64],
    there: NDArray[np.int64],
    worth: Array,
    held: Array,
    fills: list[tuple[int, float, float]],
) -> Book:
    """Returns the book of hours on the grid from those that have a candle, `there`. fills: which of these, and what was
    traded and paid then."""
    weight, traded, cost = np.full(len(open_time), np.nan), np.zeros(len(open_time)), np.zeros(len(open_time))
    weight[there] = np.divide(held, worth, out=np.zeros(len(there)), where=worth > 0)
    if fills:
        which, moved, paid = zip(*fills, strict=True)
        traded[there[list(which)]], cost[there[list(which)]] = moved, paid
    # Where an hour has no candle, the account is worth what it was.
    newest = np.searchsorted(there, np.arange(len(open_time)), side="right")
    return Book(open_time, np.append(1.0, worth)[newest], weight, traded, cost)


def realized_volatility(returns: Array) -> Array:
    """Computes σ of the last 168 hourly returns, annualized, [n]; NaN for the first 167, for hours that have no return
    and where under half of the 168 have one."""
    out, window = np.full(len(returns), np.nan), TRACKING_HOURS
    if len(returns) >= window:
        exists = np.isfinite(returns)
        views = np.lib.stride_tricks.sliding_window_view(np.where(exists, returns, 0.0), window)
        until = np.append(0, np.cumsum(exists))
        count = until[window:] - until[:-window]
        defined = exists[window - 1 :] & (2 * count >= window)
        number = np.where(defined, count, window)
        # Sums over views: a running sum of squares would lose the digits of quiet weeks.
        mean = views.sum(axis=1) / number
        square = np.einsum("ij,ij->i", views, views)
        sigma = np.sqrt(np.maximum(square - number * mean * mean, 0.0) / (number - 1)) * ANNUAL
        out[window - 1 :] = np.where(defined, sigma, np.nan)
    return out
