"""Reads and writes candle files (polars): one row per closed hour (docs/contract.md §1).

Reading goes through `formats` (which format the file has), `columns` (what its columns mean) and `rules` (which rows
are candles), the same way for all commands. A file is complete or absent: it is written under another name and renamed.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stream.adapters.candles import columns, formats, rules
from stream.adapters.candles.columns import COLUMNS, OHLCV, OPTIONAL
from stream.adapters.candles.formats import CandleFileError
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.files import replacing

__all__ = [
    "DEFAULT_SYMBOL",
    "OHLCV",
    "CandleFileError",
    "CandleTable",
    "read",
    "refuse_place",
    "write",
    "write_part",
    "write_table",
]

log = logging.getLogger(__name__)

DEFAULT_SYMBOL = "BTCUSDT"


@dataclass(frozen=True, slots=True)
class CandleTable:
    """The candles of a file by symbol, each hour once and in order.

    `frame` has the columns symbol, open_time (Int64, ms), open … volume and the three optional ones (null where the
    file has none). `table[symbol]` gives candles, `table.grid(symbol)` arrays.
    """

    frame: pl.DataFrame
    path: Path
    duplicates: int = 0
    off_hour: int = 0
    unfinished: int = 0
    _symbols: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_symbols", tuple(self.frame["symbol"].unique().sort().to_list()))

    @property
    def symbols(self) -> tuple[str, ...]:
        return self._symbols

    def __len__(self) -> int:
        return self.frame.height

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._symbols

    def require(self, symbol: str) -> None:
        """Raises `CandleFileError` where the file has no candles of the symbol."""
        if symbol not in self._symbols:
            raise CandleFileError(
                f"{self.path}: no candles of {symbol}; it holds {', '.join(self._symbols)}: choose one of these"
            )

    def _of(self, symbol: str) -> pl.DataFrame:
        self.require(symbol)
        return self.frame if len(self._symbols) == 1 else self.frame.filter(pl.col("symbol") == symbol)

    def __getitem__(self, symbol: str) -> list[Candle]:
        """Returns the symbol's candles in order. Raises `CandleFileError` where there are none."""
        rows = self._of(symbol)
        columns = (rows[name].to_list() for name in (*COLUMNS, *OPTIONAL))
        return [Candle(symbol, *row) for row in zip(*columns, strict=True)]

    def grid(self, symbol: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns (open_time [T] ms, ohlcv [T, 5]) on the hourly grid, NaN where no candle exists.

        Raises `CandleFileError` where the file has no candles of the symbol.
        """
        rows = self._of(symbol)
        times = rows["open_time"].to_numpy()
        hours = np.arange(times[0], times[-1] + 1, HOUR_MS, dtype=np.int64)
        ohlcv = np.full((len(hours), len(OHLCV)), np.nan)
        ohlcv[(times - times[0]) // HOUR_MS] = rows.select(OHLCV).to_numpy()
        return hours, ohlcv


def read(
    path: Path, *, asked: str | None = None, default_symbol: str | None = DEFAULT_SYMBOL, now_ms: int | None = None
) -> CandleTable:
    """Returns the candles of a file whose hours are over at `now_ms`, by default the wall clock's time.

    `asked` is the symbol that the caller wants, in the exchange's spelling: the file must hold it. Rows of a file that
    names no symbol are taken for `asked`, or without it for `default_symbol`. What was left out and what was assumed is
    logged, so that no command can hide it.
    Raises `CandleFileError` where the file is missing, unreadable or contradicts itself or `asked`.
    """
    path = Path(path)
    raw = formats.load(path)
    default_symbol = None if default_symbol is None else default_symbol.upper()
    rows, taken_for = columns.typed(raw, path, asked, default_symbol)
    judged = rules.judge(rows, path, Clock().wall_ms() if now_ms is None else now_ms, raw.written_ms)
    table = CandleTable(judged.frame, path, judged.duplicates, judged.off_hour, judged.unfinished)
    if asked is not None:
        table.require(asked)
    if taken_for is not None:
        log.warning("%s: it has no column symbol: its candles are taken for %s", path, taken_for)
    for count, why in (
        (table.duplicates, "repeat another row exactly"),
        (table.off_hour, "do not open on the hour"),
        (table.unfinished, "have an hour that is not over, or was not when the file was written"),
    ):
        if count:
            log.warning("%s: %d row(s) left out: they %s", path, count, why)
    return table


def write(candles: Iterable[Candle], path: Path) -> int:
    """Writes candles to a parquet or CSV file (by its suffix), as `write_table` does. Returns the number of rows."""
    rows = list(candles)
    types: dict[str, Any] = {"symbol": pl.String, "open_time": pl.Int64, **dict.fromkeys(OHLCV, pl.Float64)}
    types |= {"quote_volume": pl.Float64, "trades": pl.Int64, "taker_buy_base": pl.Float64}
    frame = pl.DataFrame({name: [getattr(c, name) for c in rows] for name in types}, schema=types)
    write_table(frame, path, times=("open_time",))
    return frame.height


def joined(table: CandleTable, other: CandleTable) -> CandleTable:
    """Returns the candles of two tables; of a symbol that both have, those of the first."""
    names = table.frame.columns
    more = other.frame.filter(~pl.col("symbol").is_in(list(table.symbols))).select(names)
    return CandleTable(pl.concat([table.frame, more]), table.path)


def write_part(table: CandleTable, symbols: Iterable[str], until_ms: int, path: Path) -> None:
    """Writes those candles of a table that are of `symbols` and open before `until_ms`, as `write_table` does."""
    chosen = pl.col("symbol").is_in(list(symbols)) & (pl.col("open_time") < until_ms)
    write_table(table.frame.filter(chosen), path, times=("open_time",))


def refuse_place(path: Path) -> None:
    """Raises `CandleFileError` where no candle file can be written at `path`: before the work, not after it."""
    if path.suffix not in (".parquet", ".csv"):
        raise CandleFileError(f"{path}: a candle file is written as .parquet or .csv; rename it")
    if not path.parent.is_dir():
        raise CandleFileError(f"{path}: cannot be written: {os.strerror(errno.ENOENT)}; make the folder first")


def write_table(frame: pl.DataFrame, path: Path, *, times: tuple[str, ...]) -> None:
    """Writes a table whose columns `times` are Int64 ms: parquet stores `datetime[ms, UTC]`, CSV the integers.

    The file is complete or absent. Raises `CandleFileError` where the suffix is neither, or it cannot be written there.
    """
    path = Path(path)
    refuse_place(path)
    try:
        # An open file: what polars makes of a path depends on the locale.
        with replacing(path) as temporary, temporary.open("wb") as file:
            if path.suffix == ".csv":
                frame.write_csv(file)
            else:
                frame.with_columns(pl.col(times).cast(pl.Datetime("ms", "UTC"))).write_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        raise CandleFileError(f"{path}: cannot be written: {cause or ' '.join(str(error).split())}") from None
