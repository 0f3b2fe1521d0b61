"""The newest row of many symbols at once, without the rows before it: the bits that `features.compute` gives.

A window of w rows is put together from windows of 1, 2, 4, … rows (stream/core/forecasting/windows.py). Where only the
window that ends now is asked for, each of those is a tree of additions over its own rows, so nothing is kept of the
hours before but the candles, which the operator has anyway. Time is the first axis here, and symbols are the last.

The rows of the network's sequence are kept, for each would cost as much as the newest. Those of a symbol count only if
the window that they were made of is the very one that the symbol's new window follows; otherwise they are made anew
from the new window. So nobody has to report that a past candle has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import features
from stream.core.forecasting.features import (
    CHANNELS,
    EWMA_DECAY,
    EWMA_HOURS,
    LOOKBACK_HOURS,
    RETURN,
    SEASON_HOURS,
    SEASON_WEEKS,
    SEQUENCE_HOURS,
    SEQUENCE_NAMES,
    WEEK_HOURS,
    WEIGHTED,
    WINDOWS_HOURS,
    Features,
)
from stream.core.forecasting.tail import Tail
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

_LARGEST_HOURS = 24
#: How many symbols are summed at a time: what they take meanwhile fits into a processor's cache.
_AT_ONCE = 16


def window_sum(values: Array, hours: int, ago: int = 0, decay: float = 1.0) -> Array:
    """Returns Σ over `hours` rows of `values` [T, ...], of which the newest is `ago` rows old: the additions that
    `windows.Trailing` makes, in its order. `decay` < 1 weights the value of k rows before that by decay**k."""
    total: Array | None = None
    offset = 0
    for level in range(hours.bit_length()):
        if not hours >> level & 1:
            continue
        end = len(values) - ago - offset
        part = values[end - 2**level : end]
        for half in (2**k for k in range(level)):
            newer, older = part[1::2], part[::2]
            part = newer + (older if decay == 1.0 else decay**half * older)
        one = part[0] if decay == 1.0 else decay**offset * part[0]
        total = one if total is None else total + one
        offset += 2**level
    assert total is not None
    return total


class _Sums:
    """What the newest rows of some symbols rest on."""

    def __init__(self, symbols: int) -> None:
        self.over = {hours: np.empty((CHANNELS, symbols)) for hours in WINDOWS_HOURS}
        self.weighted = np.empty((len(WEIGHTED), symbols))
        self.largest = np.empty(symbols)
        self.season = np.empty((len(SEASON_HOURS), SEASON_WEEKS, CHANNELS, symbols))

    def take(self, places: slice, candles: Array) -> None:
        """Sums the candles [LOOKBACK_HOURS, 5, symbols] of the symbols at these places."""
        channels = _channels(candles)
        for hours, sums in self.over.items():
            sums[:, places] = window_sum(channels, hours)
        self.weighted[:, places] = window_sum(channels[:, WEIGHTED], EWMA_HOURS, decay=EWMA_DECAY)
        self.largest[places] = np.maximum.reduce(np.abs(channels[-_LARGEST_HOURS:, RETURN]), axis=0)
        # The season of the coming hours: the same hours of the week in the weeks before.
        for k, hours in enumerate(SEASON_HOURS):
            for week in range(SEASON_WEEKS):
                self.season[k, week][:, places] = window_sum(channels, hours, (week + 1) * WEEK_HOURS - hours)


def _channels(candles: Array) -> Array:
    """Does what `features.channels_of` does, along the first axis: [T, 5, symbols] to [T, channels, symbols]."""
    o, h, low, c, v = (candles[:, k] for k in range(5))
    present = np.isfinite(c)
    log_close = np.log(np.where(present, c, 1.0))
    before, log_close_before = np.zeros_like(present), np.zeros_like(log_close)
    before[1:], log_close_before[1:] = present[:-1], log_close[:-1]
    return features.channels(o, h, low, c, v, log_close, log_close_before, before)


class Rolling:
    """What is kept of the symbols that it has seen; 2 kB for each."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        #: By place: the window that the sequence was made of.
        self._seen: list[Tail | None] = []
        #: By hour and place.
        self._sequence = np.zeros((SEQUENCE_HOURS, len(SEQUENCE_NAMES), 0), np.float32)

    def newest(
        self, open_time: int, symbols: Sequence[str], windows: Sequence[Tail], follows: Sequence[Tail | None]
    ) -> tuple[Features, NDArray[np.float32]]:
        """Returns the features of the candles that opened at `open_time`, a row per symbol, and their sequences
        [symbols, 48, F].

        windows: for each symbol [LOOKBACK_HOURS, 5], the candle last. follows: the window of the hour before; None if
        that hour is missing.
        """
        hour = open_time // HOUR_MS
        self._reserve(symbols)
        sums = _Sums(len(symbols))
        for first in range(0, len(symbols), _AT_ONCE):
            part = windows[first : first + _AT_ONCE]
            sums.take(slice(first, first + len(part)), np.stack([window.rows for window in part], axis=-1))
        table = features.rows(
            np.full(len(symbols), open_time, np.int64),
            lambda channel, hours: sums.over[hours][channel],
            sums.weighted,
            sums.largest,
            features.season_level(sums.season),
        )
        places = np.array([self._places[symbol] for symbol in symbols])
        for k, place in enumerate(places.tolist()):
            before = follows[k]
            if before is None or self._seen[place] is not before:
                self._make(hour, place, windows[k])
            self._seen[place] = windows[k]
        self._sequence[hour % SEQUENCE_HOURS][:, places] = table.sequence_rows.T
        order = np.arange(hour - SEQUENCE_HOURS + 1, hour + 1) % SEQUENCE_HOURS
        return table, np.ascontiguousarray(self._sequence[order][..., places].transpose(2, 0, 1))

    def _reserve(self, symbols: Sequence[str]) -> None:
        """Gives each symbol a place."""
        for symbol in symbols:
            self._places.setdefault(symbol, len(self._places))
        self._seen += [None] * (len(self._places) - len(self._seen))
        kept = self._sequence
        if len(self._places) > kept.shape[-1]:
            # With some to spare: symbols that come one by one must not copy everything each time.
            room = max(len(self._places), kept.shape[-1] * 9 // 8)
            self._sequence = np.zeros((*kept.shape[:-1], room), kept.dtype)
            self._sequence[..., : kept.shape[-1]] = kept

    def _make(self, hour: int, place: int, window: Tail) -> None:
        """Makes the sequence of a symbol from its window."""
        hours = np.arange(hour - LOOKBACK_HOURS + 1, hour + 1)
        made = features.compute(HOUR_MS * hours, window.rows, newest=1).sequence_rows
        self._sequence[hours[-SEQUENCE_HOURS:] % SEQUENCE_HOURS, :, place] = made
