"""What we may say on a connection, and when: the exchange counts pings, pongs and JSON in a strict rolling second.

It closes at the sixth. A bucket of tokens that refills would let nine through around a second's edge; this is a log
of the last frames. Pongs are never held back, they are counted, and JSON leaves room for one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PER_SECOND = 4
#: Seconds between two JSON frames: what reached the exchange in a bunch would count as sent in one.
_SPACING_S = 0.25
#: A little over a second, for clocks that do not agree on its length.
_WINDOW_S = 1.05


class ControlFrames:
    """The last frames of one connection."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._sent: deque[float] = deque(maxlen=PER_SECOND)
        self._json_sent_at_s = float("-inf")

    def pong(self) -> None:
        """The library has answered a ping."""
        self._sent.append(self._monotonic_s())

    def wait_s(self) -> float:
        """How long a JSON frame has to wait; 0 where it may go."""
        now_s = self._monotonic_s()
        wait_s = self._json_sent_at_s + _SPACING_S - now_s
        # All but one of those allowed are gone: the last is a pong's.
        if len(self._sent) >= PER_SECOND - 1:
            wait_s = max(wait_s, self._sent[-(PER_SECOND - 1)] + _WINDOW_S - now_s)
        return max(0.0, wait_s)

    def json_sent(self) -> None:
        """A JSON frame goes now."""
        self._json_sent_at_s = self._monotonic_s()
        self._sent.append(self._json_sent_at_s)
