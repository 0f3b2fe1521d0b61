"""The exchange's clock, as far as we know it: what it said lately, advanced by our monotonic clock.

Rules of this module:
- The monotonic reading is passed in, so nothing here can look at a clock by itself.
- One reading never moves the estimate by more than our own clock allows: the first is believed when a second one
  agrees, a jump ahead when a second reading some time later says the same and none in between contradicted it.
- What arrives late makes the exchange look slow, so within that tolerance the largest of the recent readings counts.
  Only the last minutes do, which keeps a clock of ours that runs a little fast from pulling the estimate away over
  months.
- The estimate steps back only on two answers to questions of ours, whose lateness is bounded by how long they took. To
  be behind for a moment delays a candle; to be ahead could take one before its end.
"""

from __future__ import annotations

from stream.core.market.candle import HOUR_MS

#: What can wait keeps so far away from a close.
_CALM_MS = 120_000
#: Readings of this much real time, and of as much before it, count.
_WINDOW_S = 300.0
#: Two readings agree when they differ by less than this, in real time.
_TOLERANCE_S = 2.0
#: A jump ahead counts when a second reading says the same this much real time after the first.
_CONFIRM_AFTER_S = 1.0


class ExchangeTime:
    """`scale` is how much faster than ours the exchange's clock runs; at 0 it moves only by what the exchange says,
    and then each reading is believed. What it tells runs backwards only when the exchange has corrected itself."""

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 <= scale < float("inf"):
            raise ValueError(f"time scale {scale} must be a number of at least 0")
        self._scale = scale
        self._tolerance_ms = _TOLERANCE_S * max(1.0, scale) * 1_000
        self._began_s = 0.0
        #: Largest server time minus our scaled clock, in this window and in the one before it.
        self._offset_ms: float | None = None
        self._before_ms: float | None = None
        self._last_returned_ms = 0
        #: The first reading that counts: when it came, and what it said.
        self._first_s = 0.0
        self._first_ms: int | None = None
        #: A reading that contradicts the estimate: its offset, and when it came.
        self._doubt: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        return self._offset_ms is not None

    @property
    def first_ms(self) -> int:
        """What time it was at the exchange when it first said so; `LookupError` before that can be believed."""
        if self._first_ms is None:
            raise LookupError("the exchange has not told its time yet")
        return self._first_ms

    @property
    def doubt_ms(self) -> int | None:
        """By how much the newest reading contradicts the estimate, while that is not settled; asking the exchange for
        its time again settles it."""
        if self._doubt is None or self._offset_ms is None:
            return None
        return int(self._doubt[0] - self._estimate_ms())

    def observe(self, server_ms: int, monotonic_s: float, asked_s: float | None = None) -> None:
        """Takes a server time that arrived at `monotonic_s`; `asked_s` is when it was asked for, if it was."""
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
        """Whether our clock allows that it is this time at the exchange now."""
        if self._offset_ms is None or self._scale == 0:
            return True
        return server_ms - monotonic_s * self._scale * 1_000 <= self._estimate_ms() + self._tolerance_ms

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
        """Exchange time in ms; `LookupError` before the exchange has said anything that can be believed."""
        if self._offset_ms is None:
            raise LookupError("the exchange has not told its time yet")
        # Rounded before it is cut: a millisecond must not be lost to the last bit of a float.
        self._last_returned_ms = max(
            self._last_returned_ms, int(round(monotonic_s * self._scale * 1_000 + self._estimate_ms(), 3))
        )
        return self._last_returned_ms
