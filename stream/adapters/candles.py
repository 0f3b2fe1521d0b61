"""Candle files, in and out (polars): parquet or CSV, one row per closed hour (CONTRACT §1).

Rules of this room:
- A file is read whole or refused with one line that names the row, the cause and the cure. Nothing is repaired.
- Exact duplicates are dropped and counted; rows of one hour that contradict each other are refused.
- A few candles off the hour are set aside and counted: after its halt of 2018-02-08 the exchange opened some so.
- Files appear at once or not at all: they are written beside their place and renamed.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stream.core.candle import EARLIEST_MS, HOUR_MS, LATEST_MS, MICROSECONDS_FROM, Candle

PRICES = ("open", "high", "low", "close")
OHLCV = (*PRICES, "volume")
OPTIONAL = ("quote_volume", "trades", "taker_buy_base")
COLUMNS = ("open_time", *OHLCV)
DEFAULT_SYMBOL = "BTCUSDT"

_HOUR_US = HOUR_MS * 1_000
_ROW = "__row"
#: Date, time, seconds and offset; everything but the date may be absent.
_ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d{1,9})?)?)? ?(Z|UTC|[+-]\d{2}:?\d{2})?$"
#: Fewer rows than this say nothing about the interval of a file.
_ROWS_TO_JUDGE_INTERVAL = 24


class CandleFileError(ValueError):
    """The file is no candle file: its author's fault. The message is one line with the path, row, cause and cure."""


@dataclass(frozen=True, slots=True)
class CandleTable:
    """What a candle file held, by symbol, each hour once and in order.

    `frame` has the columns symbol, open_time (Int64, ms), open … volume and the three optional ones (null where the
    file has none). `table[symbol]` gives candles, `table.grid(symbol)` arrays.
    """

    frame: pl.DataFrame
    path: Path
    duplicates: int = 0
    off_hour: int = 0
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

    def _of(self, symbol: str) -> pl.DataFrame:
        if symbol not in self._symbols:
            raise CandleFileError(f"{self.path}: no candles of {symbol}; it holds {', '.join(self._symbols)}")
        return self.frame if len(self._symbols) == 1 else self.frame.filter(pl.col("symbol") == symbol)

    def __getitem__(self, symbol: str) -> list[Candle]:
        """The symbol's candles in order; `CandleFileError` where there are none."""
        rows = self._of(symbol)
        columns = (rows[name].to_list() for name in (*COLUMNS, *OPTIONAL))
        return [Candle(symbol, *row) for row in zip(*columns, strict=True)]

    def grid(self, symbol: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(open_time [T] ms, ohlcv [T, 5]) on the hourly grid, NaN where no candle exists."""
        rows = self._of(symbol)
        times = rows["open_time"].to_numpy()
        hours = np.arange(times[0], times[-1] + 1, HOUR_MS, dtype=np.int64)
        ohlcv = np.full((len(hours), len(OHLCV)), np.nan)
        ohlcv[(times - times[0]) // HOUR_MS] = rows.select(OHLCV).to_numpy()
        return hours, ohlcv


def read(path: Path, *, default_symbol: str = DEFAULT_SYMBOL) -> CandleTable:
    """The candles of a parquet or CSV file. `default_symbol` names rows of a file without a `symbol` column.

    `CandleFileError` where the file is missing, unreadable or contradicts itself.
    """
    path = Path(path)
    raw = _load(path)
    missing = [name for name in COLUMNS if name not in raw.columns]
    if missing:
        raise CandleFileError(
            f"{path}: no column {', '.join(missing)}; a candle file has a header with {', '.join(COLUMNS)}"
        )
    if raw.is_empty():
        raise CandleFileError(f"{path}: it has a header and no candles")
    frame = raw.select(
        _symbol(raw, default_symbol, path),
        _microseconds(raw["open_time"], path).alias("open_time_us"),
        *(_number(raw, name, path) for name in (*OHLCV, *OPTIONAL)),
    ).with_row_index(_ROW, offset=1)
    _refuse_times(frame, path)
    on_hour = frame.filter(pl.col("open_time_us") % _HOUR_US == 0)
    off_hour = frame.height - on_hour.height
    if 2 * off_hour >= frame.height:
        raise CandleFileError(
            f"{path}: {off_hour} of {frame.height} candles do not open on the hour; Volcast reads 1h candles"
        )
    on_hour = on_hour.with_columns((pl.col("open_time_us") // 1_000).alias("open_time"))
    _refuse_values(on_hour, path)
    ordered = on_hour.select(_ROW, "symbol", "open_time", *OHLCV, *OPTIONAL).sort("symbol", "open_time", _ROW)
    distinct = ordered.unique(subset=[c for c in ordered.columns if c != _ROW], keep="first", maintain_order=True)
    _refuse_conflicts(distinct, path)
    _refuse_disorder(distinct, path)
    _refuse_interval(distinct, path)
    return CandleTable(distinct.drop(_ROW), path, ordered.height - distinct.height, off_hour)


def write(candles: Iterable[Candle], path: Path) -> int:
    """Writes candles to a parquet or CSV file (by its suffix), at once or not at all; the number of rows."""
    rows = list(candles)
    types: dict[str, Any] = {"symbol": pl.String, "open_time": pl.Int64, **dict.fromkeys(OHLCV, pl.Float64)}
    types |= {"quote_volume": pl.Float64, "trades": pl.Int64, "taker_buy_base": pl.Float64}
    frame = pl.DataFrame({name: [getattr(c, name) for c in rows] for name in types}, schema=types)
    write_table(frame, path, times=("open_time",))
    return frame.height


def refuse_place(path: Path) -> None:
    """`CandleFileError` where no candle file can be written whatever is in it: before the work, not after it."""
    if path.suffix not in (".parquet", ".csv"):
        raise CandleFileError(f"{path}: a candle file is written as .parquet or .csv; rename it")
    if not path.parent.is_dir():
        raise CandleFileError(f"{path}: cannot be written: {os.strerror(errno.ENOENT)}; make the folder first")


def write_table(frame: pl.DataFrame, path: Path, *, times: tuple[str, ...]) -> None:
    """Writes a table whose columns `times` are Int64 ms: parquet stores `datetime[ms, UTC]`, CSV the integers.

    The file is complete or absent. `CandleFileError` where the suffix is neither or the place cannot be written.
    """
    path = Path(path)
    refuse_place(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise CandleFileError(f"{path}: cannot be written: {error.strerror}") from None
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            if path.suffix == ".csv":
                frame.write_csv(file)
            else:
                frame.with_columns(pl.col(times).cast(pl.Datetime("ms", "UTC"))).write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a data file is as readable as any other that the user creates.
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        raise CandleFileError(f"{path}: cannot be written: {cause or ' '.join(str(error).split())}") from None
    finally:
        beside.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _load(path: Path) -> pl.DataFrame:
    """The file as it is; every column of a CSV is text, so that what does not parse can be shown."""
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
    except OSError as error:
        raise CandleFileError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".parquet" and not parquet:
        raise CandleFileError(f"{path}: it is no parquet file; fetch or write it again")
    try:
        # A file handle: a path with a wildcard in it would be taken for a pattern.
        with path.open("rb") as file:
            frame = pl.read_parquet(file) if parquet else pl.read_csv(file, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        cause = str(error).strip().splitlines()[0]
        raise CandleFileError(
            f"{path}: cannot be read as {'parquet' if parquet else 'CSV'}: {cause}; fetch or write it again"
        ) from None
    return frame.rename({name: name.strip() for name in frame.columns})


def _symbol(raw: pl.DataFrame, default: str, path: Path) -> pl.Series:
    if "symbol" not in raw.columns:
        return pl.Series("symbol", [default.upper()]).new_from_index(0, raw.height)
    symbol = raw["symbol"].cast(pl.String).str.strip_chars().str.to_uppercase()
    empty = symbol.is_null() | (symbol == "")
    if empty.any():
        raise CandleFileError(f"{path}: row {_first(empty)}: it has no symbol; fill the column or leave it out")
    return symbol


def _microseconds(time: pl.Series, path: Path) -> pl.Series:
    """Times as µs since the epoch, whatever form they have; no judgement yet on whether they are plausible."""
    if isinstance(time.dtype, (pl.Datetime, pl.Date)):
        out = time.cast(pl.Datetime("us") if time.dtype == pl.Date else time.dtype).dt.epoch("us")
    elif time.dtype == pl.String:
        text = time.str.strip_chars()
        counts = _by_magnitude(text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False))
        # Dates are parsed only where some row is no number: that takes longer than all the rest of reading.
        out = counts if not counts.has_nulls() else pl.select(pl.coalesce(counts, _iso(text))).to_series()
    elif time.dtype.is_numeric():
        whole = time.cast(pl.Int64, strict=False)
        out = _by_magnitude(pl.select(pl.when(whole == time).then(whole)).to_series())
    else:
        raise CandleFileError(f"{path}: open_time is {time.dtype}; write datetimes, or integer ms or µs")
    bad = out.is_null()
    if bad.any():
        row = _first(bad)
        raise CandleFileError(
            f"{path}: row {row}: open_time {time[row - 1]!r} is no time; write ISO 8601, or integer ms or µs, UTC"
        )
    return out


def _by_magnitude(count: pl.Series) -> pl.Series:
    # A large negative count would wrap around into a plausible time; as zero it is refused.
    as_ms = count.clip(0, MICROSECONDS_FROM) * 1_000
    return pl.select(pl.when(count >= MICROSECONDS_FROM).then(count).otherwise(as_ms)).to_series()


def _iso(text: pl.Series) -> pl.Series:
    day, minute, second, offset = (text.str.extract(_ISO, group) for group in (1, 2, 3, 4))
    offset = offset.fill_null("Z").replace({"Z": "+00:00", "UTC": "+00:00"})
    full = day + "T" + minute.fill_null("00:00") + second.fill_null(":00") + offset
    return full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False).dt.epoch("us")


def _number(raw: pl.DataFrame, name: str, path: Path) -> pl.Series:
    kind = pl.Int64() if name == "trades" else pl.Float64()
    if name not in raw.columns:
        return pl.Series(name, [None], dtype=kind).new_from_index(0, raw.height)
    given = raw[name]
    if given.dtype == pl.String:
        given = given.str.strip_chars()
        given = pl.select(pl.when(given != "").then(given)).to_series()
    elif not (given.dtype.is_numeric() or given.dtype in (pl.Null, pl.Boolean)):
        raise CandleFileError(f"{path}: column {name} is {given.dtype}; write numbers")
    value = given.cast(pl.Float64, strict=False)
    bad = value.is_null() & given.is_not_null()
    if bad.any():
        row = _first(bad)
        raise CandleFileError(
            f"{path}: row {row}: {name} {given[row - 1]!r} is not a number; correct or remove the row"
        )
    if name in OPTIONAL:
        value = value.fill_nan(None)
    return value.cast(kind, strict=False).alias(name)


def _refuse_times(frame: pl.DataFrame, path: Path) -> None:
    ms = frame["open_time_us"] // 1_000
    bad = (ms < EARLIEST_MS) | (ms >= LATEST_MS)
    if bad.any():
        row = _first(bad)
        raise CandleFileError(
            f"{path}: row {row}: open_time is not between 2010 and 2100; is it in seconds or nanoseconds? "
            "Write integer ms or µs since 1970, UTC"
        )


def _refuse_values(frame: pl.DataFrame, path: Path) -> None:
    finite = pl.all_horizontal(pl.col(OHLCV).is_not_null() & pl.col(OHLCV).is_finite().fill_null(False))
    rules = (
        (finite, "a price or the volume is missing or not finite"),
        (pl.all_horizontal(pl.col(PRICES) > 0), "a price is zero or negative"),
        (pl.col("volume") >= 0, "the volume is negative"),
        (
            (pl.col("low") <= pl.min_horizontal("open", "close"))
            & (pl.col("high") >= pl.max_horizontal("open", "close")),
            "open or close lies outside [low, high]",
        ),
    )
    for rule, cause in rules:
        broken = frame.filter(~rule)
        if broken.height:
            values = ", ".join(f"{name} {broken[name][0]}" for name in OHLCV)
            raise CandleFileError(f"{path}: {_where(broken)}: {cause} ({values}); correct or remove the row")


def _refuse_conflicts(distinct: pl.DataFrame, path: Path) -> None:
    again = distinct.filter(pl.struct("symbol", "open_time").is_duplicated())
    if again.height:
        raise CandleFileError(
            f"{path}: {_where(again)} and row {again[_ROW][1]} are of the same hour and differ; keep the right one"
        )


def _refuse_disorder(distinct: pl.DataFrame, path: Path) -> None:
    """Rows out of time order were put together wrongly, and perhaps not only in their order."""
    latest = pl.col("open_time").cum_max().over("symbol")
    earlier = distinct.sort(_ROW).filter(pl.col("open_time") < latest)
    if earlier.height:
        raise CandleFileError(
            f"{path}: {_where(earlier)} is earlier than a row before it; sort the file by symbol and open_time"
        )


def _refuse_interval(distinct: pl.DataFrame, path: Path) -> None:
    """A file of longer candles has an hour grid with nothing beside anything: no return would exist."""
    for (symbol,), rows in distinct.group_by("symbol", maintain_order=True):
        steps = rows["open_time"].diff().drop_nulls()
        if rows.height >= _ROWS_TO_JUDGE_INTERVAL and not (steps == HOUR_MS).any():
            hours = int(steps.min()) // HOUR_MS  # type: ignore[arg-type]
            raise CandleFileError(f"{path}: candles of {symbol} are {hours} h apart; Volcast reads 1h candles")


def _where(broken: pl.DataFrame) -> str:
    time = pl.select(pl.from_epoch(pl.lit(broken["open_time"][0]), time_unit="ms")).item()
    return f"row {broken[_ROW][0]} ({broken['symbol'][0]} {time:%Y-%m-%d %H:%M} UTC)"


def _first(mask: pl.Series) -> int:
    """The number of the first true row, counted from 1 without the header."""
    return int(mask.arg_max() or 0) + 1
