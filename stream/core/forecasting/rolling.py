"""The newest row of many symbols, hour after hour, without the rows before it: the bits that `features.compute` gives.

A window of w rows is put together from windows of 1, 2, 4, … rows (stream/core/forecasting/windows.py). Here the sums
of those are kept, by hour, as far back as a later one needs them; a new hour costs one addition for each power of two.
Time is the first axis of what is kept, and symbols are the last.

What is kept of a symbol counts only if the window that it was made of is the very one that the symbol's new window
follows; otherwise it is made anew from the new window. So nobody has to report that a past candle has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import features
from stream.core.forecasting.features import (
    CHANNELS,
    EWMA_DECAY,
    EWMA_HOURS,
    LOOKBACK_HOURS,
    PRESENT,
    RETURN,
    SEASON,
    SEASON_WEEKS,
    SEQUENCE_HOURS,
    SEQUENCE_NAMES,
    WEEK_HOURS,
    WEIGHTED,
    WINDOWS_HOURS,
    Features,
)
from stream.core.forecasting.tail import Tail
from stream.core.forecasting.windows import Array, Trailing
from stream.core.market.candle import HOUR_MS

_T = TypeVar("_T", bound=np.generic)
#: Where symbols have their place on the last axis.
Places = NDArray[np.int64] | slice

_LARGEST_HOURS = 24
#: The oldest window ended `SEASON_WEEKS` weeks ago, and the newest ends now.
_SEASON_KEPT = SEASON_WEEKS * WEEK_HOURS + 1
#: How many symbols are made anew at a time: each takes a megabyte meanwhile.
_AT_ONCE = 32


@cache
def _parts(hours: int) -> tuple[tuple[int, int], ...]:
    """Returns the powers of two that a window is put together from, each with how many hours ago it ends."""
    parts, ago = [], 0
    for level in range(hours.bit_length()):
        if hours >> level & 1:
            parts.append((level, ago))
            ago += 2**level
    return tuple(parts)


def _kept_hours(windows: Sequence[int], at_least: int = 1) -> list[int]:
    """Returns for each power of two how many hours of its sums are looked at."""
    kept = [1] * max(windows).bit_length()
    kept[0] = at_least
    for level, ago in (part for hours in windows for part in _parts(hours)):
        kept[level] = max(kept[level], ago + 1)
    for level in range(len(kept) - 1):
        kept[level] = max(kept[level], 2**level + 1)
    return kept


class _Sums:
    """The sums over 1, 2, 4, … hours of some channels of all symbols."""

    def __init__(self, channels: int, windows: Sequence[int], decay: float = 1.0, *, at_least: int = 1) -> None:
        self._decay = decay
        self._levels = [np.zeros((kept, channels, 0)) for kept in _kept_hours(windows, at_least)]

    def grow(self, symbols: int) -> None:
        self._levels = [_grown(level, symbols) for level in self._levels]

    def make(self, hour: int, places: NDArray[np.int64], powers: Sequence[Array]) -> None:
        """Takes the sums of symbols up to `hour` by level, each [symbols, channels, T]."""
        for level, known in zip(self._levels, powers, strict=True):
            slots = np.arange(hour - len(level) + 1, hour + 1) % len(level)
            level[np.ix_(slots, np.arange(level.shape[1]), places)] = known[..., -len(level) :].transpose(2, 1, 0)

    def add(self, hour: int, places: Places, values: Array) -> None:
        """Adds an hour: values [channels, symbols]."""
        self._levels[0][hour % len(self._levels[0])][:, places] = values
        for below, level, half in zip(self._levels, self._levels[1:], (2**k for k in range(99)), strict=False):
            older = below[(hour - half) % len(below)][:, places]
            values = values + (older if self._decay == 1.0 else self._decay**half * older)
            level[hour % len(level)][:, places] = values

    def sum(self, hour: int, hours: int, places: Places) -> Array:
        """Returns the sums over the last `hours` hours: [channels, symbols]."""
        total: Array | None = None
        for level, ago in _parts(hours):
            part = self._levels[level][(hour - ago) % len(self._levels[level])][:, places]
            if self._decay != 1.0:
                part = self._decay**ago * part
            total = part if total is None else total + part
        assert total is not None
        return total

    def values(self, hour: int, hours: int, channel: int, places: Places) -> Array:
        """Returns the last `hours` hours of one channel, in no order: [hours, symbols]."""
        level = self._levels[0]
        found: Array = level[np.arange(hour - hours + 1, hour + 1) % len(level), channel][:, places]
        return found


def _grown(kept: NDArray[_T], symbols: int) -> NDArray[_T]:
    """Returns the array with room for that many symbols on its last axis."""
    out = np.zeros((*kept.shape[:-1], symbols), kept.dtype)
    out[..., : kept.shape[-1]] = kept
    return out


class Rolling:
    """What is kept of the symbols that it has seen; some 85 kB for each."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        #: By place: the window that what is kept was made of.
        self._seen: list[Tail | None] = []
        self._sums = _Sums(CHANNELS, WINDOWS_HOURS, at_least=_LARGEST_HOURS)
        self._weighted = _Sums(len(WEIGHTED), (EWMA_HOURS,), EWMA_DECAY)
        self._season = np.zeros((_SEASON_KEPT, len(SEASON), 0))
        self._sequence = np.zeros((SEQUENCE_HOURS, len(SEQUENCE_NAMES), 0), np.float32)
        self._log_close = np.zeros(0)

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
        at = np.array([self._places[symbol] for symbol in symbols])
        known = np.array([f is not None and self._seen[k] is f for k, f in zip(at.tolist(), follows, strict=True)])
        places: Places = slice(int(at[0]), int(at[0]) + len(at)) if np.all(np.diff(at) == 1) else at
        if known.all():
            self._add(hour, places, np.stack([window.rows[-1] for window in windows], axis=-1))
        else:
            added = np.flatnonzero(known)
            if len(added):
                self._add(hour, at[added], np.stack([windows[i].rows[-1] for i in added.tolist()], axis=-1))
            made = np.flatnonzero(~known)
            for part in (made[i : i + _AT_ONCE] for i in range(0, len(made), _AT_ONCE)):
                self._make(hour, at[part], np.stack([windows[i].rows for i in part.tolist()]))
        for k, window in zip(at.tolist(), windows, strict=True):
            self._seen[k] = window
        return self._rows(open_time, hour, places, len(symbols))

    def _reserve(self, symbols: Sequence[str]) -> None:
        """Gives each symbol a place."""
        new = [symbol for symbol in symbols if symbol not in self._places]
        if not new:
            return
        for symbol in new:
            self._places[symbol] = len(self._places)
        self._seen += [None] * len(new)
        capacity = self._log_close.shape[-1]
        if len(self._places) <= capacity:
            return
        # With some to spare: symbols that come one by one must not copy everything each time.
        capacity = max(len(self._places), capacity + capacity // 8)
        self._sums.grow(capacity)
        self._weighted.grow(capacity)
        self._season = _grown(self._season, capacity)
        self._sequence = _grown(self._sequence, capacity)
        self._log_close = _grown(self._log_close, capacity)

    def _add(self, hour: int, places: Places, candles: Array) -> None:
        """Adds an hour with candles [5, symbols] to symbols of which the hour before is known."""
        o, h, low, c, v = candles
        log_close = np.log(c)
        # The hour before is in the window; whether it has a candle is among what is kept.
        before = self._sums.values(hour - 1, 1, PRESENT, places)[0] > 0
        values = features.channels(o, h, low, c, v, log_close, self._log_close[places], before)
        self._sums.add(hour, places, values)
        self._weighted.add(hour, places, values[WEIGHTED])
        self._log_close[places] = log_close

    def _make(self, hour: int, places: NDArray[np.int64], windows: Array) -> None:
        """Makes what is kept of symbols from their windows [symbols, LOOKBACK_HOURS, 5]."""
        channels = features.channels_of(windows)
        sums, weighted = Trailing(channels), Trailing(channels[..., WEIGHTED, :], EWMA_DECAY)
        self._sums.make(hour, places, sums.powers(max(WINDOWS_HOURS)))
        self._weighted.make(hour, places, weighted.powers(EWMA_HOURS))
        self._log_close[places] = np.log(windows[:, -1, 3])
        hours = np.arange(hour - LOOKBACK_HOURS + 1, hour + 1)
        level = features.season_level(np.stack([sums.sum(h) for h, _ in SEASON])[:, None])[:, 0]
        slots = hours[-_SEASON_KEPT:] % _SEASON_KEPT
        self._season[np.ix_(slots, np.arange(len(SEASON)), places)] = level[..., -_SEASON_KEPT:].transpose(2, 0, 1)
        grid = HOUR_MS * hours
        sequence = features.compute(grid, windows, newest=1).sequence_rows
        slots = hours[-SEQUENCE_HOURS:] % SEQUENCE_HOURS
        self._sequence[np.ix_(slots, np.arange(len(SEQUENCE_NAMES)), places)] = sequence.transpose(1, 2, 0)

    def _rows(self, open_time: int, hour: int, places: Places, symbols: int) -> tuple[Features, NDArray[np.float32]]:
        sums = {hours: self._sums.sum(hour, hours, places) for hours in WINDOWS_HOURS}
        level = features.season_level(np.stack([sums[h] for h, _ in SEASON])[:, None])[:, 0]
        self._season[hour % _SEASON_KEPT][:, places] = level
        # The same hours of the week in the weeks before: windows that ended this many hours ago.
        ago = [[week * WEEK_HOURS - ahead for week in range(1, SEASON_WEEKS + 1)] for _, ahead in SEASON]
        slots = (hour - np.array(ago)) % _SEASON_KEPT
        season = self._season[slots, np.arange(len(SEASON))[:, None]][..., places]
        returns = self._sums.values(hour, _LARGEST_HOURS, RETURN, places)
        table = features.rows(
            np.full(symbols, open_time, np.int64),
            lambda channel, hours: sums[hours][channel],
            self._weighted.sum(hour, EWMA_HOURS, places),
            np.maximum.reduce(np.abs(returns), axis=0),
            season,
        )
        self._sequence[hour % SEQUENCE_HOURS][:, places] = table.sequence_rows.T
        order = np.arange(hour - SEQUENCE_HOURS + 1, hour + 1) % SEQUENCE_HOURS
        return table, np.ascontiguousarray(self._sequence[order][..., places].transpose(2, 0, 1))
