"""The exchange's clock: it stands still until it is started, and never passes an unsent event.

At a finite speed it runs `speed` times as fast as the real one; at speed None it jumps from event to
event. In both cases `now_ms` stops at the event that `until` was asked for, until the next is asked
for: a client cannot see a time whose closes have not been sent to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class VirtualClock:
    def __init__(self, start_ms: int, speed: float | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ValueError(f"speed {speed} must be above 0; None is as fast as the clients")
        self.speed = speed
        self._start_ms = start_ms
        self._event_ms = start_ms
        self._monotonic = monotonic
        self._began_s: float | None = None
        #: Set once it runs.
        self.running = asyncio.Event()

    @property
    def started(self) -> bool:
        return self._began_s is not None

    def start(self) -> None:
        """Starts the clock; later calls do nothing."""
        if self._began_s is None:
            self._began_s = self._monotonic()
            self.running.set()

    def now_ms(self) -> int:
        return self._event_ms if self.speed is None else min(self.elapsed_to_ms(), self._event_ms)

    def elapsed_to_ms(self) -> int:
        """Returns the virtual time by the real clock: ahead of `now_ms` when the events are late."""
        if self._began_s is None or self.speed is None:
            return self._event_ms if self.speed is None else self._start_ms
        return self._start_ms + int((self._monotonic() - self._began_s) * self.speed * 1_000)

    async def until(self, event_ms: int) -> None:
        """Waits until it is `event_ms`, and holds the clock there; returns at once where that time has passed."""
        self._event_ms = max(self._event_ms, event_ms)
        if self.speed is None:
            return
        while (left_ms := event_ms - self.elapsed_to_ms()) > 0:  # noqa: ASYNC110 - a clock has to sleep
            await asyncio.sleep(left_ms / self.speed / 1_000)
