"""An answer of REST to a question for candles, and what it proves."""

from __future__ import annotations

from dataclasses import dataclass

from stream.core.market.candle import Candle


@dataclass(frozen=True, slots=True)
class Answer:
    """The candles, in order, that were over when they were asked for, by the server's time and by their own.

    `newest_open_time` is that of the newest candle in the answer, closed or forming: candles before it are final, and
    what is not among `candles` may still come. `absent` are the hours that the answer lacks between two of its candles.
    """

    candles: list[Candle]
    asked_at_ms: int
    newest_open_time: int | None = None
    absent: tuple[int, ...] = ()
