"""Hours without a candle, and what the price did over them: a return across them does not exist, so it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

#: A price that is half as much again, or so much less, has jumped whatever it usually does.
_JUMP = math.log(1.5)
#: Nearer to 1 it has where its own hourly σ would not bring it: so many σ × √hours, and a percent at least.
_JUMP_DEVIATIONS = 6.0
_LEAST_JUMP = math.log(1.01)


class Hole(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Missing hours between two candles. `from_`, `to`: the first and the last of them, ISO times (UTC)."""

    from_: str
    to: str
    hours: int
    #: The open after it over the close before it.
    factor: float
    #: Whether that is more than the pair would have moved in these hours: a swap of tokens, or news.
    jump: bool


def holes(open_time: NDArray[np.int64], opens: Array, closes: Array) -> list[Hole]:
    """Of an hourly grid, [n] each, NaN where an hour has no candle."""
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
    """A line for each jump."""
    return [
        f"the price is {hole.factor:.4g} times itself after {hole.hours} hour(s) without a candle, {hole.from_} to "
        f"{hole.to}: a swap of tokens or news; no return exists across missing hours, so it counts as none"
        for hole in found
        if hole.jump
    ]


def _hour(time_ms: int) -> str:
    return times.iso(time_ms)
