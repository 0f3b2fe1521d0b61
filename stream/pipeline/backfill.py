"""Backfill: REST is asked for what is missing until the sequencer says that it is done.

The sequencer decides what is asked and what passes; this module does the asking and the waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from stream.clock import Clock
from stream.core.market.outputs import AskStatus, Done, Output, Wait, emitted
from stream.core.market.rest_answer import Answer
from stream.pipeline.queries import Queries
from stream.pipeline.subscription import Subscription
from stream.pipeline.warmup import Warmup
from stream.ports import Urgency


class Backfills:
    """Runs the backfills. `act(subscription, outputs)` acts on the sequencer's outputs, `wait_for_space()` waits while
    too much is queued, and `ask_status(subscription)` asks whether the symbol is traded."""

    def __init__(
        self,
        *,
        queries: Queries,
        warmup: Warmup,
        clock: Clock,
        act: Callable[[Subscription, Sequence[Output]], None],
        wait_for_space: Callable[[], Awaitable[None]],
        ask_status: Callable[[Subscription], Awaitable[None]],
    ) -> None:
        self._queries = queries
        self._warmup = warmup
        self._clock = clock
        self._act = act
        self._wait_for_space = wait_for_space
        self._ask_status = ask_status

    async def run(self, subscription: Subscription) -> None:
        """Runs one backfill of one symbol to its end; the first one begins with the warm-up."""
        sequencer = subscription.sequencer
        answer: Answer | None = None
        if not sequencer.started:
            answer = await self._warmup.warm(subscription)
        await self._queries.exchange_now_ms(subscription)
        while True:
            warmed_up = answer is not None
            if answer is None:
                urgency = self._urgency(subscription)
                answer = await self._queries.candles(subscription, sequencer.question(), urgency=urgency)
            self._act(subscription, sequencer.answer(answer))
            answer = None
            await self._emit(subscription)
            if warmed_up and sequencer.overdue(self._clock.monotonic_s()):
                # Another candle has closed while the model was at work: that answer is no answer about it.
                continue
            step, outputs = sequencer.next_step(self._clock.monotonic_s())
            if isinstance(step, AskStatus):
                await self._ask_status(subscription)
                step, outputs = sequencer.next_step(self._clock.monotonic_s(), status_known=True)
            if isinstance(step, Done):
                subscription.backfill = None
            self._act(subscription, outputs)
            if isinstance(step, Done):
                return
            if isinstance(step, Wait) and step.seconds > 0:
                await self._clock.sleep(step.seconds)

    def _urgency(self, subscription: Subscription) -> Urgency:
        """One hour that is due is what its close waits for; more of them, or none, are what may have been lost."""
        hours = subscription.sequencer.missing_hours(self._clock.monotonic_s())
        return Urgency.NOW if hours == 1 else Urgency.REPAIR

    async def _emit(self, subscription: Subscription) -> None:
        """Passes on all candles whose turn it is now, one by one."""
        while True:
            outputs = subscription.sequencer.advance(self._clock.monotonic_s())
            self._act(subscription, outputs)
            if not emitted(outputs):
                return
            await self._wait_for_space()
