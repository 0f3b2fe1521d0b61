"""What a retraining decided about a challenger, as it is kept; `event/model.judged` has a symbol's part of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from stream.core.messages.schemas import ModelJudged

#: Why a retraining was begun.
Because = Literal["schedule", "decay", "drift", "hand"]
#: `shadow`: it passed, and runs alongside the champion before it may take its place.
Outcome = Literal["promoted", "shadow", "refused"]


class SymbolJudged(msgspec.Struct, frozen=True, kw_only=True):
    """Both models on one symbol over the gate's days; each forecast is of the next 24 h, QLIKE on variances."""

    symbol: str
    #: Matured forecasts that both made.
    forecasts: int
    qlike_champion: float
    qlike_challenger: float
    #: One-sided, of differences bounded by day: small where the challenger is better. Median, smallest and largest over
    #: the phases; null where there is a `reason`.
    p_better: float | None = None
    p_better_min: float | None = None
    p_better_max: float | None = None
    phases: int = 0
    #: Share of outcomes inside the interval.
    coverage_champion: float
    coverage_challenger: float
    level: float
    #: QLIKE of both on the days that the champion has not learnt from; null where it has seen all, or none.
    qlike_champion_unseen: float | None = None
    qlike_challenger_unseen: float | None = None
    reason: str | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Times are ms; σ are hourly."""

    schema: str = "volcast.verdict/1"
    #: The attempt's name, which is its folder's.
    id: str
    judged_at: int
    because: Because
    outcome: Outcome
    #: Every reason for which it was refused; empty where it was not.
    refusals: tuple[str, ...] = ()
    #: What the reader must know of the figures.
    notes: tuple[str, ...] = ()
    #: Versions. `challenger` is what the gate scored, `refit` the same recipe fitted up to `gate_to`.
    champion: str
    challenger: str
    refit: str | None = None
    #: First hour whose forecasts are scored, and the end of the last outcome.
    gate_from: int
    gate_to: int
    #: The symbol that the models are for, first; then the other followed ones.
    symbols: tuple[SymbolJudged, ...]


def events(verdict: Verdict, now_ms: int) -> list[ModelJudged]:
    """Returns the messages that tell of a verdict, one for each symbol."""
    return [
        ModelJudged(
            id=f"binance:spot:{of.symbol}:1h:judged:{verdict.id}",
            symbol=of.symbol,
            issued_at=now_ms,
            because=verdict.because,
            outcome=verdict.outcome,
            champion=verdict.champion,
            challenger=verdict.refit or verdict.challenger,
            qlike_champion=of.qlike_champion,
            qlike_challenger=of.qlike_challenger,
            p_better=of.p_better,
            refusals=verdict.refusals,
        )
        for of in verdict.symbols
    ]
