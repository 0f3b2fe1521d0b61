"""The protocols that the pipeline depends on; adapters implement them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
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
from stream.core.messages.shadows import ShadowForecast
from stream.telemetry import Latest, Readiness


class Urgency(IntEnum):
    """What a question to REST is for. Of the questions that wait, those with the smallest number go first."""

    #: A close that is due, the newest hour of a symbol, the exchange's time.
    NOW = 0
    #: Hours that the stream lost.
    REPAIR = 1
    #: The past that a symbol needs before its first forecast.
    HISTORY = 2
    #: Whether the exchange has changed what passed.
    AUDIT = 3


class History(Protocol):
    """The exchange's REST API. Every method raises `UnreachableError` if asking again later may help."""

    async def server_time_ms(self) -> int: ...

    async def exchange_info(self, symbol: str) -> ExchangeInfo:
        """Returns what the exchange says about the symbol. Raises `UnknownSymbolError` if it does not list it."""
        ...

    async def first_open_time(self, symbol: str, from_open_time: int) -> int | None:
        """Returns the open time of the first candle, closed or not, that opens at `from_open_time` or later; None if
        there is none."""
        ...

    async def candles(
        self, symbol: str, from_open_time: int, to_open_time: int | None = None, *, urgency: Urgency = Urgency.NOW
    ) -> Answer:
        """Returns the closed candles that open in [from, to], as far as the exchange shows them. Raises
        `UnknownSymbolError` if it does not list the symbol."""
        ...


class Predictor(Protocol):
    @property
    def model(self) -> Model: ...

    #: The signature of `stream.core.deciding.replay.Predict`. Called from one thread at a time.
    def __call__(self, sequence: NDArray[np.float32], static: NDArray[np.float32], /) -> NDArray[np.float32]: ...


class FeedListener(Protocol):
    """What the feed delivers its frames to. The feed awaits `closed`, which is its back-pressure."""

    def connected(self) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    def forming(self, update: KlineUpdate, received_at_s: float) -> None: ...

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None: ...


class Feed(Protocol):
    async def run(self, listener: FeedListener) -> None:
        """Delivers frames to `listener` until cancelled; reconnects by itself."""
        ...


class Journal(Protocol):
    """Synchronous and slow, so it is called on the worker's thread. Raises `JournalError` if it cannot be read or
    written."""

    @property
    def stuck(self) -> str | None:
        """Why nothing can be written at present; None while writing is possible. May be read on any thread."""
        ...

    def try_again(self) -> None:
        """Checks whether a journal that is stuck can be written again."""
        ...

    def processed(self, symbol: str) -> Processed | None: ...

    def candles(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Candle]: ...

    def store_history(self, candles: Sequence[Candle]) -> None: ...

    def commit(self, records: Sequence[Record]) -> list[int]:
        """Stores all records in one transaction and returns the sequence numbers of their events, in order."""
        ...

    def messages(
        self, table: str, symbol: str, from_ms: int | None, to_ms: int | None, limit: int, newest: bool = False
    ) -> list[bytes]:
        """Returns payloads of the table `forecasts` or `decisions` whose candles open in [from, to], oldest first and
        each in its newest revision. With `newest`, the limit keeps the newest of them."""
        ...

    def outcomes(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Outcome]: ...

    def daily_outcomes(self, symbol: str, model_version: str) -> list[Outcome]:
        """Returns all outcomes of one model's forecasts that close a UTC day, oldest first."""
        ...

    def reported_alarms(self, symbol: str, model_version: str) -> list[int]:
        """Returns the open times of one model's decay alarms that have been issued, oldest first."""
        ...

    def shadows(self, symbol: str, model_version: str, from_open_time: int, to_open_time: int) -> list[ShadowForecast]:
        """Returns what a model that is not served forecast for candles that open in [from, to], oldest first."""
        ...

    def store_shadows(self, forecasts: Sequence[ShadowForecast]) -> None: ...

    def post(self, events: Sequence[EventMessage], retained: Sequence[Retained]) -> list[int]:
        """Stores messages that belong to no candle and returns the sequence numbers of the events, in order."""
        ...

    def verdicts(self) -> set[str]:
        """Returns the ids of the retraining's verdicts that have been published."""
        ...

    def post_verdict(self, verdict: str, events: Sequence[EventMessage]) -> list[int]:
        """Stores the events of a verdict, which counts as published with them. Returns the events' numbers."""
        ...

    def outbox(self) -> list[Outgoing]: ...

    def symbols(self) -> list[str]:
        """Returns every symbol that was ever configured or processed here."""
        ...

    def configure(self, symbols: Sequence[str]) -> None:
        """Remembers that messages may be published for these symbols from now on."""
        ...

    def highest_revision(self, symbol: str) -> int: ...

    def first_forecast(self, symbol: str) -> int | None:
        """Returns the open time of the symbol's oldest forecast; None if it has none."""
        ...

    def renumber(self, change: Renumbering) -> None: ...

    def keep_issuer(self, issuer: Issuer) -> None:
        """Stores the bundle and the policy that issue forecasts and decisions from now on."""
        ...

    def issued_by(self, table: Literal["bundles", "policies"], version: str) -> bytes | None:
        """Returns the bytes of a bundle or policy that was in use here lately; None if they are not kept."""
        ...

    def check_place(self) -> None:
        """Makes sure that the journal is where the next start will look for it. Raises `JournalError` if that fails."""
        ...

    def acknowledge(self, seqs: Sequence[int]) -> None: ...

    def prune(self) -> int:
        """Forgets what nothing looks back to any more, a part at a time; returns how many rows that were."""
        ...

    def unscored(self, symbol: str, from_open_time: int) -> list[Forecast]:
        """Returns the forecasts for candles from `from_open_time` on that have no outcome yet, each in its newest
        revision."""
        ...

    def newest(self, symbol: str) -> tuple[Forecast | None, Decision | None]:
        """Returns the newest forecast and the newest decision of a symbol; None for what there is not."""
        ...

    def retained(self, topics: Sequence[str] | None = None) -> list[Retained]:
        """Returns the retained messages of these topics, as far as there are any, or of all topics."""
        ...

    def forget_retained(self, topics: Sequence[str]) -> None: ...

    def size_bytes(self) -> int: ...


class Publisher(Protocol):
    """One connection to the broker."""

    @property
    def receive_maximum(self) -> int:
        """How many messages the broker takes before it has acknowledged the first of them."""

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> asyncio.Future[None]:
        """Sends a message and returns a future that is done once the broker has acknowledged it. The future fails with
        `MessageRefusedError` if the broker refuses this message, with `HungUpError` or `UnreachableError` if the
        connection is of no use any more."""


class Broker(Protocol):
    async def run(self, session: Callable[[Publisher], Awaitable[None]]) -> None:
        """Connects, runs `session` on each connection, and reconnects until cancelled."""
        ...


class Status(Protocol):
    """What the HTTP server may ask the pipeline."""

    @property
    def symbols(self) -> Sequence[str]: ...

    @property
    def heartbeat_age_s(self) -> float: ...

    def readiness(self) -> Readiness: ...

    async def latest(self, symbol: str) -> Latest: ...

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]: ...
