"""The drift statistic: how far a feature's values of today lie from those the model was trained on.

Training calibrates its threshold over historical windows and the monitor measures with it; both call this. It is
the statistic that Evidently calls the normed Wasserstein distance, on quantiles instead of all reference values.
"""

from __future__ import annotations

import numpy as np

from stream.core.contract import REFERENCE_LEVELS
from stream.core.windows import Array

#: A feature that hardly varied in training is measured in units of this instead of its own deviation.
MIN_DEVIATION = 1e-3


def levels() -> Array:
    """The levels of the stored quantiles: 0.005, 0.015, … 0.995."""
    out: Array = (np.arange(REFERENCE_LEVELS) + 0.5) / REFERENCE_LEVELS
    return out


def normed_wasserstein(current: Array, reference_quantiles: Array) -> float:
    """Mean distance between the quantiles of `current` [n] and the reference's [100], in reference deviations.

    NaN for no values at all. The caller leaves out rows that may not be forecast.
    """
    if not len(current):
        return float("nan")
    distance = np.mean(np.abs(np.quantile(current, levels()) - reference_quantiles))
    return float(distance / max(float(np.std(reference_quantiles)), MIN_DEVIATION))
