"""What the sequencer hands back: candles to emit, changes to notify, and what is to be asked of REST.

`stream.core.market.sequencer` makes these, its drivers act on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stream.core.market.candle import Candle, Provenance

FeedStateName = Literal["live", "backfilling", "stale", "gap", "halted"]


@dataclass(frozen=True, slots=True)
class Due:
    """Emit: a candle whose turn it is. `arrived_at_s` is monotonic; None where it did not come by the socket."""

    candle: Candle
    provenance: Provenance
    arrived_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class FeedState:
    """Notify: the state of the symbol's feed has changed. Open times of the hours concerned, where there are any."""

    state: FeedStateName
    from_open_time: int | None = None
    to_open_time: int | None = None


@dataclass(frozen=True, slots=True)
class Backfill:
    """Ask: REST must be asked for what is missing, until `Sequencer.next_step` says `Done`."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A closing frame came this long after its candle's end, by the exchange's clock."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Repeated:
    """A closing frame that came before. `contradicts`: it is the newest candle's, and says something else of it."""

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
    """Nothing is missing, or REST has nothing to say about it now."""


Step = Wait | AskStatus | Done


def emitted(outputs: Sequence[Output]) -> list[Due]:
    """The candles among what was given back, in order."""
    return [output for output in outputs if isinstance(output, Due)]
