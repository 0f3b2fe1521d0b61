"""A training run as a model that can be scored before it is exported: network and trees with a bundle's interface."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import contract
from stream.core.forecasting.contract import ContractError, Model
from stream.extras import installing, missing
from training.data.dataset import DatasetError
from training.models import trees
from training.models.trees import Trees

if TYPE_CHECKING:
    import keras

_ROWS = 4_096


class Run:
    """A trained network that is called as a loaded bundle is: `run(sequence [n, 48, F], static [n, S])` returns
    volatility [n, 5].

    A run is no bundle yet and has no version of its own: `model.sha256` is the hash of its contract.
    """

    def __init__(self, model: Model, network: keras.Model, leaves: Trees) -> None:
        self.model = model
        self._network = network
        self._leaves = leaves

    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
        return volatility(self._network, self._leaves, sequence, static)


def volatility(
    network: keras.Model, leaves: Trees, sequence: NDArray[np.float32], static: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Computes what a run's network and trees forecast, [n, 5]: hourly σ."""
    parts = [slice(first, first + _ROWS) for first in range(0, len(sequence), _ROWS)]
    outputs = [network([sequence[p], static[p]], training=False)[contract.LOG_VOLATILITY] for p in parts]
    logs = np.concatenate([np.asarray(output, dtype=np.float64) for output in outputs]) + leaves.sums(static)
    return np.exp(np.clip(logs, *contract.LOG_SIGMA_RANGE)).astype(np.float32)


def load_run(folder: Path) -> Run:
    """Loads the finished run in `folder`, and TensorFlow. Raises `ValueError` with a one-line message where there is
    none."""
    try:
        text = (folder / "contract.json").read_bytes()
    except OSError as error:
        raise DatasetError(f"{folder}: is no finished run: {error.strerror}; make one with `volcast train`") from None
    try:
        agreed = contract.read(text.decode())
    except (ContractError, UnicodeDecodeError) as error:
        raise ContractError(f"{folder}: {error}") from None
    if missing(["keras"]):
        raise DatasetError(
            f"{folder}: scoring a run needs the extra 'train': {installing('train')} "
            "(or score the bundle that was exported from it)"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import keras

    try:
        # Keras's safe mode refuses code in the file.
        network = keras.saving.load_model(folder / "network.keras", compile=False)
        leaves = trees.load(folder / "trees.npz")
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        cause = str(error).strip().splitlines()[0]
        raise DatasetError(f"{folder}: holds no network and trees: {cause}; run `volcast train` again") from None
    return Run(Model(agreed, hashlib.sha256(text).hexdigest()), network, leaves)
