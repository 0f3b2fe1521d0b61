"""What every client is measured with: the CPU time of its whole process, all threads, from the first to the last kline.

Needs nothing but the standard library, since each client runs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Meter:
    """Counts klines; at the last one it prints the result as a line of JSON and ends the process."""

    def __init__(self, frames: int, close_of: Callable[[Any], Any]) -> None:
        """`close_of` reads the close price of a kline, whatever the client hands out: it proves that the kline is
        there, and is called for the last one only."""
        self._frames = frames
        self._close_of = close_of
        self._seen = 0
        self._started_s = 0.0

    def __call__(self, kline: Any) -> None:
        self._seen += 1
        if self._seen == 1:
            self._started_s = time.process_time()
        elif self._seen == self._frames:
            self._finish(kline)

    def _finish(self, kline: Any) -> None:
        used_s = time.process_time() - self._started_s
        result = {"us_per_frame": 1e6 * used_s / (self._frames - 1), "close": float(self._close_of(kline))}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        os._exit(0)
