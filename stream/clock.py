"""The machine's wall clock, monotonic clock and sleep, passed in so that a test can control them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """The machine's clocks. All waiting goes through `sleep`, so that it agrees with `monotonic_s`."""

    #: ms since 1970, for timestamps such as `issued_at`.
    wall_ms: Callable[[], int] = _wall_ms
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
