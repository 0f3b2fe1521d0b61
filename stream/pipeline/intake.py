"""Intake: drives the sequencers. Frames and times go in, due candles come out on the queue.

`stream.core.market.sequencer` decides what is due, held, missing or proven; this module acts on its outputs and starts
what needs REST: backfills, the audit, and the questions for the exchange's time and whether a symbol is traded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from stream.clock import Clock
from stream.core.market.binance import KlineUpdate, UnknownSymbolError
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.outputs import (
    Backfill,
    Delivered,
    Due,
    FeedState,
    FeedStateName,
    Output,
    Rejected,
    Repeated,
    emitted,
)
from stream.core.market.sequencer import Sequencer
from stream.errors import RefusedError, UnreachableError
from stream.pipeline.audit import Audit
from stream.pipeline.backfill import Backfills
from stream.pipeline.processing import Processor
from stream.pipeline.queries import Queries
from stream.pipeline.subscription import Subscription
from stream.pipeline.warmup import Warmup
from stream.pipeline.worker import Worker
from stream.ports import History, Journal
from stream.telemetry import (
    BackfillFailed,
    CandleDelivered,
    CandleRepeated,
    FrameRejected,
    MissingCounted,
    Observer,
    TradingObserved,
)

log = logging.getLogger(__name__)

#: How late a due candle may be on the socket before REST is asked: in exchange time, and at least in real time.
_LATE_AFTER_MS = 60_000
_LATE_AFTER_REAL_S = 2.0
#: REST reads from a database that may lag the matching engine just after a close.
_REST_LAG_MS = 5_000
#: How far apart two answers must be to prove together what one cannot: in exchange time, and at least in real time.
_APART_MS = 30_000
_APART_REAL_S = 1.0
#: How many candles may be queued before feed and backfills have to wait.
_BACKLOG = 256
#: How long the feed waits for the other symbols once the first is settled.
_SETTLE_S = 15.0


def sequencer(symbol: str, exchange_time: ExchangeTime, time_scale: float) -> Sequencer:
    """Returns a sequencer with limits that fit an exchange whose clock runs `time_scale` times as fast as real time; 0
    means as fast as it can."""
    apart_s = max(_APART_REAL_S, _APART_MS / 1_000 / time_scale) if time_scale else _APART_REAL_S
    return Sequencer(
        symbol,
        exchange_time,
        apart_s=apart_s,
        # At full speed an hour takes milliseconds, and the exchange's time stands still between two closes.
        margin_ms=_REST_LAG_MS if time_scale else 0,
        grace_ms=int(max(_LATE_AFTER_MS, _LATE_AFTER_REAL_S * 1_000 * time_scale)),
    )


class Intake:
    """Implements `stream.ports.FeedListener`. `queue` receives `Due` candles, in order within each symbol."""

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        history: History,
        journal: Journal,
        processor: Processor,
        worker: Worker,
        queue: asyncio.Queue[Due],
        exchange_time: ExchangeTime,
        time_scale: float,
        clock: Clock,
        observe: Observer,
        notify_feed: Callable[[str, FeedStateName, int | None, int | None], None],
    ) -> None:
        """`notify_feed(symbol, state, from, to)` is called on each change of a feed's state, with the first and last
        open time concerned or None."""
        self.subscriptions = {s: Subscription(sequencer(s, exchange_time, time_scale)) for s in symbols}
        self._history = history
        self._queue = queue
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._notify_feed = notify_feed
        self._group: asyncio.TaskGroup | None = None
        self._taken = asyncio.Event()
        self._asking_time = False
        queries = Queries(
            history=history,
            exchange_time=exchange_time,
            clock=clock,
            observe=observe,
            stalled=self._unanswered,
        )
        warmup = Warmup(
            queries=queries,
            history=history,
            journal=journal,
            processor=processor,
            worker=worker,
            clock=clock,
            stalled=self._stalled,
        )
        self._backfills = Backfills(
            queries=queries,
            warmup=warmup,
            clock=clock,
            act=self._act,
            wait_for_space=self._wait_for_space,
            ask_status=self._ask_status,
        )
        self._audit = Audit(
            queries=queries,
            processor=processor,
            exchange_time=exchange_time,
            clock=clock,
            observe=observe,
            ask_status=self._ask_status,
        )

    async def run(self) -> None:
        """Warms up all symbols and then runs their backfills until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for subscription in self.subscriptions.values():
                self._act(subscription, subscription.sequencer.begin())
            await asyncio.get_running_loop().create_future()

    async def settled(self) -> None:
        """Waits until each symbol has its history or has found that REST cannot provide it now, but at most `_SETTLE_S`
        after the first has. If the feed opened earlier, a fast exchange would run ahead of the hour that a fresh start
        begins with."""
        waiting = [asyncio.ensure_future(s.settled.wait()) for s in self.subscriptions.values()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(waiting, timeout=_SETTLE_S)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # --- the feed ----------------------------------------------------------------------------------------------

    def connected(self) -> None:
        for subscription in self.subscriptions.values():
            self._act(subscription, subscription.sequencer.connect())

    def disconnected(self, reason: str) -> None:
        for subscription in self.subscriptions.values():
            self._act(subscription, subscription.sequencer.disconnect())

    def forming(self, update: KlineUpdate, received_at_s: float) -> None:
        subscription = self.subscriptions.get(update.candle.symbol)
        if subscription is not None:
            now_s = self._clock.monotonic_s()
            self._act(subscription, subscription.sequencer.form(update, received_at_s, now_s))

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None:
        subscription = self.subscriptions.get(update.candle.symbol)
        if subscription is None:
            return
        outputs = subscription.sequencer.close(update, received_at_s, self._clock.monotonic_s())
        self._act(subscription, outputs)
        if emitted(outputs):
            await self._wait_for_space()

    def _act(self, subscription: Subscription, outputs: Sequence[Output]) -> None:
        """Acts on the sequencer's outputs. Not a coroutine: a cancellation must not come between the moment when the
        sequencer passes a candle and the moment when the queue has it."""
        symbol = subscription.symbol
        for output in outputs:
            if isinstance(output, Due):
                self._queue.put_nowait(output)
            elif isinstance(output, FeedState):
                self._notify_feed(symbol, output.state, output.from_open_time, output.to_open_time)
            elif isinstance(output, Backfill):
                assert self._group is not None, "the feed is listened to once the intake runs"
                subscription.backfill = self._group.create_task(
                    self._backfills.run(subscription), name=f"backfill {symbol}"
                )
            elif isinstance(output, Delivered):
                self._observe(CandleDelivered(output.delay_s))
            elif isinstance(output, Repeated):
                if output.contradicts:
                    # Received twice with different values: REST decides.
                    Audit.doubt(subscription)
                self._observe(CandleRepeated(symbol, output.open_time, output.out_of_order))
            elif isinstance(output, Rejected):
                self._observe(FrameRejected(output.reason, output.detail))

    async def _wait_for_space(self) -> None:
        """Back-pressure: waits while too much is queued."""
        while self._queue.qsize() > _BACKLOG:
            self._taken.clear()
            await self._taken.wait()

    def took(self) -> None:
        """Notes that a batch has left the queue and has been processed."""
        self._taken.set()

    # --- time --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Asks REST for what is overdue, and for the time if that is in doubt. To be called about once a second."""
        now_s = self._clock.monotonic_s()
        if self._time.doubt_ms is not None and not self._asking_time and self._group is not None:
            self._asking_time = True
            self._group.create_task(self._ask_time(), name="exchange time")
        for subscription in self.subscriptions.values():
            sequencer = subscription.sequencer
            news = sequencer.missing_hours(now_s), sequencer.halted
            # Of a thousand symbols hardly any has changed within the second.
            if news != subscription.reported:
                subscription.reported = news
                self._observe(MissingCounted(subscription.symbol, news[0]))
                self._observe(TradingObserved(subscription.symbol, news[1]))
            self._act(subscription, sequencer.tick(now_s))

    def audit(self) -> None:
        """Starts the audits that are due. To be called about once a second."""
        if self._group is not None:
            for subscription in self._audit.due(self.subscriptions.values(), idle=self._queue.empty()):
                self._group.create_task(self._audit.run(subscription), name=f"audit {subscription.symbol}")

    async def _ask_time(self) -> None:
        try:
            await self._history.server_time_ms()
        except UnreachableError as error:
            log.debug("the exchange does not tell its time: %s", error)
        finally:
            self._asking_time = False

    # --- REST --------------------------------------------------------------------------------------------------

    async def _ask_status(self, subscription: Subscription) -> None:
        """Asks once whether the symbol is traded: a symbol without trades or frames need not be halted. If the exchange
        does not answer, nothing changes; candles pass whatever the answer is."""
        symbol = subscription.symbol
        try:
            info = await self._history.exchange_info(symbol)
        except UnknownSymbolError:
            trades = False
        except UnreachableError as error:
            self._observe(BackfillFailed(symbol, str(error)))
            return
        else:
            trades = any(s.trading for s in info.symbols if s.symbol == symbol)
        self._act(subscription, subscription.sequencer.trading(trades))

    async def _stalled(self, subscription: Subscription) -> None:
        self._unanswered(subscription)
        await self._ask_status(subscription)

    def _unanswered(self, subscription: Subscription) -> None:
        self._act(subscription, subscription.sequencer.unanswered(self._clock.monotonic_s()))


def unknown_symbol(symbol: str) -> RefusedError:
    return RefusedError(f"the exchange does not list {symbol} and the journal does not know it: correct --symbols")
