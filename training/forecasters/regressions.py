"""The linear baselines: log-HAR plain and with calendar, and the model's own linear base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream.core.forecasting import baselines as core_baselines
from stream.core.forecasting.contract import Har
from stream.core.forecasting.windows import Array
from training.bundling import usual_errors
from training.data import sample
from training.data.dataset import Dataset, Rows, require_rows, walk_forward
from training.data.panel import NEXT_24H
from training.forecasters.forecaster import Fitted, Forecasts, of_outputs, qlike_factors
from training.models import linear, log_har


@dataclass(frozen=True, slots=True)
class LogHar:
    """log-HAR on `names` of the static features; it forecasts the next 24 h and nothing else."""

    name: str
    names: tuple[str, ...]
    needs: tuple[str, ...] = ()
    extra: str = ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        rows = require_rows(data, start_ms, end_ms)
        return of_har(log_har.fit(data, rows, walk_forward(start_ms, end_ms), self.names))


def of_har(coefficients: Har) -> Fitted:
    """Returns the HAR with the coefficients of a bundle as a forecaster."""

    def forecast(data: Dataset, rows: Rows) -> Forecasts:
        return {NEXT_24H: core_baselines.har(data.features.static[rows], coefficients)}

    return Fitted(forecast)


@dataclass(frozen=True, slots=True)
class LinearModel:
    """The model's linear base alone, learnt in the same way, with retransforms from out-of-fold forecasts.

    `pool`: other symbols that it is trained on as well, as the model is.
    """

    name: str = "linear"
    pool: Sequence[Dataset] = ()
    needs: tuple[str, ...] = ()
    extra: str = ""

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        every = [data, *self.pool]
        held_out, sigma = [], []
        for fold in walk_forward(start_ms, end_ms):
            held_out.append(data.rows(fold.split, fold.end))
            before = linear.fit_base(sample.of_range(every, fold.start, fold.split))
            sigma.append(_sigma(before, data, held_out[-1]))
        unseen, predicted = np.concatenate(held_out), np.concatenate(sigma)
        realized = data.labels[unseen]
        factors = np.concatenate(
            [[linear.mean_ratio(realized[:, 0], predicted[:, 0])], qlike_factors(realized, predicted)[1:]]
        )
        fitted = linear.fit_base(sample.of_range(every, start_ms, end_ms))
        return Fitted(
            lambda d, r: of_outputs(d, r, _sigma(fitted, d, r) * factors),
            usual=usual_errors.of_range(data, start_ms, end_ms, unseen, predicted[:, 0] * factors[0]),
        )


def _sigma(fitted: linear.Linear, data: Dataset, rows: Rows) -> Array:
    out: Array = np.exp(fitted.log_sigma(data.features.static[rows]))
    return out
