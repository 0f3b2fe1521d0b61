"""Health: whether the node does its job (readiness), and whether it makes progress at all (heartbeat).

Readiness is about candles: each due one of every traded symbol has been processed. The heartbeat is about the process:
a supervisor restarts the process when it stops, so a condition that a restart would not cure does not stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, grid_floor
from stream.core.market.exchange_time import ExchangeTime
from stream.pipeline.intake import Intake
from stream.pipeline.processing import Processor
from stream.pipeline.publishing import EventPublisher
from stream.pipeline.worker import Worker
from stream.ports import Journal
from stream.telemetry import Readiness

#: docs/contract.md §4: how long after its close a candle may be unprocessed before the node is unready; exchange time.
_READY_GRACE_MS = 120_000
#: The same in real time at least, for an exchange whose clock runs faster than real time.
_READY_GRACE_REAL_S = 5.0
BROKER_AWAY = "broker not connected"


class Health:
    """Readiness and heartbeat of one node. `is_idle()` returns whether all candles that passed have been taken from the
    queue."""

    def __init__(
        self,
        symbols: Sequence[str],
        *,
        intake: Intake,
        processor: Processor,
        publisher: EventPublisher,
        journal: Journal,
        worker: Worker,
        exchange_time: ExchangeTime,
        time_scale: float,
        clock: Clock,
        is_idle: Callable[[], bool],
    ) -> None:
        self._symbols = tuple(symbols)
        self._intake = intake
        self._processor = processor
        self._publisher = publisher
        self._journal = journal
        self._worker = worker
        self._time = exchange_time
        self._grace_ms = int(max(_READY_GRACE_MS, _READY_GRACE_REAL_S * 1_000 * time_scale))
        self._clock = clock
        self._is_idle = is_idle
        self._beat_s = clock.monotonic_s()
        #: When the current batch was begun; None between two batches.
        self._busy_since_s: float | None = None
        #: By symbol: open time of the newest candle that this run has processed.
        self._done: dict[str, int] = {}

    # --- heartbeat ---------------------------------------------------------------------------------------------

    def beat(self) -> None:
        self._beat_s = self._clock.monotonic_s()

    def begin(self) -> None:
        """Notes that the processing of a batch begins."""
        self._busy_since_s = self._clock.monotonic_s()

    def end(self, done: Mapping[str, int]) -> None:
        """Notes that it has ended; `done` has the open times, by symbol, of the candles that were processed."""
        self._busy_since_s = None
        self._done |= done

    @property
    def heartbeat_age_s(self) -> float:
        oldest_s = self._beat_s
        # A journal that cannot be written is waited for and reported elsewhere; a restart would not cure it.
        if self._busy_since_s is not None and self._worker.failing is None:
            oldest_s = min(oldest_s, self._busy_since_s)
        return self._clock.monotonic_s() - oldest_s

    # --- readiness ---------------------------------------------------------------------------------------------

    def readiness(self) -> Readiness:
        reasons: list[str] = []
        halted = tuple(s for s, each in self._intake.subscriptions.items() if each.sequencer.halted)
        if not self._publisher.connected:
            reasons.append(BROKER_AWAY)
        if failing := self._worker.failing or self._journal.stuck:
            reasons.append(failing)
        if not self._time.known:
            reasons.append("the exchange has not answered yet")
        else:
            due = grid_floor(self._time.now_ms(self._clock.monotonic_s()) - self._grace_ms) - HOUR_MS
            for symbol in self._symbols:
                reasons += self._of_symbol(symbol, due)
        served = self._processor.serving_baseline()
        remarks = (*served.values(), *self._publisher.remarks)
        return Readiness(not reasons, tuple(reasons), halted, remarks, tuple(served))

    def _of_symbol(self, symbol: str, due: int) -> list[str]:
        reasons: list[str] = []
        sequencer = self._intake.subscriptions[symbol].sequencer
        if sequencer.unlisted and not sequencer.started:
            reasons.append(f"{symbol}: the exchange does not list it")
        if sequencer.halted:
            return reasons
        if symbol in self._processor.unforecast:
            reasons.append(f"{symbol}: the model gives no usable forecast")
        done = self._done.get(symbol, self._warmed(symbol))
        if done is None:
            reasons.append(f"{symbol}: warming up")
        elif done < due:
            reasons.append(f"{symbol}: {(due - done) // HOUR_MS} due candle(s) not processed")
        return reasons

    def _warmed(self, symbol: str) -> int | None:
        """Returns the symbol's newest open time if nothing is in progress: after a restart the newest candle may have
        been processed by the run before. Returns None otherwise."""
        subscription = self._intake.subscriptions[symbol]
        idle = subscription.sequencer.started and subscription.backfill is None and self._is_idle()
        return subscription.sequencer.last_open_time if idle else None
