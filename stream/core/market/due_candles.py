"""Due candles: which candle is next, and which hours are proven not to exist.

Rules of this module:
- It handles times only. Candles are kept elsewhere, and the operator declares a hole that REST cannot fill a gap when
  it receives the next candle.
- An hour is absent from an answer only if the answer itself has a candle before it and one after it. Then it does not
  matter whether the page was cut short, the database was behind or the server misunderstood the question.
- An hour counts as not existing once two answers, some time apart, lack it in this way and none in between had it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from enum import Enum

from stream.core.market.candle import HOUR_MS


class Order(Enum):
    DUE = "due"
    DUPLICATE = "duplicate"  # the newest one again
    OUT_OF_ORDER = "out_of_order"  # older than the newest
    HOLE = "hole"  # at least one hour between it and the newest is missing


def judge(last_open_time: int | None, open_time: int) -> Order:
    """Returns what a candle that opens at `open_time` is for a symbol whose newest one opened at `last_open_time`."""
    if last_open_time is None or open_time == last_open_time + HOUR_MS:
        return Order.DUE
    if open_time == last_open_time:
        return Order.DUPLICATE
    return Order.OUT_OF_ORDER if open_time < last_open_time else Order.HOLE


def overdue(last_open_time: int | None, exchange_now_ms: int, grace_ms: int) -> bool:
    """Returns whether the due candle's close is at least `grace_ms` ago; True if the symbol has no candle yet."""
    if last_open_time is None:
        return True
    return exchange_now_ms >= last_open_time + 2 * HOUR_MS + grace_ms


def lacking(open_times: Sequence[int]) -> list[int]:
    """Returns the hours that an ordered answer lacks between two of its candles."""
    if open_times and open_times[-1] - open_times[0] == (len(open_times) - 1) * HOUR_MS:
        return []
    return [
        hour for before, after in itertools.pairwise(open_times) for hour in range(before + HOUR_MS, after, HOUR_MS)
    ]


class Absences:
    """The hours of one symbol that REST has shown not to exist, and when it did. Times are monotonic seconds."""

    def __init__(self, apart_s: float) -> None:
        self._apart_s = apart_s
        self._first_shown_s: dict[int, float] = {}
        self._proven: set[int] = set()

    def shown(self, absent: Iterable[int], present: Iterable[int], at_s: float) -> None:
        """Takes the hours that one answer lacks, and those that it has."""
        if self._first_shown_s:
            for hour in present:
                self._first_shown_s.pop(hour, None)
                self._proven.discard(hour)
        for hour in absent:
            if at_s - self._first_shown_s.setdefault(hour, at_s) >= self._apart_s:
                self._proven.add(hour)

    def proven(self, hours: Iterable[int]) -> bool:
        """Returns whether all of these hours are proven not to exist."""
        return all(hour in self._proven for hour in hours)

    def unproven(self, hours: Iterable[int]) -> list[int]:
        """Returns those of these hours that are not proven not to exist."""
        return [hour for hour in hours if hour not in self._proven]

    def again_at_s(self, hours: Iterable[int]) -> float | None:
        """Returns the time from which another answer can prove the last of these hours absent. Returns None if all are
        proven, or if one was never shown absent: then only an answer that shows more can help."""
        times = [self._first_shown_s.get(hour) for hour in hours if hour not in self._proven]
        if not times or None in times:
            return None
        return max(t for t in times if t is not None) + self._apart_s

    def forget(self, until: int) -> None:
        """Drops what is known of hours up to `until`, which are settled."""
        self._first_shown_s = {h: s for h, s in self._first_shown_s.items() if h > until}
        self._proven = {h for h in self._proven if h > until}
