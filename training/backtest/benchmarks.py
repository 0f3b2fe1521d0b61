"""The benchmarks of a backtest, each as strong as it honestly is, and one that knows the future.

- Buy and hold; a constant weight with the same mean exposure, which takes no forecast at all.
- The same policy on persistence, on EWMA and on `har`: they show what the model's forecast adds.
- The reference project's rule as a policy, executed as all others; and its figures as that project computes them.
- The oracle: the same policy on the realized volatility. Nobody can have it; it bounds what forecasts can achieve.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.deciding import policy as risk
from stream.core.deciding.policy import Policy, Source
from stream.core.forecasting.contract import Regimes
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS

BUY_AND_HOLD = "buy and hold"
ORACLE = "oracle"
REFERENCE_FIGURES = ("avg_return", "volatility", "max_drawdown", "risk_off_rate")
_LEAST_RETURNS = 2
RIVALS: tuple[Source, ...] = ("persistence", "ewma", "har")


def rivals(policy: Policy) -> tuple[Policy, ...]:
    """Returns the same policy on each other forecast."""
    return tuple(
        msgspec.structs.replace(policy, name=f"{policy.name} on {source}", forecast=source)
        for source in RIVALS
        if source != policy.forecast
    )


def constant(weight: float, decided: Array) -> Array:
    """Returns one exposure wherever something was decided, NaN elsewhere, [n]."""
    return np.where(np.isfinite(decided), weight, np.nan)


def oracle(policy: Policy, regimes: Regimes, open_time: NDArray[np.int64], next_24h: Array) -> Array:
    """Computes the exposures of the policy on the outcomes `next_24h`, [n]; NaN where the outcome is not known."""
    memory, out = risk.PolicyMemory(), np.full(len(open_time), np.nan)
    for t, sigma in enumerate(next_24h.tolist()):
        if sigma == sigma:
            seen = risk.Outlook(int(open_time[t]) // HOUR_MS, sigma, sigma, 0)
            memory = risk.advance(policy, regimes, memory, seen)
            out[t] = memory.exposure
    return out


def published(closes: Array, realized_24h: Array, steps: risk.Thresholds) -> dict[str, float | None]:
    """Computes the reference project's evaluation as it is: the volatility of an hour is the forecast for that same
    hour's return, log returns are added up, no fees. [n] each; hours without a return are left out."""
    returns = np.diff(np.log(closes), prepend=np.nan)
    known = np.isfinite(returns) & np.isfinite(realized_24h)
    held = exposures(realized_24h[known], steps)
    earned = held * returns[known]
    return reference_figures(earned, held)


def exposures(sigma: Array, steps: risk.Thresholds) -> Array:
    """Returns the exposure of each hourly σ, without a memory."""
    levels = steps.hourly
    index = np.searchsorted([levels.medium_from, levels.high_from], sigma, side="right")
    return np.array([steps.low_exposure, steps.medium_exposure, steps.high_exposure])[index]


def reference_figures(returns: Array, held: Array) -> dict[str, float | None]:
    """Computes the reference project's four figures by its formulas: hourly mean and std, drawdown of the sum.

    All are None where there are fewer than two returns.
    """
    if len(returns) < _LEAST_RETURNS:
        return dict.fromkeys(REFERENCE_FIGURES)
    total = np.cumsum(returns)
    return {
        "avg_return": float(returns.mean()),
        "volatility": float(returns.std(ddof=1)),
        "max_drawdown": float((np.maximum.accumulate(total) - total).max()),
        "risk_off_rate": float((held == 0).mean()),
    }


def unique(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Returns each policy once, by name; raises `ValueError` where two that differ share a name."""
    by_name: dict[str, Policy] = {}
    for policy in policies:
        if by_name.setdefault(policy.name, policy) != policy:
            raise ValueError(f"two different policies are called {policy.name!r}: rename one")
    return tuple(by_name.values())
