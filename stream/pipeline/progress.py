"""Progress of a start: how many symbols are ready, for the log, the metrics and `/readyz`.

Of a few symbols each has lines of its own in the log. Of many, what is routine is told at DEBUG, and one line tells
every few seconds how far they all are.
"""

from __future__ import annotations

import logging

from stream.clock import Clock
from stream.telemetry import Observer, WarmupProgressed

log = logging.getLogger(__name__)

#: From this many symbols on the log does not tell of each what is routine.
MANY = 20
#: Time between two lines about the progress.
_EVERY_S = 10.0


def routine_level(symbols: int) -> int:
    """Returns the level at which the log tells of each of so many symbols what is routine."""
    return logging.INFO if symbols < MANY else logging.DEBUG


def sentence(ready: int, symbols: int) -> str:
    return f"warming up: {ready:,} of {symbols:,} symbols are ready"


class Progress:
    """Tells how far a start is: the observer at each change, the log at a pace that can be read."""

    def __init__(self, symbols: int, *, clock: Clock, observe: Observer) -> None:
        self._symbols = symbols
        self._clock = clock
        self._observe = observe
        self._began_s = clock.monotonic_s()
        self._ready: int | None = None
        self._logged = 0
        self._line_at_s = self._began_s + _EVERY_S
        #: Whether some symbol has not been ready yet that is expected to be.
        self.starting = True

    def report(self, ready: int, waiting: int) -> None:
        """Takes how many symbols are ready now, and how many are still to be; those that are not traded are neither. To
        be called about once a second."""
        if ready != self._ready:
            self._observe(WarmupProgressed(ready))
        self._ready = ready
        if not self.starting:
            return
        self.starting = waiting > 0
        if self._symbols < MANY:
            return
        now_s = self._clock.monotonic_s()
        if not self.starting:
            text = "%s of %s symbols are ready, %.0f s after the start"
            log.info(text, f"{ready:,}", f"{self._symbols:,}", now_s - self._began_s)
        elif now_s >= self._line_at_s and ready != self._logged:
            self._logged, self._line_at_s = ready, now_s + _EVERY_S
            log.info("%s", sentence(ready, self._symbols), extra={"ready": ready, "symbols": self._symbols})
