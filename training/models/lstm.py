"""The network: a linear base on the static inputs plus a few LSTMs over 48 hours, whose contribution starts at zero.

σ = exp(clip(base(static) + residual(sequence))), per output. The residual's last layer starts at zero, so the
network equals its base before training, which then improves on it (HARNet's idea, arXiv 2205.07719). Members are
trained independently and their residuals averaged in one graph. Scalers and the base's products
(training/models/linear.py) are constants of the graph: an exported network needs no other file. Importing this module
loads TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import INPUT_SEQUENCE, INPUT_STATIC, OUTPUT, OUTPUT_WIDTH
from stream.core.forecasting.features import SEQUENCE_HOURS
from training.models.linear import Linear, selectors

Array = NDArray[np.float64]

#: Range of an hour's log σ: from below the floor of 1e-5 to 37 %, more than any hour that was ever traded.
LOG_SIGMA_RANGE = (-12.0, -1.0)
UNITS = 64
_DROPOUT = 0.2
_LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Scaler:
    """Standardisation of the sequence features: mean, and one over the standard deviation, of the training rows."""

    mean: Array
    scale: Array


def members(scaler: Scaler, base: Linear, count: int) -> keras.Model:
    """Builds `count` networks to be trained side by side: log σ [batch, count, 5]. They share their inputs and no
    trainable weight.

    `base` is on expanded inputs (`training.models.linear.expanded`) and is not trained.
    """
    sequence, static, linear, hidden = _trunk(scaler, base, count)
    heads = [keras.layers.Dense(OUTPUT_WIDTH, kernel_initializer="zeros", name=_residual(k)) for k in range(count)]
    outputs = [
        keras.layers.Add()([linear, head(keras.layers.Dropout(_DROPOUT)(h))])
        for head, h in zip(heads, hidden, strict=True)
    ]
    return keras.Model([sequence, static], keras.ops.stack(outputs, axis=1))


def ensemble(trained: keras.Model, scaler: Scaler, base: Linear, count: int, *, shrink: float) -> keras.Model:
    """Builds one network, log σ [batch, 5], whose residual is the mean residual of the trained members times
    `shrink`."""
    sequence, static, linear, hidden = _trunk(scaler, base, count)
    joined = keras.layers.Concatenate()(hidden) if count > 1 else hidden[0]
    residual = keras.layers.Dense(OUTPUT_WIDTH, name="residual")
    network = keras.Model([sequence, static], keras.layers.Add()([linear, residual(joined)]))
    kernels, biases = [], []
    for k in range(count):
        network.get_layer(_lstm(k)).set_weights(trained.get_layer(_lstm(k)).get_weights())
        kernel, bias = trained.get_layer(_residual(k)).get_weights()
        kernels.append(kernel)
        biases.append(bias)
    share = shrink / count
    residual.set_weights([share * np.concatenate(kernels), share * np.sum(biases, axis=0)])
    return network


def finished(network: keras.Model, log_retransform: Array) -> keras.Model:
    """Returns the network as it is exported: output `volatility` [batch, 5], with the retransform added to the bias of
    its linear base. `network` shares its layers, so its bias changes too."""
    kernel, bias = network.get_layer(_LINEAR).get_weights()
    network.get_layer(_LINEAR).set_weights([kernel, bias + log_retransform.astype("float32")])
    sigma = keras.ops.exp(keras.ops.clip(network.outputs[0], *LOG_SIGMA_RANGE))
    return keras.Model(network.inputs, {OUTPUT: sigma})


def _trunk(scaler: Scaler, base: Linear, count: int) -> tuple[Any, Any, Any, list[Any]]:
    """Returns both inputs, the base's log σ and the last state of each LSTM."""
    weekend, levels = selectors()
    sequence = keras.Input((SEQUENCE_HOURS, len(scaler.mean)), name=INPUT_SEQUENCE)
    static = keras.Input((len(weekend),), name=INPUT_STATIC)
    products = keras.layers.Multiply()([_constant(weekend, "weekend")(static), _constant(levels, "levels")(static)])
    linear = _constant(base.weights, _LINEAR, base.bias)(keras.layers.Concatenate()([static, products]))
    scaled = keras.layers.Rescaling(scaler.scale.tolist(), (-scaler.mean * scaler.scale).tolist())(sequence)
    return sequence, static, linear, [keras.layers.LSTM(UNITS, name=_lstm(k))(scaled) for k in range(count)]


def _constant(weights: Array, name: str, bias: Array | None = None) -> keras.layers.Layer:
    """Builds a linear map that is not trained. An initializer would put the numbers into the layer's config."""
    layer = keras.layers.Dense(weights.shape[1], use_bias=bias is not None, trainable=False, name=name)
    layer.build((None, weights.shape[0]))
    layer.set_weights([w.astype("float32") for w in (weights, bias) if w is not None])
    return layer


def _lstm(member: int) -> str:
    return f"lstm_{member}"


def _residual(member: int) -> str:
    return f"residual_{member}"
