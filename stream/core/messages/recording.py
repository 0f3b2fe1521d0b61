"""Recording: gathers what is stored and published of one step of a symbol in one `Record`.

Pure: the wall clock and the provenance are passed in, and nothing else differs between a live candle, a backfilled one
and one that is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stream.core.deciding.operator import Event, Gap, Issued, State
from stream.core.forecasting.contract import Model
from stream.core.market.candle import Candle, Provenance
from stream.core.messages import builders, schemas, scoring, topics
from stream.core.messages.builders import EVENT_EXPIRY_S, RETAINED_EXPIRY_S
from stream.core.messages.records import Encoded, EventMessage, M, Record, Retained
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.schemas import Decay, Decision, Forecast, Recent
from stream.core.messages.scoring import Outcome


def encoded(message: M) -> Encoded[M]:
    return Encoded(message, schemas.encode(message))


def closed_candle(
    candle: Candle,
    state: State,
    step_events: Sequence[Event],
    outcomes: tuple[Outcome, ...],
    decays: Sequence[Decay],
    *,
    history: IssuedHistory,
    model: Model,
    policy_version: str,
    provenance: Provenance,
    now_ms: int,
) -> tuple[Record, IssuedHistory]:
    """Returns the record of a closed candle, and what has been issued for the symbol once it is committed.

    `state` is that after the candle, `step_events` are the events that led there; `history` is what was issued before,
    `now_ms` the wall clock's stamp.
    """
    symbol = candle.symbol
    gap = next((e for e in step_events if isinstance(e, Gap)), None)
    issued = next((e for e in step_events if isinstance(e, Issued)), None)
    alarms = tuple(encoded(found) for found in decays)
    events: list[EventMessage] = []
    if gap is not None:
        opened, closed = builders.gap(gap, "opened", now_ms), builders.gap(gap, "closed", now_ms)
        events = [
            EventMessage(topics.event_topic(symbol, "gap.opened"), schemas.encode(opened), EVENT_EXPIRY_S),
            EventMessage(topics.event_topic(symbol, "gap.closed"), schemas.encode(closed), EVENT_EXPIRY_S),
        ]
    pairs: list[tuple[Encoded[Forecast], Encoded[Decision]]] = []
    retained: tuple[Retained, ...] = ()
    if issued is None:
        history = history.after((), outcomes)
    else:
        forecast = builders.forecast(issued, model, provenance, now_ms)
        decision = builders.decision(issued, provenance, now_ms)
        if number := history.number(forecast, decision):
            forecast = msgspec.structs.replace(forecast, revision=number)
            decision = msgspec.structs.replace(decision, revision=number)
        history = history.after([(forecast, decision)], outcomes)
        history = msgspec.structs.replace(history, lines=builders.lines_of(state.recent, history.lines))
        pairs = [(encoded(forecast), encoded(decision))]
        retained = retained_messages(symbol, *pairs[0], builders.recent(symbol, (), model, now_ms, history))
    record = Record(
        symbol=symbol,
        candles=(candle,),
        provenance=provenance,
        forecasts=tuple(forecast for forecast, _ in pairs),
        decisions=tuple(decision for _, decision in pairs),
        outcomes=outcomes,
        decays=alarms,
        events=(*events, *event_messages(symbol, pairs, outcomes, alarms, now_ms)),
        retained=retained,
        gap=(gap.from_open_time, gap.to_open_time) if gap else None,
        open_time=candle.open_time,
        anchor=state.anchor,
        exposure=state.memory.exposure,
        model_version=model.version,
        policy_version=policy_version,
    )
    return record, history


def event_messages(
    symbol: str,
    pairs: Sequence[tuple[Encoded[Forecast], Encoded[Decision]]],
    outcomes: Sequence[Outcome],
    decays: Sequence[Encoded[Decay]],
    now_ms: int,
) -> tuple[EventMessage, ...]:
    """Returns the events of a step in the order in which they are published: forecasts first, for subscribers wait for
    them."""
    events: list[EventMessage] = []
    for forecast, decision in pairs:
        events += [
            EventMessage(topics.event_topic(symbol, "forecast.issued"), forecast.payload, EVENT_EXPIRY_S),
            EventMessage(topics.event_topic(symbol, "decision.issued"), decision.payload, EVENT_EXPIRY_S),
        ]
    scored = topics.event_topic(symbol, "forecast.scored")
    events += [
        EventMessage(scored, schemas.encode(scoring.scored(outcome, now_ms)), EVENT_EXPIRY_S) for outcome in outcomes
    ]
    detected = topics.event_topic(symbol, "decay.detected")
    events += [EventMessage(detected, found.payload, EVENT_EXPIRY_S) for found in decays]
    return tuple(events)


def model_changed(symbol: str, previous: str, model: Model, reason: str, now_ms: int) -> EventMessage:
    """Returns the event that another model forecasts from now on."""
    message = schemas.ModelChanged(
        id=f"binance:spot:{symbol}:1h:model:{model.version}:{now_ms}",
        symbol=symbol,
        issued_at=now_ms,
        previous=previous,
        model=builders.model_ref(model),
        reason=reason,
    )
    return event("model.changed", message)


def event(kind: topics.EventType, message: schemas.ModelChanged | schemas.ModelJudged) -> EventMessage:
    return EventMessage(topics.event_topic(message.symbol, kind), schemas.encode(message), EVENT_EXPIRY_S)


def retained_messages(
    symbol: str, forecast: Encoded[Forecast] | None, decision: Encoded[Decision] | None, recent: Recent
) -> tuple[Retained, ...]:
    """Returns what the retained topics of a symbol carry from now on; the caller passes a forecast and a decision only
    if they are the newest."""
    retained: list[Retained] = []
    if forecast is not None and decision is not None:
        until = forecast.message.valid_until
        retained = [
            Retained(topics.symbol_topic(symbol, "forecast"), forecast.payload, RETAINED_EXPIRY_S, until),
            Retained(topics.symbol_topic(symbol, "decision"), decision.payload, RETAINED_EXPIRY_S, until),
        ]
    return (*retained, retained_recent(recent))


def retained_recent(recent: Recent) -> Retained:
    """Returns `recent` for its topic, without `valid_until`: a history is never out of date, and the next node to start
    learns from it what was issued."""
    return Retained(topics.symbol_topic(recent.symbol, "recent"), schemas.encode(recent), RETAINED_EXPIRY_S)
