"""Hours without a candle, and how the price moved over them. No return exists across them, so a jump is reported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

#: A change by a factor of 1.5, up or down, is a jump whatever the symbol's volatility.
_JUMP = math.log(1.5)
#: A smaller change is a jump where it reaches this many of the symbol's own hourly σ × √hours, and at least a percent.
_JUMP_DEVIATIONS = 6.0
_LEAST_JUMP = math.log(1.01)


class Hole(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Missing hours between two candles. `from_`, `to`: the first and the last missing hour, ISO times (UTC)."""

    from_: str
    to: str
    hours: int
    #: The open after the hole over the close before it.
    factor: float
    #: Whether that is more than the pair usually moves in so many hours: a swap of tokens, or news.
    jump: bool


def holes(open_time: NDArray[np.int64], opens: Array, closes: Array) -> list[Hole]:
    """Returns the holes of an hourly grid; arrays are [n], NaN where an hour has no candle."""
    there = np.flatnonzero(np.isfinite(closes))
    returns = np.diff(np.log(closes))
    returns = returns[np.isfinite(returns)]
    sigma = float(returns.std()) if len(returns) else 0.0
    found = []
    for before, after in zip(there[:-1].tolist(), there[1:].tolist(), strict=True):
        hours = after - before - 1
        if hours:
            move = abs(math.log(opens[after] / closes[before]))
            usual = max(_JUMP_DEVIATIONS * sigma * math.sqrt(hours + 1), _LEAST_JUMP)
            found.append(
                Hole(
                    _hour(int(open_time[before]) + HOUR_MS),
                    _hour(int(open_time[after]) - HOUR_MS),
                    hours,
                    float(opens[after] / closes[before]),
                    move >= min(usual, _JUMP),
                )
            )
    return found


def jump_notes(found: Sequence[Hole]) -> list[str]:
    """Returns one line for each jump."""
    return [
        f"the price is {hole.factor:.4g} times itself after {hole.hours} hour(s) without a candle, {hole.from_} to "
        f"{hole.to}: a swap of tokens or news; no return exists across missing hours, so it counts as none"
        for hole in found
        if hole.jump
    ]


def _hour(time_ms: int) -> str:
    return times.iso(time_ms)
