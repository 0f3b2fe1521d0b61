"""The network: a linear model on the static inputs plus an LSTM over 48 hours that starts as nothing.

σ = exp(clip(linear(static) + residual(sequence))), per output. The residual's last layer starts at zero, so the
network begins as the linear model and training can only be asked to improve on it (HARNet's idea, arXiv 2205.07719).
Scalers are constants of the graph: what is exported needs nothing beside it. Importing this module loads TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from stream.core.contract import INPUT_SEQUENCE, INPUT_STATIC, OUTPUT, OUTPUT_WIDTH
from stream.core.features import SEQUENCE_HOURS

Array = NDArray[np.float64]

#: log σ of an hour: from under the floor of 1e-5 to 37 %, more than any hour that was ever traded.
LOG_SIGMA_RANGE = (-12.0, -1.0)
RESIDUAL_LAYER = "residual"
LINEAR_LAYER = "linear"


@dataclass(frozen=True, slots=True)
class Scaler:
    """What standardises the sequence features: mean, and one over the standard deviation, of the training rows."""

    mean: Array
    scale: Array


def build(scaler: Scaler, weights: Array, bias: Array, *, units: int = 64, dropout: float = 0.2) -> keras.Model:
    """The network with log σ [batch, 5] as output, its linear part set to `weights` [S, 5] and `bias` [5]."""
    sequence = keras.Input((SEQUENCE_HOURS, len(scaler.mean)), name=INPUT_SEQUENCE)
    static = keras.Input((weights.shape[0],), name=INPUT_STATIC)
    scaled = keras.layers.Rescaling(scaler.scale.tolist(), (-scaler.mean * scaler.scale).tolist())(sequence)
    hidden = keras.layers.LSTM(units)(scaled)
    hidden = keras.layers.Dropout(dropout)(hidden)
    residual = keras.layers.Dense(OUTPUT_WIDTH, kernel_initializer="zeros", name=RESIDUAL_LAYER)(hidden)
    linear = keras.layers.Dense(OUTPUT_WIDTH, trainable=False, name=LINEAR_LAYER)(static)
    network = keras.Model([sequence, static], keras.layers.Add()([linear, residual]))
    network.get_layer(LINEAR_LAYER).set_weights([weights.astype("float32"), bias.astype("float32")])
    return network


def finished(network: keras.Model, log_retransform: Array) -> keras.Model:
    """The network as it ships: output `volatility` [batch, 5], its retransform taken into the linear bias."""
    kernel, bias = network.get_layer(LINEAR_LAYER).get_weights()
    network.get_layer(LINEAR_LAYER).set_weights([kernel, bias + log_retransform.astype("float32")])
    sigma = keras.ops.exp(keras.ops.clip(network.outputs[0], *LOG_SIGMA_RANGE))
    return keras.Model(network.inputs, {OUTPUT: sigma})
