"""The risk policy: a forecast and the policy's memory in, a decision and the new memory out. Pure.

Volatility targeting (Harvey et al. 2018): hold target / forecast of the asset, never more than all of it, and do
not trade for less than the band. It controls risk; it promises no return.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from stream.core.candle import HOURS_PER_YEAR
from stream.core.contract import Regimes
from stream.core.forecast import Prediction

Action = Literal["hold", "increase", "reduce", "risk_off"]
RegimeName = Literal["low", "medium", "high"]
REGIMES: tuple[RegimeName, ...] = ("low", "medium", "high")

ANNUAL = math.sqrt(HOURS_PER_YEAR)


class Policy(msgspec.Struct, frozen=True):
    """`version` is part of a decision's id: change any number here and it must change too."""

    version: str = "target-40-band-10"
    target_volatility_annualized: float = 0.40
    max_exposure: float = 1.0
    no_trade_band: float = 0.10


class Memory(msgspec.Struct, frozen=True):
    """What the policy remembers from one candle to the next."""

    exposure: float = 0.0


class Reason(msgspec.Struct, frozen=True):
    """A code, and the numbers that led there."""

    code: str
    values: dict[str, float] = {}


class Verdict(msgspec.Struct, frozen=True):
    """The numbers of a decision, before it is given an id and times."""

    policy_version: str
    regime: RegimeName
    exposure: float
    previous_exposure: float
    action: Action
    target_volatility_annualized: float
    reasons: tuple[Reason, ...]


def regime(volatility_hourly: float, regimes: Regimes) -> RegimeName:
    if volatility_hourly >= regimes.high_from:
        return "high"
    return "medium" if volatility_hourly >= regimes.medium_from else "low"


def desired_exposure(policy: Policy, volatility_hourly: float) -> float:
    return min(policy.max_exposure, policy.target_volatility_annualized / (volatility_hourly * ANNUAL))


def advance(policy: Policy, memory: Memory, volatility_hourly: float) -> Memory:
    """The memory after a forecast; `decide` without its explanation, for folds over history."""
    desired = desired_exposure(policy, volatility_hourly)
    if abs(desired - memory.exposure) < policy.no_trade_band:
        return memory
    return Memory(desired)


def decide(policy: Policy, memory: Memory, prediction: Prediction, regimes: Regimes) -> tuple[Memory, Verdict]:
    desired = desired_exposure(policy, prediction.volatility)
    after = advance(policy, memory, prediction.volatility)
    reasons = [
        Reason(
            "volatility_target",
            {
                "target_annualized": policy.target_volatility_annualized,
                "forecast_annualized": prediction.volatility * ANNUAL,
                "desired_exposure": desired,
            },
        )
    ]
    if desired >= policy.max_exposure:
        reasons.append(Reason("capped", {"max_exposure": policy.max_exposure}))
    if after.exposure == memory.exposure:
        action: Action = "hold"
        if desired != memory.exposure:
            change = abs(desired - memory.exposure)
            reasons.append(Reason("within_band", {"change": change, "no_trade_band": policy.no_trade_band}))
    elif after.exposure == 0.0:
        action = "risk_off"
    else:
        action = "increase" if after.exposure > memory.exposure else "reduce"
    if prediction.quality != "good":
        reasons.append(Reason(f"input_{prediction.quality}", {"gaps": float(prediction.gaps)}))
    return after, Verdict(
        policy_version=policy.version,
        regime=regime(prediction.volatility, regimes),
        exposure=after.exposure,
        previous_exposure=memory.exposure,
        action=action,
        target_volatility_annualized=policy.target_volatility_annualized,
        reasons=tuple(reasons),
    )
