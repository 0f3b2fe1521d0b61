"""The risk policy: makes an exposure of a forecast and the policy's memory. Pure; a policy is data
(stream/policies/*.toml).

Volatility targeting (Harvey et al. 2018): hold target / forecast of the asset, never more than the cap. Around it:
- Adding waits, cutting does not: calm must last (`calm_half_life_hours`) and the last change must be old enough
  (`min_hold_hours`) before exposure rises; a cut must only exceed the band, and a forced one not even that.
- Risk-off looks at the upper end of the interval, and ends at a lower level than it begins at.
- The brake: after a silence in which the last decision expired, and on degraded input, exposure is capped.
It controls risk; it promises no return. Defaults were chosen on 2019-2023 (docs/decisions/0007).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import msgspec

from stream.core.forecasting.contract import Regimes
from stream.core.forecasting.predictions import REPAIRED_GAPS, Prediction
from stream.core.market.candle import HOUR_MS, HOURS_PER_YEAR

Action = Literal["hold", "increase", "reduce", "risk_off"]
RegimeName = Literal["low", "medium", "high"]
REGIMES: tuple[RegimeName, ...] = ("low", "medium", "high")

ANNUAL = math.sqrt(HOURS_PER_YEAR)
#: What an hourly σ is multiplied by to be stated per hour, per day or per year.
PER_UNIT = {"hourly": 1.0, "daily": math.sqrt(24), "annualized": ANNUAL}
#: What a policy may act on, and the prediction's field that has it.
SOURCES = {
    "model": "volatility",
    "persistence": "baseline_persistence",
    "ewma": "baseline_ewma",
    "har": "baseline_har",
    "rolling_24h_next": "rolling_24h_next",
}
Source = Literal["model", "persistence", "ewma", "har", "rolling_24h_next"]


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exposure in three steps instead of a volatility target: the reference project's kind of rule."""

    #: Unit of `medium_from` and `high_from`: σ per hour, per day or per year.
    unit: Literal["hourly", "daily", "annualized"]
    medium_from: float
    high_from: float
    low_exposure: float = 1.0
    medium_exposure: float = 0.5
    high_exposure: float = 0.0

    @property
    def hourly(self) -> Regimes:
        per = PER_UNIT[self.unit]
        return Regimes(self.medium_from / per, self.high_from / per)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All parameters of a decision. Exposures are shares of the wealth; stream/core/deciding/policy_file.py checks
    them."""

    name: str = "target-40"
    #: Which forecast it acts on.
    forecast: Source = "model"
    target_volatility_annualized: float = 0.40
    max_exposure: float = 1.0
    allow_leverage: bool = False
    #: Exposure does not change by less than this, unless risk-off or the brake forces it down.
    no_trade_band: float = 0.20
    #: After a change exposure does not rise for this long.
    min_hold_hours: int = 12
    #: Half-life of the mean of ln σ. A forecast below that mean is replaced by it: one quiet weekend is not yet calm.
    #: 0: no mean.
    calm_half_life_hours: float = 48.0
    #: How far below its threshold, as a share of it, σ must fall before a regime is left for a lower one.
    regime_hysteresis: float = 0.10
    #: Nothing is held from when the interval's upper end reaches the first until it falls below the second. 0: never.
    risk_off_from_annualized: float = 3.5
    risk_back_below_annualized: float = 2.8
    #: After more than this many hours without a forecast the last decision has expired, and the brake holds for
    #: `brake_hours`.
    stale_after_hours: int = 2
    brake_hours: int = 24
    #: The cap while the brake holds, and on degraded input; no brake if it is `max_exposure` or more.
    brake_max_exposure: float = 0.5
    thresholds: Thresholds | None = None

    @property
    def version(self) -> str:
        """The name and a hash of the content: no two policies share one, and it is part of a decision's id."""
        return _version(self)


@lru_cache(maxsize=256)
def _version(policy: Policy) -> str:
    return f"{policy.name}-{hashlib.sha256(msgspec.json.encode(policy)).hexdigest()[:8]}"


class PolicyMemory(msgspec.Struct, frozen=True):
    """What the policy remembers from one forecast to the next. Hours are counted from the epoch; -1: none yet."""

    exposure: float = 0.0
    #: Index into `REGIMES`.
    regime: int = -1
    off: bool = False
    #: Mean of ln σ, for `calm_half_life_hours`.
    log_calm: float = -math.inf
    forecast_hour: int = -1
    changed_hour: int = -1
    braked_until_hour: int = -1


class Outlook(msgspec.Struct, frozen=True, gc=False):
    """What a policy looks at: σ and the upper end of its interval, hourly, and the missing hours of the last 48."""

    hour: int
    volatility: float
    high: float
    gaps: int


class Reason(msgspec.Struct, frozen=True):
    """A code, and the numbers that led there (docs/messages.md lists them)."""

    code: str
    values: dict[str, float] = {}


class Ruling(msgspec.Struct, frozen=True):
    """The numbers of a decision, before it is given an id and times."""

    policy_version: str
    regime: RegimeName
    exposure: float
    previous_exposure: float
    action: Action
    target_volatility_annualized: float
    reasons: tuple[Reason, ...]


def outlook(policy: Policy, prediction: Prediction, high: float) -> Outlook:
    """Returns what the policy looks at. `high` is the upper end of the interval around `prediction.volatility`; around
    another forecast the interval is as wide, relative to it."""
    sigma: float = getattr(prediction, SOURCES[policy.forecast])
    return Outlook(prediction.open_time // HOUR_MS, sigma, sigma * (high / prediction.volatility), int(prediction.gaps))


def regime(volatility_hourly: float, regimes: Regimes) -> RegimeName:
    return REGIMES[_index(volatility_hourly, regimes)]


def _index(sigma: float, regimes: Regimes) -> int:
    return 2 if sigma >= regimes.high_from else 1 if sigma >= regimes.medium_from else 0


def advance(policy: Policy, regimes: Regimes, memory: PolicyMemory, seen: Outlook) -> PolicyMemory:
    """Returns the memory after a forecast. This is the policy; `decide` only explains it."""
    hour, sigma = seen.hour, seen.volatility
    if policy.thresholds is not None:
        regimes = policy.thresholds.hourly
    index = _index(sigma, regimes)
    if index < memory.regime:
        index = min(memory.regime, _index(sigma / (1 - policy.regime_hysteresis), regimes))
    log_calm = math.log(sigma)
    if policy.calm_half_life_hours > 0 and memory.forecast_hour >= 0:
        kept = 0.5 ** ((hour - memory.forecast_hour) / policy.calm_half_life_hours)
        log_calm += kept * (memory.log_calm - log_calm)
    off = False
    if policy.risk_off_from_annualized > 0:
        limit = policy.risk_back_below_annualized if memory.off else policy.risk_off_from_annualized
        off = seen.high * ANNUAL >= limit
    until = memory.braked_until_hour
    if memory.forecast_hour >= 0 and hour - memory.forecast_hour > policy.stale_after_hours:
        until = hour + policy.brake_hours

    exposure, changed = memory.exposure, memory.changed_hour
    wanted = _wanted(policy, index, sigma, log_calm)
    braked = hour < until or seen.gaps > REPAIRED_GAPS
    if off:
        wanted = 0.0
    elif braked and wanted > policy.brake_max_exposure:
        wanted = policy.brake_max_exposure
    if wanted < exposure:
        forced = off or (braked and exposure > policy.brake_max_exposure)
        move = forced or exposure - wanted >= policy.no_trade_band
    else:
        held = changed < 0 or hour - changed >= policy.min_hold_hours
        move = held and wanted > exposure and wanted - exposure >= policy.no_trade_band
    if move:
        exposure, changed = wanted, hour
    return PolicyMemory(exposure, index, off, log_calm, hour, changed, until)


def _wanted(policy: Policy, index: int, sigma: float, log_calm: float) -> float:
    """Returns the exposure before risk-off, brake, band and holding time."""
    steps = policy.thresholds
    if steps is not None:
        return (steps.low_exposure, steps.medium_exposure, steps.high_exposure)[index]
    return min(policy.max_exposure, policy.target_volatility_annualized / (max(sigma, math.exp(log_calm)) * ANNUAL))


def accumulate(policy: Policy, regimes: Iterable[Regimes], seen: Iterable[Outlook]) -> PolicyMemory:
    """Returns the memory after these outlooks, accumulated from nothing; `regimes` has those of each."""
    memory = PolicyMemory()
    for limits, each in zip(regimes, seen, strict=False):
        memory = advance(policy, limits, memory, each)
    return memory


def decide(policy: Policy, regimes: Regimes, memory: PolicyMemory, seen: Outlook) -> tuple[PolicyMemory, Ruling]:
    """Returns what `advance` does, and a ruling that says why."""
    after = advance(policy, regimes, memory, seen)
    if after.exposure == memory.exposure:
        action: Action = "hold"
    elif after.exposure == 0.0:
        action = "risk_off"
    else:
        action = "increase" if after.exposure > memory.exposure else "reduce"
    return after, Ruling(
        policy_version=policy.version,
        regime=REGIMES[after.regime],
        exposure=after.exposure,
        previous_exposure=memory.exposure,
        action=action,
        target_volatility_annualized=policy.target_volatility_annualized,
        reasons=_reasons(policy, regimes, memory, after, seen),
    )


def _reasons(
    policy: Policy, regimes: Regimes, before: PolicyMemory, after: PolicyMemory, seen: Outlook
) -> tuple[Reason, ...]:
    sigma, annualized = seen.volatility, seen.volatility * ANNUAL
    wanted = _wanted(policy, after.regime, sigma, after.log_calm)
    steps = policy.thresholds
    if steps is not None:
        regimes = steps.hourly
        shown = {"medium_from_hourly": regimes.medium_from, "high_from_hourly": regimes.high_from}
        reasons = [Reason("thresholds", {"forecast_hourly": sigma, **shown, "desired_exposure": wanted})]
    else:
        target = policy.target_volatility_annualized
        values = {"target_annualized": target, "forecast_annualized": annualized, "desired_exposure": wanted}
        reasons = [Reason("volatility_target", values)]
        calm = math.exp(after.log_calm)
        if after.log_calm > math.log(sigma) and target < policy.max_exposure * calm * ANNUAL:
            reasons.append(
                Reason("calm_awaited", {"forecast_annualized": annualized, "mean_annualized": calm * ANNUAL})
            )
        if wanted >= policy.max_exposure:
            reasons.append(Reason("capped", {"max_exposure": policy.max_exposure}))
    reasons += _limits(policy, after, seen, wanted)
    limited = 0.0 if after.off else min(wanted, policy.brake_max_exposure) if _braked(after, seen) else wanted
    if after.exposure == before.exposure != limited:
        change = abs(limited - before.exposure)
        if change < policy.no_trade_band:
            reasons.append(Reason("within_band", {"change": change, "no_trade_band": policy.no_trade_band}))
        else:
            held = {
                "held_hours": float(seen.hour - before.changed_hour),
                "min_hold_hours": float(policy.min_hold_hours),
            }
            reasons.append(Reason("min_hold", held))
    if after.regime > _index(sigma, regimes):
        level = (regimes.medium_from, regimes.high_from)[after.regime - 1] * (1 - policy.regime_hysteresis)
        reasons.append(
            Reason("regime_held", {"forecast_annualized": annualized, "left_below_annualized": level * ANNUAL})
        )
    if seen.gaps:
        quality = "degraded" if seen.gaps > REPAIRED_GAPS else "repaired"
        reasons.append(Reason(f"input_{quality}", {"gaps": float(seen.gaps)}))
    return tuple(reasons)


def _braked(after: PolicyMemory, seen: Outlook) -> bool:
    return seen.hour < after.braked_until_hour or seen.gaps > REPAIRED_GAPS


def _limits(policy: Policy, after: PolicyMemory, seen: Outlook, wanted: float) -> list[Reason]:
    """Returns the reasons that override the target: risk-off and the brake."""
    reasons = []
    if after.off:
        values = {
            "high_annualized": seen.high * ANNUAL,
            "risk_off_from_annualized": policy.risk_off_from_annualized,
            "risk_back_below_annualized": policy.risk_back_below_annualized,
        }
        reasons.append(Reason("risk_off", values))
    elif _braked(after, seen) and wanted > policy.brake_max_exposure:
        if seen.hour < after.braked_until_hour:
            left = float(after.braked_until_hour - seen.hour)
            values = {"hours_left": left, "brake_max_exposure": policy.brake_max_exposure}
            reasons.append(Reason("brake_stale", values))
        if seen.gaps > REPAIRED_GAPS:
            values = {"gaps": float(seen.gaps), "brake_max_exposure": policy.brake_max_exposure}
            reasons.append(Reason("brake_degraded", values))
    return reasons
