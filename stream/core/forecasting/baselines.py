"""The baselines that every forecast carries: persistence, EWMA and log-HAR, all for the next 24 h.

Persistence is the realized volatility of the last 24 h, EWMA the feature of that name. `har` is log-HAR
(Corsi 2009, in logarithms) on 24 h, 7 d and 30 d with weekday and hour terms; its coefficients travel in the
bundle and its inputs are static features, so it cannot differ from the one that was fitted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import Har
from stream.core.forecasting.features import SIGMA_FLOOR, STATIC_NAMES
from stream.core.forecasting.windows import Array

#: log σ of 24 h, 7 d, 30 d: the last enters as it is, the shorter two as differences to it, which span the same.
HAR_LEVELS = ("log_realized_24h", "log_sigma_168h", "log_sigma_720h")
HAR_CALENDAR = tuple(
    name
    for name in STATIC_NAMES
    if name.startswith(("next_24h_", "hour_sin", "hour_cos")) or name == "last_24h_weekend"
)


def har_inputs(static: NDArray[np.float32], names: tuple[str, ...]) -> Array:
    """Returns the columns of a static feature array [..., S] that a HAR is fitted on: [..., len(names)]."""
    return static[..., [STATIC_NAMES.index(name) for name in names]].astype(np.float64)


def har(static: NDArray[np.float32], coefficients: Har) -> Array:
    """Returns E[σ] of the next 24 h, hourly, not below the floor: [...]. Accumulated, so one row equals that row among
    many."""
    terms = har_inputs(static, coefficients.names) * np.array(coefficients.coefficients)
    total = coefficients.intercept + np.add.accumulate(terms, axis=-1)[..., -1]
    sigma: Array = np.maximum(np.exp(np.clip(total, -12.0, 0.0)) * coefficients.retransform, SIGMA_FLOOR)
    return sigma
