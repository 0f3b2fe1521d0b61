"""Keras to ONNX: one graph of standard operators, opset 17, a free batch. Importing this module loads TensorFlow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import onnx
import tensorflow as tf
import tf2onnx

from stream.core.forecasting.contract import INPUT_SEQUENCE, INPUT_STATIC, LOG_VOLATILITY
from stream.core.forecasting.features import SEQUENCE_HOURS, SEQUENCE_NAMES, STATIC_NAMES
from stream.errors import InputError

#: The newest opset that tf2onnx writes for every operator of this graph; the LSTM becomes one native LSTM node.
OPSET = 17


class ExportError(InputError):
    """The run cannot become a bundle: the run's fault. The message is one line, with the path and the cure."""


def load_network(path: Path) -> keras.Model:
    """Loads the Keras network of a run, without its optimizer; raises `ExportError` where there is none. Keras's safe
    mode refuses code in the file."""
    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ExportError(f"{path}: is no Keras network: {cause}; run `volcast train` again") from None


def to_onnx(network: keras.Model) -> onnx.ModelProto:
    """Converts a run's network to ONNX; its output is the log of volatility, without the trees. The bytes are not
    canonical yet."""
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)

    # A traced function instead of `from_keras`, because its output can be named.
    @tf.function  # type: ignore[untyped-decorator]
    def forward(sequence: Any, static: Any) -> dict[str, Any]:
        return {LOG_VOLATILITY: network([sequence, static], training=False)[LOG_VOLATILITY]}

    signature = [
        tf.TensorSpec((None, SEQUENCE_HOURS, len(SEQUENCE_NAMES)), tf.float32, INPUT_SEQUENCE),
        tf.TensorSpec((None, len(STATIC_NAMES)), tf.float32, INPUT_STATIC),
    ]
    converted, _ = tf2onnx.convert.from_function(forward, signature, opset=OPSET)
    return converted
