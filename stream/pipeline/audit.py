"""The audit: soon after each close, the candles that passed are compared with REST. The exchange revises candles, and
the copy that was processed may have been wrong; REST's latest answer is right wherever it is not older than that copy.

Rules of this module:
- Each close makes a symbol's last `REVISED_HOURS` due once, within a minute if REST answers; many symbols take turns.
- Only candles that the answer proves final count. A REST that is behind proves nothing, and is asked again at growing
  intervals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from stream.clock import Clock
from stream.core.market.binance import UnknownSymbolError
from stream.core.market.candle import HOUR_MS
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.rest_answer import Answer
from stream.core.market.sequencer import FLAT_HOURS
from stream.errors import UnreachableError
from stream.pipeline.processing import Processor
from stream.pipeline.queries import Queries
from stream.pipeline.revision import REVISED_HOURS
from stream.pipeline.subscription import Subscription
from stream.ports import Urgency
from stream.telemetry import BackfillFailed, BackfillRequested, Observer

#: How long after each close, in exchange time, the audit is due.
_AFTER_CLOSE_MS = 30_000
#: First and longest pause before an answer that did not settle the newest candle is asked for again.
_AGAIN_FIRST_S, _AGAIN_CAP_S = 5.0, 600.0
#: Pause after REST did not answer at all.
_UNANSWERED_S = 60.0
#: Most audits running at a time, and most started per second: 900 of the exchange's 6,000 request weight a minute.
_AT_ONCE, _A_SECOND = 8, 5


class Audit:
    """Audits all symbols in turn. `ask_status(subscription)` asks whether the symbol is traded."""

    def __init__(
        self,
        *,
        queries: Queries,
        processor: Processor,
        exchange_time: ExchangeTime,
        clock: Clock,
        observe: Observer,
        ask_status: Callable[[Subscription], Awaitable[None]],
    ) -> None:
        self._queries = queries
        self._processor = processor
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._ask_status = ask_status
        self._running = 0

    @staticmethod
    def doubt(subscription: Subscription) -> None:
        """Makes the audit due at once, because something contradicts the newest candle."""
        subscription.audited_open_time = 0
        subscription.audit_again_at_s = subscription.audit_pause_s = 0.0

    def due(self, subscriptions: Iterable[Subscription], *, idle: bool) -> list[Subscription]:
        """Returns the subscriptions whose turn it is and marks them as being audited; `run` must follow for each.
        `idle` is whether no candle waits to be processed."""
        if not self._time.known or not idle:
            return []
        now_s = self._clock.monotonic_s()
        now_ms = self._time.now_ms(now_s)
        chosen: list[Subscription] = []
        # The longest waiting first: at high speed some are due again before others have had their turn.
        for subscription in sorted(subscriptions, key=lambda subscription: subscription.audited_open_time):
            if len(chosen) >= min(_A_SECOND, _AT_ONCE - self._running):
                break
            newest = subscription.sequencer.last_open_time
            free = subscription.sequencer.started and subscription.backfill is None and not subscription.auditing
            if (
                newest is None
                or not free
                or newest <= subscription.audited_open_time
                or now_s < subscription.audit_again_at_s
            ):
                continue
            in_doubt = subscription.audited_open_time == 0
            if in_doubt or now_ms >= newest + HOUR_MS + _AFTER_CLOSE_MS:
                subscription.auditing = True
                self._running += 1
                chosen.append(subscription)
        return chosen

    @staticmethod
    def _is_settled(subscription: Subscription, newest: int, answer: Answer) -> bool:
        """Returns whether the answer settles the newest candle. If the candle is too young or not proven final, it does
        not, and the audit is due again."""
        found = next((c for c in answer.candles if c.open_time == newest), None)
        if found is None:
            return newest in answer.absent
        is_last = answer.newest_open_time == newest
        return not is_last or (
            subscription.sequencer.newest is not None and found.ohlcv == subscription.sequencer.newest.ohlcv
        )

    async def run(self, subscription: Subscription) -> None:
        """Compares one subscription's past with REST, once."""
        newest = subscription.sequencer.last_open_time
        assert newest is not None
        pause_s = _UNANSWERED_S
        try:
            self._observe(BackfillRequested(subscription.symbol))
            oldest = newest - (REVISED_HOURS - 1) * HOUR_MS
            answer = await self._queries.once(subscription, oldest, urgency=Urgency.AUDIT)
            # REST's newest candle may be an older copy than the processed one: it can confirm it, but not replace it.
            shown = answer.newest_open_time or 0
            await self._processor.revise(subscription.symbol, [c for c in answer.candles if c.open_time < shown])
            if self._is_settled(subscription, newest, answer):
                subscription.audited_open_time, subscription.audit_pause_s, pause_s = newest, 0.0, 0.0
            else:
                subscription.audit_pause_s = min(_AGAIN_CAP_S, max(_AGAIN_FIRST_S, 2 * subscription.audit_pause_s))
                pause_s = subscription.audit_pause_s
            if subscription.sequencer.flat_hours >= FLAT_HOURS:
                await self._ask_status(subscription)
        except (UnreachableError, UnknownSymbolError) as error:
            self._observe(BackfillFailed(subscription.symbol, str(error)))
        finally:
            subscription.audit_again_at_s = self._clock.monotonic_s() + pause_s
            subscription.auditing = False
            self._running -= 1
