"""Records: everything that one closed candle leaves in the journal, and what it says to the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from stream.core import messages, publication, scoring
from stream.core.candle import Candle, Provenance
from stream.core.contract import Model
from stream.core.keyed import Event, Gap, Issued, State
from stream.core.messages import Decay, Decision, Forecast
from stream.core.publication import RETAINED_EXPIRY_S
from stream.core.said import Said
from stream.core.scoring import Outcome
from stream.pipeline.revision import EVENT_EXPIRY_S
from stream.ports import Record


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
        told: Sequence[Event],
        issued: Issued | None,
        outcomes: tuple[Outcome, ...],
        decays: Sequence[Decay],
        said: Said,
    ) -> tuple[Record, Said]:
        """The record, and what has been said of the symbol once it is committed. `state` is that after the candle."""
        symbol = candle.symbol
        gap = next((e for e in told if isinstance(e, Gap)), None)
        events: list[tuple[str, bytes, int]] = []
        retained: list[tuple[str, bytes, int | None, int | None]] = []
        if gap is not None:
            opened, closed = publication.gap(gap, "opened", self.now_ms), publication.gap(gap, "closed", self.now_ms)
            events += [
                (messages.event_topic(symbol, "gap.opened"), messages.encode(opened), EVENT_EXPIRY_S),
                (messages.event_topic(symbol, "gap.closed"), messages.encode(closed), EVENT_EXPIRY_S),
            ]
        forecast: Forecast | None = None
        decision: Decision | None = None
        if issued is None:
            said = said.after((), outcomes)
        else:
            forecast, decision = self._words(issued, said)
            said = said.after([(forecast, decision)], outcomes)
            said = msgspec.structs.replace(said, lines=publication.lines_of(state.recent, said.lines))
            spoken = (messages.encode(forecast), messages.encode(decision))
            recent = messages.encode(publication.recent(symbol, (), self.model, self.now_ms, said))
            events += [
                (messages.event_topic(symbol, "forecast.issued"), spoken[0], EVENT_EXPIRY_S),
                (messages.event_topic(symbol, "decision.issued"), spoken[1], EVENT_EXPIRY_S),
            ]
            until = forecast.valid_until
            retained += [
                (messages.symbol_topic(symbol, "forecast"), spoken[0], RETAINED_EXPIRY_S, until),
                (messages.symbol_topic(symbol, "decision"), spoken[1], RETAINED_EXPIRY_S, until),
                # A history is never out of date, and whoever starts next learns from it what was said.
                (messages.symbol_topic(symbol, "recent"), recent, RETAINED_EXPIRY_S, None),
            ]
        # After the forecast: it is what subscribers wait for.
        events += [
            (
                messages.event_topic(symbol, "forecast.scored"),
                messages.encode(scoring.scored(outcome, self.now_ms)),
                EVENT_EXPIRY_S,
            )
            for outcome in outcomes
        ]
        events += [
            (messages.event_topic(symbol, "decay.detected"), messages.encode(found), EVENT_EXPIRY_S) for found in decays
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
        return record, said

    def _words(self, issued: Issued, said: Said) -> tuple[Forecast, Decision]:
        forecast = publication.forecast(issued, self.model, self.provenance, self.now_ms)
        decision = publication.decision(issued, self.provenance, self.now_ms)
        if number := said.number(forecast, decision):
            forecast = msgspec.structs.replace(forecast, revision=number)
            decision = msgspec.structs.replace(decision, revision=number)
        return forecast, decision
