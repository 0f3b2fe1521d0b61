"""The rate limit of frames sent on a connection: the exchange counts pings, pongs and JSON in a strict rolling second.

It closes the connection at the sixth. A token bucket would let nine through around the edge of a second, so this keeps
a log of the last frames. Pongs are counted but never held back, and JSON frames leave a slot for one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PER_SECOND = 4
#: Seconds between two JSON frames: frames that reach the exchange in a burst count as sent in one.
_SPACING_S = 0.25
#: A little over a second, for clocks that do not agree on its length.
_WINDOW_S = 1.05


class ControlFrames:
    """The last frames sent on one connection."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._sent: deque[float] = deque(maxlen=PER_SECOND)
        self._json_sent_at_s = float("-inf")

    def pong(self) -> None:
        """Counts a pong with which the library has answered a ping."""
        self._sent.append(self._monotonic_s())

    def wait_s(self) -> float:
        """Returns how many seconds a JSON frame has to wait; 0 where it may be sent now."""
        now_s = self._monotonic_s()
        wait_s = self._json_sent_at_s + _SPACING_S - now_s
        # All but one of the allowed frames are used up: the last is reserved for a pong.
        if len(self._sent) >= PER_SECOND - 1:
            wait_s = max(wait_s, self._sent[-(PER_SECOND - 1)] + _WINDOW_S - now_s)
        return max(0.0, wait_s)

    def json_sent(self) -> None:
        """Counts a JSON frame that is sent now."""
        self._json_sent_at_s = self._monotonic_s()
        self._sent.append(self._json_sent_at_s)
