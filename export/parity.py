"""The parity check of export: Keras and the bundle must compute the same for the same windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.deciding.replay import Predict
from stream.core.forecasting.contract import OUTPUT

#: Largest difference in log σ that is allowed, which is about the relative error of σ.
LIMIT = 1e-5
RANDOM_WINDOWS = 256

Windows = tuple[NDArray[np.float32], NDArray[np.float32]]


def windows(real: Windows) -> Windows:
    """Returns the run's windows, and `RANDOM_WINDOWS` artificial ones: noise within the clipping bounds, statics
    shuffled."""
    sequence, static = real
    chance = np.random.default_rng(0)
    noise = np.clip(chance.normal(0, 3, (RANDOM_WINDOWS, *sequence.shape[1:])), -8, 8).astype(np.float32)
    shuffled = chance.permuted(static, axis=0)[chance.integers(0, len(static), RANDOM_WINDOWS)]
    return np.concatenate([sequence, noise]), np.concatenate([static, shuffled])


def largest_gap(network: Any, predict: Predict, given: Windows) -> float:
    """Computes the largest |Δ log σ| between the Keras network and the bundle, over all windows and outputs."""
    sequence, static = given
    of_keras = np.asarray(network([sequence, static], training=False)[OUTPUT], dtype=np.float64)
    of_bundle = predict(sequence, static).astype(np.float64)
    gap = np.abs(np.log(of_bundle) - np.log(of_keras))
    # A NaN on one side only is a gap; max() over it would compare as no gap.
    return float(np.max(np.where(np.isfinite(gap), gap, np.inf)))
