"""Forecasters that can be scored: the baselines, each as strong as it can honestly be made, and the model.

Rules of this module:
- A fit uses rows whose labels end within its range (`Dataset.rows`) and no later candle; a forecast for a row depends
  on candles up to that row. tests/training/forecasters/test_forecasters.py alters the future and compares. It must find
  the leak of `rolling_mean_published`, which repeats a published one and is named for it.
- Next 24 h means E[σ], a horizon √E[σ²]: whatever is fitted is scaled to that level inside its range, so that none
  loses by a constant.
- Importing this package loads no TensorFlow, arch or LightGBM. A missing library is a one-line error before any fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.data.dataset import Dataset
from training.data.panel import NEXT_24H
from training.forecasters.arithmetic import Ewma, Persistence, RollingMean, RollingMeanPublished
from training.forecasters.boosting import LightGbm
from training.forecasters.forecaster import (
    Fitted,
    Forecaster,
    ForecasterError,
    Forecasts,
    require_installed,
)
from training.forecasters.garch import GarchT
from training.forecasters.network import Bundle, Network, of_bundle
from training.forecasters.reference_lstm import ReferenceLstm
from training.forecasters.regressions import LinearModel, LogHar, of_har
from training.models import log_har

__all__ = [
    "BASELINES",
    "CORE",
    "NAMES",
    "Bundle",
    "Fitted",
    "Forecaster",
    "ForecasterError",
    "Forecasts",
    "named",
    "of_bundle",
    "of_har",
    "require_installed",
]

#: Those that need only a plain installation, and seconds.
CORE = ("persistence", "ewma", "rolling_mean_published", "rolling_mean", "log_har", "har", "linear")
#: All that a model is compared with; the last two need TensorFlow and minutes.
BASELINES = (*CORE, "garch_t", "lightgbm", "reference_lstm", "reference_lstm_24h")
NAMES = (*BASELINES, "model")


def named(
    names: Sequence[str], *, seed: int = 7, pool: Sequence[Dataset] = (), save_reference_to: Path | None = None
) -> tuple[Forecaster, ...]:
    """Returns forecasters by name, in that order; raises `ForecasterError` for a name that is unknown or given twice.

    `pool`: other symbols that the model, its linear base and LightGBM are trained on too.
    `save_reference_to`: a .keras file for `reference_lstm`.
    """
    every: dict[str, Forecaster] = {
        forecaster.name: forecaster
        for forecaster in (
            Persistence(),
            Ewma(),
            RollingMeanPublished(),
            RollingMean(),
            LogHar("log_har", log_har.PLAIN),
            LogHar("har", log_har.WITH_CALENDAR),
            LinearModel(pool=pool),
            GarchT(),
            LightGbm(seed, pool=pool),
            ReferenceLstm(seed=seed, save_to=save_reference_to),
            ReferenceLstm("reference_lstm_24h", NEXT_24H, seed=seed),
            Network(pool=pool, seed=seed),
        )
    }
    for name in names:
        if name not in every:
            raise ForecasterError(f"no forecaster is called {name!r}; there are {', '.join(every)}")
    if len(set(names)) < len(names):
        raise ForecasterError(f"a forecaster is named twice: {', '.join(names)}")
    return tuple(every[name] for name in names)
