"""What a challenger has shown in the champion's shadow: whether it may be promoted now. Pure.

The gate has tested whether it is better; a few live days cannot. They show what the gate cannot see: that it runs, on
the candles as they come, and is not clearly worse there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream.core.messages import shadows
from stream.core.messages.scoring import Outcome
from stream.core.messages.shadows import ShadowForecast
from training.retraining.gate import WORSE_SHARE

#: Share of the hours of the days asked for that both must have forecast and whose outcome is known.
LEAST_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Shown:
    """One symbol: a sentence, and whether it speaks for promotion; None while too few days are over."""

    ready: bool | None
    text: str


def judge(symbol: str, days: int, forecasts: Sequence[ShadowForecast], outcomes: Sequence[Outcome]) -> Shown:
    """Judges the newest `days` of a symbol: the shadow's forecasts, and the outcomes of those that were published."""
    needed = LEAST_SHARE * days * 24
    window = shadows.window(days, forecasts, outcomes)
    if window is None or window.matured < needed:
        hours = 0 if window is None else window.matured
        return Shown(
            None, f"{symbol}: {hours} of {needed:.0f} hours have been forecast beside the champion and are over"
        )
    text = (
        f"{symbol}: QLIKE {window.qlike:.4f} in the shadow, the champion's {window.model_qlike:.4f}, over "
        f"{window.matured} hours; its interval holds {window.coverage:.1%}"
    )
    return Shown(window.qlike <= (1 + WORSE_SHARE) * window.model_qlike, text)
