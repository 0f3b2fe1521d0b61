"""QLIKE, the loss that forecasts are judged by: x - ln x - 1 with x = (realized / forecast)² (Patton 2011).

0 if the forecast was right; one too low costs more than one too high. σ are in any one unit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def loss(realized: float, forecast: float) -> float:
    """Returns the loss of one forecast."""
    x = (realized / forecast) ** 2
    return x - math.log(x) - 1


def losses(realized: NDArray[np.float64], forecast: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the loss of each forecast: [n], or [k, n] where there are k forecasts of each."""
    x = (realized / forecast) ** 2
    found: NDArray[np.float64] = x - np.log(x) - 1
    return found
