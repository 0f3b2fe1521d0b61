"""A lane: what the intake knows of one symbol on its way in. Data only; the intake moves it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stream.core.market.binance import KlineUpdate
from stream.core.market.candle import Candle
from stream.core.market.due_candles import Absences
from stream.core.messages.schemas import FeedStateName

#: After so many hours without a trade the exchange is asked whether the symbol is still traded.
FLAT_HOURS = 24


@dataclass(slots=True)
class Lane:
    """One symbol's way through the intake."""

    symbol: str
    absences: Absences
    last_open_time: int | None = None
    #: The hour whose candle is due: every one before it has passed or is proven not to exist.
    next_open_time: int = 0
    #: The newest candle that the stream spoke of, closed or forming.
    seen_open_time: int = 0
    warmed: bool = False
    repairing: asyncio.Task[None] | None = None
    held: dict[int, tuple[KlineUpdate, float]] = field(default_factory=dict)
    #: Candles that REST showed as its newest, with nothing after them to prove that they are final: since when, in
    #: monotonic seconds, each had this value.
    looked_at: dict[int, tuple[Candle, float]] = field(default_factory=dict)
    feed: tuple[FeedStateName, int | None, int | None] | None = None
    halted: bool = False
    #: The exchange says that there is no such symbol.
    unlisted: bool = False
    #: The socket came back while REST was being asked: what closed in between is in neither.
    ask_once_more: bool = False
    ask_again_at_s: float = 0.0
    #: Hours without a trade up to now.
    flat_hours: int = 0
    #: The newest candle that passed.
    newest: Candle | None = None
    #: Up to which candle the past was last held against REST, and what is due of that.
    audited_open_time: int = 0
    audit_again_at_s: float = 0.0
    audit_pause_s: float = 0.0
    auditing: bool = False
    #: It has its past, or has found that it cannot have it now.
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> FeedStateName | None:
        return self.feed[0] if self.feed else None
