"""The exchange's limits on its clients, counted as strictly as it counts: in rolling windows, not in buckets.

A window is over when it is over on the virtual or on the real clock: the virtual one may stand still, or jump.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

#: Messages a second on one connection, pings, pongs and JSON together; the next one ends it.
CONTROL_FRAMES_PER_SECOND = 5
#: Connection attempts of one address.
CONNECTS_PER_5_MIN = 300
CONNECT_WINDOW_S = 300.0


class Rolling:
    """Counts events in a rolling window of `seconds`; `most` is the largest count so far."""

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._counted: deque[tuple[int, float]] = deque()
        self.most = 0

    def add(self, now_ms: int) -> int:
        """Counts one more. Returns how many there are in the window that ends now."""
        now_s = self._monotonic()
        while self._counted:
            at_ms, at_s = self._counted[0]
            if at_ms > now_ms - self._seconds * 1_000 and at_s > now_s - self._seconds:
                break
            self._counted.popleft()
        self._counted.append((now_ms, now_s))
        self.most = max(self.most, len(self._counted))
        return len(self._counted)


class SocketLimits:
    """How near clients came to the limits of the websocket, and how often they broke one."""

    def __init__(self, connects_allowed: int, monotonic: Callable[[], float]) -> None:
        self._allowed = connects_allowed
        self._connects = Rolling(CONNECT_WINDOW_S, monotonic)
        self._most_control_frames = 0
        self.broken = 0

    def connect(self, now_ms: int) -> bool:
        """Counts a connection attempt. Returns whether it is within the limit."""
        return self._within(self._connects.add(now_ms), self._allowed)

    def control_frame(self, of_connection: Rolling, now_ms: int) -> bool:
        """Counts a message on a connection. Returns whether it is within the limit."""
        count = of_connection.add(now_ms)
        self._most_control_frames = max(self._most_control_frames, count)
        return self._within(count, CONTROL_FRAMES_PER_SECOND)

    def _within(self, count: int, limit: int) -> bool:
        self.broken += count > limit
        return count <= limit

    def describe(self) -> dict[str, int]:
        return {"control_frames_in_1_s": self._most_control_frames, "connects_in_5_min": self._connects.most}
