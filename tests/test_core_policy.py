"""The policy by hand-computed numbers, and its laws."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.forecast import Prediction
from stream.core.policy import ANNUAL, Memory, Policy, advance, decide, desired_exposure, regime
from stream.testing.sample_model import sample_model

POLICY = Policy()
REGIMES = sample_model().contract.regimes
volatilities = st.floats(1e-5, 0.5)


def prediction(annualized: float, gaps: int = 0, quality: str = "good") -> Prediction:
    values = dict.fromkeys(Prediction.__struct_fields__, 0.01) | {
        "symbol": "BTCUSDT",
        "open_time": 0,
        "model_version": "m",
        "volatility": annualized / ANNUAL,
        "complete": True,
        "gaps": gaps,
        "quality": quality,
    }
    return msgspec.convert(values, Prediction)


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
    memory, verdict = decide(POLICY, Memory(before), prediction(annualized), REGIMES)
    assert memory.exposure == pytest.approx(after)
    assert (verdict.exposure, verdict.previous_exposure) == (memory.exposure, before)
    assert verdict.action == action
    assert [r.code for r in verdict.reasons] == codes
    target = verdict.reasons[0].values
    assert target["forecast_annualized"] == pytest.approx(annualized)
    assert target["desired_exposure"] == pytest.approx(min(1.0, 0.4 / annualized))


def test_input_that_is_not_good_is_a_reason() -> None:
    _, verdict = decide(POLICY, Memory(), prediction(0.5, gaps=3, quality="degraded"), REGIMES)
    assert verdict.reasons[-1].code == "input_degraded"
    assert verdict.reasons[-1].values == {"gaps": 3.0}


@given(volatilities, st.floats(0, 1))
def test_exposure_stays_within_its_bounds_and_moves_by_the_band_or_not_at_all(sigma: float, before: float) -> None:
    after = advance(POLICY, Memory(before), sigma)
    assert 0 <= after.exposure <= 1
    assert after.exposure == before or abs(after.exposure - before) >= POLICY.no_trade_band


@given(volatilities, volatilities)
def test_more_volatility_never_wants_more_exposure(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert desired_exposure(POLICY, high) <= desired_exposure(POLICY, low)


@given(volatilities, st.floats(0, 1))
def test_decide_and_advance_agree(sigma: float, before: float) -> None:
    memory, _ = decide(POLICY, Memory(before), prediction(sigma * ANNUAL), REGIMES)
    assert memory.exposure == pytest.approx(advance(POLICY, Memory(before), sigma).exposure)


@pytest.mark.parametrize(("sigma", "name"), [(0.0039, "low"), (0.004, "medium"), (0.0079, "medium"), (0.008, "high")])
def test_regimes_begin_at_their_thresholds(sigma: float, name: str) -> None:
    assert regime(sigma, REGIMES) == name
