"""Seeded training of the network: the loss, the batches, the members. Importing this module loads TensorFlow.

The constants of this module were chosen by walk-forward inside the training years (docs/decisions), never on the year
that the model is scored on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stream.core.forecasting.contract import OUTPUT
from stream.core.forecasting.windows import Array
from training.data.dataset import Dataset, Rows
from training.data.sample import Sample
from training.models import lstm
from training.models.linear import Linear

EPOCHS = 2
#: Networks that differ only in their random numbers; averaging them removes much of what is chance in one.
MEMBERS = 3
BATCH_ROWS = 256
LEARNING_RATE = 3e-4
#: The residual is halved after training: half of what it learns in one regime holds in the next.
SHRINK = 0.5
#: exp(3) ≈ 20: a squared return of more than 20 times its forecast has no larger gradient than one of 20 times.
_CLAMP = 3.0
_PREDICT_ROWS = 4_096

Epoch = Callable[[], None]


def loss(labels: Any, log_sigma: Any) -> Any:
    """Computes the loss [batch], summed over members and averaged over outputs: the squared error of log σ for the
    first output, half the QLIKE of the variance for the horizons.

    labels: log σ [batch, 5], NaN where a label is unknown: it adds nothing. log_sigma: [batch, members, 5]. To second
    order half of QLIKE is the squared error of log σ, so both losses are of one scale.
    """
    labels = keras.ops.expand_dims(labels, 1)
    known = keras.ops.isfinite(labels)
    gap = keras.ops.where(known, labels, log_sigma) - log_sigma
    bounded = keras.ops.minimum(2 * gap, _CLAMP)
    # Beyond the clamp exp continues as its tangent: convex, and the gradient stays bounded.
    qlike = keras.ops.exp(bounded) * (1 + 2 * gap - bounded) - 2 * gap - 1
    horizon = keras.ops.convert_to_tensor([[[0.0, 1.0, 1.0, 1.0, 1.0]]], dtype="float32")
    return keras.ops.sum(keras.ops.mean(keras.ops.where(horizon > 0, qlike / 2, gap * gap), axis=-1), axis=-1)


def seed_everything(seed: int) -> None:
    """Seeds all random numbers: the same seed gives the same weights on the same machine."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def train(
    sample: Sample, base: Linear, *, seed: int, epochs: int = EPOCHS, on_epoch: Epoch = lambda: None
) -> keras.Model:
    """Trains the ensemble on `sample`; its output is log σ. The base is not trained."""
    seed_everything(seed)
    sequence, static = sample.sequence, sample.static
    with np.errstate(invalid="ignore"):
        labels = np.log(sample.labels).astype(np.float32)
    scaled = scaler(sequence)
    members = lstm.members(scaled, base, MEMBERS)
    members.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE, clipnorm=1.0), loss=loss)
    members.fit(
        [sequence, static],
        labels,
        sample_weight=sample.weight.astype(np.float32),
        batch_size=BATCH_ROWS,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, _logs: on_epoch())],
    )
    return lstm.ensemble(members, scaled, base, MEMBERS, shrink=SHRINK)


def scaler(sequence: NDArray[np.float32]) -> lstm.Scaler:
    mean = sequence.mean(axis=(0, 1), dtype=np.float64)
    return lstm.Scaler(mean, 1 / np.maximum(sequence.std(axis=(0, 1), dtype=np.float64), 1e-3))


def predict(network: keras.Model, data: Dataset, rows: Rows) -> Array:
    """Returns the network's output for `rows`, [n, 5]: log σ of one in training, σ of a finished one."""
    parts = []
    for first in range(0, len(rows), _PREDICT_ROWS):
        chunk = rows[first : first + _PREDICT_ROWS]
        out = network([data.features.sequences(chunk), data.features.static[chunk]], training=False)
        parts.append(np.asarray(out[OUTPUT] if isinstance(out, dict) else out, dtype=np.float64))
    return np.concatenate(parts)


def tensorflow_version() -> str:
    return str(tf.__version__)
