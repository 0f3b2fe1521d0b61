"""Asking REST on behalf of a lane: until it answers, and what of an answer counts.

Rules of this module:
- A question is repeated with growing pauses until REST answers it. What REST does not do for one symbol never ends the
  node and never keeps another symbol waiting.
- A candle counts once it is over by its own time, by the server's and by ours with a margin, all as of the question,
  and is proven final: the same answer has a later candle, or two answers some time apart show it alike.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stream.clock import Clock
from stream.core.market.answer import Answer
from stream.core.market.binance import UnknownSymbolError
from stream.core.market.candle import Candle
from stream.core.market.exchange_time import ExchangeTime
from stream.errors import UnreachableError
from stream.pipeline.lane import Lane
from stream.ports import History
from stream.telemetry import BackfillFailed, BackfillRequested, Observer

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

log = logging.getLogger(__name__)

#: REST reads from a database that may lag the matching engine just after a close.
REST_LAG_MS = 5_000
#: So far apart are two answers that prove together what one cannot: in the exchange's time, and at least in ours.
APART_MS = 30_000
_APART_REAL_S = 1.0
#: A REST that is known to be behind must say the same for so many times longer.
_BEHIND_TIMES = 10
RETRY_FIRST_S, RETRY_CAP_S = 0.5, 30.0


def apart_s(time_scale: float) -> float:
    """Real seconds between two answers that prove together what one cannot."""
    return max(_APART_REAL_S, APART_MS / 1_000 / time_scale) if time_scale else _APART_REAL_S


class Asking:
    """`stalled(lane)` is called with each attempt that REST does not answer."""

    def __init__(
        self,
        *,
        history: History,
        exchange_time: ExchangeTime,
        time_scale: float,
        clock: Clock,
        observe: Observer,
        stalled: Callable[[Lane], None],
        sleep: Sleep,
    ) -> None:
        self._history = history
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._stalled = stalled
        self._sleep = sleep
        self._apart_s = apart_s(time_scale)
        # At full speed an hour takes milliseconds, and the exchange's time stands still between two closes.
        self._margin_ms = REST_LAG_MS if time_scale else 0

    async def until_answered(self, lane: Lane, question: Callable[[], Awaitable[T]]) -> T:
        """The answer, however long that takes."""
        pause_s = RETRY_FIRST_S
        told: str | None = None
        while True:
            self._observe(BackfillRequested(lane.symbol))
            try:
                answer = await question()
                if lane.unlisted:
                    lane.unlisted = lane.halted = False
                return answer
            except UnreachableError as error:
                reason = str(error)
            except UnknownSymbolError:
                reason = "the exchange does not list it; if that is a typing error, correct --symbols"
                lane.unlisted = lane.halted = True
            self._observe(BackfillFailed(lane.symbol, reason))
            lane.settled.set()
            self._stalled(lane)
            if reason != told:
                log.warning("%s: no answer from the exchange, retrying: %s", lane.symbol, reason)
                told = reason
            await self._sleep(pause_s)
            pause_s = min(RETRY_CAP_S, pause_s * 2)

    async def exchange_now_ms(self, lane: Lane) -> int:
        """The exchange's time, once it has told it in a way that can be believed."""
        while not self._time.known:
            await self.until_answered(lane, self._history.server_time_ms)
        return self._time.now_ms(self._clock.monotonic_s())

    async def exchange_first_ms(self, lane: Lane) -> int:
        """What time it was at the exchange when it was first asked."""
        await self.exchange_now_ms(lane)
        return self._time.first_ms

    async def candles(self, lane: Lane, from_open_time: int, to_open_time: int | None = None) -> Answer:
        """Closed candles that open in [from, to], as `examine` leaves them, however long that takes."""

        async def ask() -> Answer:
            return await self.once(lane, from_open_time, to_open_time)

        return await self.until_answered(lane, ask)

    async def once(self, lane: Lane, from_open_time: int, to_open_time: int | None = None) -> Answer:
        """The same in one attempt; `UnreachableError` and `UnknownSymbolError` as `History.candles`."""
        asked_ms = self._time.now_ms(self._clock.monotonic_s()) if self._time.known else None
        answer = await self._history.candles(lane.symbol, from_open_time, to_open_time)
        now_s = self._clock.monotonic_s()
        lane.absences.shown(answer.absent, (c.open_time for c in answer.candles), now_s)
        counted = [c for c in answer.candles if self._counts(lane, c, answer, asked_ms, now_s)]
        return Answer(counted, answer.asked_at_ms, answer.newest_open_time, answer.absent)

    def _counts(self, lane: Lane, candle: Candle, answer: Answer, asked_ms: int | None, now_s: float) -> bool:
        if asked_ms is None or candle.close_time + self._margin_ms > asked_ms:
            return False
        if answer.newest_open_time is not None and candle.open_time < answer.newest_open_time:
            return True
        # Where the stream has shown a later candle and this answer has none it is behind.
        enough_s = self._apart_s * (_BEHIND_TIMES if lane.seen_open_time > candle.open_time else 1)
        before, since_s = lane.looked_at.get(candle.open_time, (None, now_s))
        if before is None or before.ohlcv != candle.ohlcv:
            lane.looked_at = {candle.open_time: (candle, now_s)}
            return False
        return now_s - since_s >= enough_s
