"""The interface of every forecaster: a name and a fit, which returns something that forecasts any rows of a dataset."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stream.core.forecasting import target
from stream.core.forecasting.contract import Calibration, Usual
from stream.core.forecasting.features import SIGMA_FLOOR
from stream.core.forecasting.windows import Array
from stream.errors import InputError
from stream.extras import installing, missing
from training.data.dataset import Dataset, Rows
from training.data.panel import HORIZONS, NEXT_24H, ROLLING_24H_NEXT

#: By quantity (training/data/panel.py): σ hourly, one per row; NaN where no forecast is made.
Forecasts = Mapping[str, Array]


class ForecasterError(InputError):
    """A forecaster is not available: its name is unknown, or what it needs is not installed or not writable."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A forecaster after its fit."""

    forecast: Callable[[Dataset, Rows], Forecasts]
    #: Caveats for the reader of its figures, one line each.
    notes: tuple[str, ...] = ()
    #: Of its intervals for the next 24 h, from out-of-fold forecasts inside its range; most baselines have none.
    calibration: Calibration | None = None
    #: Its errors while it is sound, from the same forecasts; a forecaster that has them can be studied for decay.
    usual: Usual | None = None
    #: What parts of it forecast, by names of their own: scored beside it, so that it shows which of them earns what.
    ablations: Callable[[Dataset, Rows], Mapping[str, Forecasts]] | None = None


class Forecaster(Protocol):
    @property
    def name(self) -> str: ...

    #: Modules that the fit imports and a plain installation lacks, and the extra that installs them.
    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def extra(self) -> str: ...

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        """Fits on the rows of [start, end), whose labels end within it; `DatasetError` where they are too few."""


_CURES = {"lightgbm": "; install OpenMP's library, libgomp1 on Debian"}
#: These take seconds to import and need settings first, so they are left to the fit that uses them.
_LOADED_LATER = ("tensorflow", "keras")


def require_installed(forecasters: Iterable[Forecaster]) -> None:
    """Raises `ForecasterError`, one line, for the first forecaster whose libraries are absent or cannot be loaded.
    Called before any fit."""
    for forecaster in forecasters:
        lacking = missing(forecaster.needs)
        if lacking:
            raise ForecasterError(
                f"{forecaster.name} needs {', '.join(lacking)} (volcast[{forecaster.extra}]): "
                f"{installing(forecaster.extra)} (or leave it out by name)"
            )
        for name in forecaster.needs:
            try:
                if name not in _LOADED_LATER:
                    importlib.import_module(name)
            except (ImportError, OSError) as error:
                # For example LightGBM without the system's OpenMP.
                raise ForecasterError(
                    f"{forecaster.name} needs {name}, which is installed and cannot be loaded: {error}"
                    f"{_CURES.get(name, '')} (or leave it out by name)"
                ) from None


def of_outputs(data: Dataset, rows: Rows, sigma: Array) -> dict[str, Array]:
    """Returns every quantity from σ [n, 5] in the order of the network's outputs, as forecast messages have them."""
    usable = np.all(np.isfinite(sigma) & (sigma > 0), axis=1)
    sigma = np.where(usable[:, None], np.maximum(sigma, SIGMA_FLOOR), np.nan)
    out = {NEXT_24H: sigma[:, 0]}
    out |= {name: sigma[:, k] for k, name in enumerate(HORIZONS, 1)}
    out[ROLLING_24H_NEXT] = target.rolling_24h_next(data.features, rows, sigma[:, 1])
    return out


def qlike_factors(realized: Array, forecast: Array) -> Array:
    """Returns the factors [k] on σ [n, k] that minimise QLIKE: √(mean of (realized / forecast)²), where it is known."""
    factors: Array = np.sqrt(np.nanmean((realized / forecast) ** 2, axis=0))
    return factors
