"""Fetch: closed candles from REST into one candle file. What the exchange never published is told, not filled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from stream.adapters import candles as files
from stream.adapters.history import BinanceHistory
from stream.core.binance import KLINES_PAGE
from stream.core.candle import HOUR_MS, Candle, grid_floor
from stream.ports import Clock, UnreachableError

T = TypeVar("T")

_ATTEMPTS = 5
_RETRY_S = 0.5


class FetchError(RuntimeError):
    """Nothing could be written; one line for people."""


@dataclass(frozen=True, slots=True)
class Fetched:
    rows: int
    #: (symbol, first open time, last open time) of each run of hours that the exchange does not have.
    holes: tuple[tuple[str, int, int], ...]


def fetch(
    symbols: Sequence[str],
    from_ms: int,
    to_ms: int | None,
    out: Path,
    *,
    rest_url: str,
    progress: Callable[[str, int, int], None] = lambda symbol, done, total: None,
    clock: Clock | None = None,
) -> Fetched:
    """Candles that open in [from_ms, to_ms) and are closed, written to `out` at once or not at all.

    `progress(symbol, hours done, hours in all)`. `UnknownSymbolError`, `UnreachableError` or `FetchError`.
    """
    return asyncio.run(_fetch(symbols, from_ms, to_ms, out, rest_url, progress, clock or Clock()))


async def _fetch(
    symbols: Sequence[str],
    from_ms: int,
    to_ms: int | None,
    out: Path,
    rest_url: str,
    progress: Callable[[str, int, int], None],
    clock: Clock,
) -> Fetched:
    found: list[Candle] = []
    holes: list[tuple[str, int, int]] = []
    async with BinanceHistory(rest_url, clock=clock) as history:
        now_ms = await _patiently(history.server_time_ms)
        end_ms = grid_floor(now_ms if to_ms is None else min(to_ms, now_ms))
        start_ms = -(-from_ms // HOUR_MS) * HOUR_MS
        if start_ms >= end_ms:
            raise FetchError("there is no closed candle in that period: choose an earlier --from or a later --to")
        for symbol in symbols:
            series: list[Candle] = []
            total = (end_ms - start_ms) // HOUR_MS
            for first in range(start_ms, end_ms, KLINES_PAGE * HOUR_MS):
                last = min(first + (KLINES_PAGE - 1) * HOUR_MS, end_ms - HOUR_MS)
                answer = await _patiently(partial(history.candles, symbol, first, last))
                series += answer.candles
                progress(symbol, (last - start_ms) // HOUR_MS + 1, total)
            if not series:
                raise FetchError(f"the exchange has no candle of {symbol} in that period")
            found += series
            holes += [(symbol, *hole) for hole in _holes(series)]
    files.write(found, out)
    return Fetched(len(found), tuple(holes))


async def _patiently(question: Callable[[], Awaitable[T]]) -> T:
    delay_s = _RETRY_S
    for _ in range(_ATTEMPTS - 1):
        try:
            return await question()
        except UnreachableError:
            await asyncio.sleep(delay_s)
            delay_s *= 2
    return await question()


def _holes(series: Sequence[Candle]) -> list[tuple[int, int]]:
    return [
        (a.open_time + HOUR_MS, b.open_time - HOUR_MS)
        for a, b in pairwise(series)
        if b.open_time - a.open_time > HOUR_MS
    ]
