"""Gradient boosted trees (LightGBM) on the inputs of the network.

Inputs: the static features, and the four measured channels of the sequence (return, range, realized, volume) for all
48 hours. Left out are the sequence's calendar, which repeats that of the static features, and its `missing`, which a
tree could use in 60 hours out of 50,000.
Trees cannot forecast a level that was not in their training data, so they are trained on σ relative to that of 30 days,
itself an input, by the Gamma deviance: of σ for the next 24 h, scaled to E[σ] by a factor from out-of-fold forecasts,
and of σ², which is QLIKE, for the horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import OUTPUT_WIDTH
from stream.core.forecasting.features import SEQUENCE_NAMES, STATIC_NAMES
from stream.core.forecasting.windows import Array
from training.data import sample
from training.data.dataset import Dataset, Rows, walk_forward
from training.data.sample import Sample
from training.forecasters.forecaster import Fitted, Forecasts, of_outputs
from training.models.linear import mean_ratio
from training.models.trees import SHARED_SETTINGS

CHANNELS = ("return_scaled", "log_range", "log_realized_24h", "log_volume")
_CHANNELS = [SEQUENCE_NAMES.index(name) for name in CHANNELS]
_LEVEL = STATIC_NAMES.index("log_sigma_720h")
_SETTINGS = SHARED_SETTINGS | {
    "learning_rate": 0.03,
    "feature_fraction": 0.2,
    # Neighbouring labels share 23 of 24 hours: a third of them serves a tree as well.
    "bagging_fraction": 0.33,
}


@dataclass(frozen=True, slots=True)
class LightGbm:
    seed: int = 7
    trees: int = 200
    #: Other symbols that it is trained on as well, as the model is.
    pool: Sequence[Dataset] = ()
    name: str = "lightgbm"
    needs: tuple[str, ...] = ("lightgbm",)
    extra: str = "research"

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        every = [data, *self.pool]
        realized, predicted = [], []
        for fold in walk_forward(start_ms, end_ms):
            before, held_out = sample.of_range(every, fold.start, fold.split), data.rows(fold.split, fold.end)
            realized.append(data.labels[held_out, 0])
            predicted.append(self._boosted(before, 0).sigma(data, held_out))
        factor = mean_ratio(np.concatenate(realized), np.concatenate(predicted))
        whole = sample.of_range(every, start_ms, end_ms)
        boosted = [self._boosted(whole, k) for k in range(OUTPUT_WIDTH)]

        def forecast(data: Dataset, rows: Rows) -> Forecasts:
            sigma = np.stack([one.sigma(data, rows) for one in boosted], axis=-1)
            sigma[:, 0] *= factor
            return of_outputs(data, rows, sigma)

        return Fitted(forecast)

    def _boosted(self, learnt: Sample, output: int) -> _Boosted:
        import lightgbm

        label = learnt.labels[:, output]
        known = np.isfinite(label)
        relative = np.log(label[known]) - learnt.static[known, _LEVEL]
        settings = _SETTINGS | {"seed": self.seed, "min_data_in_leaf": min(200, int(known.sum()) // 20)}
        table = np.concatenate([inputs(one, rows) for one, rows in learnt.parts])[known]
        table = lightgbm.Dataset(table, np.exp((2 if output else 1) * relative), weight=learnt.weight[known])
        return _Boosted(lightgbm.train(settings, table, num_boost_round=self.trees), squared=output > 0)


@dataclass(frozen=True, slots=True)
class _Boosted:
    booster: Any
    squared: bool

    def sigma(self, data: Dataset, rows: Rows) -> Array:
        raw = np.asarray(self.booster.predict(inputs(data, rows), num_threads=1), dtype=np.float64)
        relative = np.sqrt(raw) if self.squared else raw
        out: Array = relative * np.exp(data.features.static[rows, _LEVEL].astype(np.float64))
        return out


def inputs(data: Dataset, rows: Rows) -> NDArray[np.float32]:
    """Returns the inputs of the trees, [n, S + 48 × 4]."""
    sequence = data.features.sequences(rows)[..., _CHANNELS]
    return np.concatenate([data.features.static[rows], sequence.reshape(len(rows), -1)], axis=1)
