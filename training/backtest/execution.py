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

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.windows import Array

#: From a candle to the last open at which the decision on it may be filled: `valid_until` is its close + 2 h.
VALID_HOURS = 2
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


@dataclass(frozen=True, slots=True)
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

    @property
    def returns(self) -> Array:
        """Simple returns of each hour, costs included; NaN where an hour has no candle."""
        before = np.concatenate([[1.0], self.equity[:-1]])
        growth: Array = np.divide(self.equity, before, out=np.ones_like(before), where=before > 0) - 1
        return np.where(np.isfinite(self.weight), growth, np.nan)


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
    equity, weight, traded, cost = [0.0] * n, [math.nan] * n, [0.0] * n, [0.0] * n
    cash, units, filled = 1.0, 0.0, 0.0
    worth, held, seen = 1.0, 0.0, -1
    for t, (first, last, wanted) in enumerate(zip(opens.tolist(), closes.tolist(), orders.tolist(), strict=True)):
        if first == first:
            if worth > 0:
                if seen < t - 1:
                    units = held / first
                before = cash + units * first
                if wanted == wanted and before > 0:
                    off = abs(wanted - units * first / before)
                    if wanted != filled or (off >= band and off > 0):
                        moved = wanted * before - units * first
                        paid = abs(moved) * rate
                        units, cash, filled = units + moved / first, cash - moved - paid, wanted
                        traded[t], cost[t] = abs(moved) / before, paid / before
                worth = cash + units * last
                if worth <= 0:
                    worth = cash = units = 0.0
                held, seen = units * last, t
            weight[t] = held / worth if worth > 0 else 0.0
        equity[t] = worth
    return Book(open_time, np.array(equity), np.array(weight), np.array(traded), np.array(cost))
