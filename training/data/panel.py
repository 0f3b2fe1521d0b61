"""The panel: what happened beside what was said, hour by hour, for every forecaster and every quantity.

The one thing that evaluation passes around: the walk (training/evaluation/walk.py) fills it, the measures read it.
Rows are forecast origins in time order; an outcome that is not known is NaN, and so is a forecast that was not made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import Usual
from stream.core.forecasting.target import HORIZON_HOURS
from stream.core.forecasting.windows import Array

#: The headline: σ (ddof 1) of the next 24 hourly returns, none of them known.
NEXT_24H = "next_24h"
#: The reference project's quantity: σ of the 24 returns that end one hour from now, 23 of them known.
ROLLING_24H_NEXT = "rolling_24h_next"
#: √(mean squared hourly return) over the next hours: "horizon_1h", …
HORIZONS = tuple(f"horizon_{hours}h" for hours in HORIZON_HOURS)
QUANTITIES = (NEXT_24H, *HORIZONS, ROLLING_24H_NEXT)


@dataclass(frozen=True, slots=True)
class IntervalSeries:
    """Bounds of the next 24 h's σ, hourly: [n] each."""

    low: Array
    high: Array
    level: float


@dataclass(frozen=True, slots=True)
class Watch:
    """What a daemon would watch of one forecaster while one fit of it serves: one forecast a day, of the next 24 h.

    [n] each, σ hourly, in time order. `open_time` begins before the hours that are scored, by what the choice of who is
    served looks back on (stream/core/forecasting/serving.py).
    """

    usual: Usual
    open_time: NDArray[np.int64]
    realized: Array
    forecast: Array
    har: Array
    #: First and last hour that this fit is scored on (ms, open times).
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Panel:
    """σ hourly. `realized[quantity]` is [n]; `forecasts[quantity][name]` is [n], and not every name says every
    quantity."""

    symbol: str
    open_time: NDArray[np.int64]
    realized: Mapping[str, Array]
    forecasts: Mapping[str, Mapping[str, Array]]
    #: By name: "adaptive", "static"; where several bundles are scored, a further one's are "static of NAME".
    intervals: Mapping[str, IntervalSeries] = field(default_factory=dict)
    #: What a reader must know before the figures, one line each: leaks, fits that did not converge, who is left out.
    notes: tuple[str, ...] = ()
    #: By forecaster, one per fit; of those that know their usual errors, and only beside `har`.
    watches: Mapping[str, tuple[Watch, ...]] = field(default_factory=dict)
