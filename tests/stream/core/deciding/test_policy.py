"""The policy by hand-computed numbers, and its laws over all policies."""

from __future__ import annotations

import math
from itertools import repeat

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.deciding.policy import (
    ANNUAL,
    Outlook,
    Policy,
    PolicyMemory,
    Thresholds,
    accumulate,
    advance,
    decide,
    regime,
)
from stream.core.forecasting.contract import Regimes

REGIMES = Regimes(0.004, 0.008)
#: A policy with target, cap and band, and nothing else.
BARE = Policy(
    "bare",
    no_trade_band_of_exposure=0.0,
    no_trade_band=0.10,
    min_hold_hours=0,
    calm_half_life_hours=0.0,
    regime_hysteresis=0.0,
    risk_off_from_annualized=0.0,
)
HOUR = 473_000


def seen(annualized: float, hour: int = HOUR, high: float | None = None, gaps: int = 0) -> Outlook:
    """Returns an outlook whose interval ends at 1.5 times its forecast."""
    upper = 1.5 * annualized if high is None else high
    return Outlook(hour, annualized / ANNUAL, upper / ANNUAL, gaps)


def held(exposure: float, hours_ago: int = 100, **more: object) -> PolicyMemory:
    memory = PolicyMemory(exposure, forecast_hour=HOUR - 1, changed_hour=HOUR - hours_ago)
    return msgspec.structs.replace(memory, **more)


def codes(policy: Policy, memory: PolicyMemory, outlook: Outlook) -> list[str]:
    return [r.code for r in decide(policy, REGIMES, memory, outlook)[1].reasons]


def test_annual_is_the_root_of_8760_hours() -> None:
    assert math.sqrt(8_760) == ANNUAL


@pytest.mark.parametrize(
    ("annualized", "before", "after", "action", "codes"),
    [
        (0.80, 0.0, 0.5, "increase", ["volatility_target"]),
        (0.20, 0.0, 1.0, "increase", ["volatility_target", "capped"]),
        (0.80, 1.0, 0.5, "reduce", ["volatility_target"]),
        (0.80, 0.55, 0.55, "hold", ["volatility_target", "within_band"]),
        (0.40, 1.0, 1.0, "hold", ["volatility_target", "capped"]),
        (8.00, 0.5, 0.05, "reduce", ["volatility_target"]),
    ],
)
def test_decisions_by_hand(annualized: float, before: float, after: float, action: str, codes: list[str]) -> None:
    memory, verdict = decide(BARE, REGIMES, held(before), seen(annualized))
    assert memory.exposure == pytest.approx(after)
    assert (verdict.exposure, verdict.previous_exposure) == (memory.exposure, before)
    assert (verdict.action, verdict.policy_version) == (action, BARE.version)
    assert [r.code for r in verdict.reasons if r.code != "regime_held"] == codes
    target = verdict.reasons[0].values
    assert target["forecast_annualized"] == pytest.approx(annualized)
    assert target["desired_exposure"] == pytest.approx(min(1.0, 0.4 / annualized))


@pytest.mark.parametrize(
    ("annualized", "before", "after"),
    [
        (0.80, 0.70, 0.70),  # 0.50 is 0.20 less, under 30 % of 0.70
        (0.80, 0.72, 0.50),
        (2.00, 0.25, 0.25),  # of little little is much: 0.05 is under 0.075, and 0.10 over 0.09
        (2.00, 0.30, 0.20),
        (0.40, 0.76, 1.00),
        (0.40, 0.80, 0.80),
        (8.00, 0.00, 0.05),  # who holds nothing has no band
    ],
)
def test_the_band_is_a_share_of_what_is_held(annualized: float, before: float, after: float) -> None:
    policy = msgspec.structs.replace(BARE, no_trade_band=0.0, no_trade_band_of_exposure=0.30)
    memory, ruling = decide(policy, REGIMES, held(before), seen(annualized))
    assert memory.exposure == pytest.approx(after)
    for reason in ruling.reasons:
        if reason.code == "within_band":
            assert reason.values["no_trade_band"] == pytest.approx(0.30 * before)
    assert ("within_band" in [r.code for r in ruling.reasons]) == (after == before)


def test_risk_off_begins_at_the_intervals_upper_end_and_ends_lower_and_waits_before_it_buys() -> None:
    policy = msgspec.structs.replace(
        BARE, risk_off_from_annualized=2.0, risk_back_below_annualized=1.5, min_hold_hours=12
    )
    off, verdict = decide(policy, REGIMES, held(0.5), seen(0.8, high=2.01))
    assert (off.exposure, off.off, verdict.action) == (0.0, True, "risk_off")
    (reason,) = [r for r in verdict.reasons if r.code == "risk_off"]
    assert reason.values == {
        "high_annualized": pytest.approx(2.01),
        "risk_off_from_annualized": 2.0,
        "risk_back_below_annualized": 1.5,
    }
    still, verdict = decide(policy, REGIMES, off, seen(0.8, HOUR + 1, high=1.6))
    assert (still.exposure, verdict.action) == (0.0, "hold")
    over, verdict = decide(policy, REGIMES, still, seen(0.8, HOUR + 2, high=1.4))
    assert (over.exposure, over.off) == (0.0, False)
    assert "min_hold" in [r.code for r in verdict.reasons]
    back = advance(policy, REGIMES, over, seen(0.8, HOUR + 12, high=1.4))
    assert back.exposure == pytest.approx(0.5)
    assert advance(BARE, REGIMES, held(0.5), seen(0.8, high=50.0)).off is False


def test_after_a_silence_in_which_the_last_decision_expired_exposure_is_capped_for_a_day() -> None:
    # The decision of HOUR - 1 is valid for two hours: candles HOUR and HOUR + 1 come in time, HOUR + 2 too late.
    assert advance(BARE, REGIMES, held(1.0), seen(0.4, HOUR + 1)).exposure == 1.0
    late, verdict = decide(BARE, REGIMES, held(1.0), seen(0.4, HOUR + 2))
    assert (late.exposure, verdict.action) == (0.5, "reduce")
    (reason,) = [r for r in verdict.reasons if r.code == "brake_stale"]
    assert reason.values == {"hours_left": 24.0, "brake_max_exposure": 0.5}
    memory = late
    for hour in range(HOUR + 3, HOUR + 26):
        memory = advance(BARE, REGIMES, memory, seen(0.4, hour))
        assert memory.exposure == 0.5
    assert advance(BARE, REGIMES, memory, seen(0.4, HOUR + 26)).exposure == 1.0


def test_degraded_input_brakes_and_repaired_input_is_only_said() -> None:
    assert advance(BARE, REGIMES, held(1.0), seen(0.4, gaps=3)).exposure == 0.5
    assert codes(BARE, held(1.0), seen(0.4, gaps=3))[2:] == ["brake_degraded", "input_degraded"]
    assert advance(BARE, REGIMES, held(1.0), seen(0.4, gaps=2)).exposure == 1.0
    assert codes(BARE, held(1.0), seen(0.4, gaps=2))[-1] == "input_repaired"


def test_a_forced_cut_does_not_wait_for_the_band() -> None:
    assert advance(BARE, REGIMES, held(0.55), seen(0.4, gaps=3)).exposure == 0.5


def test_raising_waits_for_the_holding_time_and_cutting_does_not() -> None:
    policy = msgspec.structs.replace(BARE, min_hold_hours=12)
    assert advance(policy, REGIMES, held(0.5, 11), seen(0.4)).exposure == 0.5
    assert "min_hold" in codes(policy, held(0.5, 11), seen(0.4))
    assert advance(policy, REGIMES, held(0.5, 12), seen(0.4)).exposure == 1.0
    assert advance(policy, REGIMES, held(1.0, 1), seen(0.8)).exposure == pytest.approx(0.5)


def test_calm_is_believed_once_it_has_lasted() -> None:
    policy = msgspec.structs.replace(BARE, calm_half_life_hours=24.0)
    wild = held(0.5, log_calm=math.log(0.8 / ANNUAL), forecast_hour=HOUR - 24)
    # Half-way in logarithms after one half-life: √(0.8 × 0.2) = 0.4.
    patient = msgspec.structs.replace(policy, stale_after_hours=168)
    calmer, verdict = decide(patient, REGIMES, wild, seen(0.2))
    assert calmer.exposure == pytest.approx(1.0)
    assert math.exp(calmer.log_calm) * ANNUAL == pytest.approx(0.4)
    soon, verdict = decide(policy, REGIMES, held(0.5, log_calm=math.log(0.8 / ANNUAL)), seen(0.4))
    assert (soon.exposure, verdict.action) == (0.5, "hold")
    assert verdict.reasons[1].code == "calm_awaited"
    assert verdict.reasons[1].values["mean_annualized"] == pytest.approx(0.4 * 2 ** (0.5 ** (1 / 24)))
    # A rise in volatility counts at once.
    assert advance(policy, REGIMES, held(1.0, log_calm=math.log(0.2 / ANNUAL)), seen(0.8)).exposure == pytest.approx(
        0.5
    )


def test_a_regime_is_left_downwards_below_its_threshold_less_the_hysteresis() -> None:
    policy = msgspec.structs.replace(BARE, regime_hysteresis=0.10)
    high = held(0.5, regime=2)
    for sigma, index in ((0.008, 2), (0.0073, 2), (0.0071, 1), (0.0037, 1), (0.0035, 0)):
        assert advance(policy, REGIMES, high, Outlook(HOUR, sigma, sigma, 0)).regime == index, sigma
    assert advance(policy, REGIMES, held(0.5, regime=0), Outlook(HOUR, 0.0075, 0.0075, 0)).regime == 1
    _, verdict = decide(policy, REGIMES, high, Outlook(HOUR, 0.0073, 0.0073, 0))
    (reason,) = [r for r in verdict.reasons if r.code == "regime_held"]
    assert reason.values["left_below_annualized"] == pytest.approx(0.0072 * ANNUAL)


@pytest.mark.parametrize(("sigma", "name"), [(0.0039, "low"), (0.004, "medium"), (0.0079, "medium"), (0.008, "high")])
def test_regimes_begin_at_their_thresholds(sigma: float, name: str) -> None:
    assert regime(sigma, REGIMES) == name


@pytest.mark.parametrize(
    ("unit", "hourly_medium", "hourly_high"),
    [
        ("hourly", 0.015, 0.035),
        # 0.015 / √24 and 0.035 / √24; 0.015 / √8760 and 0.035 / √8760.
        ("daily", 0.0030619, 0.0071443),
        ("annualized", 0.00016027, 0.00037396),
    ],
)
def test_thresholds_are_read_in_their_unit(unit: str, hourly_medium: float, hourly_high: float) -> None:
    steps = msgspec.convert({"unit": unit, "medium_from": 0.015, "high_from": 0.035}, Thresholds)
    assert steps.hourly.medium_from == pytest.approx(hourly_medium, rel=1e-4)
    assert steps.hourly.high_from == pytest.approx(hourly_high, rel=1e-4)
    rule = msgspec.structs.replace(BARE, thresholds=steps, no_trade_band=0.0, no_trade_band_of_exposure=0.0)
    for factor, index, exposure in ((0.99, 0, 1.0), (1.01, 1, 0.5), (2.4, 2, 0.0)):
        sigma = factor * hourly_medium
        memory, verdict = decide(rule, REGIMES, held(0.7), Outlook(HOUR, sigma, sigma, 0))
        assert (memory.regime, memory.exposure) == (index, exposure)
        assert verdict.reasons[0].code == "thresholds"


policies = st.builds(
    Policy,
    target_volatility_annualized=st.floats(0.05, 2),
    max_exposure=st.floats(0.2, 3),
    no_trade_band_of_exposure=st.just(0.0) | st.floats(0, 0.9),
    no_trade_band=st.floats(0, 0.19),
    min_hold_hours=st.integers(0, 50),
    calm_half_life_hours=st.floats(0, 168),
    regime_hysteresis=st.floats(0, 0.5),
    risk_off_from_annualized=st.just(0.0) | st.floats(1, 5),
    risk_back_below_annualized=st.floats(0.2, 1),
    stale_after_hours=st.integers(1, 10),
    brake_hours=st.integers(0, 50),
    brake_max_exposure=st.floats(0, 3),
)
outlooks = st.lists(
    st.tuples(st.integers(1, 9), st.floats(1e-5, 0.5), st.floats(1, 4), st.integers(0, 5)), min_size=1, max_size=60
)


def hours(steps: list[tuple[int, float, float, int]]) -> list[Outlook]:
    out, hour = [], HOUR
    for passed, sigma, wide, gaps in steps:
        hour += passed
        out.append(Outlook(hour, sigma, sigma * wide, gaps))
    return out


@given(policies, outlooks)
def test_whatever_comes_exposure_keeps_its_bounds_its_band_and_its_waits(
    policy: Policy, steps: list[tuple[int, float, float, int]]
) -> None:
    memory = PolicyMemory()
    for outlook in hours(steps):
        before, memory = memory, advance(policy, REGIMES, memory, outlook)
        assert 0 <= memory.exposure <= policy.max_exposure
        moved = memory.exposure - before.exposure
        braked = outlook.hour < memory.braked_until_hour or outlook.gaps > 2
        if memory.off:
            assert memory.exposure == 0
        elif braked:
            assert memory.exposure <= max(policy.brake_max_exposure, 0)
        elif moved:
            assert abs(moved) >= max(policy.no_trade_band, policy.no_trade_band_of_exposure * before.exposure)
        if moved > 0 and before.changed_hour >= 0:
            assert outlook.hour - before.changed_hour >= policy.min_hold_hours
        if moved:
            assert memory.changed_hour == outlook.hour


@given(policies, outlooks)
def test_decide_explains_exactly_what_advance_does(policy: Policy, steps: list[tuple[int, float, float, int]]) -> None:
    memory, memories = PolicyMemory(), [PolicyMemory()]
    for outlook in hours(steps):
        after, verdict = decide(policy, REGIMES, memory, outlook)
        assert after == advance(policy, REGIMES, memory, outlook)
        assert (verdict.exposure, verdict.previous_exposure) == (after.exposure, memory.exposure)
        sign = {"increase": 1, "reduce": -1, "risk_off": -1, "hold": 0}[verdict.action]
        assert sign == (after.exposure > memory.exposure) - (after.exposure < memory.exposure)
        assert all(math.isfinite(v) for r in verdict.reasons for v in r.values.values())
        if after.off:
            assert "risk_off" in [r.code for r in verdict.reasons]
        memory = after
        memories.append(memory)
    for shown in (0, 1, len(steps)):
        assert accumulate(policy, repeat(REGIMES), hours(steps), shown) == memories[len(steps) - shown :]


@given(policies, st.floats(1e-5, 0.5), st.floats(1, 3), st.floats(0, 1))
def test_more_volatility_never_leads_to_more_exposure(
    policy: Policy, sigma: float, factor: float, before: float
) -> None:
    memory = held(min(before, policy.max_exposure), log_calm=math.log(sigma))
    calm, wild = (
        advance(policy, REGIMES, memory, Outlook(HOUR, s, 1.5 * s, 0)).exposure for s in (sigma, sigma * factor)
    )
    assert wild <= calm
