"""Fetches closed candles of several symbols into one candle file. Hours that the exchange never published are reported,
not filled.

The file is a function of the parts alongside it (`<file>.parts`), which survive every interruption, and of the candles
that it held outside the period asked for, which it keeps. So the same call begins, resumes, extends and repairs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec

from stream.adapters.candles import files
from stream.adapters.rest.archive import BinanceArchive
from stream.adapters.rest.history import BinanceHistory
from stream.clock import Clock
from stream.core.market.binance import SYMBOL_PATTERN, UnknownSymbolError
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.errors import UnreachableError
from training.data.collect import Collector, Facts, patiently
from training.data.parts import FetchError, Parts

__all__ = ["ARCHIVE_URL", "REST_URL", "FetchError", "Fetched", "Hole", "fetch", "fetching", "parts_of"]

ARCHIVE_URL = "https://data.binance.vision"
REST_URL = "https://api.binance.com"
#: Share of a minute's request weight at which a fetch pauses: other clients behind the same address, the daemon among
#: them, need weight too.
_WEIGHT_SHARE = 0.5
#: Pauses of this length and more are reported.
_LONG_PAUSE_S = 5.0


class Hole(msgspec.Struct, frozen=True):
    """Hours that archive and REST do not have; `from_ms` and `to_ms` are the first and the last one's open time."""

    from_ms: int
    to_ms: int
    hours: int


class Series(msgspec.Struct, frozen=True):
    """What was found of a symbol in the period asked for."""

    symbol: str
    first_open_time: int
    last_open_time: int
    archive_hours: int
    rest_hours: int
    holes: list[Hole]
    facts: Facts
    #: Candles of this period that the file held and the exchange does not have (any more); they are left out.
    withdrawn: int


class Fetched(msgspec.Struct, frozen=True):
    """The number of candles in the file, how many of them were kept from outside the request, and what was found."""

    rows: int
    kept: int
    series: list[Series]


def parts_of(out: Path) -> Path:
    """Returns the folder alongside `out` that makes a fetch resumable; without it everything is fetched anew."""
    return out.with_name(f"{out.name}.parts")


def fetch(
    symbols: Sequence[str],
    from_ms: int,
    to_ms: int | None,
    out: Path,
    *,
    rest_url: str = REST_URL,
    archive_url: str = ARCHIVE_URL,
    progress: Callable[[str, int, int], None] = lambda symbol, done, total: None,
    waiting: Callable[[float], None] = lambda seconds: None,
) -> Fetched:
    """Fetches the closed candles that open in [from_ms, to_ms), up to now where `to_ms` is None, and writes them to
    `out` at once or not at all.

    Calls `progress(symbol, hours done, hours in all)` on the way, and `waiting(seconds)` before long pauses that the
    exchange asked for. Raises `UnreachableError`, `FetchError` or `CandleFileError`; the same call again resumes.
    """
    return asyncio.run(
        fetching(
            symbols,
            from_ms,
            to_ms,
            out,
            rest_url=rest_url,
            archive_url=archive_url,
            progress=progress,
            waiting=waiting,
        )
    )


async def fetching(
    symbols: Sequence[str],
    from_ms: int,
    to_ms: int | None,
    out: Path,
    *,
    rest_url: str,
    archive_url: str,
    progress: Callable[[str, int, int], None] = lambda symbol, done, total: None,
    waiting: Callable[[float], None] = lambda seconds: None,
    clock: Clock | None = None,
) -> Fetched:
    """Does what `fetch` does, inside a running event loop and by `clock`."""

    machine = clock or Clock()

    async def pause(seconds: float) -> None:
        if seconds >= _LONG_PAUSE_S:
            waiting(seconds)
        await machine.sleep(seconds)

    clock = replace(machine, sleep=pause)
    for symbol in symbols:
        if not SYMBOL_PATTERN.fullmatch(symbol):
            raise FetchError(f"--symbols: {symbol!r} is no symbol; they look like BTCUSDT")
    # Before the first request: hours of fetching must not end at a file or a place that cannot be used.
    before = await asyncio.to_thread(_held, out, symbols[0] if len(symbols) == 1 else None)
    parts = Parts(parts_of(out))
    found: dict[str, tuple[list[Candle], Collector]] = {}
    async with (
        BinanceHistory(rest_url, clock=clock, weight_share=_WEIGHT_SHARE) as history,
        BinanceArchive(archive_url, clock=clock) as archive,
    ):
        now_ms = await patiently(history.server_time_ms, history, clock)
        end_ms = grid_floor(now_ms if to_ms is None else min(to_ms, now_ms))
        start_ms = -(-from_ms // HOUR_MS) * HOUR_MS
        if start_ms >= end_ms:
            raise FetchError("there is no closed candle in that period: choose an earlier --from or a later --to")
        # All symbols are looked up first: a wrong name must not show only after hours of fetching.
        listed = {symbol: await _listed(symbol, start_ms, history, clock) for symbol in symbols}
        for symbol, first_ms in listed.items():
            if first_ms is None or first_ms >= end_ms:
                raise FetchError(f"the exchange has no candle of {symbol} in that period")
            total = (end_ms - first_ms) // HOUR_MS
            collector = Collector(
                symbol,
                first_ms,
                end_ms,
                now_ms,
                archive=archive,
                history=history,
                parts=parts,
                clock=clock,
                progress=partial(_report_progress, progress, symbol, total),
            )
            try:
                series = await collector.collect()
            except UnreachableError as error:
                raise FetchError(f"{error}; what came so far is kept, the same command resumes") from None
            if not series:
                raise FetchError(f"the exchange has no candle of {symbol} in that period")
            progress(symbol, total, total)
            found[symbol] = (series, collector)
    return await asyncio.to_thread(_write, out, before, found, start_ms, end_ms)


async def _listed(symbol: str, start_ms: int, history: BinanceHistory, clock: Clock) -> int | None:
    """Returns the first hour at or after `start_ms` for which the exchange has the symbol; None where it has none."""
    try:
        await patiently(partial(history.exchange_info, symbol), history, clock)
        first_ms = await patiently(partial(history.first_open_time, symbol, start_ms), history, clock)
    except UnknownSymbolError:
        raise FetchError(f"--symbols: the exchange does not list {symbol}") from None
    return None if first_ms is None else max(start_ms, grid_floor(first_ms))


def _report_progress(progress: Callable[[str, int, int], None], symbol: str, total: int, done: int) -> None:
    progress(symbol, min(done, total), total)


def _held(out: Path, symbol: str | None) -> dict[str, list[Candle]]:
    """Returns the candles that `out` holds, by symbol; those of a file that names no symbol are `symbol`'s. Raises
    `CandleFileError` where `out` exists and is no candle file, or can never be written, and `FetchError` where it holds
    candles that writing it anew would lose."""
    files.refuse_place(out)
    if not out.exists():
        return {}
    table = files.read(out, default_symbol=symbol)
    if table.off_hour:
        raise FetchError(
            f"{out}: it holds {table.off_hour} candle(s) off the hour, which would be lost: use another --out"
        )
    return {symbol: table[symbol] for symbol in table.symbols}


def _write(
    out: Path,
    before: dict[str, list[Candle]],
    found: dict[str, tuple[list[Candle], Collector]],
    start_ms: int,
    end_ms: int,
) -> Fetched:
    rows: list[Candle] = []
    series: list[Series] = []
    kept = 0
    for symbol in sorted(before.keys() | found.keys()):
        own, collector = found.get(symbol, ([], None))
        here = {c.open_time for c in own}
        held = before.get(symbol, [])
        # Candles outside of the request stay as they are.
        others = [c for c in held if collector is None or not start_ms <= c.open_time < end_ms]
        kept += len(others)
        rows += sorted([*others, *own], key=lambda c: c.open_time)
        if collector is None:
            continue
        series.append(
            Series(
                symbol,
                own[0].open_time,
                own[-1].open_time,
                len(own) - collector.rest_hours,
                collector.rest_hours,
                _holes(own),
                collector.facts,
                len({c.open_time for c in held} - {c.open_time for c in others} - here),
            )
        )
    files.write(rows, out)
    return Fetched(len(rows), kept, series)


def _holes(series: Sequence[Candle]) -> list[Hole]:
    return [
        Hole(a.open_time + HOUR_MS, b.open_time - HOUR_MS, (b.open_time - a.open_time) // HOUR_MS - 1)
        for a, b in pairwise(series)
        if b.open_time - a.open_time > HOUR_MS
    ]
