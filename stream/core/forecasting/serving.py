"""Serving: whose forecast is published, the model's, or `har`'s while the model is broken: far behind it for 30 days.

Rules of this module:
- One value a day, of the forecast made at 00:00 UTC, once its 24 hours are over: days that share no hour.
- A day's excess, QLIKE of the model less that of `har`, is bounded: one wild day does not count like 30 bad ones.
- The answer is a function of the last 30 such days alone, so a fresh start and a year's run agree.

What it costs and when it is right is in docs/decay.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream.core.forecasting import qlike
from stream.core.market.candle import HOUR_MS

#: Matured days that are looked at, and how many of them must be known.
DAYS = 30
MIN_DAYS = 25
#: `har` is served while the mean excess is above this. A sound model that has bad luck stays under it, one that is off
#: by a factor of two does not (docs/decay.md).
LIMIT = 0.10
#: A day's excess counts for no more than this, in either direction.
BOUND = 0.5
_DAY_HOURS = 24


def is_daily(open_time: int) -> bool:
    """Returns whether this candle closes a UTC day: its forecast is the one that is tested."""
    return (open_time // HOUR_MS) % _DAY_HOURS == _DAY_HOURS - 1


def excess(realized: float, model: float, har: float) -> float:
    """Returns a day's bounded excess: QLIKE of the model less that of `har`; σ in any one unit."""
    return min(max(qlike.loss(realized, model) - qlike.loss(realized, har), -BOUND), BOUND)


def mean_excess(days: Sequence[float]) -> float:
    """Returns the mean of the newest `DAYS` of these excesses, oldest first, NaN where one is unknown; 0 if too few are
    known."""
    known = [d for d in days[-DAYS:] if d == d]
    return sum(known) / len(known) if len(known) >= MIN_DAYS else 0.0


def behind(days: Sequence[float]) -> bool:
    return mean_excess(days) > LIMIT
