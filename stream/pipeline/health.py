"""Health: whether the node does its job (readiness), and whether it makes progress at all (heartbeat).

Readiness is about candles: each due one of every traded symbol has been processed. The heartbeat is about the process:
a supervisor restarts the process when it stops, so a condition that a restart would not cure does not stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, grid_floor
from stream.core.market.exchange_time import ExchangeTime
from stream.pipeline import progress
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
#: Up to this many symbols are named one by one.
_NAMED = 5


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
            reasons += self._of_symbols(due)
        served = self._processor.serving_baseline()
        waits = [self._processor.successor] if self._processor.successor else []
        remarks = (*served.values(), *self._publisher.remarks, *waits)
        return Readiness(not reasons, tuple(reasons), halted, remarks, tuple(served))

    def warmed_up(self) -> tuple[int, int]:
        """Returns how many symbols have their history and their newest candle processed, and how many are still to have
        them; symbols that are not traded and have never been ready are neither."""
        missing = [symbol for symbol in self._symbols if self._newest_done(symbol) is None]
        waiting = sum(not self._intake.subscriptions[symbol].sequencer.halted for symbol in missing)
        return len(self._symbols) - len(missing), waiting

    def _of_symbols(self, due: int) -> list[str]:
        unlisted: list[str] = []
        unforecast: list[str] = []
        warming: list[str] = []
        late: dict[int, list[str]] = {}
        for symbol in self._symbols:
            sequencer = self._intake.subscriptions[symbol].sequencer
            if sequencer.unlisted and not sequencer.started:
                unlisted.append(symbol)
            if sequencer.halted:
                continue
            if symbol in self._processor.unforecast:
                unforecast.append(symbol)
            done = self._newest_done(symbol)
            if done is None:
                warming.append(symbol)
            elif done < due:
                late.setdefault((due - done) // HOUR_MS, []).append(symbol)
        reasons = self._reasons_of(unlisted, "the exchange does not list it")
        reasons += self._reasons_of(unforecast, "the model gives no usable forecast")
        if len(warming) > _NAMED:
            reasons.append(progress.sentence(self.warmed_up()[0], len(self._symbols)))
        else:
            reasons += [f"{symbol}: warming up" for symbol in warming]
        for hours, symbols in sorted(late.items()):
            reasons += self._reasons_of(symbols, f"{hours} due candle(s) not processed")
        return reasons

    def _reasons_of(self, symbols: list[str], what: str) -> list[str]:
        """Returns a reason for each of a few symbols, and one for many."""
        if len(symbols) <= _NAMED:
            return [f"{symbol}: {what}" for symbol in symbols]
        return [f"{len(symbols):,} of {len(self._symbols):,} symbols, {symbols[0]} among them: {what}"]

    def _newest_done(self, symbol: str) -> int | None:
        done = self._done.get(symbol)
        if done is None and (done := self._warmed(symbol)) is not None:
            self._done[symbol] = done
        return done

    def _warmed(self, symbol: str) -> int | None:
        """Returns the symbol's newest open time if nothing is in progress: after a restart the newest candle may have
        been processed by the run before. Returns None otherwise."""
        subscription = self._intake.subscriptions[symbol]
        idle = self._busy_since_s is None and self._is_idle()
        idle = idle and subscription.sequencer.started and subscription.backfill is None
        return subscription.sequencer.last_open_time if idle else None
