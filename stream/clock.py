"""The clock: the machine's two times, passed in so that a test can hold them still."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """The machine's two clocks, passed in so that a test can hold them still."""

    #: Stamps `issued_at`, nothing else.
    wall_ms: Callable[[], int] = _wall_ms
    monotonic_s: Callable[[], float] = time.monotonic
