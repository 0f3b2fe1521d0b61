"""Telemetry: the facts that the pipeline passes to its observers, and the part of its state that HTTP shows.

Facts are named in the past tense and are frozen. Each observer decides what becomes of a fact: a metric, a log line or
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from stream.core.forecasting.contract import Model
from stream.core.market.candle import Provenance
from stream.core.messages.schemas import Decay, Decision, Drift, Forecast, NodeStateName, Score
from stream.core.messages.scoring import Outcome
from stream.core.messages.shadows import ShadowScore

#: A pipeline whose heartbeat is older than this counts as dead (docs/contract.md §4): `/healthz` answers 503, and the
#: supervisor is no longer notified.
HEARTBEAT_LIMIT_S = 30.0


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Something that happened. Durations are in real seconds unless the fact says otherwise."""


class FeedConnected(Fact, frozen=True, gc=False):
    pass


class FeedDisconnected(Fact, frozen=True, gc=False):
    reason: str
    #: Whether another connection to the exchange is still open.
    still_open: bool = False


class FeedQuiet(Fact, frozen=True, gc=False):
    """The open stream is silent and REST has nothing newer either (`quiet`), or that has ended."""

    quiet: bool


class FrameReceived(Fact, frozen=True, gc=False):
    kind: str


class FrameRejected(Fact, frozen=True, gc=False):
    reason: str
    detail: str


class CandleDelivered(Fact, frozen=True, gc=False):
    """A closing frame arrived `delay_s` after its candle's end, by the exchange's clock."""

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
    """How many due candles of a symbol have not arrived yet."""

    symbol: str
    hours: int


class WarmupProgressed(Fact, frozen=True, gc=False):
    """So many symbols are ready: their history is complete, and their newest candle has been processed."""

    ready: int


class Inferred(Fact, frozen=True, gc=False):
    seconds: float
    rows: int


class ForecastCommitted(Fact, frozen=True, gc=False):
    forecast: Forecast
    decision: Decision


class ForecastScored(Fact, frozen=True, gc=False):
    """A forecast has matured: its 24 hours are over and complete."""

    outcome: Outcome


class ScoreChanged(Fact, frozen=True, gc=False):
    """The live score of a symbol was computed: after each forecast that matures, and after a start."""

    score: Score


class ShadowScored(Fact, frozen=True, gc=False):
    """A model that runs beside the one that is served has forecast a symbol's newest hour."""

    score: ShadowScore


class DecayFound(Fact, frozen=True, gc=False):
    """A detector raised an alarm: the model's errors are no longer what they were at training."""

    decay: Decay


class CandleRevised(Fact, frozen=True, gc=False):
    """The exchange changed a candle after it was processed, or has one that it lacked before."""

    symbol: str
    open_time: int


class ForecastRevised(Fact, frozen=True, gc=False):
    """A forecast was issued again because a past candle changed. `newest` is whether no later forecast exists."""

    forecast: Forecast
    decision: Decision
    newest: bool


class ForecastFailed(Fact, frozen=True, gc=False):
    """The model's output for a candle was not a volatility; the candle is stored without a forecast."""

    symbol: str
    open_time: int


class ModelReplaced(Fact, frozen=True, gc=False):
    """Another model forecasts from now on."""

    previous: str
    model: Model


class Resumed(Fact, frozen=True, gc=False):
    """A symbol continues where an earlier run left it. Its newest messages are None if there are none."""

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
    """The exchange's clock minus this machine's wall clock."""

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
    """Whether the node is ready and, if not, why: for /readyz and the node's state."""

    ready: bool
    reasons: tuple[str, ...] = ()
    halted: tuple[str, ...] = ()
    #: Worth knowing but no reason to be unready: which symbols a baseline is served for, and which topics the broker
    #: refuses.
    remarks: tuple[str, ...] = ()
    serving_baseline: tuple[str, ...] = ()


@dataclass(slots=True)
class Latest:
    """The payloads that a symbol's retained topics carry, for the API."""

    forecast: bytes | None = None
    decision: bytes | None = None
    drift: bytes | None = None
    score: bytes | None = None
    shadow: bytes | None = None


@dataclass(slots=True)
class FanOut:
    """An observer that passes each fact to several others."""

    observers: list[Observer] = field(default_factory=list)

    def __call__(self, fact: Fact) -> None:
        for observer in self.observers:
            observer(fact)
