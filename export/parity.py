"""The parity check of export: the bundle must compute what the run did, for the windows that the run names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.deciding.replay import Predict

#: Largest difference in log σ that is allowed, which is about the relative error of σ.
LIMIT = 1e-5


class Windows(NamedTuple):
    """Inputs [n, 48, F] and [n, S], and what the run computed of them, [n, 5]."""

    sequence: NDArray[np.float32]
    static: NDArray[np.float32]
    volatility: NDArray[np.float32]


def largest_gap(predict: Predict, given: Windows) -> float:
    """Computes the largest |Δ log σ| between the run and the bundle, over all windows and outputs."""
    of_run = given.volatility.astype(np.float64)
    of_bundle = predict(given.sequence, given.static).astype(np.float64)
    gap = np.abs(np.log(of_bundle) - np.log(of_run))
    # A NaN on one side only is a gap; max() over it would compare as no gap.
    return float(np.max(np.where(np.isfinite(gap), gap, np.inf)))
