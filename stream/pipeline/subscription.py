"""A subscription: what the intake's tasks share about one symbol. Data only; what it means is the sequencer's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stream.core.market.sequencer import Sequencer


@dataclass(slots=True)
class Subscription:
    """One symbol on its way through the intake."""

    sequencer: Sequencer
    backfill: asyncio.Task[None] | None = None
    #: It has its past, or has found that it cannot have it now.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    #: Up to which candle the past was last held against REST, and what is due of that.
    audited_open_time: int = 0
    audit_again_at_s: float = 0.0
    audit_pause_s: float = 0.0
    auditing: bool = False

    @property
    def symbol(self) -> str:
        return self.sequencer.symbol
