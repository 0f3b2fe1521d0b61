"""What the pipeline is plugged into: protocols, and the facts that it tells its observer.

Facts are past tense and frozen; what becomes of them (a metric, a log line, nothing) is the observer's affair.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import Model
from stream.core.market.binance import ExchangeInfo, KlineUpdate
from stream.core.market.candle import Candle, Provenance
from stream.core.messages.schemas import Decay, Decision, Drift, Forecast, NodeStateName, Score
from stream.core.messages.scoring import Outcome

# --- time ------------------------------------------------------------------------------------------------------


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """The machine's two clocks, passed in so that a test can hold them still."""

    #: Stamps `issued_at`, nothing else.
    wall_ms: Callable[[], int] = _wall_ms
    monotonic_s: Callable[[], float] = time.monotonic


# --- outside ---------------------------------------------------------------------------------------------------


class UnreachableError(ConnectionError):
    """Exchange or broker cannot be reached or will not answer now. Wait and try again."""


class MessageRefusedError(UnreachableError):
    """The broker will not take this one message, in its own words. It may take others."""


class HungUpError(UnreachableError):
    """The broker ended the connection in place of an acknowledgement, in its own words where it said any."""


class JournalError(RuntimeError):
    """The journal cannot be opened or written: its message names the file, the cause and the cure."""


class RefusedError(RuntimeError):
    """The daemon must not run so. One clear line for the person who started it."""


class MisuseError(RefusedError):
    """What was asked for makes no sense, whatever the world is like: the caller's exit code is 2, not 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Candles in order that were over when they were asked for, by the server's time and their own.

    `newest_open_time` is that of the newest candle in the answer, be it forming: what precedes it is final, and what is
    not among `candles` may still come. `absent` are hours that the answer lacks between two of its candles.
    """

    candles: list[Candle]
    asked_at_ms: int
    newest_open_time: int | None = None
    absent: tuple[int, ...] = ()


class History(Protocol):
    """REST. Every method raises `UnreachableError` where asking again later may help."""

    async def server_time_ms(self) -> int: ...

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        """`UnknownSymbolError` where the exchange does not list the symbol."""
        ...

    async def first_open_time(self, symbol: str, from_open_time: int) -> int | None:
        """When the first candle at or after that time opens, be it closed or not; None where there is none."""
        ...

    async def candles(self, symbol: str, from_open_time: int, to_open_time: int | None = None) -> Answer:
        """Closed candles that open in [from, to], as far as the exchange shows them. `UnknownSymbolError` where there
        is no such symbol."""
        ...


class Predictor(Protocol):
    @property
    def model(self) -> Model: ...

    #: As `stream.core.deciding.replay.Predict`; called from one thread at a time.
    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32], /) -> NDArray[np.float32]: ...


class FeedListener(Protocol):
    """Where the feed delivers; awaiting `closed` is its back-pressure."""

    def connected(self) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    def forming(self, update: KlineUpdate, received_at_s: float) -> None: ...

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None: ...


class Feed(Protocol):
    async def run(self, listener: FeedListener) -> None:
        """Delivers until cancelled; reconnects by itself."""
        ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way to the broker: durable in the journal until it is acknowledged."""

    seq: int
    topic: str
    payload: bytes
    expiry_s: int
    #: Arrival of the closing frame (monotonic); None where nobody waits for it.
    arrived_at_s: float | None = None
    #: Whether this is the message that `forecast_delay_seconds` measures.
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Retained:
    """The newest payload of a retained topic. Past `valid_until` (exchange time) it is not published any more."""

    topic: str
    payload: bytes
    expiry_s: int | None = None
    valid_until: int | None = None


class Record(msgspec.Struct, frozen=True):
    """Everything that one closed candle leaves in the journal, in one transaction."""

    candle: Candle
    provenance: Provenance
    forecast: Forecast | None = None
    decision: Decision | None = None
    #: What became of earlier forecasts, known with this candle.
    outcomes: tuple[Outcome, ...] = ()
    #: Alarms that those raised; they are among the events too.
    decays: tuple[Decay, ...] = ()
    #: (topic, payload, expiry in seconds), in the order in which they are to be published.
    events: tuple[tuple[str, bytes, int], ...] = ()
    retained: tuple[tuple[str, bytes, int | None, int | None], ...] = ()
    gap: tuple[int, int] | None = None
    anchor: int = 0
    exposure: float = 0.0
    model_version: str = ""
    policy_version: str = ""


class Revision(msgspec.Struct, frozen=True):
    """What a revised past leaves in the journal, in one transaction: candles that replace others or fill hours that
    were missing, and everything that they change."""

    symbol: str
    candles: tuple[Candle, ...]
    #: Open times among `candles` that were declared missing.
    filled: tuple[int, ...]
    forecasts: tuple[Forecast, ...]
    decisions: tuple[Decision, ...]
    outcomes: tuple[Outcome, ...]
    decays: tuple[Decay, ...]
    events: tuple[tuple[str, bytes, int], ...]
    retained: tuple[tuple[str, bytes, int | None, int | None], ...]
    #: The newest processed candle, and the policy's memory after it.
    open_time: int
    anchor: int
    exposure: float
    model_version: str
    policy_version: str


class Renumbering(msgspec.Struct, frozen=True):
    """Words that wait to be published under a revision that another node has used for another value."""

    #: As they were and as they become; the same with the decisions.
    forecasts: tuple[tuple[Forecast, Forecast], ...]
    decisions: tuple[tuple[Decision, Decision], ...]
    #: With the number that their scores become.
    outcomes: tuple[Outcome, ...]
    #: By the outbox's number: what is published in its place.
    payloads: dict[int, bytes]
    retained: tuple[Retained, ...]


@dataclass(frozen=True, slots=True)
class Voice:
    """A model and a policy, whole: what was said by them is corrected by them, also when others speak now."""

    model_version: str
    bundle: bytes
    policy_version: str
    policy: bytes


@dataclass(frozen=True, slots=True)
class Processed:
    """How far a symbol came: the newest candle whose record is in the journal, and the policy's memory then."""

    open_time: int
    anchor: int
    exposure: float
    model_version: str
    policy_version: str


class Journal(Protocol):
    """Synchronous and slow: called from its own thread. `JournalError` where it cannot be read or written."""

    def processed(self, symbol: str) -> Processed | None: ...

    def candles(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Candle]: ...

    def store_history(self, candles: Sequence[Candle]) -> None: ...

    def commit(self, records: Sequence[Record]) -> list[int]:
        """Stores the records at once and returns the numbers of their events, in order."""
        ...

    def revise(self, revision: Revision) -> list[int]:
        """Stores a revision at once and returns the numbers of its events, in order."""
        ...

    def messages(
        self, table: str, symbol: str, from_ms: int | None, to_ms: int | None, limit: int, newest: bool = False
    ) -> list[bytes]:
        """Payloads of `forecasts` or `decisions` that open in [from, to], oldest first, of each the newest revision."""
        ...

    def outcomes(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Outcome]: ...

    def daily_outcomes(self, symbol: str, model_version: str) -> list[Outcome]:
        """Of one model, of the forecasts that close a UTC day, all of them, oldest first."""
        ...

    def told_alarms(self, symbol: str, model_version: str) -> list[int]:
        """Open times of the alarms about one model that were told, oldest first."""
        ...

    def post(self, events: Sequence[tuple[str, bytes, int]], retained: Sequence[Retained]) -> list[int]:
        """Messages that belong to no candle; the numbers of the events, in order."""
        ...

    def outbox(self) -> list[Outgoing]: ...

    def symbols(self) -> list[str]:
        """Every symbol that was ever configured or processed here."""
        ...

    def configure(self, symbols: Sequence[str]) -> None:
        """Remembers that something may be said of these from now on."""
        ...

    def highest_revision(self, symbol: str) -> int: ...

    def first_forecast(self, symbol: str) -> int | None:
        """Open time of the oldest forecast."""
        ...

    def renumber(self, change: Renumbering) -> None: ...

    def spoke_by(self, table: Literal["bundles", "policies"], version: str) -> bytes | None:
        """A bundle or a policy that has spoken here lately."""
        ...

    def check_place(self) -> None:
        """`JournalError` where what is in here is no longer where the next start will look for it."""
        ...

    def acknowledge(self, seqs: Sequence[int]) -> None: ...

    def unscored(self, symbol: str, from_open_time: int) -> list[Forecast]:
        """Forecasts of candles from then on that have no outcome yet; of revised ones the newest revision."""
        ...

    def newest(self, symbol: str) -> tuple[Forecast | None, Decision | None]:
        """The newest forecast of a symbol, and the decision that rests on it."""
        ...

    def retained(self, topic: str | None = None) -> list[Retained]:
        """Of one topic, or all."""
        ...

    def forget_retained(self, topics: Sequence[str]) -> None: ...

    def size_bytes(self) -> int: ...


class Publisher(Protocol):
    """The broker, seen from the pipeline. Publishing returns once the broker has acknowledged."""

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> None: ...


class Broker(Protocol):
    async def run(self, session: Callable[[Publisher], Awaitable[None]]) -> None:
        """Connects, runs `session` on each connection, and connects again until cancelled."""
        ...


# --- facts -----------------------------------------------------------------------------------------------------


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


# --- status ----------------------------------------------------------------------------------------------------


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


class Status(Protocol):
    """What the HTTP room may ask the pipeline."""

    @property
    def symbols(self) -> Sequence[str]: ...

    @property
    def heartbeat_age_s(self) -> float: ...

    def readiness(self) -> Readiness: ...

    def latest(self, symbol: str) -> Latest: ...

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]: ...


@dataclass(slots=True)
class FanOut:
    """One observer that is many."""

    observers: list[Observer] = field(default_factory=list)

    def __call__(self, fact: Fact) -> None:
        for observer in self.observers:
            observer(fact)
