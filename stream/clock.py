"""The clock: the machine's two times and how to wait, passed in so that a test can hold them still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """The machine's clocks. Whoever waits, waits by `sleep`, so that it agrees with `monotonic_s`."""

    #: Stamps `issued_at`, nothing else.
    wall_ms: Callable[[], int] = _wall_ms
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
