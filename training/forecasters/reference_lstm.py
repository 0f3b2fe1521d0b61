"""The reference project's network, rebuilt from its description.

Its inputs are 48 hours of the 24 h σ, min-max scaled by the training range; LSTM(64), dropout 0.2, one dense unit; mean
squared error on the scaled level one hour ahead; Adam 1e-3, batches of 32, 15 epochs. Unlike the original it never sees
the scored period, not even as validation. Its quantity shares 23 of 24 hours with what is known; `reference_lstm_24h`
is the same network trained on the next 24 h.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.features import SIGMA_FLOOR
from stream.core.forecasting.windows import Array
from stream.files import replacing
from training.data.dataset import Dataset, Rows, require_rows
from training.data.panel import NEXT_24H, ROLLING_24H_NEXT
from training.forecasters.forecaster import Fitted, ForecasterError, Forecasts

LOOKBACK_HOURS = 48
UNITS = 64
DROPOUT = 0.2
LEARNING_RATE = 1e-3
BATCH_ROWS = 32
EPOCHS = 15
_PREDICT_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class ReferenceLstm:
    """The reference project's LSTM. `save_to`: a .keras file for the network, from hourly σ to hourly σ with scaling
    inside; of several fits it holds the last."""

    name: str = "reference_lstm"
    quantity: str = ROLLING_24H_NEXT
    seed: int = 7
    epochs: int = EPOCHS
    save_to: Path | None = None
    needs: tuple[str, ...] = ("tensorflow", "keras")
    extra: str = "train"

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        if self.save_to is not None:
            _require_place(self.save_to)
        rows = require_rows(data, start_ms, end_ms)
        labels = data.labels[:, 0] if self.quantity == NEXT_24H else data.targets.rolling_24h_next
        rows = rows[np.isfinite(labels[rows]) & (rows >= LOOKBACK_HOURS - 1)]
        network = _trained(_windows(data, rows), labels[rows], seed=self.seed, epochs=self.epochs)
        if self.save_to is not None:
            _save(network, self.save_to)

        def forecast(data: Dataset, rows: Rows) -> Forecasts:
            out = np.full(len(rows), np.nan)
            whole = rows >= LOOKBACK_HOURS - 1
            windows = _windows(data, rows[whole])
            predicted = [
                np.asarray(network(windows[first : first + _PREDICT_ROWS], training=False), dtype=np.float64)[:, 0]
                for first in range(0, len(windows), _PREDICT_ROWS)
            ]
            # Nothing keeps a network trained on levels from forecasting a negative σ.
            out[whole] = np.maximum(np.concatenate([*predicted, np.empty(0)]), SIGMA_FLOOR)
            return {self.quantity: out}

        return Fitted(forecast)


def _windows(data: Dataset, rows: Rows) -> NDArray[np.float32]:
    """Returns σ of the 24 h that end with each of the 48 hours up to each row: [n, 48, 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(data.features.realized_24h, LOOKBACK_HOURS)
    return windows[rows - (LOOKBACK_HOURS - 1)][..., None].astype(np.float32)


def _trained(windows: NDArray[np.float32], sigma: Array, *, seed: int, epochs: int) -> Any:
    """Trains the network from hourly σ to hourly σ. TensorFlow is loaded here and not before."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its kernels reorder sums, and it warns of that on stderr
    import keras
    import tensorflow as tf

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    low, high = float(windows.min()), float(windows.max())
    span = max(high - low, SIGMA_FLOOR)
    inner = keras.Sequential(
        [
            keras.Input((LOOKBACK_HOURS, 1)),
            keras.layers.LSTM(UNITS),
            keras.layers.Dropout(DROPOUT),
            keras.layers.Dense(1),
        ]
    )
    inner.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss="mse")
    scaled = ((sigma - low) / span).astype(np.float32)
    inner.fit((windows - low) / span, scaled, batch_size=BATCH_ROWS, epochs=epochs, verbose=0)
    level = keras.Input((LOOKBACK_HOURS, 1), name="sigma")
    output = keras.layers.Rescaling(span, low)(inner(keras.layers.Rescaling(1 / span, -low / span)(level)))
    return keras.Model(level, output)


def _require_place(path: Path) -> None:
    """Raises `ForecasterError` where the network could not be saved: before minutes of training, not after them."""
    if path.suffix != ".keras":
        raise ForecasterError(f"{path}: a Keras network is saved as .keras; rename it")
    if not path.parent.is_dir():
        raise ForecasterError(f"{path}: the network cannot be written: no such folder; make it first")


def _save(network: Any, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            network.save(temporary)
    except OSError as error:
        raise ForecasterError(f"{path}: the network cannot be written: {error.strerror or error}") from None
