"""Where a retraining's candles come from: a file, or the journal and the exchange's archive and REST."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import click

from stream.adapters.candles import files
from stream.adapters.candles.files import CandleTable
from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.store import SqliteJournal
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import RefusedError, VolcastError
from training.data import fetch as fetching

_PAGE_HOURS = 10_000
#: Shorter holes are the exchange's: its maintenance takes hours, and what a fetch leaves out it has proven absent.
_ASKED_ANEW_HOURS = 24


def of_files(candles: Path, pool: Path | None, symbol: str, now_ms: int) -> CandleTable:
    """Reads a candle file, with the other pairs of a second one. `symbol`: of a file that names none."""
    table = files.read(candles, default_symbol=symbol, now_ms=now_ms)
    if pool is None:
        return table
    others = files.read(pool, default_symbol=None, now_ms=now_ms)
    return files.joined(table, others)


def of_node(
    data_dir: Path,
    symbols: Sequence[str],
    others: Iterable[str],
    from_ms: int,
    to_ms: int,
    rest_url: str,
    archive_url: str,
) -> CandleTable:
    """Brings `retraining/candles` of the data directory up to `to_ms`: the journal's candles of the followed symbols,
    and from the exchange what it lacks. Returns them as one table.

    `others`: pairs that are learnt from too; one that the exchange does not have is left out with a line.
    Raises `RefusedError` or `UnreachableError` where a followed symbol's cannot be had.
    """
    folder = data_dir / "retraining" / "candles"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(f"{folder} cannot be made ({error.strerror}): make room or mend its permissions") from None
    paths: list[Path] = []
    for symbol in dict.fromkeys([*symbols, *others]):
        path = folder / f"{symbol}.parquet"
        held = _of_journal(data_dir, symbol, from_ms, to_ms) if symbol in symbols else []
        try:
            _complete(path, symbol, held, from_ms, to_ms, rest_url, archive_url)
        except VolcastError as error:
            if symbol in symbols and not path.exists():
                raise
            if not path.exists():
                click.echo(f"note: {symbol} is not learnt from: {error}", err=True)
                continue
            click.echo(f"note: {symbol}: {error}; what was fetched before is used", err=True)
        paths.append(path)
    tables = [files.read(path, asked=path.stem, now_ms=to_ms) for path in paths]
    table = tables[0]
    for other in tables[1:]:
        table = files.joined(table, other)
    return table


def _of_journal(data_dir: Path, symbol: str, from_ms: int, to_ms: int) -> list[Candle]:
    if not (data_dir / FILE_NAME).exists():
        return []
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        newest = journal.last_open_time(symbol)
        if newest is None:
            return []
        found: list[Candle] = []
        page_ms = _PAGE_HOURS * HOUR_MS
        for first in range(from_ms, min(newest + HOUR_MS, to_ms), page_ms):
            found += journal.candles(symbol, first, min(first + page_ms, to_ms) - HOUR_MS)
        return found


def _complete(
    path: Path, symbol: str, held: Sequence[Candle], from_ms: int, to_ms: int, rest_url: str, archive_url: str
) -> None:
    """Brings `path` up to [from, to): from the exchange, but for hours that the journal has, which the daemon held
    against REST. What an earlier call fetched is not fetched again."""
    if not path.exists():
        fetching.fetch([symbol], from_ms, to_ms, path, rest_url=rest_url, archive_url=archive_url)
    known = {c.open_time: c for c in files.read(path, asked=symbol, now_ms=to_ms)[symbol]}
    if held:
        known |= {c.open_time: c for c in held}
        files.write([known[t] for t in sorted(known)], path)
    times = sorted(known)
    if times[0] >= from_ms + _ASKED_ANEW_HOURS * HOUR_MS:
        # Mostly it was listed then, and there is nothing before.
        with contextlib.suppress(fetching.FetchError):
            fetching.fetch([symbol], from_ms, times[0], path, rest_url=rest_url, archive_url=archive_url)
    marks = [*(t + HOUR_MS for t in times if from_ms <= t < to_ms)]
    holes = [(a, b - HOUR_MS) for a, b in pairwise(marks) if b - a > _ASKED_ANEW_HOURS * HOUR_MS]
    if times[-1] + HOUR_MS < to_ms:
        holes.append((max(times[-1] + HOUR_MS, from_ms), to_ms))
    for begin, end in holes:
        fetching.fetch([symbol], begin, end, path, rest_url=rest_url, archive_url=archive_url)
