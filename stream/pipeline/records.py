"""Records: everything that one closed candle leaves in the journal, and what it says to the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from stream.core.deciding.operator import Event, Gap, Issued, State
from stream.core.forecasting.contract import Model
from stream.core.market.candle import Candle, Provenance
from stream.core.messages import builders, schemas, scoring
from stream.core.messages.builders import RETAINED_EXPIRY_S
from stream.core.messages.records import Record
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.schemas import Decay, Decision, Forecast
from stream.core.messages.scoring import Outcome
from stream.pipeline.revision import EVENT_EXPIRY_S


@dataclass(frozen=True, slots=True)
class Telling:
    """Who tells it, by which channel the candle came, and when (wall clock)."""

    model: Model
    policy_version: str
    provenance: Provenance
    now_ms: int

    def record(
        self,
        candle: Candle,
        state: State,
        step_events: Sequence[Event],
        issued: Issued | None,
        outcomes: tuple[Outcome, ...],
        decays: Sequence[Decay],
        history: IssuedHistory,
    ) -> tuple[Record, IssuedHistory]:
        """The record, and what has been said of the symbol once it is committed. `state` is that after the candle."""
        symbol = candle.symbol
        gap = next((e for e in step_events if isinstance(e, Gap)), None)
        events: list[tuple[str, bytes, int]] = []
        retained: list[tuple[str, bytes, int | None, int | None]] = []
        if gap is not None:
            opened, closed = builders.gap(gap, "opened", self.now_ms), builders.gap(gap, "closed", self.now_ms)
            events += [
                (schemas.event_topic(symbol, "gap.opened"), schemas.encode(opened), EVENT_EXPIRY_S),
                (schemas.event_topic(symbol, "gap.closed"), schemas.encode(closed), EVENT_EXPIRY_S),
            ]
        forecast: Forecast | None = None
        decision: Decision | None = None
        if issued is None:
            history = history.after((), outcomes)
        else:
            forecast, decision = self._words(issued, history)
            history = history.after([(forecast, decision)], outcomes)
            history = msgspec.structs.replace(history, lines=builders.lines_of(state.recent, history.lines))
            payloads = (schemas.encode(forecast), schemas.encode(decision))
            recent = schemas.encode(builders.recent(symbol, (), self.model, self.now_ms, history))
            events += [
                (schemas.event_topic(symbol, "forecast.issued"), payloads[0], EVENT_EXPIRY_S),
                (schemas.event_topic(symbol, "decision.issued"), payloads[1], EVENT_EXPIRY_S),
            ]
            until = forecast.valid_until
            retained += [
                (schemas.symbol_topic(symbol, "forecast"), payloads[0], RETAINED_EXPIRY_S, until),
                (schemas.symbol_topic(symbol, "decision"), payloads[1], RETAINED_EXPIRY_S, until),
                # A history is never out of date, and whoever starts next learns from it what was said.
                (schemas.symbol_topic(symbol, "recent"), recent, RETAINED_EXPIRY_S, None),
            ]
        # After the forecast: it is what subscribers wait for.
        events += [
            (
                schemas.event_topic(symbol, "forecast.scored"),
                schemas.encode(scoring.scored(outcome, self.now_ms)),
                EVENT_EXPIRY_S,
            )
            for outcome in outcomes
        ]
        events += [
            (schemas.event_topic(symbol, "decay.detected"), schemas.encode(found), EVENT_EXPIRY_S) for found in decays
        ]
        record = Record(
            candle=candle,
            provenance=self.provenance,
            forecast=forecast,
            decision=decision,
            outcomes=outcomes,
            decays=tuple(decays),
            events=tuple(events),
            retained=tuple(retained),
            gap=(gap.from_open_time, gap.to_open_time) if gap else None,
            anchor=state.anchor,
            exposure=state.memory.exposure,
            model_version=self.model.version,
            policy_version=self.policy_version,
        )
        return record, history

    def _words(self, issued: Issued, history: IssuedHistory) -> tuple[Forecast, Decision]:
        forecast = builders.forecast(issued, self.model, self.provenance, self.now_ms)
        decision = builders.decision(issued, self.provenance, self.now_ms)
        if number := history.number(forecast, decision):
            forecast = msgspec.structs.replace(forecast, revision=number)
            decision = msgspec.structs.replace(decision, revision=number)
        return forecast, decision
