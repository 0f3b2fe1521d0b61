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

import math
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
#: Hours that are looked at together for the next fill.
_LOOK_AHEAD = 512


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
    there = np.nonzero(np.isfinite(opens))[0]
    first, last, wanted = opens[there], closes[there], orders[there]
    after_hole = np.diff(there, prepend=-1) > 1
    worth, held, moved, paid = np.zeros((4, len(there)))
    cash, units, filled = 1.0, 0.0, 0.0

    def due(begin: int, end: int) -> NDArray[np.bool_]:
        """Returns in which of these hours an order is filled, if none is before."""
        wants, value = wanted[begin:end], units * first[begin:end]
        before = cash + value
        off = np.abs(wants - np.divide(value, before, out=np.zeros_like(value), where=before > 0))
        found: NDArray[np.bool_] = np.isfinite(wants) & (before > 0)
        found &= (wants != filled) | ((off >= band) & (off > 0))
        return found

    def disturbed(begin: int) -> int:
        """Returns the first hour from this one on in which units change, the end where there is none."""
        for start in range(begin, len(there), _LOOK_AHEAD):
            found = due(start, start + _LOOK_AHEAD) | after_hole[start : start + _LOOK_AHEAD]
            if found.any():
                return start + int(np.argmax(found))
        return len(there)

    # Units change once in days, so the hours between are computed at once.
    at = 0
    while at < len(there):
        price = first.item(at)
        if after_hole[at]:
            units = (held.item(at - 1) if at else 0.0) / price
        if due(at, at + 1)[0]:
            value = units * price
            before = cash + value
            bought = wanted.item(at) * before - value
            fee = abs(bought) * rate
            units, cash, filled = units + bought / price, cash - bought - fee, wanted.item(at)
            moved[at], paid[at] = abs(bought) / before, fee / before
        until = disturbed(at + 1)
        held[at:until] = units * last[at:until]
        worth[at:until] = cash + held[at:until]
        lost = worth[at:until] <= 0
        if lost.any():
            ruined = at + int(np.argmax(lost))
            held[ruined:], worth[ruined:] = 0.0, 0.0
            break
        at = until

    def of_grid(values: Array, elsewhere: float) -> Array:
        out = np.full(n, elsewhere)
        out[there] = values
        return out

    weight = np.divide(held, worth, out=np.zeros_like(held), where=worth > 0)
    # Where an hour has no candle, the account is worth what it was.
    equity = np.append(1.0, worth)[np.searchsorted(there, np.arange(n), side="right")]
    return Book(open_time, equity, of_grid(weight, math.nan), of_grid(moved, 0.0), of_grid(paid, 0.0))


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
