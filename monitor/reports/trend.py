"""The trend of a report's index: drift, the verdicts and the forecasts' quality, week by week."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from monitor.reports import regression
from monitor.reports.drift import DriftOfPeriod
from monitor.reports.regression import Matured
from stream.core.forecasting import qlike
from stream.core.market.candle import HOUR_MS

#: What QLIKE is averaged over for a week, and how many forecasts of it there must be.
TREND_HOURS = 30 * 24
_MIN_TREND_FORECASTS = 7 * 24


class TrendPoint(msgspec.Struct, frozen=True):
    """One week: the verdicts on the 30 days that end with it, and how good their forecasts were."""

    #: Open time of its last hour, ms.
    last: int
    #: Score over threshold of the measure where that is largest.
    score_of_threshold: float
    measure: str
    detected: bool
    #: Null where there were too few hours for the 10-day signal.
    fast_detected: bool | None
    default_detected: bool
    #: Mean QLIKE of the forecasts whose 24 hours ended in those 30 days; null where there are few.
    qlike_served: float | None
    qlike_har: float | None


def trend(drifts: Mapping[str, DriftOfPeriod], matured: Matured) -> list[TrendPoint]:
    """A point for each judged week, oldest first."""
    points = []
    for of in drifts.values():
        for week in of.weeks:
            measure = max(week.scores, key=lambda name: week.scores[name] / of.thresholds[name])
            served, har = _qlike(matured, week.last + HOUR_MS)
            points.append(
                TrendPoint(
                    last=week.last,
                    measure=measure,
                    score_of_threshold=week.scores[measure] / of.thresholds[measure],
                    detected=week.detected,
                    fast_detected=week.fast_detected,
                    default_detected=week.default_detected,
                    qlike_served=served,
                    qlike_har=har,
                )
            )
    return sorted(points, key=lambda p: p.last)


def _qlike(matured: Matured, end_ms: int) -> tuple[float | None, float | None]:
    """Mean QLIKE of served and har over the forecasts that matured in the 30 days before `end_ms`."""
    ahead_ms = regression.AHEAD_HOURS * HOUR_MS
    known = matured.within(end_ms - TREND_HOURS * HOUR_MS - ahead_ms, end_ms)
    if len(known) < _MIN_TREND_FORECASTS:
        return None, None
    served, har = (float(np.mean(qlike.losses(known.realized, known.forecasts[name]))) for name in ("served", "har"))
    return served, har
