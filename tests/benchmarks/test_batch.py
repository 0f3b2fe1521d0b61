"""Batch prediction against its limit, and against calling Keras window by window, which is what the reference project's
batch job does. One run, one machine, and both do what their users run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stream.adapters.candles import files
from stream.testing.market import simulate_symbol

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

START = 1_483_228_800_000
CANDLES = 64_000
PREDICT_LIMIT_S = 15.0
TIMES_FASTER = 50.0
#: Windows that Keras is timed on; the rest of the seven years would take the better part of an hour.
KERAS_WINDOWS = 200


def show(what: str, value: float, unit: str, bound: str = "") -> None:
    print(f"{what:<62} {value:9.2f} {unit}{bound}")


def keras_seconds_per_window() -> float:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    network = keras.Sequential(
        [keras.Input((48, 1)), keras.layers.LSTM(64), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    windows = np.random.default_rng(7).normal(size=(KERAS_WINDOWS, 1, 48, 1)).astype(np.float32)
    network.predict(windows[0], verbose=0)
    started_s = time.perf_counter()
    for window in windows:
        network.predict(window, verbose=0)
    return (time.perf_counter() - started_s) / KERAS_WINDOWS


def test_seven_years_of_candles(tmp_path: Path) -> None:
    files.write(
        simulate_symbol("BTCUSDT", 1_500_000_400_000 // 3_600_000 * 3_600_000, CANDLES, 7), tmp_path / "c.parquet"
    )
    command = [sys.executable, "-m", "stream", "predict", "--candles", "c.parquet", "--out", "p.parquet"]
    started_s = time.perf_counter()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    predict_s = time.perf_counter() - started_s
    keras_s = keras_seconds_per_window() * CANDLES
    print()
    show(f"volcast predict, {CANDLES:,} candles, start to file", predict_s, "s", f"    limit {PREDICT_LIMIT_S:g} s")
    show(f"Keras predict window by window, {CANDLES:,} windows, from {KERAS_WINDOWS}", keras_s, "s")
    show("times faster", keras_s / predict_s, "x", f"    limit {TIMES_FASTER:g} x")
    assert predict_s <= PREDICT_LIMIT_S
    assert keras_s / predict_s >= TIMES_FASTER
