"""Candles: what a candle is, and the rules that it obeys. No wire format, no clock, no arithmetic on returns.

Times are integer milliseconds since the epoch, UTC, on the exchange's clock.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

HOUR_MS = 3_600_000
INTERVAL = "1h"
HOURS_PER_YEAR = 8_760

#: 2010-01-01 and 2100-01-01: nothing that an exchange calls an hourly candle lies outside.
EARLIEST_MS = 1_262_304_000_000
LATEST_MS = 4_102_444_800_000
#: A timestamp at or above this cannot be in milliseconds (it would be the year 5138): it is in microseconds.
MICROSECONDS_FROM = 100_000_000_000_000

Provenance = Literal["live", "backfill", "replay"]


class CandleError(ValueError):
    """The candle contradicts itself, which is its source's fault. `reason` is a short code for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Candle(msgspec.Struct, frozen=True, gc=False):
    """One closed hour of one symbol. Prices in quote units, volume in base units."""

    symbol: str
    open_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float | None = None
    trades: int | None = None
    taker_buy_base: float | None = None

    @property
    def close_time(self) -> int:
        return self.open_time + HOUR_MS - 1

    @property
    def ohlcv(self) -> tuple[float, float, float, float, float]:
        return (self.open, self.high, self.low, self.close, self.volume)


def to_ms(timestamp: int) -> int:
    """Converts a timestamp in ms or µs, distinguished by magnitude, to ms."""
    return timestamp // 1_000 if timestamp >= MICROSECONDS_FROM else timestamp


def check(candle: Candle) -> Candle:
    """Returns the candle itself. Raises `CandleError` with the first rule that it breaks."""
    low, high = candle.low, candle.high
    # Nearly all are right, and many come each second: all the rules below in one expression.
    if (
        0 < low <= candle.open <= high < math.inf
        and low <= candle.close <= high
        and 0 <= candle.volume < math.inf
        and EARLIEST_MS <= candle.open_time < LATEST_MS
        and candle.open_time % HOUR_MS == 0
    ):
        return candle
    if not EARLIEST_MS <= candle.open_time < LATEST_MS:
        raise CandleError("time_range", f"open_time {candle.open_time} is not a time of this exchange")
    if candle.open_time % HOUR_MS:
        raise CandleError("off_grid", f"open_time {candle.open_time} is not the start of an hour")
    prices = (candle.open, candle.high, candle.low, candle.close)
    if not all(math.isfinite(x) for x in (*prices, candle.volume)):
        raise CandleError("not_finite", f"a price or the volume is not a finite number: {candle.ohlcv}")
    if min(prices) <= 0:
        raise CandleError("price_range", f"a price is not positive: {prices}")
    if candle.volume < 0:
        raise CandleError("volume_range", f"volume {candle.volume} is negative")
    if candle.low > min(candle.open, candle.close) or candle.high < max(candle.open, candle.close):
        raise CandleError("ohlc_order", f"open and close must lie within [low, high]: {prices}")
    return candle


def grid_floor(time_ms: int) -> int:
    """Returns the start of the hour that contains `time_ms`."""
    return time_ms - time_ms % HOUR_MS
