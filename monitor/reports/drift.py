"""Drift of a period as the daemon would have judged it: 30 days, and the newest 10 of them, a week further each time.

Rules of this module:
- A week is judged by the 30 days that end with it, however long the period is: thresholds are calibrated for 30 days.
- Weeks are counted back from the period's end and lie within it; a period shorter than a week has one, its end.
- Scores by week are the core's arithmetic (stream/core/forecasting/drift.py), which gives Evidently's numbers without
  its seconds. The page shows the period's whole distribution, scored by Evidently itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.drift.detection import LEAST_HOURS, MOST_HOURS, evidently_scores
from stream.core.forecasting import drift, features
from stream.core.forecasting.contract import Contract
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

WEEK_HOURS = 7 * 24
#: Hours of candles before a period that its verdicts can need.
HISTORY_HOURS = MOST_HOURS
#: Hours of candles without which there is no 10-day signal.
_LEAST_FAST_HOURS = drift.FAST_HOURS + drift.FAST_REFERENCE_HOURS + drift.LOOKBACK_HOURS - 1
#: Whose past is compared with: as in `stream.core.messages.schemas.Drift`.
Whose = Literal["bundle", "own", "uncalibrated"]


@dataclass(frozen=True, slots=True)
class Period:
    """The hours of [from_ms, to_ms). `asked_to_ms` lies later where its candles end before it does."""

    name: str
    from_ms: int
    to_ms: int
    asked_to_ms: int

    @property
    def hours(self) -> int:
        return (self.to_ms - self.from_ms) // HOUR_MS


@dataclass(frozen=True, slots=True)
class Measured:
    """A symbol's candles as drift sees them, by hour: open_time [T] ms, existing candles [T], measures [T, k]."""

    symbol: str
    open_time: NDArray[np.int64]
    exists: NDArray[np.bool_]
    values: Array

    @classmethod
    def of(cls, symbol: str, open_time: NDArray[np.int64], ohlcv: Array) -> Measured:
        """Of an hourly grid ([T] ms, [T, 5], NaN where no candle exists)."""
        values = drift.measures(features.compute(open_time, ohlcv), ohlcv)
        return cls(symbol, open_time, np.isfinite(ohlcv[:, 3]), values)

    def row(self, ms: int) -> int:
        """Of the hour that opens at `ms`; it may lie outside the grid."""
        return (ms - int(self.open_time[0])) // HOUR_MS

    def rows(self, period: Period) -> slice:
        return slice(max(self.row(period.from_ms), 0), max(self.row(period.to_ms), 0))

    def missing(self, period: Period) -> int:
        """Hours of the period without a candle."""
        return period.hours - int(np.count_nonzero(self.exists[self.rows(period)]))


class Week(msgspec.Struct, frozen=True):
    """The verdicts on the 30 days whose last hour is `last` (ms, open time)."""

    last: int
    reference: Whose
    #: Normed Wasserstein distance by measure.
    scores: dict[str, float]
    detected: bool
    default_detected: bool
    #: Of the newest 10 days against the 90 before them; null where they are not there.
    fast_detected: bool | None


class DriftOfPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """A period's drift. Times are ms, open times of hours."""

    first: int
    last: int
    hours: int
    missing_hours: int
    #: Hours that could be measured.
    rows: int
    reference: Whose
    thresholds: dict[str, float]
    #: What the HTML shows: Evidently's scores of all the period's hours at once.
    evidently_scores: dict[str, float]
    weeks: tuple[Week, ...]
    weeks_not_judged: int
    weeks_detected: int
    weeks_default_detected: int
    weeks_fast_detected: int
    weeks_fast_judged: int


def week_ends(period: Period) -> Iterator[int]:
    """Where the period's weeks end (ms, exclusive), the oldest first."""
    for k in range(max(1, period.hours // WEEK_HOURS) - 1, -1, -1):
        yield period.to_ms - k * WEEK_HOURS * HOUR_MS


def judged(measured: Measured, contract: Contract, period: Period, html: Path | None) -> DriftOfPeriod | None:
    """The period's drift, Evidently's page in `html` where given; None where no week of it can be judged."""
    asked = list(week_ends(period))
    weeks = [week for end in asked if (week := _week(measured, contract, end)) is not None]
    rows = drift.measured(measured.values[measured.rows(period)])
    if not weeks or not len(rows):
        return None
    # What a run at the end of the period's first 30 days would compare with: what lies before the period.
    reference, source = _reference(measured, contract, measured.row(period.from_ms) + drift.WINDOW_HOURS)
    fast = [week.fast_detected for week in weeks if week.fast_detected is not None]
    thresholds = {name: contract.reference[name].threshold for name in drift.MEASURES}
    return DriftOfPeriod(
        first=period.from_ms,
        last=period.to_ms - HOUR_MS,
        hours=period.hours,
        missing_hours=measured.missing(period),
        rows=len(rows),
        reference=source,
        thresholds=thresholds,
        evidently_scores=evidently_scores(_columns(rows), _columns(reference), html, thresholds=thresholds),
        weeks=tuple(weeks),
        weeks_not_judged=len(asked) - len(weeks),
        weeks_detected=sum(week.detected for week in weeks),
        weeks_default_detected=sum(week.default_detected for week in weeks),
        weeks_fast_detected=sum(fast),
        weeks_fast_judged=len(fast),
    )


def _reference(measured: Measured, contract: Contract, end: int) -> tuple[Array, Whose]:
    """What 30 days that end before row `end` are held against, [n, k], and whose past it is."""
    bundle = np.array([contract.reference[name].quantiles for name in drift.MEASURES]).T
    if contract.describes(measured.symbol):
        return bundle, "bundle"
    own = drift.own_reference(measured.values, end)
    return (bundle, "uncalibrated") if own is None else (own, "own")


def _week(measured: Measured, contract: Contract, end_ms: int) -> Week | None:
    end = measured.row(end_ms)
    if end < LEAST_HOURS:
        return None
    reference, source = _reference(measured, contract, end)
    scores = drift.slow_distances(measured.values, end, reference)
    if scores is None:
        return None
    fast = drift.fast_distances(measured.values, end) if end >= _LEAST_FAST_HOURS else None
    limits, fast_limits = (
        np.array([getattr(contract.reference[name], kind) for name in drift.MEASURES])
        for kind in ("threshold", "fast_threshold")
    )
    return Week(
        last=end_ms - HOUR_MS,
        reference=source,
        scores=dict(zip(drift.MEASURES, scores.tolist(), strict=True)),
        detected=drift.detected(scores, limits),
        default_detected=drift.default_detected(scores),
        fast_detected=None if fast is None else drift.detected(fast, fast_limits),
    )


def _columns(rows: Array) -> dict[str, Array]:
    return dict(zip(drift.MEASURES, rows.T, strict=True))
