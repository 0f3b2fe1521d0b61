"""GARCH(1,1) with Student-t returns (Bollerslev 1986, 1987) on hourly returns, fitted by the library arch.

h(t+1) = ω + α r(t)² + β h(t). The parameters are fitted once, on at most the last two years of the range, and stay;
h is then filtered over the whole file. The expected h of the hours to come follows by h(k+1) = ω + (α + β) h(k).
A missing return enters with its expected square. The means of the path are scaled to E[σ] and to the horizons' σ by
factors from the same range: hourly returns have heavier tails than the model's forecasts allow for.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from stream.core.forecasting.features import SIGMA_FLOOR
from stream.core.forecasting.target import HORIZON_HOURS
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from training.data.dataset import Dataset, require_rows
from training.forecasters.forecaster import Fitted, of_outputs, qlike_factors
from training.models.linear import mean_ratio

FIT_HOURS = 2 * 365 * 24
#: arch's optimiser needs returns of the order of 1, so they are in per cent.
_PER_CENT = 100.0


@dataclass(frozen=True, slots=True)
class Parameters:
    """GARCH parameters for returns in per cent. `start`: h of the first hour of a file, the mean square of the fitted
    returns."""

    omega: float
    alpha: float
    beta: float
    start: float


@dataclass(frozen=True, slots=True)
class GarchT:
    name: str = "garch_t"
    needs: tuple[str, ...] = ("arch",)
    extra: str = "research"

    def fit(self, data: Dataset, start_ms: int, end_ms: int) -> Fitted:
        start_ms = max(start_ms, end_ms - FIT_HOURS * HOUR_MS)
        rows = require_rows(data, start_ms, end_ms)
        inside = (data.open_time >= start_ms) & (data.open_time < end_ms)
        returns = _returns(data)[inside]
        parameters, notes = fit_parameters(returns[np.isfinite(returns)])
        realized, sigma = data.labels[rows], _path(data, parameters)[rows]
        factors = np.concatenate([[mean_ratio(realized[:, 0], sigma[:, 0])], qlike_factors(realized, sigma)[1:]])
        return Fitted(lambda d, r: of_outputs(d, r, _path(d, parameters)[r] * factors), notes)


def fit_parameters(returns: Array) -> tuple[Parameters, tuple[str, ...]]:
    """Fits by maximum likelihood on returns in per cent; returns the parameters, and a note where the optimiser did not
    converge."""
    from arch import arch_model

    model = arch_model(returns, mean="Zero", vol="GARCH", p=1, q=1, dist="t", rescale=False)
    with warnings.catch_warnings():
        # All that the optimiser warns of is in its convergence flag, which becomes a note.
        warnings.simplefilter("ignore")
        result = model.fit(disp="off", show_warning=False)
    omega, alpha, beta = (float(result.params[name]) for name in ("omega", "alpha[1]", "beta[1]"))
    notes: tuple[str, ...] = ()
    if result.convergence_flag != 0:
        cause = str(result.optimization_result.message).strip().splitlines()[0]
        notes = (f"garch_t did not converge ({cause}) on {len(returns):,} returns: its forecasts use the last step",)
    return Parameters(omega, alpha, beta, start=float(np.mean(returns**2))), notes


def variance_next_hour(returns: Array, p: Parameters) -> Array:
    """Computes h of the hour after each return, [T], per cent²; a NaN return enters with its expected square."""
    out = np.empty(len(returns))
    h = p.start
    for t, square in enumerate((returns * returns).tolist()):
        h = p.omega + (p.alpha * square if square == square else p.alpha * h) + p.beta * h
        out[t] = h
    return out


def _path(data: Dataset, p: Parameters) -> Array:
    """Computes σ [T, 5] in the order of the network's outputs: √ of mean expected h over 24 h and over each horizon."""
    h = variance_next_hour(_returns(data), p)
    total, means = np.zeros_like(h), {}
    for k in range(1, max(HORIZON_HOURS) + 1):
        total += h
        h = p.omega + (p.alpha + p.beta) * h
        means[k] = total / k
    columns = [means[24], *(means[hours] for hours in HORIZON_HOURS)]
    return np.maximum(np.sqrt(np.stack(columns, axis=-1)) / _PER_CENT, SIGMA_FLOOR)


def _returns(data: Dataset) -> Array:
    """Computes hourly log returns in per cent, up to the close of each row's candle, [T]; NaN where there is none."""
    out = np.full(len(data.open_time), np.nan)
    out[1:] = _PER_CENT * np.diff(np.log(data.ohlcv[:, 3]))
    return out
