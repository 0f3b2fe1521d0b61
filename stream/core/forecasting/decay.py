"""Decay: whether the model's errors are still what they were. Sequential, one matured value a day.

Two questions, three alarms: is the excess QLIKE over `har` above what is usual (`excess_qlike`), and is
ln(realized / forecast) above or below it (`realized_above`: forecasts too low; `realized_below`: too high)?

Rules of this module:
- Cumulative sums (CUSUM, Page 1954) in deviations of the bundle's usual errors. A day's value is bounded: a crash is no
  change of the model.
- Excess is measured against the bundle's usual mean for good: a slow loss of skill is decay too. The level of ratios
  wanders with the regime, also for a sound model, so they are measured against their own slow mean.
- One alarm per change. It holds until all three sums, run backwards, show that errors are usual again, against the
  level from before the change or against the bundle's own mean; no other is raised meanwhile or within `SPACING_DAYS`
  matured days.
- A missing day is skipped; a day that is not later than the last one changes nothing.

How the constants were chosen is in docs/decisions/0008-watching.md, what they find in docs/decay.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from stream.core.forecasting.contract import Usual

DecayKind = Literal["excess_qlike", "realized_above", "realized_below"]

#: Matured days between two alarms, at least.
SPACING_DAYS = 30
#: A day's value counts for no more than this in either direction, in deviations. An excess is bounded before that, too
#: (stream/core/forecasting/serving.py).
RATIO_BOUND = 2.0
EXCESS_BOUND = 3.0
#: Half-life of the slow mean of ratios, which starts at the bundle's mean and does not move during an alarm.
LEVEL_HALF_LIFE_DAYS = 60
_LEVEL_WEIGHT = 1 - 0.5 ** (1 / LEVEL_HALF_LIFE_DAYS)
#: Allowance and threshold of the sums that end an alarm: some twenty usual days reach it, and changed ones hardly ever.
RECOVERY_ALLOWANCE = 0.35
RECOVERY_THRESHOLD = 7.0
#: The same for the sums against the bundle's own mean. They are slower, because errors near that mean may still be a
#: change, from a level that had wandered the other way. Exactly usual errors end an alarm in some 70 days.
BUNDLE_ALLOWANCE = 0.2
BUNDLE_THRESHOLD = 14.0


class Rule(msgspec.Struct, frozen=True):
    """A sum grows by a day's deviations less the allowance, never falls below 0, and alarms at the threshold."""

    kind: DecayKind
    allowance: float
    threshold: float


#: If several rules alarm on one day, the first counts. Forecasts 1.3 times too high are found slowly, by a small
#: allowance: they shift the mean by 0.65 deviations, forecasts 0.7 times as high by 0.9.
RULES = (
    Rule("realized_above", 0.4, 5.5),
    Rule("realized_below", 0.25, 7.5),
    Rule("excess_qlike", 0.4, 5.0),
)


class Day(msgspec.Struct, frozen=True, gc=False):
    """One matured daily forecast (stream/core/forecasting/serving.py): `open_time` of its candle, and its two
    values."""

    open_time: int
    excess: float
    ratio: float


class Alarm(msgspec.Struct, frozen=True):
    """A change that was found. Deviations are the bundle's; see `stream.core.messages.schemas.Decay`."""

    kind: DecayKind
    open_time: int
    since: int
    statistic: float
    threshold: float
    mean: float
    #: What `mean` is compared with: the bundle's mean, for a ratio shifted by the level that was usual before.
    usual_mean: float
    days: int


class Sum(msgspec.Struct, frozen=True):
    """One cumulative sum, in deviations, and the days that count: those since it last left 0."""

    value: float = 0.0
    since: int = 0
    days: int = 0
    #: Sum of the daily values, not in deviations and not bounded, over those days.
    total: float = 0.0
    #: Slow mean of the ratios before those days, in deviations from the usual.
    level: float = 0.0


_NOTHING = (Sum(), Sum(), Sum())


class DecayMemory(msgspec.Struct, frozen=True):
    """What the detectors carry from day to day; plain data. `alarm` is the one that holds."""

    alarm: Alarm | None = None
    #: In the order of `RULES`; while an alarm holds, the sums that end it.
    sums: tuple[Sum, Sum, Sum] = _NOTHING
    #: While an alarm holds, the same against the bundle's own mean, in case the level from before had wandered.
    bundle_sums: tuple[Sum, Sum, Sum] = _NOTHING
    #: Slow mean of the ratios, in deviations from the usual.
    level: float = 0.0
    #: Matured days since the last alarm, None before the first.
    spacing: int | None = None
    last_open_time: int | None = None


def step(usual: Usual, memory: DecayMemory, day: Day) -> tuple[DecayMemory, Alarm | None]:
    """Returns the memory after a day, and the alarm that the day raised, None if it raised none."""
    if memory.last_open_time is not None and day.open_time <= memory.last_open_time:
        return memory, None
    excess = _bounded((day.excess - usual.excess_mean) / usual.excess_deviation, EXCESS_BOUND)
    deviations = (day.ratio - usual.ratio_mean) / usual.ratio_deviation
    ratio = _bounded(deviations - memory.level, RATIO_BOUND)
    if not (math.isfinite(excess) and math.isfinite(ratio)):
        return memory, None
    # In the order of RULES: what the day adds to a sum, in deviations, and its value as it is.
    moves, values = (ratio, -ratio, excess), (day.ratio, day.ratio, day.excess)
    spacing = None if memory.spacing is None else memory.spacing + 1
    level, alarm, raised = memory.level, memory.alarm, None
    bundle_sums = memory.bundle_sums
    if alarm is not None:
        plain = _bounded(deviations, RATIO_BOUND)
        sums = _backwards(memory.sums, moves, RECOVERY_ALLOWANCE)
        bundle_sums = _backwards(bundle_sums, (plain, -plain, excess), BUNDLE_ALLOWANCE)
        for found, threshold, back_at in (
            (sums, RECOVERY_THRESHOLD, level),
            (bundle_sums, BUNDLE_THRESHOLD, 0.0),
        ):
            if all(s.value >= threshold for s in found):
                alarm, level, sums, bundle_sums = None, back_at, _NOTHING, _NOTHING
                break
    else:
        sums = _three(
            _grown(rule, before, move, value, day.open_time, level)
            for rule, before, move, value in zip(RULES, memory.sums, moves, values, strict=True)
        )
        over = [k for k, rule in enumerate(RULES) if sums[k].value >= rule.threshold]
        if over and (spacing is None or spacing >= SPACING_DAYS):
            evidence = sums[over[0]]
            alarm = raised = _alarm(usual, RULES[over[0]], evidence, day.open_time)
            # The level from before the change: what errors must come back to.
            level, spacing, sums = evidence.level, 0, _NOTHING
    if alarm is None:
        level += _LEVEL_WEIGHT * ratio
    return DecayMemory(alarm, sums, bundle_sums, level, spacing, day.open_time), raised


def _three(sums: Iterable[Sum]) -> tuple[Sum, Sum, Sum]:
    a, b, c = sums
    return a, b, c


def _backwards(sums: tuple[Sum, Sum, Sum], moves: tuple[float, float, float], allowance: float) -> tuple[Sum, Sum, Sum]:
    """Returns the sums that end an alarm after another day."""
    return _three(Sum(max(s.value + allowance - move, 0.0)) for s, move in zip(sums, moves, strict=True))


def _grown(rule: Rule, before: Sum, move: float, value: float, open_time: int, level: float) -> Sum:
    after = before.value + move - rule.allowance
    if after <= 0:
        return Sum()
    if before.value == 0:
        return Sum(after, open_time, 1, value, level)
    return Sum(after, before.since, before.days + 1, before.total + value, before.level)


def _alarm(usual: Usual, rule: Rule, evidence: Sum, open_time: int) -> Alarm:
    held_against = usual.excess_mean
    if rule.kind != "excess_qlike":
        held_against = usual.ratio_mean + evidence.level * usual.ratio_deviation
    return Alarm(
        kind=rule.kind,
        open_time=open_time,
        since=evidence.since,
        statistic=evidence.value,
        threshold=rule.threshold,
        mean=evidence.total / evidence.days,
        usual_mean=held_against,
        days=evidence.days,
    )


def _bounded(deviations: float, bound: float) -> float:
    return min(max(deviations, -bound), bound)
