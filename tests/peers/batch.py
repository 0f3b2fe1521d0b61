"""The batch part of `make peers`: `volcast predict` against the reference project's loop."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stream.adapters.candles import files
from stream.testing.market import simulate_symbol

HERE = Path(__file__).resolve().parent
START_MS = 1_500_001_200_000
CANDLES = 20_000
#: Rows that the loop is timed on; all of them would take the better part of an hour.
LOOP_ROWS = 300


class Timed(NamedTuple):
    """One line of the table."""

    what: str
    gets: str
    cpu_s_per_1_000: float


def compared(folder: Path, rounds: int, keras_python: Path) -> Iterator[Timed | str]:
    """Yields the lines of the table, and as text what is left out."""
    candles = simulate_symbol("BTCUSDT", START_MS, CANDLES, 7)
    files.write(candles, folder / "c.parquet")
    predict = statistics.median(_predict_s(folder) for _ in range(rounds))
    gets = "forecast, interval, serving and decision of each row, in a file"
    yield Timed("`volcast predict`, start to file", gets, 1_000 * predict / CANDLES)
    np.save(folder / "closes.npy", [candle.close for candle in candles])
    command = [str(keras_python), str(HERE / "keras_loop.py"), str(folder / "closes.npy"), str(LOOP_ROWS)]
    try:
        done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds)]
    except (OSError, subprocess.CalledProcessError):
        yield f"Keras: left out, {keras_python} lacks it (`make test` installs it)"
        return
    results = [json.loads(run.stdout.splitlines()[-1]) for run in done]
    for key, what in (("loop", "row by row"), ("batched", "all rows in one call")):
        name = f"Keras {results[0]['version']} `predict`, {what}"
        yield Timed(name, "one volatility a row", statistics.median(result[key] for result in results))


def _predict_s(folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "stream", "predict", "--candles", "c.parquet", "--out", "p.parquet"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
