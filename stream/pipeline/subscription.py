"""A subscription: what the intake's tasks share about one symbol. Data only: the sequencer decides what it means."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stream.core.market.sequencer import Sequencer


@dataclass(slots=True)
class Subscription:
    """One symbol of the intake."""

    sequencer: Sequencer
    backfill: asyncio.Task[None] | None = None
    #: Set once the symbol has its history, or has found that REST cannot provide it now.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    #: The newest candle at the last audit (0: due at once), when the next may begin (monotonic), and its pause so far.
    audited_open_time: int = 0
    audit_again_at_s: float = 0.0
    audit_pause_s: float = 0.0
    auditing: bool = False
    #: What was last reported to observers: missing hours, and whether it is halted.
    reported: tuple[int, bool] | None = None

    @property
    def symbol(self) -> str:
        return self.sequencer.symbol
