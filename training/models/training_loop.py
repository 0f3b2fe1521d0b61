"""Seeded training of the LSTM on what its base leaves over: the loss and the batches. Importing this loads TensorFlow.

The constants of this module were chosen by walk-forward inside the training years (docs/decisions), never on the year
that the model is scored on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stream.core.forecasting.contract import OUTPUT_WIDTH
from stream.core.forecasting.windows import Array
from training.data.dataset import Dataset, Rows
from training.data.sample import Sample
from training.models import lstm
from training.models.linear import Linear

EPOCHS = 2
BATCH_ROWS = 256
LEARNING_RATE = 3e-4
#: exp(3) ≈ 20: a squared return of more than 20 times its forecast has no larger gradient than one of 20 times.
_CLAMP = 3.0
_PREDICT_ROWS = 4_096

Epoch = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Lstm:
    """A trained LSTM: `residual` forecasts what it adds to its base's log σ."""

    learnt: keras.Model
    scaler: lstm.Scaler

    def residual(self, data: Dataset, rows: Rows) -> Array:
        """Returns what it adds to log σ of `rows`, [n, 5]."""
        if not len(rows):
            return np.zeros((0, OUTPUT_WIDTH))
        network = lstm.residual(self.learnt)
        parts = [rows[first : first + _PREDICT_ROWS] for first in range(0, len(rows), _PREDICT_ROWS)]
        return np.concatenate(
            [np.asarray(network(data.features.sequences(part), training=False), dtype=np.float64) for part in parts]
        )

    def finished(self, base: Linear, weight: Array) -> keras.Model:
        """Returns the network of a run (`training.models.lstm.finished`)."""
        return lstm.finished(self.learnt, self.scaler, base, weight)


def loss(labels: Any, log_sigma: Any) -> Any:
    """Computes the loss [batch], averaged over outputs: the squared error of log σ for the first output, half the QLIKE
    of the variance for the horizons.

    labels: log σ [batch, 5], NaN where a label is unknown: it adds nothing. To second order half of QLIKE is the
    squared error of log σ, so both losses are of one scale.
    """
    known = keras.ops.isfinite(labels)
    gap = keras.ops.where(known, labels, log_sigma) - log_sigma
    bounded = keras.ops.minimum(2 * gap, _CLAMP)
    # Beyond the clamp exp continues as its tangent: convex, and the gradient stays bounded.
    qlike = keras.ops.exp(bounded) * (1 + 2 * gap - bounded) - 2 * gap - 1
    horizon = keras.ops.convert_to_tensor([[0.0, 1.0, 1.0, 1.0, 1.0]], dtype="float32")
    return keras.ops.mean(keras.ops.where(horizon > 0, qlike / 2, gap * gap), axis=-1)


def seed_everything(seed: int) -> None:
    """Seeds all random numbers: the same seed gives the same weights on the same machine."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def train(sample: Sample, base: Linear, *, seed: int, epochs: int = EPOCHS, on_epoch: Epoch = lambda: None) -> Lstm:
    """Trains the LSTM on `sample`, to add to the log σ of `base`."""
    seed_everything(seed)
    sequence = sample.sequence
    with np.errstate(invalid="ignore"):
        labels = np.log(sample.labels).astype(np.float32)
    scaled = scaler(sequence)
    learner = lstm.learner(scaled)
    learner.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE, clipnorm=1.0), loss=loss)
    learner.fit(
        [sequence, base.log_sigma(sample.static).astype(np.float32)],
        labels,
        sample_weight=sample.weight.astype(np.float32),
        batch_size=BATCH_ROWS,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, _logs: on_epoch())],
    )
    return Lstm(learner, scaled)


def scaler(sequence: NDArray[np.float32]) -> lstm.Scaler:
    mean = sequence.mean(axis=(0, 1), dtype=np.float64)
    return lstm.Scaler(mean, 1 / np.maximum(sequence.std(axis=(0, 1), dtype=np.float64), 1e-3))


def tensorflow_version() -> str:
    return str(tf.__version__)
