"""The exchange's clock, as far as we know it: what it said lately, advanced by our monotonic clock.

The monotonic reading is passed in, so nothing here can look at a clock by itself. What arrives late makes the
exchange look slow, so the largest of the recent readings counts; that only the last minutes do keeps a clock of ours
that runs a little fast from pulling the estimate away over months.
"""

from __future__ import annotations

from stream.core.candle import HOUR_MS

#: What can wait keeps so far away from a close.
_CALM_MS = 120_000
#: Readings of this much real time, and of as much before it, count.
_WINDOW_S = 300.0


class ExchangeTime:
    """What it tells never runs backwards; `scale` is how much faster than ours the exchange's clock runs."""

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 <= scale < float("inf"):
            raise ValueError(f"time scale {scale} must be a number of at least 0")
        self._scale = scale
        self._began_s = 0.0
        #: Largest server time minus our scaled clock, in this window and in the one before it.
        self._offset_ms: float | None = None
        self._before_ms: float | None = None
        self._told_ms = 0

    @property
    def known(self) -> bool:
        return self._offset_ms is not None

    def observe(self, server_ms: int, monotonic_s: float) -> None:
        """Takes a server time that arrived at `monotonic_s`."""
        offset_ms = server_ms - monotonic_s * self._scale * 1_000
        if self._offset_ms is None:
            self._offset_ms, self._began_s = offset_ms, monotonic_s
        elif monotonic_s - self._began_s >= _WINDOW_S:
            self._before_ms, self._offset_ms, self._began_s = self._offset_ms, offset_ms, monotonic_s
        else:
            self._offset_ms = max(self._offset_ms, offset_ms)

    def until_calm_s(self, monotonic_s: float) -> float:
        """Real seconds until no close is near; 0 where none is, where the time is unknown, and where an hour of the
        exchange is not one of ours."""
        if self._offset_ms is None or self._scale != 1:
            return 0.0
        into_ms = self.now_ms(monotonic_s) % HOUR_MS
        if into_ms < _CALM_MS:
            return (_CALM_MS - into_ms) / 1_000
        left_ms = HOUR_MS - into_ms
        return (left_ms + _CALM_MS) / 1_000 if left_ms <= _CALM_MS else 0.0

    def now_ms(self, monotonic_s: float) -> int:
        """Exchange time in ms; `LookupError` before the exchange has said anything."""
        if self._offset_ms is None:
            raise LookupError("the exchange has not told its time yet")
        offset_ms = self._offset_ms if self._before_ms is None else max(self._offset_ms, self._before_ms)
        # Rounded before it is cut: a millisecond must not be lost to the last bit of a float.
        self._told_ms = max(self._told_ms, int(round(monotonic_s * self._scale * 1_000 + offset_ms, 3)))
        return self._told_ms
