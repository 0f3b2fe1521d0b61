"""The network: a linear base on the static inputs plus one LSTM over 48 hours, whose contribution starts at zero.

While it learns, the base's log σ is an input, and the last layer starts at zero: the network equals its base before
training, which then improves on it (HARNet's idea, arXiv 2205.07719). The finished network has the base in it, and what
the LSTM adds times a weight per output. Scaler and products (training/models/linear.py) are constants of the graph.
Importing this module loads TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import INPUT_SEQUENCE, INPUT_STATIC, LOG_VOLATILITY, OUTPUT_WIDTH
from stream.core.forecasting.features import SEQUENCE_HOURS, STATIC_NAMES
from training.models.linear import Linear, factors

Array = NDArray[np.float64]

#: What the LSTM adds is little with 64 units too, which took most of the time of a row.
UNITS = 32
_DROPOUT = 0.2
_LSTM, _HEAD = "lstm", "residual"


@dataclass(frozen=True, slots=True)
class Scaler:
    """Standardisation of the sequence features: mean, and one over the standard deviation, of the training rows."""

    mean: Array
    scale: Array


def learner(scaler: Scaler) -> keras.Model:
    """Builds the network that learns: from the sequence and the base's log σ [batch, 5] to log σ [batch, 5]."""
    sequence = keras.Input((SEQUENCE_HOURS, len(scaler.mean)), name=INPUT_SEQUENCE)
    base = keras.Input((OUTPUT_WIDTH,), name="base")
    hidden = keras.layers.LSTM(UNITS, name=_LSTM)(_scaled(scaler)(sequence))
    head = keras.layers.Dense(OUTPUT_WIDTH, kernel_initializer="zeros", name=_HEAD)
    return keras.Model([sequence, base], keras.layers.Add()([base, head(keras.layers.Dropout(_DROPOUT)(hidden))]))


def residual(learnt: keras.Model) -> keras.Model:
    """Returns the part of a learner that the LSTM adds: from the sequence to [batch, 5]. It shares its layers."""
    return keras.Model(learnt.inputs[0], learnt.get_layer(_HEAD).output)


def finished(learnt: keras.Model, scaler: Scaler, base: Linear, weight: Array) -> keras.Model:
    """Builds the network of a run: output `log_volatility` [batch, 5], the base plus `weight` [5] times the residual of
    the trained learner."""
    first, second, added = factors()
    sequence = keras.Input((SEQUENCE_HOURS, len(scaler.mean)), name=INPUT_SEQUENCE)
    static = keras.Input((len(STATIC_NAMES),), name=INPUT_STATIC)
    products = keras.layers.Multiply()(
        [_constant(first, "product_first")(static), _constant(second, "product_second", added)(static)]
    )
    linear = _constant(base.weights, "linear", base.bias)(keras.layers.Concatenate()([static, products]))
    hidden = keras.layers.LSTM(UNITS, name=_LSTM)(_scaled(scaler)(sequence))
    head = keras.layers.Dense(OUTPUT_WIDTH, name=_HEAD)
    network = keras.Model([sequence, static], {LOG_VOLATILITY: keras.layers.Add()([linear, head(hidden)])})
    network.get_layer(_LSTM).set_weights(learnt.get_layer(_LSTM).get_weights())
    head.set_weights([part * weight.astype("float32") for part in learnt.get_layer(_HEAD).get_weights()])
    return network


def _scaled(scaler: Scaler) -> keras.layers.Layer:
    return keras.layers.Rescaling(scaler.scale.tolist(), (-scaler.mean * scaler.scale).tolist())


def _constant(weights: Array, name: str, bias: Array | None = None) -> keras.layers.Layer:
    """Builds a linear map that is not trained. An initializer would put the numbers into the layer's config."""
    layer = keras.layers.Dense(weights.shape[1], use_bias=bias is not None, trainable=False, name=name)
    layer.build((None, weights.shape[0]))
    layer.set_weights([w.astype("float32") for w in (weights, bias) if w is not None])
    return layer
