"""What the journal stores: each record is one transaction.

A message is encoded once: the bytes that the journal stores are the bytes that are published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import msgspec

from stream.core.market.candle import Candle, Provenance
from stream.core.messages.schemas import Decay, Decision, Forecast
from stream.core.messages.scoring import Outcome

M = TypeVar("M", Forecast, Decision, Decay)


@dataclass(frozen=True, slots=True)
class Encoded(Generic[M]):
    """A message, and the bytes in which it is stored and published."""

    message: M
    payload: bytes


class EventMessage(NamedTuple):
    """An event to be published, before the outbox has given it a number."""

    topic: str
    payload: bytes
    expiry_s: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way to the broker: durable in the journal until it is acknowledged."""

    seq: int
    topic: str
    payload: bytes
    expiry_s: int
    #: Arrival of the closing frame (monotonic seconds); None if the event does not come from one.
    arrived_at_s: float | None = None
    #: Whether this is the message that `forecast_delay_seconds` measures.
    timed: bool = False


#: Stands for a retained payload that the journal has. No message has an empty one: that would clear its topic.
IN_JOURNAL = b""


class Retained(NamedTuple):
    """The newest payload of a retained topic, or `IN_JOURNAL`. Past `valid_until` (exchange time, ms) it is not
    published any more."""

    topic: str
    payload: bytes
    expiry_s: int | None = None
    valid_until: int | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one step of a symbol leaves in the journal, in one transaction: a closed candle, or a revised
    past, whose candles replace others or fill hours that were declared missing."""

    symbol: str
    candles: tuple[Candle, ...]
    provenance: Provenance
    forecasts: tuple[Encoded[Forecast], ...] = ()
    decisions: tuple[Encoded[Decision], ...] = ()
    #: Outcomes of earlier forecasts.
    outcomes: tuple[Outcome, ...] = ()
    #: Alarms that the outcomes raised; they are among the events too.
    decays: tuple[Encoded[Decay], ...] = ()
    #: In the order in which they are to be published.
    events: tuple[EventMessage, ...] = ()
    retained: tuple[Retained, ...] = ()
    #: The first and last of the hours before the candle that the exchange never published.
    gap: tuple[int, int] | None = None
    #: Open times among `candles` that were declared missing.
    filled: tuple[int, ...] = ()
    #: The newest processed candle, and the policy's memory after it.
    open_time: int
    anchor: int = 0
    exposure: float = 0.0
    model_version: str = ""
    policy_version: str = ""


class Renumbering(msgspec.Struct, frozen=True):
    """The change to unpublished messages that would use a revision that another node has used for another value."""

    #: Each as it was and as it becomes.
    forecasts: tuple[tuple[Encoded[Forecast], Encoded[Forecast]], ...]
    decisions: tuple[tuple[Encoded[Decision], Encoded[Decision]], ...]
    #: With the new `score_revision`.
    outcomes: tuple[Outcome, ...]
    #: By number in the outbox: the payload that is published instead.
    payloads: dict[int, bytes]
    retained: tuple[Retained, ...]


@dataclass(frozen=True, slots=True)
class Issuer:
    """A bundle and a policy, as bytes: what they issued is corrected by them, even if others are in use now."""

    model_version: str
    bundle: bytes
    policy_version: str
    policy: bytes


@dataclass(frozen=True, slots=True)
class Processed:
    """How far a symbol was processed: the newest candle with a record in the journal, and the policy's memory then."""

    open_time: int
    anchor: int
    exposure: float
    model_version: str
    policy_version: str
