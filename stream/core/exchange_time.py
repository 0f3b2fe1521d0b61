"""The exchange's clock, as far as we know it: its last word, advanced by our monotonic clock.

The monotonic reading is passed in, so nothing here can look at a clock by itself.
"""

from __future__ import annotations


class ExchangeTime:
    """Never runs backwards; `scale` is how much faster than ours the exchange's clock runs."""

    def __init__(self, scale: float = 1.0) -> None:
        if not scale >= 0:
            raise ValueError(f"time scale {scale} must not be negative")
        self._scale = scale
        self._server_ms: int | None = None
        self._heard_at = 0.0

    @property
    def known(self) -> bool:
        return self._server_ms is not None

    def observe(self, server_ms: int, monotonic_s: float) -> None:
        """Takes a server time that arrived at `monotonic_s`; an older one than we stand at is ignored."""
        if self._server_ms is None or server_ms >= self.now_ms(monotonic_s):
            self._server_ms, self._heard_at = server_ms, monotonic_s

    def now_ms(self, monotonic_s: float) -> int:
        """Exchange time in ms; `LookupError` before the exchange has said anything."""
        if self._server_ms is None:
            raise LookupError("the exchange has not told its time yet")
        return self._server_ms + int(max(0.0, monotonic_s - self._heard_at) * self._scale * 1_000)

    def real_seconds(self, exchange_ms: float) -> float:
        """How long our clock takes for `exchange_ms` of the exchange's (infinite at scale 0)."""
        return exchange_ms / 1_000 / self._scale if self._scale else float("inf")
