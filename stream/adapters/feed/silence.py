"""Silence: which streams of a connection owe an explanation. Sans-I/O: times are handed in, REST's answers too.

A stream that is silent may be dead or only quiet: where nothing is traded nothing is sent. So silence alone decides
nothing; what REST has that the stream did not bring does.
"""

from __future__ import annotations

from collections.abc import Iterable

from stream.core.market.candle import Candle

#: While a stream stays mute the pauses between two attempts to wake it double up to this many times `after_s`.
_LONGEST_PAUSE = 60


class Silence:
    """Of one connection. `known` outlives it: the newest candle, closed or forming, that we know of each symbol."""

    def __init__(self, symbols: Iterable[str], known: dict[str, Candle], now_s: float, after_s: float) -> None:
        self._after_s = after_s
        self._known = known
        self._quiet_since_s = dict.fromkeys(symbols, now_s)
        self._attempts: dict[str, int] = {}
        self.received_from: set[str] = set()

    def received(self, candle: Candle, now_s: float) -> None:
        """A frame of that symbol came."""
        if candle.symbol in self._quiet_since_s:
            self._known[candle.symbol] = candle
            self._quiet_since_s[candle.symbol] = now_s
            self._attempts.pop(candle.symbol, None)
            self.received_from.add(candle.symbol)

    def excuse(self, now_s: float) -> None:
        """The silence was ours: we did not listen, or were not running."""
        self._quiet_since_s = dict.fromkeys(self._quiet_since_s, now_s)

    def suspects(self, now_s: float) -> list[str]:
        """Streams that have been silent for too long, the longest first."""
        silent = [s for s, since_s in self._quiet_since_s.items() if now_s - since_s >= self._pause_s(s)]
        return sorted(silent, key=lambda s: self._quiet_since_s[s])

    def total(self, now_s: float) -> bool:
        """Whether nothing at all has come for `after_s`."""
        return all(now_s - since_s >= self._after_s for since_s in self._quiet_since_s.values())

    def has_news(self, symbol: str, newest: Candle | None) -> bool | None:
        """Whether REST's newest candle says more than what we know; None where we know nothing to compare."""
        known = self._known.get(symbol)
        if newest is None:
            return False
        self._known[symbol] = newest
        if known is None:
            return None
        return (newest.open_time, newest.volume, newest.close) != (known.open_time, known.volume, known.close)

    def cleared(self, symbol: str, now_s: float) -> None:
        """Nothing was traded, or nobody could tell: asked again when it is silent for as long again."""
        self._quiet_since_s[symbol] = now_s

    def woken(self, symbol: str, now_s: float) -> int:
        """An attempt to wake a mute stream is made; its number, from 1 on."""
        self._quiet_since_s[symbol] = now_s
        self._attempts[symbol] = self._attempts.get(symbol, 0) + 1
        return self._attempts[symbol]

    def _pause_s(self, symbol: str) -> float:
        # The second attempt comes as soon as the first; then it is up to the exchange.
        doublings = max(0, self._attempts.get(symbol, 0) - 1)
        return self._after_s * min(_LONGEST_PAUSE, 1 << min(doublings, 32))
