"""Finds the columns of a candle file by the names in common use, and parses symbol, times and numbers to one type each.

A value that does not parse is refused with the row, the cause and the cure. Whether the candles make sense is not
checked here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stream.adapters.candles.formats import CandleFileError, Raw
from stream.core.market import symbols
from stream.core.market.candle import EARLIEST_MS, LATEST_MS, MICROSECONDS_FROM

PRICES = ("open", "high", "low", "close")
OHLCV = (*PRICES, "volume")
OPTIONAL = ("quote_volume", "trades", "taker_buy_base")
COLUMNS = ("open_time", *OHLCV)
#: The column with each row's number in its file, counted from 1 without the header.
ROW = "__row"

#: Names under which each column is recognized, the preferred first; only letters and digits count.
_CALLED = {
    "symbol": ("symbol", "pair", "ticker"),
    "open_time": (
        *("opentime", "timestamp", "unix", "unixtimestamp", "datetime", "date", "time", "ts", "t"),
        *("klineopentime", "starttime", "indexlevel0", "index", ""),
    ),
    "close_time": ("closetime", "klineclosetime", "endtime"),
    "open": ("open", "o", "openprice"),
    "high": ("high", "h", "highprice"),
    "low": ("low", "l", "lowprice"),
    "close": ("close", "c", "closeprice"),
    "volume": ("volume", "vol", "v", "basevolume", "volumebase"),
    "quote_volume": ("quotevolume", "quoteassetvolume", "quotevol", "volumequote"),
    "trades": ("trades", "count", "numberoftrades", "numtrades", "tradecount", "tradescount"),
    "taker_buy_base": ("takerbuybase", "takerbuyvolume", "takerbuybaseassetvolume", "takerbuybasevolume"),
}
#: Date, time, seconds and offset; everything but the date may be absent.
_ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d{1,9})?)?)? ?(Z|UTC|[+-]\d{2}:?\d{2})?$"
#: The unit of an integer time since 1970 follows from its magnitude, as everywhere for ms and µs: below the first bound
#: it is seconds, from the second on nanoseconds.
_MILLISECONDS_FROM = 100_000_000_000
_NANOSECONDS_FROM = MICROSECONDS_FROM * 1_000
#: How the exchange's archive names its files: BTCUSDT-1h-2024-01.zip.
_OF_THE_ARCHIVE = r"(?P<archive>[A-Z0-9]{4,})-\d+[a-z]+-\d{4}-\d{2}"
#: How others name theirs: BTC_USDT-1h.feather, btcusdt_1h.csv. Only with a known quote asset, so that candles_1h.csv
#: names no symbol. A second quote is freqtrade's mark of a future.
_QUOTE = "(?:USDT|USDC|FDUSD|TUSD|BUSD|USD1|DAI|EUR|TRY|BRL)"
_OF_OTHERS = rf"(?i:(?<![a-z0-9])(?P<pair>[a-z0-9]+[_-]?{_QUOTE}(?:_{_QUOTE})?)[-_]\d+(?:s|m|min|h|d|w|mo)(?![a-z0-9]))"
_NAMED_AFTER = re.compile(f"{_OF_THE_ARCHIVE}|{_OF_OTHERS}")


def typed(raw: Raw, path: Path, asked: str | None, default_symbol: str | None) -> tuple[pl.DataFrame, str | None]:
    """Returns the rows as typed columns, and the symbol that is assumed for them where the file names none, else None.

    The columns are `ROW`, symbol, open_time_us, close_time_us (null where there is none), OHLCV and the optional three.
    Raises `CandleFileError` where a column is missing or a value does not parse.
    """
    found = _found(raw.header, path)
    frame = _rows(raw)
    if frame.is_empty():
        raise CandleFileError(f"{path}: it has a header and no candles")

    def column(name: str) -> pl.Series | None:
        return frame[str(found[name])].rename(name) if name in found else None

    rows = frame[ROW]
    given, assumed = column("symbol"), None
    if given is None:
        assumed = _assumed_symbol(raw.names, path, asked, default_symbol)
        symbol = pl.Series("symbol", [assumed]).new_from_index(0, frame.height)
    else:
        symbol = _symbol(given, rows, path)
    open_time, close_time = column("open_time"), column("close_time")
    assert open_time is not None
    opened = _microseconds(_with_time_of_day(open_time, raw.header, frame), rows, path)
    _refuse_times(opened, rows, path)
    closed = None if close_time is None else _times(close_time)
    table = pl.DataFrame(
        [
            rows,
            symbol,
            opened.alias("open_time_us"),
            (opened.clear(frame.height) if closed is None else closed).alias("close_time_us"),
            *(_number(column(name), name, frame.height, rows, path, raw.comma_is_free) for name in (*OHLCV, *OPTIONAL)),
        ]
    )
    return table, assumed


def _found(header: Sequence[str], path: Path) -> dict[str, int]:
    """Returns the position of each column. Raises `CandleFileError` where a required one is missing or one is twice."""
    keys = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    found: dict[str, int] = {}
    for name, called in _CALLED.items():
        key = next((key for key in called if key in keys), None)
        if key is None:
            continue
        same = [given for given, k in zip(header, keys, strict=True) if k == key]
        if len(same) > 1:
            raise CandleFileError(
                f"{path}: columns {' and '.join(map(repr, same))} have one name but for spaces and case; leave one"
            )
        found[name] = keys.index(key)
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        there = ", ".join(header)
        raise CandleFileError(
            f"{path}: no column {', '.join(missing)}; a candle file has a header with {', '.join(COLUMNS)}"
            + (f", this one has {there[:200]}" if there else "")
        )
    return found


def _rows(raw: Raw) -> pl.DataFrame:
    """Returns the rows with their numbers, without empty lines and without the headers between joined files."""
    frame = raw.frame
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    numbered = frame.with_row_index(ROW, offset=1)
    if len(texts) < frame.width:
        return numbered
    trimmed = [pl.col(name).str.strip_chars().fill_null("") for name in texts]
    empty = pl.all_horizontal(text == "" for text in trimmed)
    header = pl.all_horizontal(text == name.strip() for text, name in zip(trimmed, raw.header, strict=False))
    return numbered.filter(~empty & ~header)


def _assumed_symbol(names: Sequence[str], path: Path, asked: str | None, default_symbol: str | None) -> str:
    """Returns the symbol of a file without a symbol column: its name may contain it, else the caller gives it.

    Raises `CandleFileError` where neither does, or they differ.
    """
    for name in names:
        named = _NAMED_AFTER.search(name)
        if named is None:
            continue
        try:
            symbol = symbols.parse(named["archive"] or named["pair"])
        except symbols.SymbolError as error:
            raise CandleFileError(f"{path}: by its name: {error}; Volcast reads spot candles") from None
        if asked is not None and asked != symbol:
            raise CandleFileError(
                f"{path}: by its name it holds candles of {symbol}, not {asked}; choose --symbol {symbol}, or rename it"
            )
        return symbol
    assumed = asked or default_symbol
    if assumed is None:
        raise CandleFileError(f"{path}: nothing says whose candles it holds; add a column symbol")
    return assumed


def _symbol(given: pl.Series, rows: pl.Series, path: Path) -> pl.Series:
    text = given.cast(pl.String).str.strip_chars()
    empty = text.is_null() | (text == "")
    if empty.any():
        raise CandleFileError(f"{path}: row {_first(empty, rows)}: it has no symbol; fill the column or leave it out")
    parsed: dict[str, str] = {}
    for spelled in text.unique(maintain_order=True):
        try:
            parsed[spelled] = symbols.parse(spelled)
        except symbols.SymbolError as error:
            raise CandleFileError(f"{path}: row {_first(text == spelled, rows)}: {error}") from None
    return text.replace(parsed).rename("symbol")


def _with_time_of_day(date: pl.Series, header: Sequence[str], frame: pl.DataFrame) -> pl.Series:
    """Returns dates joined with the time from a separate column, as some terminals write them."""
    at = next((k for k, name in enumerate(header) if name.strip().lower().strip("<>") == "time"), None)
    if at is None or date.dtype != pl.String or frame[str(at)].dtype != pl.String:
        return date
    hour = frame[str(at)].str.strip_chars()
    if not (
        hour.str.contains(r"^\d{2}:\d{2}(:\d{2})?$").all() and date.str.contains(r"^\s*\d{4}-\d{2}-\d{2}\s*$").all()
    ):
        return date
    return date.str.strip_chars() + " " + hour


def _microseconds(time: pl.Series, rows: pl.Series, path: Path) -> pl.Series:
    """Returns times as µs since the epoch, plausible or not. Raises `CandleFileError` where one is no time."""
    out = _times(time)
    if out is None:
        raise CandleFileError(f"{path}: open_time is {time.dtype}; write datetimes, or integer ms or µs")
    bad = out.is_null()
    if bad.any():
        raise CandleFileError(
            f"{path}: row {_first(bad, rows)}: open_time {time.filter(bad)[0]!r} is no time; "
            "write ISO 8601, or integer ms or µs, UTC"
        )
    return out


def _times(time: pl.Series) -> pl.Series | None:
    """Returns µs since the epoch, null where a value is no time; None where the column's type cannot hold times."""
    if isinstance(time.dtype, (pl.Datetime, pl.Date)):
        return time.cast(pl.Datetime("us") if time.dtype == pl.Date else time.dtype).dt.epoch("us")
    if time.dtype == pl.String:
        text = time.str.strip_chars()
        counts = _by_magnitude(text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False))
        # Dates are parsed only where some row is no number: parsing them takes longer than the rest of reading.
        return counts if not counts.has_nulls() else pl.select(pl.coalesce(counts, _iso(text))).to_series()
    if time.dtype.is_numeric():
        whole = time.cast(pl.Int64, strict=False)
        return _by_magnitude(pl.select(pl.when(whole == time).then(whole)).to_series())
    return None


def _by_magnitude(count: pl.Series) -> pl.Series:
    # A large negative count would wrap around into a plausible time; as zero it is refused.
    count = count.clip(0)
    return pl.select(
        pl.when(count >= _NANOSECONDS_FROM)
        .then(count // 1_000)
        .when(count >= MICROSECONDS_FROM)
        .then(count)
        .when(count >= _MILLISECONDS_FROM)
        .then(count.clip(0, MICROSECONDS_FROM) * 1_000)
        .otherwise(count.clip(0, _MILLISECONDS_FROM) * 1_000_000)
    ).to_series()


def _iso(text: pl.Series) -> pl.Series:
    day, minute, second, offset = (text.str.extract(_ISO, group) for group in (1, 2, 3, 4))
    offset = offset.fill_null("Z").replace({"Z": "+00:00", "UTC": "+00:00"})
    full = day + "T" + minute.fill_null("00:00") + second.fill_null(":00") + offset
    return full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False).dt.epoch("us")


def _refuse_times(opened: pl.Series, rows: pl.Series, path: Path) -> None:
    ms = opened // 1_000
    bad = (ms < EARLIEST_MS) | (ms >= LATEST_MS)
    if bad.any():
        raise CandleFileError(
            f"{path}: row {_first(bad, rows)}: open_time is not between 2010 and 2100; "
            "write ISO 8601, or integer ms or µs since 1970, UTC"
        )


def _number(
    given: pl.Series | None, name: str, height: int, rows: pl.Series, path: Path, comma_is_free: bool
) -> pl.Series:
    kind = pl.Int64() if name == "trades" else pl.Float64()
    if given is None:
        return pl.Series(name, [None], dtype=kind).new_from_index(0, height)
    if given.dtype == pl.String:
        given = given.str.strip_chars()
        given = pl.select(pl.when(given != "").then(given)).to_series()
    elif not (given.dtype.is_numeric() or given.dtype in (pl.Null, pl.Boolean)):
        raise CandleFileError(f"{path}: column {name} is {given.dtype}; write numbers")
    value = _decimal(given, comma_is_free).cast(pl.Float64, strict=False)
    bad = value.is_null() & given.is_not_null()
    if bad.any():
        raise CandleFileError(
            f"{path}: row {_first(bad, rows)}: {name} {given.filter(bad)[0]!r} is not a number; "
            "correct or remove the row"
        )
    if name in OPTIONAL:
        value = pl.select(pl.when(value.is_finite()).then(value)).to_series()
    return value.cast(kind, strict=False).alias(name)


def _decimal(given: pl.Series, comma_is_free: bool) -> pl.Series:
    """Replaces decimal commas by points, where commas do not separate fields.

    Where a column has points too, one of the two groups digits. Which one is not guessed: the column stays as it is.
    """
    if not comma_is_free or given.dtype != pl.String or given.str.contains(".", literal=True).any():
        return given
    return given.str.replace(",", ".", literal=True)


def _first(mask: pl.Series, rows: pl.Series) -> int:
    return int(rows.filter(mask)[0])
