"""What the decay detectors would have reported of a forecaster: as it was, and with its forecasts too low or too high.

Rules of this module:
- The detectors and the choice between model and `har` are the daemon's own code (stream/core/forecasting/decay.py,
  serving.py); nothing is decided here.
- The detectors start anew with each fit, as a daemon does with a new model. No day is counted twice.
- Every forecaster that was scored counts as sound: an alarm about its own forecasts is a false one.
- A change is one factor on every forecast from some day on. It begins in turn on each day that enough days follow, with
  the detectors' memory of the days before; a start at which an alarm already held counts as not found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.forecasting import decay, qlike, serving
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.panel import NEXT_24H, Panel, Watch

#: Factors on the forecasts, and the matured days within which each shall be found.
CHANGES = {"0.7": 21, "0.85": 45, "1.15": 45, "1.3": 45}
#: The alarms of a change that is not repaired are counted over so many matured days, from every tenth start.
REPORTED_DAYS = 180
_START_STEP = 10
#: Factors on the forecasts with which the choice between model and `har` is studied.
FACTORS = ("1", "0.5", "0.7", "1.3", "2")
MIN_DAYS = 90
_DAY_MS = 24 * HOUR_MS
_YEAR_DAYS = 365.25


class FalseAlarm(msgspec.Struct, frozen=True):
    """A false alarm. `date`: when the forecast was made whose outcome raised it; `since`: the first day of the
    evidence. Both UTC."""

    date: str
    since: str
    kind: str
    days: int


class Found(msgspec.Struct, frozen=True):
    """How a change is found: the `share` of its starts found within `within_days`, and the median of days to those.

    `once_share`: of the starts that raise any alarm within `REPORTED_DAYS`, the share that raises exactly one.
    """

    within_days: int
    starts: int
    share: float | None
    median_days: float | None
    once_share: float | None


class Served(msgspec.Struct, frozen=True):
    """The share of hours in which `har` is served, and mean QLIKE: of what is served, of the forecaster, of `har`."""

    har_share: float
    served: float
    model: float
    har: float


class DecayStudy(msgspec.Struct, frozen=True):
    """The decay figures of one forecaster; null or empty where there is a `reason`."""

    days: int
    false_alarms: list[FalseAlarm]
    false_alarms_a_year: float | None
    #: By factor on the forecasts.
    changes: dict[str, Found]
    serving: dict[str, Served]
    reason: str | None = None


def study(panel: Panel) -> dict[str, DecayStudy]:
    """Studies each forecaster that has usual errors; the result is empty where none has, or where `har` is absent."""
    return {name: _study(panel, name, watches) for name, watches in panel.watches.items()}


def _study(panel: Panel, name: str, watches: Sequence[Watch]) -> DecayStudy:
    days = sum(len(_matured(watch, 1.0)) for watch in watches)
    if days < MIN_DAYS:
        reason = f"{days} matured days are watched, {MIN_DAYS} are needed to say how often it alarms"
        nothing = {factor: Found(within, 0, None, None, None) for factor, within in CHANGES.items()}
        return DecayStudy(days, [], None, nothing, {}, reason)
    alarms = [alarm for watch in watches for alarm in _watched(watch)[1]]
    return DecayStudy(
        days=days,
        false_alarms=[FalseAlarm(_date(a.open_time), _date(a.since), a.kind, a.days) for a in alarms],
        false_alarms_a_year=len(alarms) / _years(watches),
        changes={factor: _found(watches, float(factor), within) for factor, within in CHANGES.items()},
        serving={factor: _served(panel, name, watches, float(factor)) for factor in FACTORS},
    )


def _watched(watch: Watch) -> tuple[list[decay.DecayMemory], list[decay.Alarm]]:
    """Returns the detectors' memory before each matured day, and the alarms that they raise."""
    memory, before, alarms = decay.DecayMemory(), [], []
    for day in _matured(watch, 1.0):
        before.append(memory)
        memory, alarm = decay.step(watch.usual, memory, day)
        if alarm is not None:
            alarms.append(alarm)
    return before, alarms


def _found(watches: Sequence[Watch], factor: float, within: int) -> Found:
    took: list[int | None] = []
    alarm_counts: list[int] = []
    for watch in watches:
        before, changed = _watched(watch)[0], _matured(watch, factor)
        took += [
            _days_to_alarm(watch, before[start], changed[start : start + within])
            for start in range(len(changed) - within + 1)
        ]
        alarm_counts += [
            _alarms(watch, before[start], changed[start : start + REPORTED_DAYS])
            for start in range(0, len(changed) - REPORTED_DAYS + 1, _START_STEP)
        ]
    found = [days for days in took if days is not None]
    alarm_counts = [count for count in alarm_counts if count]
    return Found(
        within,
        len(took),
        len(found) / len(took) if took else None,
        float(np.median(found)) if found else None,
        alarm_counts.count(1) / len(alarm_counts) if alarm_counts else None,
    )


def _days_to_alarm(watch: Watch, memory: decay.DecayMemory, days: Sequence[decay.Day]) -> int | None:
    for count, day in enumerate(days, 1):
        memory, alarm = decay.step(watch.usual, memory, day)
        if alarm is not None:
            return count
    return None


def _alarms(watch: Watch, memory: decay.DecayMemory, days: Sequence[decay.Day]) -> int:
    count = 0
    for day in days:
        memory, alarm = decay.step(watch.usual, memory, day)
        count += alarm is not None
    return count


def _matured(watch: Watch, factor: float) -> list[decay.Day]:
    """Returns the days that are scored and whose outcome is known, with forecasts times `factor`."""
    excess, ratio = _excess(watch, factor), np.log(watch.realized / (factor * watch.forecast))
    known = np.isfinite(excess) & (watch.open_time >= watch.first)
    columns = (values[known].tolist() for values in (watch.open_time, excess, ratio))
    return [decay.Day(*row) for row in zip(*columns, strict=True)]


def _excess(watch: Watch, factor: float) -> Array:
    """Computes the daily excess QLIKE over `har`, [n]; NaN where an outcome or a forecast is not known."""
    rows = zip(watch.realized.tolist(), (factor * watch.forecast).tolist(), watch.har.tolist(), strict=True)
    return np.array([serving.excess(*row) if all(map(math.isfinite, row)) else math.nan for row in rows])


def _served(panel: Panel, name: str, watches: Sequence[Watch], factor: float) -> Served:
    """Scores each hour as the daemon would serve it: by the days whose outcomes are known when its candle closes."""
    realized, forecast = panel.realized[NEXT_24H], factor * panel.forecasts[NEXT_24H][name]
    har = panel.forecasts[NEXT_24H]["har"]
    rows = np.isfinite(realized) & np.isfinite(forecast) & np.isfinite(har)
    by_har = np.zeros(len(realized), np.bool_)
    for watch in watches:
        inside = (panel.open_time >= watch.first) & (panel.open_time <= watch.last)
        by_har[inside] = behind(watch, factor, panel.open_time[inside])
    served = np.where(by_har, har, forecast)[rows]
    losses = (float(qlike.losses(realized[rows], sigma).mean()) for sigma in (served, forecast[rows], har[rows]))
    return Served(float(by_har[rows].mean()), *losses)


def behind(watch: Watch, factor: float, open_time: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns whether `har` is served in each hour, [hours], while all forecasts are multiplied by `factor`.

    open_time: of the hours, ms. A day's outcome is known 24 hours after its candle.
    """
    number = watch.open_time // _DAY_MS
    values = np.full(int(number[-1]) - int(number[0]) + 1, np.nan)
    values[number - number[0]] = _excess(watch, factor)
    answers = [serving.behind(values[max(end - serving.DAYS, 0) : end].tolist()) for end in range(len(values) + 1)]
    # The number of days whose 24 hours have ended with this candle or before it.
    known = (open_time + HOUR_MS) // _DAY_MS - 1 - number[0]
    chosen: NDArray[np.bool_] = np.array(answers)[np.clip(known, 0, len(values))]
    return chosen


def _years(watches: Sequence[Watch]) -> float:
    """Returns the length of the hours that are scored and of the last one's outcome, in years."""
    hours_ms = sum(watch.last - watch.first + HOUR_MS for watch in watches)
    return (hours_ms + _DAY_MS) / _DAY_MS / _YEAR_DAYS


def _date(open_time: int) -> str:
    return times.day(open_time + HOUR_MS)
