"""The exchange's clock: an estimate from its recent server times, advanced by the local monotonic clock.

Rules of this module:
- The monotonic time is passed in; nothing here reads a clock.
- One reading never moves the estimate by more than the local clock allows: the first counts when a second one agrees, a
  jump ahead when a second reading some time later agrees and none in between contradicted it.
- A reading that arrives late makes the exchange's clock look slow, so within the tolerance the largest of the recent
  readings counts. Only the last minutes do, which keeps a local clock that runs a little fast from pulling the estimate
  away over months.
- The estimate steps back only after two answers to requests, whose lateness is bounded by how long they took. To be
  behind for a moment delays a candle; to be ahead could pass one before its end.
"""

from __future__ import annotations

from stream.core.market.candle import HOUR_MS

#: What can wait is kept this far away from a close.
_CALM_MS = 120_000
#: Length of a window, in real time: readings of the current one and of the one before it count.
_WINDOW_S = 300.0
#: Two readings agree when they differ by less than this, in real time.
_TOLERANCE_S = 2.0
#: A jump ahead counts when a second reading agrees, at least this much real time after the first.
_CONFIRM_AFTER_S = 1.0


class ExchangeTime:
    """An estimate of the exchange's time. `scale` is how many times as fast as real time its clock runs; at 0 it moves
    with the readings only, and each one counts. The time returned runs backwards only when the exchange has corrected
    itself. Raises `ValueError` if `scale` is negative or not finite."""

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 <= scale < float("inf"):
            raise ValueError(f"time scale {scale} must be a number of at least 0")
        self._scale = scale
        self._tolerance_ms = _TOLERANCE_S * max(1.0, scale) * 1_000
        self._began_s = 0.0
        #: Largest server time minus the scaled local clock, in this window and in the one before it.
        self._offset_ms: float | None = None
        self._before_ms: float | None = None
        self._last_returned_ms = 0
        #: The first reading that counts: when it arrived (monotonic), and the exchange's time then.
        self._first_s = 0.0
        self._first_ms: int | None = None
        #: A reading that contradicts the estimate: its offset, and when it arrived.
        self._doubt: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        return self._offset_ms is not None

    @property
    def first_ms(self) -> int:
        """The exchange's time, ms, at the first reading that counts. Raises `LookupError` before there is one."""
        if self._first_ms is None:
            raise LookupError("the exchange has not told its time yet")
        return self._first_ms

    @property
    def doubt_ms(self) -> int | None:
        """By how much, in ms, a reading contradicts the estimate, until that is settled; None otherwise. Asking the
        exchange for its time again settles it."""
        if self._doubt is None or self._offset_ms is None:
            return None
        return int(self._doubt[0] - self._estimate_ms())

    def observe(self, server_ms: int, monotonic_s: float, asked_s: float | None = None) -> None:
        """Takes a server time that arrived at `monotonic_s`; `asked_s` is when it was requested, None if it was not."""
        offset_ms = server_ms - monotonic_s * self._scale * 1_000
        if self._scale == 0:
            self._first_ms = server_ms if self._first_ms is None else self._first_ms
            self._take(offset_ms, monotonic_s)
        elif self._offset_ms is None:
            self._begin(offset_ms, monotonic_s)
        else:
            self._compare(offset_ms, monotonic_s, asked_s)

    def _begin(self, offset_ms: float, monotonic_s: float) -> None:
        if self._doubt is not None and abs(offset_ms - self._doubt[0]) <= self._tolerance_ms:
            self._first_s = self._doubt[1]
            self._restart(max(offset_ms, self._doubt[0]), monotonic_s)
        else:
            self._doubt = offset_ms, monotonic_s

    def _compare(self, offset_ms: float, monotonic_s: float, asked_s: float | None) -> None:
        estimate_ms = self._estimate_ms()
        late_ms = 0.0 if asked_s is None else (monotonic_s - asked_s) * self._scale * 1_000
        ahead = offset_ms > estimate_ms + self._tolerance_ms
        behind = asked_s is not None and offset_ms + late_ms < estimate_ms - self._tolerance_ms
        if not (ahead or behind):
            if offset_ms >= estimate_ms - self._tolerance_ms:
                self._doubt = None
            self._take(offset_ms, monotonic_s)
        elif self._doubt is None or abs(offset_ms - self._doubt[0]) > self._tolerance_ms:
            self._doubt = offset_ms, monotonic_s
        elif behind or monotonic_s - self._doubt[1] >= _CONFIRM_AFTER_S:
            self._restart(offset_ms, monotonic_s)

    def _restart(self, offset_ms: float, monotonic_s: float) -> None:
        self._offset_ms, self._before_ms, self._began_s = offset_ms, None, monotonic_s
        self._doubt, self._last_returned_ms = None, 0
        self._first_ms = int(round(offset_ms + self._first_s * self._scale * 1_000, 3))

    def _take(self, offset_ms: float, monotonic_s: float) -> None:
        if self._offset_ms is None:
            self._offset_ms, self._began_s = offset_ms, monotonic_s
        elif monotonic_s - self._began_s >= _WINDOW_S:
            self._before_ms, self._offset_ms, self._began_s = self._offset_ms, offset_ms, monotonic_s
        else:
            self._offset_ms = max(self._offset_ms, offset_ms)

    def _estimate_ms(self) -> float:
        assert self._offset_ms is not None
        return self._offset_ms if self._before_ms is None else max(self._offset_ms, self._before_ms)

    def plausible(self, server_ms: int, monotonic_s: float) -> bool:
        """Returns whether `server_ms` is not further ahead of the estimate than the tolerance. Returns True where there
        is no estimate to compare with."""
        if self._offset_ms is None or self._scale == 0:
            return True
        return server_ms - monotonic_s * self._scale * 1_000 <= self._estimate_ms() + self._tolerance_ms

    def until_calm_s(self, monotonic_s: float) -> float:
        """Returns the real seconds until no close is near: 0 if none is, if the time is unknown, or if the exchange's
        clock does not run in real time."""
        if self._offset_ms is None or self._scale != 1:
            return 0.0
        into_ms = self.now_ms(monotonic_s) % HOUR_MS
        if into_ms < _CALM_MS:
            return (_CALM_MS - into_ms) / 1_000
        left_ms = HOUR_MS - into_ms
        return (left_ms + _CALM_MS) / 1_000 if left_ms <= _CALM_MS else 0.0

    def now_ms(self, monotonic_s: float) -> int:
        """Returns the exchange's time in ms. Raises `LookupError` before it is known."""
        if self._offset_ms is None:
            raise LookupError("the exchange has not told its time yet")
        # Rounded before it is truncated: a millisecond must not be lost to the last bit of a float.
        self._last_returned_ms = max(
            self._last_returned_ms, int(round(monotonic_s * self._scale * 1_000 + self._estimate_ms(), 3))
        )
        return self._last_returned_ms
