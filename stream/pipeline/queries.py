"""Queries to REST on behalf of one symbol: the retry until it answers, and what counts of an answer.

Rules of this module:
- A query is repeated with growing pauses until REST answers it. A failure of REST for one symbol never ends the node
  and never keeps another symbol waiting.
- The sequencer decides what counts of an answer, as of the time of the question.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stream.clock import Clock
from stream.core.market.binance import UnknownSymbolError
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.rest_answer import Answer
from stream.core.market.sequencer import RETRY_CAP_S, RETRY_FIRST_S
from stream.errors import UnreachableError
from stream.pipeline.subscription import Subscription
from stream.ports import History, Urgency
from stream.telemetry import BackfillFailed, BackfillRequested, Observer

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Of so many symbols a failure of one kind is logged, and how long it is not logged of others then.
_LOGGED_OF, _LOGGED_AGAIN_S = 10, 60.0


class Queries:
    """Asks REST for one symbol at a time. `stalled(subscription)` is called after each attempt that fails."""

    def __init__(
        self,
        *,
        history: History,
        exchange_time: ExchangeTime,
        clock: Clock,
        observe: Observer,
        stalled: Callable[[Subscription], None],
    ) -> None:
        self._history = history
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._stalled = stalled
        #: By kind of failure: since when it is counted, and of how many symbols.
        self._failures: dict[str, tuple[float, int]] = {}

    @property
    def time_is_known(self) -> bool:
        return self._time.known

    async def until_answered(self, subscription: Subscription, query: Callable[[], Awaitable[T]]) -> T:
        """Repeats the query until REST answers, and returns the answer, however long that takes."""
        pause_s = RETRY_FIRST_S
        logged: str | None = None
        while True:
            self._observe(BackfillRequested(subscription.symbol))
            try:
                answer = await query()
                subscription.sequencer.listed(True)
                return answer
            except UnreachableError as error:
                reason = str(error)
            except UnknownSymbolError:
                reason = "the exchange does not list it; if that is a typing error, correct --symbols"
                subscription.sequencer.listed(False)
            self._observe(BackfillFailed(subscription.symbol, reason))
            subscription.settled.set()
            self._stalled(subscription)
            if reason != logged:
                self._log(subscription.symbol, reason)
                logged = reason
            await self._clock.sleep(pause_s)
            pause_s = min(RETRY_CAP_S, pause_s * 2)

    def _log(self, symbol: str, reason: str) -> None:
        """Logs why REST does not answer. What many symbols meet within a minute is logged of the first ones."""
        now_s = self._clock.monotonic_s()
        kind = re.sub(r"\d+", "", reason.replace(symbol, ""))
        since_s, count = self._failures.get(kind, (now_s, 0))
        if now_s - since_s > _LOGGED_AGAIN_S:
            since_s, count = now_s, 0
        self._failures[kind] = since_s, count + 1
        log.log(
            logging.WARNING if count < _LOGGED_OF else logging.DEBUG,
            "%s: REST does not answer, retrying: %s%s",
            symbol,
            reason,
            " (not logged of others that meet the same)" if count == _LOGGED_OF - 1 else "",
            extra={"symbol": symbol, "reason": reason},
        )

    async def exchange_now_ms(self, subscription: Subscription) -> int:
        """Returns the exchange's time in ms, waiting until it is known."""
        while not self._time.known:
            await self.until_answered(subscription, self._history.server_time_ms)
        return self._time.now_ms(self._clock.monotonic_s())

    async def exchange_first_ms(self, subscription: Subscription) -> int:
        """Returns the exchange's time in ms at its first reading, waiting until it is known."""
        await self.exchange_now_ms(subscription)
        return self._time.first_ms

    async def candles(
        self, subscription: Subscription, from_open_time: int, to_open_time: int | None = None, *, urgency: Urgency
    ) -> Answer:
        """Returns the closed candles that open in [from, to], as `Sequencer.examine` leaves them, however long that
        takes."""

        async def ask() -> Answer:
            return await self.once(subscription, from_open_time, to_open_time, urgency=urgency)

        return await self.until_answered(subscription, ask)

    async def once(
        self, subscription: Subscription, from_open_time: int, to_open_time: int | None = None, *, urgency: Urgency
    ) -> Answer:
        """Does the same in one attempt. Raises `UnreachableError` or `UnknownSymbolError` as `History.candles` does."""
        asked_ms = self._time.now_ms(self._clock.monotonic_s()) if self._time.known else None
        answer = await self._history.candles(subscription.symbol, from_open_time, to_open_time, urgency=urgency)
        return subscription.sequencer.examine(answer, asked_ms, self._clock.monotonic_s())
