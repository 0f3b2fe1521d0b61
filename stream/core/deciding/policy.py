"""The risk policy: makes an exposure of a forecast and the policy's memory. Pure; a policy is data
(stream/policies/*.toml).

Volatility targeting (Harvey et al. 2018): hold target / forecast of the asset, never more than the cap. Around it:
- Adding waits, cutting does not: calm must last (`calm_half_life_hours`) and the last change must be old enough
  (`min_hold_hours`) before exposure rises; a cut must only exceed the band, and a forced one not even that.
- Risk-off looks at the upper end of the interval, and ends at a lower level than it begins at.
- The brake: after a silence in which the last decision expired, and with more than 2 of the last 48 hours missing,
  exposure is capped.
It controls risk; it promises no return. Defaults were chosen on 2019-2023 (docs/decisions/0007 and 0011).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

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


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """All parameters of a decision. Exposures are shares of the wealth; stream/core/deciding/policy_file.py checks
    them."""

    name: str = "target-40"
    #: Which forecast it acts on.
    forecast: Source = "model"
    target_volatility_annualized: float = 0.40
    max_exposure: float = 1.0
    allow_leverage: bool = False
    #: Exposure does not change by less than this share of what is held, unless risk-off or the brake forces it down.
    no_trade_band_of_exposure: float = 0.28
    #: Nor by less than this share of the wealth.
    no_trade_band: float = 0.0
    #: After a change exposure does not rise for this long.
    min_hold_hours: int = 12
    #: Half-life of the mean of ln σ. A forecast below that mean is replaced by it: one quiet weekend is not yet calm.
    #: 0: no mean.
    calm_half_life_hours: float = 24.0
    #: How far below its threshold, as a share of it, σ must fall before a regime is left for a lower one.
    regime_hysteresis: float = 0.10
    #: Nothing is held from when the interval's upper end reaches the first until it falls below the second. 0: never.
    risk_off_from_annualized: float = 3.5
    risk_back_below_annualized: float = 2.8
    #: After more than this many hours without a forecast the last decision has expired, and the brake holds for
    #: `brake_hours`.
    stale_after_hours: int = 2
    brake_hours: int = 24
    #: The cap while the brake holds, and with more than 2 of the last 48 hours missing; no brake if it is
    #: `max_exposure` or more.
    brake_max_exposure: float = 0.5
    thresholds: Thresholds | None = None

    @property
    def version(self) -> str:
        """The name and a hash of the content: no two policies share one, and it is part of a decision's id."""
        return _version(self)


@lru_cache(maxsize=256)
def _version(policy: Policy) -> str:
    fields = msgspec.to_builtins(policy)
    if not policy.no_trade_band_of_exposure:
        # A policy that was written in full before the key existed keeps its version, and its decisions their ids.
        del fields["no_trade_band_of_exposure"]
    return f"{policy.name}-{hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:8]}"


class PolicyMemory(msgspec.Struct, frozen=True, gc=False):
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


class Outlook(NamedTuple):
    """What a policy looks at: σ and the upper end of its interval, hourly, and the missing hours of the last 48."""

    hour: int
    volatility: float
    high: float
    gaps: int


#: An `Outlook`, or a plain tuple of its fields, as columns put side by side give it.
_Seen = tuple[int, float, float, int]


class Reason(msgspec.Struct, frozen=True, gc=False):
    """A code, and the numbers that led there (docs/messages.md lists them)."""

    code: str
    values: dict[str, float] = {}


class Ruling(msgspec.Struct, frozen=True, gc=False):
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


def limits_of(policy: Policy, regimes: Regimes) -> Regimes:
    """Returns the thresholds that the policy's regimes are by: its own, or those of the forecast."""
    return regimes if policy.thresholds is None else policy.thresholds.hourly


def regime(volatility_hourly: float, regimes: Regimes) -> RegimeName:
    return REGIMES[_index(volatility_hourly, regimes)]


def _index(sigma: float, regimes: Regimes) -> int:
    return 2 if sigma >= regimes.high_from else 1 if sigma >= regimes.medium_from else 0


def advance(policy: Policy, regimes: Regimes, memory: PolicyMemory, seen: Outlook) -> PolicyMemory:
    """Returns the memory after a forecast. `decide` explains it."""
    return _lived(policy, memory, (regimes,), (seen,), 0)[-1]


def accumulate(policy: Policy, regimes: Iterable[Regimes], seen: Sequence[_Seen], shown: int = 0) -> list[PolicyMemory]:
    """Returns the memories of the last `shown` of these outlooks, accumulated from nothing: the one before the first of
    them, and the one after each. `regimes` has those of each outlook."""
    return _lived(policy, PolicyMemory(), regimes, seen, len(seen) - shown)


def _lived(
    policy: Policy, memory: PolicyMemory, regimes: Iterable[Regimes], outlooks: Iterable[_Seen], silent: int
) -> list[PolicyMemory]:
    """Returns the memory after the first `silent` of these outlooks, and after each that follows. This is the policy;
    years of hours pass here, so it is one plain loop over local variables."""
    steps, target, cap = policy.thresholds, policy.target_volatility_annualized, policy.max_exposure
    half_life, calmer = policy.calm_half_life_hours, 1 - policy.regime_hysteresis
    from_annualized, below_annualized = policy.risk_off_from_annualized, policy.risk_back_below_annualized
    band_of_wealth, band_of_exposure = policy.no_trade_band, policy.no_trade_band_of_exposure
    stale_after, min_hold, brake_most = policy.stale_after_hours, policy.min_hold_hours, policy.brake_max_exposure
    exposures = (steps.low_exposure, steps.medium_exposure, steps.high_exposure) if steps is not None else None
    own = steps.hourly if steps is not None else None
    kept_an_hour = 0.5 ** (1 / half_life) if half_life > 0 else 0.0
    exposure, regime, off, log_calm = memory.exposure, memory.regime, memory.off, memory.log_calm
    last, changed, until = memory.forecast_hour, memory.changed_hour, memory.braked_until_hour
    log, exp, annual = math.log, math.exp, ANNUAL
    found = []
    for k, (limits, (hour, sigma, high, gaps)) in enumerate(zip(regimes, outlooks, strict=False)):
        if k >= silent:
            found.append(PolicyMemory(exposure, regime, off, log_calm, last, changed, until))
        thresholds = limits if own is None else own
        index = 2 if sigma >= thresholds.high_from else 1 if sigma >= thresholds.medium_from else 0
        if index < regime:
            index = min(regime, _index(sigma / calmer, thresholds))
        log_before, log_calm = log_calm, log(sigma)
        if last >= 0:
            passed = hour - last
            if half_life > 0:
                kept = kept_an_hour if passed == 1 else 0.5 ** (passed / half_life)
                log_calm += kept * (log_before - log_calm)
            if passed > stale_after:
                until = hour + policy.brake_hours
        off = from_annualized > 0 and high * annual >= (below_annualized if off else from_annualized)
        if exposures is None:
            calm = exp(log_calm)
            wanted = target / ((calm if calm > sigma else sigma) * annual)
            if not wanted < cap:
                wanted = cap
        else:
            wanted = exposures[index]
        braked = hour < until or gaps > REPAIRED_GAPS
        if off:
            wanted = 0.0
        elif braked and wanted > brake_most:
            wanted = brake_most
        if wanted != exposure:
            band = band_of_exposure * exposure
            if not band > band_of_wealth:
                band = band_of_wealth
            if wanted < exposure:
                move = off or (braked and exposure > brake_most) or exposure - wanted >= band
            else:
                move = (changed < 0 or hour - changed >= min_hold) and wanted - exposure >= band
            if move:
                exposure, changed = wanted, hour
        regime, last = index, hour
    found.append(PolicyMemory(exposure, regime, off, log_calm, last, changed, until))
    return found


def _band(policy: Policy, exposure: float) -> float:
    """Returns the least change, as a share of the wealth, while that much is held."""
    return max(policy.no_trade_band, policy.no_trade_band_of_exposure * exposure)


def _wanted(policy: Policy, index: int, sigma: float, log_calm: float) -> float:
    """Returns the exposure before risk-off, brake, band and holding time."""
    steps = policy.thresholds
    if steps is not None:
        return (steps.low_exposure, steps.medium_exposure, steps.high_exposure)[index]
    return min(policy.max_exposure, policy.target_volatility_annualized / (max(sigma, math.exp(log_calm)) * ANNUAL))


def decide(policy: Policy, regimes: Regimes, memory: PolicyMemory, seen: Outlook) -> tuple[PolicyMemory, Ruling]:
    """Returns what `advance` does, and a ruling that says why."""
    after = advance(policy, regimes, memory, seen)
    return after, ruling(policy, regimes, memory, after, seen)


def ruling(policy: Policy, regimes: Regimes, before: PolicyMemory, after: PolicyMemory, seen: Outlook) -> Ruling:
    """Returns the numbers of the decision that led from one memory to the next, and why."""
    return Ruling(
        policy_version=policy.version,
        regime=REGIMES[after.regime],
        exposure=after.exposure,
        previous_exposure=before.exposure,
        action=action(before, after),
        target_volatility_annualized=policy.target_volatility_annualized,
        reasons=_reasons(policy, regimes, before, after, seen),
    )


def action(before: PolicyMemory, after: PolicyMemory) -> Action:
    """Returns what a decision does to the exposure."""
    if after.exposure == before.exposure:
        return "hold"
    if after.exposure == 0.0:
        return "risk_off"
    return "increase" if after.exposure > before.exposure else "reduce"


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
        band = _band(policy, before.exposure)
        if change < band:
            reasons.append(Reason("within_band", {"change": change, "no_trade_band": band}))
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
