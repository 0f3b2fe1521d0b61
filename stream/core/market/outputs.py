"""The sequencer's outputs: candles to emit, changes to notify, and what is to be asked of REST.

`stream.core.market.sequencer` returns these, and its drivers act on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stream.core.market.candle import Candle, Provenance

FeedStateName = Literal["live", "backfilling", "stale", "gap", "halted"]


@dataclass(frozen=True, slots=True)
class Due:
    """Emit a candle whose turn it is. `arrived_at_s` is monotonic; None if the candle did not come from the socket."""

    candle: Candle
    provenance: Provenance
    arrived_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class FeedState:
    """Notify that the state of the symbol's feed has changed. The open times are those of the first and last hour
    concerned, None if there are none."""

    state: FeedStateName
    from_open_time: int | None = None
    to_open_time: int | None = None


@dataclass(frozen=True, slots=True)
class Backfill:
    """Ask REST for what is missing, until `Sequencer.next_step` returns `Done`."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A closing frame came `delay_s` after its candle's end, by the exchange's clock."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Repeated:
    """A closing frame for a candle that is held, or for an hour that has passed. `contradicts`: it is the newest
    candle's, with other values."""

    open_time: int
    out_of_order: bool
    contradicts: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """A frame that cannot be right."""

    reason: str
    detail: str


Output = Due | FeedState | Backfill | Delivered | Repeated | Rejected


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask REST again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AskStatus:
    """REST has nothing newer either: ask whether the symbol is traded, then take another step."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is missing, or REST cannot fill it now: the backfill ends."""


Step = Wait | AskStatus | Done


def emitted(outputs: Sequence[Output]) -> list[Due]:
    """Returns the candles among the outputs, in order."""
    return [output for output in outputs if isinstance(output, Due)]
