"""What REST answered when it was asked for candles, and what that answer proves."""

from __future__ import annotations

from dataclasses import dataclass

from stream.core.market.candle import Candle


@dataclass(frozen=True, slots=True)
class Answer:
    """Candles in order that were over when they were asked for, by the server's time and their own.

    `newest_open_time` is that of the newest candle in the answer, be it forming: what precedes it is final, and what is
    not among `candles` may still come. `absent` are hours that the answer lacks between two of its candles.
    """

    candles: list[Candle]
    asked_at_ms: int
    newest_open_time: int | None = None
    absent: tuple[int, ...] = ()
