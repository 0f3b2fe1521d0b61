"""Batch jobs against their limits, and prediction against calling Keras window by window, which is what the reference
project's batch job does. One run, one machine, and both do what their users run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from measured import Measured

from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

START = 1_500_000_400_000 // HOUR_MS * HOUR_MS
CANDLES = 64_000
PREDICT_LIMIT_S = 5.0
DRIFT_LIMIT_S = 6.0
HELP_LIMIT_S = 0.25
TIMES_FASTER = 50.0
#: Windows that Keras is timed on; the rest of the seven years would take the better part of an hour.
KERAS_WINDOWS = 200


def cpu_seconds(folder: Path, *command: str) -> tuple[float, float]:
    """Runs `volcast COMMAND` and returns its CPU and its wall seconds, imports included."""
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "stream", *command], cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s, time.perf_counter() - started_s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with seven years of candles."""
    made = tmp_path_factory.mktemp("batch")
    files.write(simulate_symbol("BTCUSDT", START, CANDLES, 7), made / "c.parquet")
    return made


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


def test_prediction_of_seven_years(folder: Path) -> None:
    cpu_s, wall_s = cpu_seconds(folder, "predict", "--candles", "c.parquet", "--out", "p.parquet")
    keras_s = keras_seconds_per_window() * CANDLES
    measured = Measured()
    measured.show(f"volcast predict, {CANDLES:,} candles, CPU", cpu_s, "s", PREDICT_LIMIT_S)
    measured.show("  start to file", wall_s, "s")
    measured.show(f"Keras window by window, {CANDLES:,} windows, from {KERAS_WINDOWS}", keras_s, "s")
    measured.show("times faster", keras_s / wall_s, "times", TIMES_FASTER, at_least=True)
    measured.check()


def test_drift_and_help(folder: Path) -> None:
    # The first run may still compile what it imports.
    cpu_seconds(folder, "--help")
    measured = Measured()
    drift_s, _ = cpu_seconds(folder, "drift", "--candles", "c.parquet")
    measured.show(f"volcast drift, {CANDLES:,} candles, CPU", drift_s, "s", DRIFT_LIMIT_S)
    measured.show("volcast --help, CPU", cpu_seconds(folder, "--help")[0], "s", HELP_LIMIT_S)
    measured.check()
