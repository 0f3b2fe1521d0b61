"""The tape: every candle that there will be, and which of them exist at a moment of virtual time.

A missing hour is a missing candle, as in a real outage: nothing is made up for it. A forming candle
is a pure function of the final one and of how much of its hour has passed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from stream.core.market.candle import HOUR_MS, Candle, check, grid_floor


class Tape:
    """Candles by symbol and open time.

    Raises `CandleError` where one breaks a candle's rules, and `ValueError` where two are of one hour or one is of
    another symbol.
    """

    def __init__(self, candles: Mapping[str, Iterable[Candle]]) -> None:
        self._candles: dict[str, list[Candle]] = {}
        self._open_times: dict[str, list[int]] = {}
        for symbol, series in candles.items():
            ordered = sorted((check(c) for c in series), key=lambda c: c.open_time)
            open_times = [c.open_time for c in ordered]
            if len(set(open_times)) != len(open_times):
                raise ValueError(f"the tape of {symbol} has two candles for one hour")
            if any(c.symbol != symbol for c in ordered):
                raise ValueError(f"the tape of {symbol} has another symbol's candles")
            self._candles[symbol] = ordered
            self._open_times[symbol] = open_times

    @property
    def symbols(self) -> Sequence[str]:
        return tuple(self._candles)

    @property
    def end_ms(self) -> int:
        """Time at which the last candle's hour is over; 0 for an empty tape."""
        return max((times[-1] + HOUR_MS for times in self._open_times.values() if times), default=0)

    def at(self, symbol: str, open_time: int) -> Candle | None:
        """Returns the final candle of that hour, or None where the exchange has none."""
        times = self._open_times.get(symbol, [])
        index = bisect_left(times, open_time)
        return self._candles[symbol][index] if index < len(times) and times[index] == open_time else None

    def replace(self, candle: Candle) -> None:
        """Replaces a candle of the tape, as a revision of the exchange does. Raises `KeyError` where there is none."""
        times = self._open_times[candle.symbol]
        index = bisect_left(times, candle.open_time)
        if index == len(times) or times[index] != candle.open_time:
            raise KeyError(candle.open_time)
        self._candles[candle.symbol][index] = check(candle)

    def all(self, symbol: str) -> list[Candle]:
        """Returns the whole tape of a symbol as it is now."""
        return list(self._candles[symbol])

    def visible(
        self, symbol: str, now_ms: int, start_ms: int | None, end_ms: int | None, limit: int
    ) -> tuple[list[Candle], Candle | None]:
        """Returns the closed candles and the forming one that a query for open times in [start, end] sees at `now_ms`.

        With a start they are the oldest `limit` from there; without one the newest. The forming one counts.
        """
        times = self._open_times[symbol]
        first = 0 if start_ms is None else bisect_left(times, start_ms)
        beyond = bisect_right(times, now_ms if end_ms is None else min(end_ms, now_ms))
        if start_ms is None:
            first = max(first, beyond - limit)
        chosen = self._candles[symbol][first : min(beyond, first + limit)]
        if chosen and chosen[-1].open_time == grid_floor(now_ms):
            last = chosen.pop()
            return chosen, forming(last, (now_ms - last.open_time) / HOUR_MS)
        return chosen, None


def forming(candle: Candle, fraction: float) -> Candle:
    """Returns the candle as it is when `fraction` of its hour is over.

    The price goes from the open to the extreme that lies against the candle's direction, to the other
    one, to the close, a third of the hour each; volumes grow evenly.
    """
    turns = (candle.low, candle.high) if candle.close >= candle.open else (candle.high, candle.low)
    path = (candle.open, *turns, candle.close)
    legs = min(max(fraction, 0.0), 1.0) * 3
    leg = min(int(legs), 2)
    price = path[leg] + (path[leg + 1] - path[leg]) * (legs - leg)
    price = min(max(round(price, 8), candle.low), candle.high)
    seen = (*path[: leg + 1], price)
    part = legs / 3
    return Candle(
        candle.symbol,
        candle.open_time,
        candle.open,
        max(seen),
        min(seen),
        price,
        round(candle.volume * part, 8),
        None if candle.quote_volume is None else round(candle.quote_volume * part, 8),
        None if candle.trades is None else int(candle.trades * part),
        None if candle.taker_buy_base is None else round(candle.taker_buy_base * part, 8),
    )


def with_close(candle: Candle, factor: float) -> Candle:
    """Returns the candle with its close multiplied by `factor`, and its extremes extended where needed."""
    close = round(candle.close * factor, 8)
    return msgspec.structs.replace(candle, close=close, high=max(candle.high, close), low=min(candle.low, close))
