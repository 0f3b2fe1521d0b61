"""What the pipeline is plugged into: protocols, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.contract import Model
from stream.core.market.binance import ExchangeInfo, KlineUpdate
from stream.core.market.candle import Candle
from stream.core.market.rest_answer import Answer
from stream.core.messages.records import EventMessage, Issuer, Outgoing, Processed, Record, Renumbering, Retained
from stream.core.messages.schemas import Decision, Forecast
from stream.core.messages.scoring import Outcome
from stream.telemetry import Latest, Readiness


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


class Journal(Protocol):
    """Synchronous and slow: called from its own thread. `JournalError` where it cannot be read or written."""

    @property
    def stuck(self) -> str | None:
        """Why nothing can be written at present; None while it can. May be read on any thread."""
        ...

    def try_again(self) -> None:
        """Looks whether a journal that is stuck can be written by now."""
        ...

    def processed(self, symbol: str) -> Processed | None: ...

    def candles(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Candle]: ...

    def store_history(self, candles: Sequence[Candle]) -> None: ...

    def commit(self, records: Sequence[Record]) -> list[int]:
        """Stores the records at once and returns the numbers of their events, in order."""
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

    def reported_alarms(self, symbol: str, model_version: str) -> list[int]:
        """Open times of the alarms about one model that were told, oldest first."""
        ...

    def post(self, events: Sequence[EventMessage], retained: Sequence[Retained]) -> list[int]:
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

    def keep_issuer(self, issuer: Issuer) -> None:
        """Remembers the bundle and the policy that issue from now on."""
        ...

    def issued_by(self, table: Literal["bundles", "policies"], version: str) -> bytes | None:
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


class Status(Protocol):
    """What the HTTP room may ask the pipeline."""

    @property
    def symbols(self) -> Sequence[str]: ...

    @property
    def heartbeat_age_s(self) -> float: ...

    def readiness(self) -> Readiness: ...

    def latest(self, symbol: str) -> Latest: ...

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]: ...
