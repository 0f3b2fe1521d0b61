"""How much trees and LSTM count beside the linear base: one weight each per output, by out-of-fold loss.

The loss is QLIKE of the forecast brought to its own level, so that a weight is not chosen for a level that the factor
sets anyway. 0 is always among the weights: a part that does not help is left out. On the headline the LSTM has to earn
`LEAST_GAIN`: over 2021-2023 it was given weight there for less, and cost half a percent (docs/decisions/0011).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from stream.core.forecasting.contract import OUTPUT_WIDTH
from stream.core.forecasting.windows import Array

TREES_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
LSTM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Share of the loss by which the LSTM has to lower that of the next 24 h.
LEAST_GAIN = 0.005


@dataclass(frozen=True, slots=True)
class Blend:
    """log σ = (1 - trees) · base + trees · trees' log σ + lstm · residual + log_factor; [5] each."""

    trees: Array
    lstm: Array
    log_factor: Array

    def log_sigma(self, logs: Array) -> Array:
        """Returns log σ [n, 5] of what the parts forecast, [3, n, 5]."""
        base, trees, residual = logs
        out: Array = (1 - self.trees) * base + self.trees * trees + self.lstm * residual + self.log_factor
        return out


def unscaled(trees: float | Array, lstm: float | Array) -> Blend:
    """Returns a blend without a factor, by one weight for all outputs or one for each."""
    trees, lstm = (np.broadcast_to(np.asarray(w, np.float64), OUTPUT_WIDTH) for w in (trees, lstm))
    return Blend(trees, lstm, np.zeros(OUTPUT_WIDTH))


def chosen(logs: Array, labels: Array, weight: Array) -> Blend:
    """Chooses the weights by out-of-fold forecasts of base, trees and residual [3, n, 5], labels [n, 5] and the rows'
    weights [n]. An output without a label has no weights."""
    best = np.zeros((2, OUTPUT_WIDTH))
    for k in range(OUTPUT_WIDTH):
        known = np.isfinite(labels[:, k]) & (weight > 0)
        if not known.any():
            continue
        base, trees, residual = logs[:, known, k]
        share, gap = weight[known] / weight[known].sum(), np.log(labels[known, k]) - base
        losses = {
            (t, r): _level_free_loss(gap - t * (trees - base) - r * residual, share)
            for t, r in product(TREES_WEIGHTS, LSTM_WEIGHTS)
        }
        best[:, k] = min(losses, key=lambda pair: (losses[pair], pair))
        without = min((pair for pair in losses if pair[1] == 0), key=lambda pair: (losses[pair], pair))
        if k == 0 and losses[*best[:, k]] > (1 - LEAST_GAIN) * losses[without]:
            best[:, k] = without
    return unscaled(*best)


def _level_free_loss(gap: Array, share: Array) -> float:
    """Returns QLIKE of log errors [n] after the factor that makes it least."""
    return float(np.log(share @ np.exp(2 * gap)) - 2 * share @ gap)
