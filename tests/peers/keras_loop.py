"""The reference project's batch job: an LSTM over 48 hours of 24 h volatility, asked row by row.

Usage: keras_loop.py CLOSES.npy ROWS, in an environment that has TensorFlow. It prints, as JSON, the CPU seconds for
1,000 rows of the loop over the first ROWS windows, and of one call of `predict` for all windows. Loading TensorFlow and
the first call, which compiles, count for neither. Weights do not change the time, so they are those of a fresh network.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

LOOKBACK_HOURS = 48


def network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((LOOKBACK_HOURS, 1)),
            keras.layers.LSTM(64),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1),
        ]
    )


def windows(closes: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Returns 48 hours of the scaled volatility up to each hour, and the minimum and range of the scaling."""
    returns = np.diff(np.log(closes))
    volatility = np.lib.stride_tricks.sliding_window_view(returns, 24).std(axis=1, ddof=1)
    low, span = volatility.min(), np.ptp(volatility)
    scaled = ((volatility - low) / span).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(scaled, LOOKBACK_HOURS)[..., None], low, span


def main() -> None:
    closes, rows = np.load(sys.argv[1]), int(sys.argv[2])
    model = network()
    inputs, low, span = windows(closes)
    model.predict(inputs[:1], verbose=0)
    started_s = time.process_time()
    looped = [model.predict(inputs[i : i + 1], verbose=0)[0, 0] * span + low for i in range(rows)]
    loop_s = time.process_time() - started_s
    started_s = time.process_time()
    batched = model.predict(inputs, verbose=0)[:, 0] * span + low
    batched_s = time.process_time() - started_s
    assert np.allclose(looped, batched[:rows], rtol=1e-4, atol=1e-6)
    result = {"version": keras.__version__, "loop": 1_000 * loop_s / rows, "batched": 1_000 * batched_s / len(inputs)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
