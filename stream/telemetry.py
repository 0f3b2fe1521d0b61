"""Telemetry: the facts that the pipeline tells its observers, and what HTTP shows of its state.

Facts are past tense and frozen; what becomes of them (a metric, a log line, nothing) is the observer's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from stream.core.market.candle import Provenance
from stream.core.messages.schemas import Decay, Decision, Drift, Forecast, NodeStateName, Score
from stream.core.messages.scoring import Outcome

#: A pipeline that has not moved for this long is dead (docs/contract.md §4): `/healthz` and the supervisor hear of it.
HEARTBEAT_LIMIT_S = 30.0


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Something that happened. Seconds are real seconds."""


class FeedConnected(Fact, frozen=True, gc=False):
    pass


class FeedDisconnected(Fact, frozen=True, gc=False):
    reason: str
    #: Whether another connection goes on.
    still_open: bool = False


class FeedQuiet(Fact, frozen=True, gc=False):
    """The open stream is silent, and REST has no news either; or that is over."""

    quiet: bool


class FrameReceived(Fact, frozen=True, gc=False):
    kind: str


class FrameRejected(Fact, frozen=True, gc=False):
    reason: str
    detail: str


class CandleDelivered(Fact, frozen=True, gc=False):
    """A closing frame arrived this long after its candle's end, by the exchange's clock."""

    delay_s: float


class CandleRepeated(Fact, frozen=True, gc=False):
    symbol: str
    open_time: int
    out_of_order: bool


class CandleProcessed(Fact, frozen=True, gc=False):
    symbol: str
    open_time: int
    provenance: Provenance
    buffer_hours: int


class GapDeclared(Fact, frozen=True, gc=False):
    symbol: str
    from_open_time: int
    to_open_time: int
    hours: int


class TradingObserved(Fact, frozen=True, gc=False):
    """Whether a symbol is halted or no longer listed."""

    symbol: str
    halted: bool


class MissingCounted(Fact, frozen=True, gc=False):
    """Due candles of a symbol that are not there yet."""

    symbol: str
    hours: int


class Inferred(Fact, frozen=True, gc=False):
    seconds: float
    rows: int


class ForecastCommitted(Fact, frozen=True, gc=False):
    forecast: Forecast
    decision: Decision


class ForecastScored(Fact, frozen=True, gc=False):
    """The 24 hours that a forecast spoke of are over and complete."""

    outcome: Outcome


class ScoreChanged(Fact, frozen=True, gc=False):
    """What the matured forecasts of a symbol came to, again after each that matured and after a start."""

    score: Score


class DecayFound(Fact, frozen=True, gc=False):
    """The model's errors are no longer what they were."""

    decay: Decay


class CandleRevised(Fact, frozen=True, gc=False):
    """The exchange says something else about a candle than what was processed, or has one that it lacked."""

    symbol: str
    open_time: int


class ForecastRevised(Fact, frozen=True, gc=False):
    """A forecast that was issued again because its past changed; `newest` where no later one exists."""

    forecast: Forecast
    decision: Decision
    newest: bool


class ForecastFailed(Fact, frozen=True, gc=False):
    """The model's answer for a candle was no volatility; the candle is kept without a forecast."""

    symbol: str
    open_time: int


class Resumed(Fact, frozen=True, gc=False):
    """A symbol goes on where an earlier run left it; its newest messages, where there are any."""

    symbol: str
    open_time: int
    buffer_hours: int
    forecast: Forecast | None
    decision: Decision | None


class ForecastAcknowledged(Fact, frozen=True, gc=False):
    delay_s: float


class BrokerConnected(Fact, frozen=True, gc=False):
    pass


class BrokerLost(Fact, frozen=True, gc=False):
    reason: str


class Published(Fact, frozen=True, gc=False):
    topic: str


class PublishFailed(Fact, frozen=True, gc=False):
    topic: str
    reason: str


class OutboxCounted(Fact, frozen=True, gc=False):
    messages: int


class BackfillRequested(Fact, frozen=True, gc=False):
    symbol: str


class BackfillFailed(Fact, frozen=True, gc=False):
    symbol: str
    reason: str


class WeightUsed(Fact, frozen=True, gc=False):
    ratio: float


class CommitFailed(Fact, frozen=True, gc=False):
    reason: str


class StorageMeasured(Fact, frozen=True, gc=False):
    journal_bytes: int
    free_bytes: int


class LoopLagged(Fact, frozen=True, gc=False):
    seconds: float


class ClockCompared(Fact, frozen=True, gc=False):
    """The exchange's clock minus ours."""

    offset_s: float


class DriftFinished(Fact, frozen=True, gc=False):
    drift: Drift


class DriftFailed(Fact, frozen=True, gc=False):
    symbol: str
    reason: str


class NodeChanged(Fact, frozen=True, gc=False):
    state: NodeStateName
    reasons: tuple[str, ...]


Observer = Callable[[Fact], None]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the node does its job, and if not, why: for /readyz and the node's state."""

    ready: bool
    reasons: tuple[str, ...] = ()
    halted: tuple[str, ...] = ()
    #: What is well and still worth knowing: that a baseline is served, and for which symbol.
    remarks: tuple[str, ...] = ()
    serving_baseline: tuple[str, ...] = ()


@dataclass(slots=True)
class Latest:
    """The newest published messages of a symbol, as they went out, for the API."""

    forecast: bytes | None = None
    decision: bytes | None = None
    drift: bytes | None = None
    score: bytes | None = None


@dataclass(slots=True)
class FanOut:
    """One observer that is many."""

    observers: list[Observer] = field(default_factory=list)

    def __call__(self, fact: Fact) -> None:
        for observer in self.observers:
            observer(fact)
