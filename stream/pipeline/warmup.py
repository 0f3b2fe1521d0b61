"""Warm-up: a symbol gets its history before its first forecast. Each start is a recovery; there is no other path.

Rules of this module:
- A fresh start begins with the newest hour that was over when the exchange's time was first read. Nothing before it is
  ever forecast.
- A few symbols at a time have their histories in memory, in the order in which they are configured. One that waits for
  what REST does not show gives its slot to the next.
- The history is complete before that hour's turn comes: each of its hours is there, precedes the symbol's very first
  candle, or is proven not to exist. What the first answers lack is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from stream.clock import Clock
from stream.core.market.binance import UnknownSymbolError
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.core.market.rest_answer import Answer
from stream.core.market.sequencer import LONGEST_WITNESS_HOURS, RETRY_CAP_S, RETRY_FIRST_S, WITNESS_HOURS
from stream.errors import UnreachableError
from stream.pipeline.processing import Processor
from stream.pipeline.queries import Queries
from stream.pipeline.subscription import Subscription
from stream.pipeline.worker import Worker
from stream.ports import History, Journal, Urgency
from stream.times import utc

log = logging.getLogger(__name__)

#: Symbols that may have their histories in memory at a time, 3 MB each: enough to hide how long REST takes.
_HISTORIES = 12


class _Slot:
    """One symbol's right to have its history in memory."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._held = False

    async def take(self) -> None:
        if not self._held:
            await self._free.acquire()
            self._held = True

    def give_up(self) -> None:
        if self._held:
            self._held = False
            self._free.release()


class Warmup:
    """Warms up symbols. `stalled(subscription)` is awaited each time that REST does not have what is needed yet."""

    def __init__(
        self,
        *,
        queries: Queries,
        history: History,
        journal: Journal,
        processor: Processor,
        worker: Worker,
        clock: Clock,
        stalled: Callable[[Subscription], Awaitable[None]],
    ) -> None:
        self._queries = queries
        self._history = history
        self._journal = journal
        self._processor = processor
        self._worker = worker
        self._clock = clock
        self._stalled = stalled
        self._slots = asyncio.Semaphore(_HISTORIES)

    async def warm(self, subscription: Subscription) -> Answer | None:
        """Gives the symbol its history and sets which candle is due next. Returns REST's answer about the hours from
        the newest of the history on, if a fresh start has asked for them."""
        slot = _Slot(self._slots)
        try:
            return await self._warm(subscription, slot)
        finally:
            slot.give_up()

    async def _warm(self, subscription: Subscription, slot: _Slot) -> Answer | None:
        symbol = subscription.symbol
        answer: Answer | None = None
        done = await self._worker.call(self._journal.processed, symbol)
        if done is not None:
            await slot.take()
            newest = done.open_time
            oldest = newest - (self._processor.history_hours(symbol) - 1) * HOUR_MS
            candles = await self._worker.call(self._journal.candles, symbol, oldest, newest)
            missing_until = candles[0].open_time - HOUR_MS if candles else newest
            candles = (await self._complete(subscription, slot, oldest, missing_until) or []) + candles
        else:
            newest, candles, answer = await self._first_past(subscription, slot)
        await slot.take()
        # A full disk at the start is waited for like a full disk later on.
        await self._worker.commit(partial(self._journal.store_history, candles))
        await self._processor.warm(symbol, candles, done)
        subscription.sequencer.start(candles[-1].open_time if candles else None, newest + HOUR_MS)
        subscription.settled.set()
        return answer

    async def _first_past(self, subscription: Subscription, slot: _Slot) -> tuple[int, list[Candle], Answer | None]:
        """Returns the open time of the last hour before the one that a fresh start begins with, the history's candles
        up to it, and the answer that confirms them."""
        while True:
            newest = grid_floor(await self._queries.exchange_first_ms(subscription)) - 2 * HOUR_MS
            oldest = newest - (self._processor.history_hours(subscription.symbol) - 2) * HOUR_MS
            candles = await self._complete(subscription, slot, oldest, newest)
            if candles is None:
                continue
            if not candles:
                return newest, candles, None
            if (answer := await self._confirmed(subscription, slot, candles)) is not None:
                return newest, candles, answer

    async def _complete(self, subscription: Subscription, slot: _Slot, oldest: int, newest: int) -> list[Candle] | None:
        """Returns all candles that open in [oldest, newest], in order, however long REST needs to show or disprove
        them. Returns None if the exchange has corrected its time meanwhile and `newest` is not over yet."""
        found: dict[int, Candle] = {}
        first, witness_hours = oldest, WITNESS_HOURS
        pause_s, logged = RETRY_FIRST_S, False
        while missing := self._missing(subscription, found, first, newest):
            before = len(missing)
            if not self._queries.time_is_known:
                # As long as nobody answers: others may need nothing of REST.
                slot.give_up()
            if await self._queries.exchange_now_ms(subscription) < newest + HOUR_MS:
                return None
            oldest_asked = missing[0] - witness_hours * HOUR_MS
            answer = await self._ask(subscription, slot, oldest_asked, missing[-1], urgency=Urgency.HISTORY)
            found |= {c.open_time: c for c in answer.candles}
            missing = self._missing(subscription, found, first, newest)
            if missing and missing[0] == first:
                slot.give_up()
                first = await self._listed_since(subscription, first, found)
                missing = self._missing(subscription, found, first, newest)
            if not missing:
                break
            slot.give_up()
            subscription.settled.set()
            if not logged:
                logged = True
                log.warning(
                    "%s: warm-up: REST does not show %d hour(s) of the history from %s on; retrying",
                    subscription.symbol,
                    len(missing),
                    utc(missing[0]),
                    extra={"symbol": subscription.symbol, "hours": len(missing), "from": missing[0]},
                )
            await self._stalled(subscription)
            again_at_s = subscription.sequencer.absences.again_at_s(missing)
            if again_at_s is not None:
                await self._clock.sleep(max(0.0, again_at_s - self._clock.monotonic_s()))
                continue
            # A hole is proven by a candle before it, which may lie further back than what is needed: ask for more.
            witness_hours = min(2 * witness_hours, LONGEST_WITNESS_HOURS)
            pause_s = RETRY_FIRST_S if len(missing) < before else min(RETRY_CAP_S, pause_s * 2)
            await self._clock.sleep(pause_s)
        return [found[t] for t in sorted(found) if first <= t <= newest]

    async def _ask(
        self,
        subscription: Subscription,
        slot: _Slot,
        from_open_time: int,
        to_open_time: int | None = None,
        *,
        urgency: Urgency,
    ) -> Answer:
        """Asks until REST answers; between two attempts the slot is another symbol's."""

        async def attempt() -> Answer:
            await slot.take()
            try:
                return await self._queries.once(subscription, from_open_time, to_open_time, urgency=urgency)
            except (UnreachableError, UnknownSymbolError):
                slot.give_up()
                raise

        return await self._queries.until_answered(subscription, attempt)

    async def _confirmed(self, subscription: Subscription, slot: _Slot, fetched: list[Candle]) -> Answer | None:
        """Asks for the newest hours alone, and returns the answer if it has the history's newest candle as it came
        before; None otherwise. Pages that agree with each other may still be another symbol's. The same answer shows
        the candle that a fresh start begins with."""
        last = fetched[-1]
        subscription.sequencer.asking()
        answer = await self._ask(subscription, slot, last.open_time - HOUR_MS, urgency=Urgency.NOW)
        again = next((c for c in answer.candles if c.open_time == last.open_time), None)
        if again is not None and again.ohlcv == last.ohlcv:
            return answer
        log.warning(
            "%s: warm-up: REST's answers about %s differ; retrying the history",
            subscription.symbol,
            utc(last.open_time),
            extra={"symbol": subscription.symbol, "open_time": last.open_time},
        )
        slot.give_up()
        await self._clock.sleep(RETRY_FIRST_S)
        return None

    def _missing(self, subscription: Subscription, found: dict[int, Candle], first: int, newest: int) -> list[int]:
        hours = range(first, newest + 1, HOUR_MS)
        return subscription.sequencer.absences.unproven(hour for hour in hours if hour not in found)

    async def _listed_since(self, subscription: Subscription, first: int, found: dict[int, Candle]) -> int:
        """Returns the hour of the symbol's very first candle if that is later than `first` and no answer contradicts
        it; `first` otherwise."""
        born = await self._queries.until_answered(
            subscription, partial(self._history.first_open_time, subscription.symbol, 0)
        )
        if born is None or born <= first:
            return first
        earliest = min(found, default=None)
        return grid_floor(born) if earliest is None or earliest == grid_floor(born) else first
