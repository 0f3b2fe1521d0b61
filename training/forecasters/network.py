"""Volcast's own model as a forecaster: trained for a walk forward, or taken from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import Model as BundleModel
from training.bundling import describe, usual_errors
from training.data.dataset import Dataset, Rows
from training.forecasters.forecaster import Fitted, Forecasts, of_outputs
from training.models import fit

_BATCH_ROWS = 8_192


class Bundle(Protocol):
    """What `stream.adapters.predictor.load` returns."""

    @property
    def model(self) -> BundleModel: ...

    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Network:
    """The model of training/models/fit.py; `pool`: other symbols that it is trained on as well, over the same range."""

    name: str = "model"
    pool: Sequence[Dataset] = ()
    seed: int = 7
    #: None: the model's own number (`training_loop.EPOCHS`).
    epochs: int | None = None
    needs: tuple[str, ...] = ("tensorflow", "keras", "lightgbm")
    extra: str = "train"

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        fitted = fit.fitted([data, *self.pool], start_ms, end_ms, seed=self.seed, epochs=self.epochs)
        rows, sigma = fitted.held_out
        return Fitted(
            lambda d, r: of_outputs(d, r, fitted.sigma(d, r)),
            ablations=lambda d, r: {name: of_outputs(d, r, part) for name, part in fitted.sigmas(d, r).items()},
            calibration=describe.calibration(data, rows, sigma[:, 0]),
            usual=usual_errors.of_range(data, start_ms, end_ms, rows, sigma[:, 0]),
        )


def of_bundle(bundle: Bundle) -> Fitted:
    """Returns a bundle as a forecaster: in every quantity the numbers of its forecast messages while it is served."""

    def forecast(data: Dataset, rows: Rows) -> Forecasts:
        parts = [rows[first : first + _BATCH_ROWS] for first in range(0, len(rows), _BATCH_ROWS)]
        outputs = [bundle(data.features.sequences(part), data.features.static[part]) for part in parts]
        levels = np.array(contract.levels(data.symbol))
        return of_outputs(data, rows, np.concatenate(outputs).astype(np.float64) * levels)

    contract = bundle.model.contract
    return Fitted(forecast, calibration=contract.calibration, usual=contract.usual)
