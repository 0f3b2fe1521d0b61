"""The panel: outcomes and forecasts, hour by hour, for every forecaster and every quantity.

It is what evaluation passes around: the walk (training/evaluation/walk.py) fills it, the measures read it. Rows are
forecast origins in time order; an outcome that is not known is NaN, and so is a forecast that was not made.
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
    """What a daemon would monitor for decay while one fit of a forecaster serves: one forecast a day, of the next 24 h.

    [n] each, σ hourly, in time order. `open_time` begins before the hours that are scored, by the look-back of the
    choice between model and `har` (stream/core/forecasting/serving.py).
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
    """Outcomes and forecasts as hourly σ: `realized[quantity]` is [n], `forecasts[quantity][name]` is [n]. Not every
    forecaster has every quantity."""

    symbol: str
    open_time: NDArray[np.int64]
    realized: Mapping[str, Array]
    forecasts: Mapping[str, Mapping[str, Array]]
    #: By name: "adaptive", "static"; where several bundles are scored, a further one's are "static of NAME".
    intervals: Mapping[str, IntervalSeries] = field(default_factory=dict)
    #: Caveats to read before the figures, one line each: leaks, fits that did not converge, forecasters left out.
    notes: tuple[str, ...] = ()
    #: By forecaster, one per fit; only of forecasters with known usual errors, and only where `har` is fitted too.
    watches: Mapping[str, tuple[Watch, ...]] = field(default_factory=dict)
