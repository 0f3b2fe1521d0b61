"""Laws of the detectors: one alarm per change, with evidence that adds up; none of usual errors or single wild days."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.forecasting import decay
from stream.core.forecasting.contract import Usual
from stream.core.forecasting.decay import RULES, SPACING_DAYS, Alarm, Day, DecayMemory, step

DAY_MS = 86_400_000
USUAL = Usual(-0.0156, 0.1875, -0.078, 0.375)
ALLOWANCE = {rule.kind: rule.allowance for rule in RULES}
THRESHOLD = {rule.kind: rule.threshold for rule in RULES}
NOTHING = DecayMemory()
#: Per day the deviations from the usual mean: of the excess, of the ratio.
Deviations = list[tuple[float, float]]
ANY = st.lists(st.tuples(st.floats(-4, 4), st.floats(-6, 6)), max_size=150)
CALM = st.tuples(st.floats(-0.4, 0.4), st.floats(-0.2, 0.2))
SHIFT = st.floats(0.8, 3.0)


def days_of(deviations: Deviations, usual: Usual = USUAL, *, every: int = 1) -> list[Day]:
    return [
        Day(
            DAY_MS * every * (k + 1),
            usual.excess_mean + e * usual.excess_deviation,
            usual.ratio_mean + r * usual.ratio_deviation,
        )
        for k, (e, r) in enumerate(deviations)
    ]


def watched(days: list[Day], memory: DecayMemory = NOTHING, usual: Usual = USUAL) -> tuple[DecayMemory, list[Alarm]]:
    raised = []
    for day in days:
        memory, alarm = step(usual, memory, day)
        if alarm is not None:
            raised.append(alarm)
    return memory, raised


def numbers(alarms: list[Alarm]) -> list[int]:
    """Returns the days, counted from 1, on which the alarms were raised."""
    return [alarm.open_time // DAY_MS for alarm in alarms]


@given(ANY, st.integers(0, 150))
def test_a_memory_that_was_stored_goes_on_as_if_it_had_not_been(deviations: Deviations, at: int) -> None:
    days = days_of(deviations)
    before, first = watched(days[:at])
    loaded = msgspec.json.decode(msgspec.json.encode(before), type=DecayMemory)
    assert loaded == before
    after, second = watched(days[at:], loaded)
    assert (after, first + second) == watched(days)


@given(ANY, st.sampled_from([2.0**-6, 0.5, 4.0, 1024.0]))
def test_only_what_is_unusual_counts_whatever_the_unit(deviations: Deviations, unit: float) -> None:
    # Powers of two scale floats without rounding, so that nothing may differ.
    days = days_of(deviations)
    larger = [Day(d.open_time, unit * d.excess, unit * d.ratio) for d in days]
    usual = Usual(*(unit * value for value in msgspec.structs.astuple(USUAL)))
    found, expected = watched(larger, usual=usual)[1], watched(days)[1]
    assert found == [
        msgspec.structs.replace(alarm, mean=unit * alarm.mean, usual_mean=unit * alarm.usual_mean) for alarm in expected
    ]


def test_an_alarm_ends_also_when_errors_are_the_bundles_usual_after_a_level_that_had_wandered() -> None:
    wandered = [(0.0, min(0.002 * k, 0.8)) for k in range(600)]
    memory, alarms = watched(days_of([*wandered, *[(0.0, 0.0)] * 30]))
    assert [a.kind for a in alarms] == ["realized_below"]
    assert memory.alarm is not None
    # Its mean is compared with the level that had wandered, and the alarm reports that level.
    assert alarms[-1].usual_mean > USUAL.ratio_mean + 0.7 * USUAL.ratio_deviation
    after, _ = watched(days_of([*wandered, *[(0.0, 0.0)] * 110]))
    assert after.alarm is None


@given(ANY)
def test_every_alarm_has_evidence_that_adds_up(deviations: Deviations) -> None:
    days = days_of(deviations)
    for alarm in watched(days)[1]:
        evidence = [d for d in days if alarm.since <= d.open_time <= alarm.open_time]
        values = [d.excess if alarm.kind == "excess_qlike" else d.ratio for d in evidence]
        assert len(evidence) == alarm.days
        assert alarm.mean == pytest.approx(math.fsum(values) / len(values))
        assert alarm.statistic >= alarm.threshold == THRESHOLD[alarm.kind]
        # Each day adds at most its bound less the allowance.
        bound = decay.EXCESS_BOUND if alarm.kind == "excess_qlike" else decay.RATIO_BOUND
        assert alarm.statistic <= alarm.days * (bound - ALLOWANCE[alarm.kind]) + 1e-9


@given(ANY)
def test_alarms_are_thirty_matured_days_apart_and_none_is_raised_while_one_holds(deviations: Deviations) -> None:
    memory, last = DecayMemory(), None
    for number, day in enumerate(days_of(deviations * 3), 1):
        held = memory.alarm
        memory, alarm = step(USUAL, memory, day)
        if alarm is not None:
            assert held is None
            assert memory.alarm == alarm
            assert last is None or number - last >= SPACING_DAYS
            last = number


@given(st.lists(CALM, max_size=200))
def test_errors_within_the_allowance_never_alarm(deviations: Deviations) -> None:
    assert watched(days_of(deviations))[1] == []


@given(st.lists(CALM, min_size=1, max_size=40), st.data())
def test_a_wild_day_is_no_alarm_however_wild(deviations: Deviations, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(deviations) - 1))
    deviations[at] = data.draw(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)))
    assert watched(days_of(deviations))[1] == []


@pytest.mark.parametrize("kind", list(ALLOWANCE))
@given(calm=st.integers(0, 60), size=SHIFT, changed=st.integers(30, 200))
def test_a_change_is_told_once_and_holds_until_errors_are_usual_again(
    kind: str, calm: int, size: float, changed: int
) -> None:
    bad = {"excess_qlike": (size, 0.0), "realized_above": (0.0, size), "realized_below": (0.0, -size)}[kind]
    memory, alarms = watched(days_of([(0.0, 0.0)] * calm + [bad] * changed))
    (alarm,) = alarms
    assert alarm.kind == kind
    assert alarm.since == (calm + 1) * DAY_MS
    assert memory.alarm == alarm
    # Then errors are usual again: the alarm ends within a month, and is not raised again.
    again = days_of([(0.0, 0.0)] * calm + [bad] * changed + [(0.0, 0.0)] * 31)
    recovered, all_alarms = watched(again)
    assert recovered.alarm is None
    assert all_alarms == [alarm]


@given(first=SHIFT, second=SHIFT, pause=st.integers(21, 90))
def test_a_second_change_is_a_second_alarm(first: float, second: float, pause: int) -> None:
    deviations = [(0.0, first)] * 40 + [(0.0, 0.0)] * pause + [(0.0, -second)] * 60
    alarms = watched(days_of(deviations))[1]
    assert [a.kind for a in alarms] == ["realized_above", "realized_below"]
    assert numbers(alarms)[1] > 40 + pause


def test_a_second_change_too_soon_is_told_once_thirty_days_are_over() -> None:
    # Found on day 2; usual again at once, the alarm ends on day 23; the next change begins on day 24.
    deviations = [(3.0, 0.0)] * 2 + [(0.0, 0.0)] * 21 + [(3.0, 0.0)] * 30
    memory, alarms = watched(days_of(deviations))
    first, second = numbers(alarms)
    assert second - first == SPACING_DAYS
    assert alarms[1].since == 24 * DAY_MS
    assert memory.alarm == alarms[1]


@given(ANY, st.lists(st.integers(1, 40), min_size=150, max_size=150))
def test_days_that_are_missing_do_not_count(deviations: Deviations, gaps: list[int]) -> None:
    days, time, spread = days_of(deviations), 0, []
    for day, gap in zip(days, gaps, strict=False):
        time += gap * DAY_MS
        spread.append(msgspec.structs.replace(day, open_time=time))
    place = {day.open_time: k for k, day in enumerate(spread)}
    found = [
        msgspec.structs.replace(a, open_time=days[place[a.open_time]].open_time, since=days[place[a.since]].open_time)
        for a in watched(spread)[1]
    ]
    assert found == watched(days)[1]


@given(ANY, st.integers(0, 149), st.integers(0, 149))
def test_a_day_that_is_not_later_changes_nothing(deviations: Deviations, at: int, again: int) -> None:
    days = days_of(deviations)
    twice = [*days[: at + 1], *days[: at + 1][again : again + 1], *days[at + 1 :]]
    assert watched(twice) == watched(days)


def test_a_day_without_a_number_changes_nothing() -> None:
    memory = watched(days_of([(1.0, 1.0)] * 3))[0]
    for day in (Day(9 * DAY_MS, math.nan, 0.0), Day(9 * DAY_MS, 0.0, math.nan)):
        assert step(USUAL, memory, day) == (memory, None)


@given(st.floats(-1, 1))
def test_a_level_that_wanders_slowly_is_no_change(drift: float) -> None:
    assert watched(days_of([(0.0, drift * k / 400) for k in range(400)]))[1] == []


def test_an_excess_that_stays_is_found_however_slowly_it_came() -> None:
    assert [a.kind for a in watched(days_of([(k / 400, 0.0) for k in range(400)]))[1]] == ["excess_qlike"]
