"""Linear models of log volatility, fitted in closed form or by Fisher scoring: the base that the network starts from.

The expected σ is fitted by least squares on log σ. The horizons' σ are roots of an expected mean square, so they
are fitted by QLIKE, the loss that has that expectation as its optimum (Patton 2011): a Gamma-type model with
logarithmic link, minimised by Fisher scoring. A ridge on standardised columns copes with collinear calendar columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.features import STATIC_NAMES
from stream.core.forecasting.windows import Array
from training.data.dataset import DatasetError
from training.data.sample import Sample

#: Chosen by walk-forward over 2021-2023 (docs/decisions): a smaller one fits the accidents of two years.
RIDGE = 0.1
#: The 30-day level keeps the smaller ridge: shrunk to its mean, it forecasts too much in every calm year.
LEVEL_RIDGE = 0.05
_LEVEL = STATIC_NAMES.index("log_sigma_720h")
#: Left out because every later year contradicts the coefficient that the last week's return has in 2019-2020.
_LEFT_OUT = ("return_168h",)
#: Seasons of fewer hours than a day are for the horizons; to the next 24 h, which have their own, they only add noise.
_HORIZONS_ONLY = tuple(STATIC_NAMES.index(f"log_range_season_{hours}h") for hours in (3, 12))
_USED = [i for i, name in enumerate(STATIC_NAMES) if name not in _LEFT_OUT]
#: Products of columns that the base has besides: the sum of some columns, times another and what is added to that.
#: How quiet a weekend is depends on the volatility before it, and how much the week's rhythm matters on the level.
WEEKEND = ("next_24h_sat", "next_24h_sun")
PRODUCTS: tuple[tuple[tuple[str, ...], str, float], ...] = (
    (WEEKEND, "log_sigma_720h", 0.0),
    (WEEKEND, "log_range_24h", 0.0),
    (WEEKEND, "log_range_3h", 0.0),
    (("log_range_season_24h",), "log_sigma_720h", 5.0),
)
_STEPS = 50
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Linear:
    """log σ = x · weights + bias of `expanded` inputs; one column of `weights` [inputs, outputs] per output."""

    weights: Array
    bias: Array

    def log_sigma(self, static: NDArray[np.float32]) -> Array:
        """Returns the natural logarithm of the hourly σ, [n, outputs], of static inputs [n, S]."""
        out: Array = expanded(static) @ self.weights + self.bias
        return out


def factors() -> tuple[Array, Array, Array]:
    """Returns what makes `PRODUCTS` of static inputs x [n, S]: (x @ first) * (x @ second + added), with matrices [S, P]
    and a row [P]."""
    first, second = (np.zeros((len(STATIC_NAMES), len(PRODUCTS))) for _ in range(2))
    for k, (names, other, _) in enumerate(PRODUCTS):
        first[[STATIC_NAMES.index(name) for name in names], k] = 1.0
        second[STATIC_NAMES.index(other), k] = 1.0
    return first, second, np.array([added for _, _, added in PRODUCTS])


def expanded(static: NDArray[np.float32]) -> Array:
    """Appends the products to static inputs [n, S]: [n, S + P]."""
    x = static.astype(np.float64)
    first, second, added = factors()
    return np.concatenate([x, (x @ first) * (x @ second + added)], axis=-1)


def fit_base(sample: Sample) -> Linear:
    """Fits the model's linear part, on `expanded` inputs."""
    used = [*_USED, *range(len(STATIC_NAMES), len(STATIC_NAMES) + len(PRODUCTS))]
    ridge = np.full(len(used), RIDGE)
    ridge[used.index(_LEVEL)] = LEVEL_RIDGE
    return _fit(expanded(sample.static), sample.labels, used, ridge, sample.weight)


def _fit(x: Array, labels: Array, used: list[int], ridge: Array, weight: Array) -> Linear:
    weights, bias = np.zeros((x.shape[1], labels.shape[1])), np.zeros(labels.shape[1])
    for k in range(labels.shape[1]):
        chosen = [i for i, column in enumerate(used) if k or column not in _HORIZONS_ONLY]
        columns = [used[i] for i in chosen]
        fit_output = fit_qlike if k else fit_log
        weights[columns, k], bias[k] = fit_output(x[:, columns], labels[:, k], ridge=ridge[chosen], weight=weight)
    return Linear(weights, bias)


def _standardised(x: Array, share: Array) -> tuple[Array, Array, Array]:
    mean = share @ x
    scale: Array = np.maximum(np.sqrt(share @ (x - mean) ** 2), 1e-9)
    return (x - mean) / scale, mean, scale


def _unstandardised(beta: Array, intercept: float, mean: Array, scale: Array) -> tuple[Array, float]:
    weights = beta / scale
    return weights, float(intercept - mean @ weights)


def _shares(weight: Array | None, known: NDArray[np.bool_]) -> Array:
    _require_known(known)
    weight = np.ones(known.sum()) if weight is None else weight[known]
    share: Array = weight / weight.sum()
    return share


def fit_log(x: Array, sigma: Array, *, ridge: float | Array, weight: Array | None = None) -> tuple[Array, float]:
    """Fits weights and intercept of log σ by least squares; rows whose σ is NaN are left out.

    `ridge` is one number or one per column; without `weight` [n] every row weighs the same. Raises `DatasetError` where
    no σ is known.
    """
    known = np.isfinite(sigma)
    share = _shares(weight, known)
    z, mean, scale = _standardised(x[known], share)
    y = np.log(sigma[known])
    centre = float(share @ y)
    weighted = z.T * share
    gram = weighted @ z + np.diag(np.broadcast_to(ridge, z.shape[1]))
    beta = np.linalg.solve(gram, weighted @ (y - centre)).astype(np.float64)
    return _unstandardised(beta, centre, mean, scale)


def fit_qlike(x: Array, sigma: Array, *, ridge: float | Array, weight: Array | None = None) -> tuple[Array, float]:
    """Fits weights and intercept of log √E[σ²] by QLIKE; all else is as in `fit_log`."""
    known = np.isfinite(sigma)
    share = _shares(weight, known)
    z, mean, scale = _standardised(x[known], share)
    penalty = np.diag([*np.broadcast_to(ridge, z.shape[1]), 0.0])
    z = np.column_stack([z, np.ones(len(z))])
    square = sigma[known] ** 2
    gram = (z.T * share) @ z + penalty
    beta = np.zeros(z.shape[1])
    beta[-1] = np.log(share @ square)
    loss = _qlike_objective(z, square, share, beta, penalty)
    for _ in range(_STEPS):
        surprise = square * np.exp(-np.clip(z @ beta, -25.0, 0.0)) - 1.0
        move = np.linalg.solve(gram, z.T @ (share * surprise) - penalty @ beta)
        step = 1.0
        # Fisher scoring can overshoot where squares are heavy-tailed; halved often enough, a step does not.
        while (after := _qlike_objective(z, square, share, beta + step * move, penalty)) > loss and step > 1e-4:
            step /= 2
        if loss - after < _TOLERANCE:
            break
        beta, loss = beta + step * move, after
    # The linear predictor is of log σ²; half of it is log σ.
    return _unstandardised(beta[:-1] / 2, float(beta[-1]) / 2, mean, scale)


def _qlike_objective(z: Array, square: Array, share: Array, beta: Array, penalty: Array) -> float:
    log_variance = np.clip(z @ beta, -25.0, 0.0)
    return float(share @ (square * np.exp(-log_variance) + log_variance) + beta @ penalty @ beta / 2)


def mean_ratio(realized: Array, forecast: Array) -> float:
    """Returns mean realized over mean forecast where realized is known: the factor that makes a forecast right on
    average. Raises `DatasetError` where no realized value is known."""
    known = np.isfinite(realized)
    _require_known(known)
    return float(realized[known].mean() / forecast[known].mean())


def _require_known(known: NDArray[np.bool_]) -> None:
    if not known.any():
        raise DatasetError(
            "no hour of a part of the range that is learnt from has a known outcome: too many candles are missing; "
            "choose another range or fetch more"
        )
