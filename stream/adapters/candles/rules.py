"""Decides which rows are candles: whole hours that are over, each once, of one interval.

Rules of this module:
- Nothing is repaired. Rows that cast no doubt on the others are set aside and counted; any other fault is refused with
  one line that names the row, the cause and the cure.
- A row counts only when its hour is over: by the clock, by its own close_time, and by when the file was written.
- The spacing of rows is judged by itself, before any row is set aside for not opening on the hour.
- Exact duplicates are dropped; rows of one hour that contradict each other are refused.
- A few candles that do not open on the hour are set aside: the exchange has some after its halt of 2018-02-08.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stream import times
from stream.adapters.candles.columns import OHLCV, OPTIONAL, PRICES, ROW
from stream.adapters.candles.formats import CandleFileError
from stream.core.market.candle import HOUR_MS

_HOUR_US = HOUR_MS * 1_000
_MINUTE_US = 60_000_000
#: So many equal steps in a row are an interval: no outage is that regular.
_STEPS_OF_AN_INTERVAL = 24
#: Steps shorter than an hour need fewer: between hourly candles there is nothing.
_SHORT_STEPS_OF_AN_INTERVAL = 3


@dataclass(frozen=True, slots=True)
class Judged:
    """Candles by symbol and time, and how many rows were set aside for which reason."""

    frame: pl.DataFrame
    duplicates: int
    off_hour: int
    unfinished: int


def judge(table: pl.DataFrame, path: Path, now_ms: int, written_ms: int | None) -> Judged:
    """Returns the candles of typed rows. Raises `CandleFileError` where there are none, or they break a rule."""
    over = table.filter(_is_over(table, now_ms, written_ms))
    unfinished = table.height - over.height
    if over.is_empty():
        raise CandleFileError(
            f"{path}: no row's hour is over by {_utc(now_ms * 1_000)} UTC, this machine's time; "
            "fetch later, or set the clock"
        )
    _refuse_interval(over, path)
    on_hour = over.filter(pl.col("open_time_us") % _HOUR_US == 0)
    off_hour = over.height - on_hour.height
    if 2 * off_hour >= over.height:
        raise CandleFileError(
            f"{path}: {off_hour} of {over.height} candles do not open on the hour; Volcast reads 1h candles that open "
            "on the hour, UTC"
        )
    on_hour = on_hour.with_columns((pl.col("open_time_us") // 1_000).alias("open_time"))
    _refuse_values(on_hour, path)
    ordered = on_hour.select(ROW, "symbol", "open_time", *OHLCV, *OPTIONAL).sort("symbol", "open_time", ROW)
    distinct = ordered.unique(subset=[c for c in ordered.columns if c != ROW], keep="first", maintain_order=True)
    _refuse_conflicts(distinct, path)
    _refuse_disorder(distinct, path)
    return Judged(distinct.drop(ROW), ordered.height - distinct.height, off_hour, unfinished)


def _is_over(table: pl.DataFrame, now_ms: int, written_ms: int | None) -> pl.Expr:
    now_us = now_ms * 1_000
    ends = pl.col("open_time_us") + _HOUR_US
    over = (ends <= now_us) & (pl.col("close_time_us") < now_us).fill_null(True)
    # A symbol's newest row with an early close_time was written while it formed. In the middle of a file such a row is
    # an hour that a halt cut short.
    newest = pl.col("open_time_us") == pl.col("open_time_us").max().over("symbol")
    short = pl.col("close_time_us").is_between(pl.col("open_time_us"), ends - _MINUTE_US, closed="none")
    hourly = _length_us(table) is None
    over &= ~(newest & short.fill_null(False)) if hourly else pl.lit(True)
    if written_ms is not None and not (table["open_time_us"] > written_ms * 1_000).any():
        # A row whose hour ended after the file was written was still forming then.
        over &= ends <= written_ms * 1_000
    return over


def _length_us(table: pl.DataFrame) -> int | None:
    """Returns how long most candles are by their close_time, in µs; None where that is an hour or unknown."""
    lengths = (table["close_time_us"] - table["open_time_us"]).drop_nulls()
    # Both ways to write a close_time are common: the last ms of the hour, and the first of the next.
    minutes = ((lengths + _MINUTE_US // 2) // _MINUTE_US).filter(lengths > 0)
    if minutes.is_empty():
        return None
    usual = int(minutes.mode()[0])
    return None if usual == _HOUR_US // _MINUTE_US else usual * _MINUTE_US


def _refuse_interval(over: pl.DataFrame, path: Path) -> None:
    length = _length_us(over)
    if length is not None:
        raise CandleFileError(
            f"{path}: by their close_time its candles are {_span(length)} long; Volcast reads 1h candles: fetch those"
        )
    for (symbol,), rows in over.group_by("symbol", maintain_order=True):
        times = rows.select(pl.col("open_time_us").unique().sort().alias("until"))
        steps = times.with_columns(pl.col("until").diff().alias("step")).drop_nulls()
        runs = steps.with_columns(pl.col("step").rle_id().alias("run")).group_by("run", maintain_order=True)
        longest = runs.agg(pl.col("step").first(), pl.len().alias("steps"), pl.col("until").first())
        needed = pl.when(pl.col("step") < _HOUR_US).then(_SHORT_STEPS_OF_AN_INTERVAL).otherwise(_STEPS_OF_AN_INTERVAL)
        other = longest.filter((pl.col("step") != _HOUR_US) & (pl.col("steps") >= needed))
        hourly = (steps["step"] == _HOUR_US).any()
        usual = int(steps["step"].mode().min() or 0)  # type: ignore[arg-type]
        if other.height:
            found = int(other["step"][0])
            where = f" from {_utc(int(other['until'][0]) - found)} UTC on" if hourly else ""
        elif not hourly and (steps["step"] == usual).sum() > 1:
            found, where = usual, ""
        else:
            continue
        raise CandleFileError(
            f"{path}: candles of {symbol} are {_span(found)} apart{where}; Volcast reads 1h candles: fetch those"
        )


def _span(us: int) -> str:
    for unit, length in (("h", _HOUR_US), ("min", _MINUTE_US), ("s", 1_000_000)):
        if us % length == 0:
            return f"{us // length} {unit}"
    return f"{us / 1_000_000:g} s"


def _refuse_values(frame: pl.DataFrame, path: Path) -> None:
    finite = pl.all_horizontal(pl.col(OHLCV).is_not_null() & pl.col(OHLCV).is_finite().fill_null(False))
    rules = (
        (finite, "a price or the volume is missing or not finite"),
        (pl.all_horizontal(pl.col(PRICES) > 0), "a price is zero or negative"),
        (pl.col("volume") >= 0, "the volume is negative"),
        (pl.all_horizontal(pl.col(OPTIONAL).fill_null(0) >= 0), "a count or another volume is negative"),
        (
            (pl.col("low") <= pl.min_horizontal("open", "close"))
            & (pl.col("high") >= pl.max_horizontal("open", "close")),
            "open or close lies outside [low, high]",
        ),
    )
    for rule, cause in rules:
        broken = frame.filter(~rule)
        if broken.height:
            given = (name for name in (*OHLCV, *OPTIONAL) if name in OHLCV or broken[name][0] is not None)
            values = ", ".join(f"{name} {broken[name][0]}" for name in given)
            raise CandleFileError(f"{path}: {_where(broken)}: {cause} ({values}); correct or remove the row")


def _refuse_conflicts(distinct: pl.DataFrame, path: Path) -> None:
    again = distinct.filter(pl.struct("symbol", "open_time").is_duplicated())
    if again.height:
        raise CandleFileError(
            f"{path}: {_where(again)} and row {again[ROW][1]} are of the same hour and differ; keep the right one"
        )


def _refuse_disorder(distinct: pl.DataFrame, path: Path) -> None:
    """Raises `CandleFileError` where a symbol's rows are in no order; newest first is an order as well.

    Such a file was put together wrongly, and perhaps not only in its order.
    """
    in_file = distinct.sort(ROW)
    forward = pl.col("open_time").diff().over("symbol") > 0
    mixed = in_file.select("symbol", forward.alias("forward")).drop_nulls().group_by("symbol")
    mixed_symbols = mixed.agg(pl.col("forward").n_unique().alias("ways")).filter(pl.col("ways") > 1)["symbol"]
    latest = pl.col("open_time").cum_max().over("symbol")
    earlier = in_file.filter(pl.col("symbol").is_in(mixed_symbols.implode()) & (pl.col("open_time") < latest))
    if earlier.height:
        raise CandleFileError(
            f"{path}: {_where(earlier)} is earlier than a row before it; sort the file by symbol and open_time"
        )


def _where(broken: pl.DataFrame) -> str:
    return f"row {broken[ROW][0]} ({broken['symbol'][0]} {_utc(broken['open_time'][0] * 1_000)} UTC)"


def _utc(us: int) -> str:
    return times.minute(us / 1_000)
