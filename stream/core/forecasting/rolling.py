"""The newest row of many symbols, hour after hour, without the rows before it: the bits that `features.compute` gives.

Kept is what each hour adds to the windows where that takes a logarithm, as far back as the newest row looks. What is
added up each hour is the newest row alone (stream/core/forecasting/windows.py). Time is the first axis of what is kept,
and symbols are the last.

What is kept of a symbol counts only if the window that it was made of is the very one that the symbol's new window
follows; otherwise it is made anew from the new window. So nobody has to report that a past candle has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting import features
from stream.core.forecasting.features import (
    AMOUNTS,
    EWMA_DECAY,
    EWMA_HOURS,
    LASTING,
    LOGARITHMIC,
    LOOKBACK_HOURS,
    PASSING_HOURS,
    RANGE,
    RETURN,
    SEASON,
    SEASON_WEEKS,
    SEQUENCE_HOURS,
    SEQUENCE_NAMES,
    SQUARE,
    VOLUME,
    WEEK_HOURS,
    WINDOWS_HOURS,
    Features,
)
from stream.core.forecasting.tail import Tail
from stream.core.forecasting.windows import Array, NewestSums
from stream.core.market.candle import HOUR_MS

#: Where symbols have their places on the last axis of a block.
Places = NDArray[np.int64] | slice

_LARGEST_HOURS = 24
#: Symbols of a block. What is made of theirs meanwhile, two megabytes, stays in the processor's cache.
_BLOCK = 64
#: Rows that windows reach over: the first hour of the look-back has no return.
_ROWS = LOOKBACK_HOURS - 1
#: How many hours ago the hours were that the season looks at, in each week the one that is furthest ahead first:
#: [hours, weeks].
_AHEAD_HOURS = max(ahead for _, ahead in SEASON)
_BEHIND_HOURS = max(hours - ahead for hours, ahead in SEASON)
_SEASON_AGO = WEEK_HOURS * np.arange(1, SEASON_WEEKS + 1) + np.arange(-_AHEAD_HOURS, _BEHIND_HOURS)[:, None]


#: The EWMA's count where no hour is missing, as it is added up.
_WEIGHTS = float(NewestSums(np.ones(_ROWS), EWMA_DECAY).sum(EWMA_HOURS))


class _Summed(NamedTuple):
    """What the newest row of some symbols rests on; symbols are the last axis."""

    #: By window, [windows, channels, symbols]: the first `features.LASTING` channels, those behind them, and
    lasting: Array
    passing: Array
    #: how many hours have a candle, and how many a return.
    counts: Array
    #: As `features.rows` takes them.
    weighted: Array
    largest: Array
    season: Array


class Rolling:
    """What is kept of the symbols that it has seen; some 14 kB for each."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        #: By place: the window that what is kept was made of.
        self._seen: list[Tail | None] = []
        #: Of `_BLOCK` places each.
        self._blocks: list[_Block] = []
        self._scratch = _Scratch()

    def newest(
        self, open_time: int, symbols: Sequence[str], windows: Sequence[Tail], follows: Sequence[Tail | None]
    ) -> tuple[Features, NDArray[np.float32]]:
        """Returns the features of the candles that opened at `open_time`, a row per symbol, and their sequences
        [symbols, 48, F].

        windows: for each symbol [LOOKBACK_HOURS, 5], the candle last. follows: the window of the hour before; None if
        that hour is missing.
        """
        hour = open_time // HOUR_MS
        at = [self._place(symbol) for symbol in symbols]
        known = [f is not None and self._seen[k] is f for k, f in zip(at, follows, strict=True)]
        order = sorted(range(len(at)), key=at.__getitem__)
        summed, blocks = [], []
        for block, part in groupby(order, key=lambda i: at[i] // _BLOCK):
            members = list(part)
            places = np.array([at[i] % _BLOCK for i in members])
            for take, chosen in (
                (self._blocks[block].add, [k for k, i in enumerate(members) if known[i]]),
                (self._blocks[block].make, [k for k, i in enumerate(members) if not known[i]]),
            ):
                if chosen:
                    take(hour, places[chosen], [windows[members[k]].rows for k in chosen])
            rows = [windows[i].rows for i in members]
            summed.append(self._blocks[block].sums(hour, _side_by_side(places), rows, self._scratch))
            blocks.append((self._blocks[block], members, _side_by_side(places)))
        for k, window in zip(at, windows, strict=True):
            self._seen[k] = window
        table = _features(open_time, _together(summed, order))
        sequences = np.empty((len(symbols), SEQUENCE_HOURS, len(SEQUENCE_NAMES)), np.float32)
        for one, members, side_by_side in blocks:
            sequences[members] = one.sequences(hour, side_by_side, table.sequence_rows[members])
        return table, sequences

    def _place(self, symbol: str) -> int:
        place = self._places.get(symbol)
        if place is None:
            place = self._places[symbol] = len(self._seen)
            self._seen.append(None)
            if place == len(self._blocks) * _BLOCK:
                self._blocks.append(_Block())
        return place


class _Scratch:
    """Memory that one block after the other uses: to ask for so much anew takes longer than to add it up."""

    def __init__(self) -> None:
        self._lasting = np.empty(_ROWS * LASTING * _BLOCK)
        self._sums = np.empty_like(self._lasting)
        self._weighted = np.empty(_ROWS * _BLOCK)

    def lasting(self, symbols: int) -> Array:
        return self._lasting[: _ROWS * LASTING * symbols].reshape(_ROWS, LASTING, symbols)

    def sums(self, symbols: int) -> Array:
        return self._sums[: _ROWS * LASTING * symbols].reshape(_ROWS, LASTING, symbols)

    def weighted(self, symbols: int) -> Array:
        return self._weighted[: _ROWS * symbols].reshape(_ROWS, symbols)


class _Block:
    """What is kept of up to `_BLOCK` symbols."""

    def __init__(self) -> None:
        #: The first `features.LOGARITHMIC` channels, and whether there is a candle: with the window's volumes, all
        #: others follow from that.
        self._kept = np.zeros((LOOKBACK_HOURS, LOGARITHMIC, _BLOCK))
        self._present = np.zeros((LOOKBACK_HOURS, _BLOCK), np.bool_)
        self._sequence = np.zeros((SEQUENCE_HOURS, len(SEQUENCE_NAMES), _BLOCK), np.float32)

    def add(self, hour: int, places: NDArray[np.int64], windows: Sequence[Array]) -> None:
        """Adds an hour to symbols of which the hours before are known, from their windows [LOOKBACK_HOURS, 5]."""
        # The candle before the newest makes its return.
        self._take(np.array([hour]), places, np.stack([window[-2:] for window in windows]))

    def make(self, hour: int, places: NDArray[np.int64], windows: Sequence[Array]) -> None:
        """Makes what is kept of symbols from their windows."""
        hours, ohlcv = np.arange(hour - LOOKBACK_HOURS + 1, hour + 1), np.stack(windows)
        self._take(hours, places, ohlcv)
        sequence = features.compute(HOUR_MS * hours, ohlcv, newest=1).sequence_rows
        slots = hours[-SEQUENCE_HOURS:] % SEQUENCE_HOURS
        self._sequence[np.ix_(slots, np.arange(len(SEQUENCE_NAMES)), places)] = sequence.transpose(1, 2, 0)

    def _take(self, hours: NDArray[np.int64], places: NDArray[np.int64], ohlcv: Array) -> None:
        """Takes these hours, the newest of [symbols, >= hours, 5]."""
        r, ranges, present, _ = (kind[:, -len(hours) :].T for kind in features.measured(ohlcv))
        slots = hours[:, None] % LOOKBACK_HOURS
        self._kept[slots, RETURN, places], self._kept[slots, RANGE, places] = r, ranges
        self._present[slots, places] = present

    def sums(self, hour: int, places: Places, windows: Sequence[Array], scratch: _Scratch) -> _Summed:
        """Adds up what the newest row rests on, the newest hour first."""
        newest, symbols = hour % LOOKBACK_HOURS, len(windows)
        present = np.concatenate([self._present[newest::-1, places], self._present[:newest:-1, places]])
        complete = bool(present.all())
        returned, present = present[:-1] & present[1:], present[:-1]
        lasting = scratch.lasting(symbols)
        lasting[: newest + 1, :LOGARITHMIC] = self._kept[newest::-1, :, places][: len(lasting)]
        lasting[newest + 1 :, :LOGARITHMIC] = self._kept[: newest + 1 : -1, :, places]
        for k, window in enumerate(windows):
            lasting[:, VOLUME, k] = window[:0:-1, 4]
        if not complete:
            np.copyto(lasting[:, VOLUME], 0.0, where=~present)
        features.fill_sizes(lasting)
        near = slice(max(PASSING_HOURS))
        passing = NewestSums(np.stack(features.passing(lasting[near], present[near]), axis=1))
        summed = NewestSums(lasting, scratch=scratch.sums(symbols))
        counts, weights = _counts_in_full(symbols) if complete else _counts(present, returned)
        squares = NewestSums(lasting[:, SQUARE], EWMA_DECAY, scratch.weighted(symbols)).sum(EWMA_HOURS)
        return _Summed(
            lasting=np.stack([summed.sum(hours) for hours in WINDOWS_HOURS]),
            passing=np.stack([passing.sum(hours) for hours in PASSING_HOURS]),
            counts=counts,
            weighted=np.stack([squares, weights]),
            largest=np.maximum.reduce(np.abs(lasting[:_LARGEST_HOURS, RETURN]), axis=0),
            season=_season(present[_SEASON_AGO], lasting[_SEASON_AGO, RANGE]),
        )

    def sequences(self, hour: int, places: Places, newest: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes the newest rows of the sequences [symbols, F] and returns the sequences [symbols, 48, F]."""
        self._sequence[hour % SEQUENCE_HOURS][:, places] = newest.T
        order = np.arange(hour - SEQUENCE_HOURS + 1, hour + 1) % SEQUENCE_HOURS
        return self._sequence[order][..., places].transpose(2, 0, 1)


@cache
def _counts_in_full(symbols: int) -> tuple[Array, Array]:
    """Returns what `_counts` does where no hour is missing."""
    hours = np.array(WINDOWS_HOURS, np.float64)[:, None, None]
    return np.repeat(np.repeat(hours, 2, axis=1), symbols, axis=2), np.full(symbols, _WEIGHTS)


def _counts(present: NDArray[np.bool_], returned: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Returns `_Summed.counts`, and the EWMA's count."""
    counted = np.stack([present, returned], axis=1).astype(np.float64)
    counts = NewestSums(counted)
    weights = NewestSums(np.ascontiguousarray(counted[:, 1]), EWMA_DECAY).sum(EWMA_HOURS)
    return np.stack([counts.sum(hours) for hours in WINDOWS_HOURS]), weights


def _season(present: NDArray[np.bool_], ranges: Array) -> Array:
    """Returns the level of the season's windows [windows, weeks, symbols], from their hours `_SEASON_AGO`."""
    *season, last = rows = [slice(_AHEAD_HOURS - ahead, _AHEAD_HOURS - ahead + hours) for hours, ahead in SEASON]
    numbers = np.stack([np.add.reduce(present[part], axis=0, dtype=np.float64) for part in rows])
    summed = [NewestSums(ranges[part]).sum(hours) for part, (hours, _) in zip(season, SEASON, strict=False)]
    logs = NewestSums(features.log_range(present[last], ranges[last])).sum(SEASON[-1][0])
    return features.season_level(numbers, np.stack(summed), logs[None])


def _together(summed: list[_Summed], order: list[int]) -> _Summed:
    """Returns the sums of all blocks, of which `order` says where each symbol was asked for."""
    if len(summed) == 1 and order == list(range(len(order))):
        return summed[0]
    as_asked = np.argsort(order)
    return _Summed(*(np.concatenate(each, axis=-1)[..., as_asked] for each in zip(*summed, strict=True)))


def _features(open_time: int, summed: _Summed) -> Features:
    lasting, passing, counts = (
        dict(zip(windows, sums, strict=True))
        for windows, sums in (
            (WINDOWS_HOURS, summed.lasting), (PASSING_HOURS, summed.passing), (WINDOWS_HOURS, summed.counts)
        )
    )  # fmt: skip

    def over(channel: int, hours: int) -> Array:
        if channel < LASTING:
            found: Array = lasting[hours][channel]
        elif channel < AMOUNTS:
            found = passing[hours][channel - LASTING]
        else:
            found = counts[hours][channel - AMOUNTS]
        return found

    times = np.full(summed.largest.shape[-1], open_time, np.int64)
    return features.rows(times, over, summed.weighted, summed.largest, summed.season)


def _side_by_side(places: NDArray[np.int64]) -> Places:
    """Returns ascending places as a slice if there are none between them: that saves a copy."""
    first, end = int(places[0]), int(places[-1]) + 1
    return slice(first, end) if end - first == len(places) else places
