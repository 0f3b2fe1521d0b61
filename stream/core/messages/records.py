"""What the journal keeps, whole: each record is one transaction."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from stream.core.market.candle import Candle, Provenance
from stream.core.messages.schemas import Decay, Decision, Forecast
from stream.core.messages.scoring import Outcome


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
class Issuer:
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
