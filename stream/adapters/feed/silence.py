"""Which streams of a connection have been silent for too long. Sans-I/O: times and REST's answers are passed in.

A silent stream may be dead or only quiet: where nothing is traded, nothing is sent. So silence alone decides nothing;
a stream is dead where REST has data that it did not deliver.
"""

from __future__ import annotations

from collections.abc import Iterable

from stream.core.market.candle import Candle

#: While a stream stays dead, the pauses between two attempts to revive it double up to this many times `after_s`.
_LONGEST_PAUSE = 60


class Silence:
    """The silence of one connection's streams.

    `known` outlives the connection: the newest known candle of each symbol, closed or forming.
    """

    def __init__(self, symbols: Iterable[str], known: dict[str, Candle], now_s: float, after_s: float) -> None:
        self._after_s = after_s
        self._known = known
        self._quiet_since_s = dict.fromkeys(symbols, now_s)
        self._attempts: dict[str, int] = {}
        self.received_from: set[str] = set()

    def received(self, candle: Candle, now_s: float) -> None:
        """Records a frame of the candle's symbol."""
        if candle.symbol in self._quiet_since_s:
            self._known[candle.symbol] = candle
            self._quiet_since_s[candle.symbol] = now_s
            if self._attempts:
                self._attempts.pop(candle.symbol, None)
            self.received_from.add(candle.symbol)

    def excuse(self, now_s: float) -> None:
        """Restarts the silence of all streams: this process was not listening, or REST has no newer data either."""
        self._quiet_since_s = dict.fromkeys(self._quiet_since_s, now_s)

    def suspects(self, now_s: float) -> list[str]:
        """Returns the streams that have been silent for too long, the longest first."""
        silent = [s for s, since_s in self._quiet_since_s.items() if now_s - since_s >= self._pause_s(s)]
        return sorted(silent, key=lambda s: self._quiet_since_s[s])

    def total(self, now_s: float) -> bool:
        """Returns whether no stream has delivered anything for `after_s`."""
        return all(now_s - since_s >= self._after_s for since_s in self._quiet_since_s.values())

    def has_news(self, symbol: str, newest: Candle | None) -> bool | None:
        """Returns whether REST's newest candle differs from the known one; None where none is known to compare with."""
        known = self._known.get(symbol)
        if newest is None:
            return False
        self._known[symbol] = newest
        if known is None:
            return None
        return (newest.open_time, newest.volume, newest.close) != (known.open_time, known.volume, known.close)

    def cleared(self, symbol: str, now_s: float) -> None:
        """Restarts a stream's silence, because nothing was traded or REST could not tell."""
        self._quiet_since_s[symbol] = now_s

    def woken(self, symbol: str, now_s: float) -> int:
        """Counts an attempt to revive a dead stream. Returns its number, from 1 on."""
        self._quiet_since_s[symbol] = now_s
        self._attempts[symbol] = self._attempts.get(symbol, 0) + 1
        return self._attempts[symbol]

    def _pause_s(self, symbol: str) -> float:
        # The second attempt comes after as long a pause as the first; from then on it is up to the exchange.
        doublings = max(0, self._attempts.get(symbol, 0) - 1)
        return self._after_s * min(_LONGEST_PAUSE, 1 << min(doublings, 32))
