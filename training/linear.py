"""Linear models of log volatility in closed form or by Newton's method: what the network starts from.

The expected σ is fitted by least squares on log σ. The horizons' σ are roots of an expected mean square, so they
are fitted by QLIKE, the loss that has that expectation as its optimum (Patton 2011): a Gamma-type model with
logarithmic link, minimised by Fisher scoring. A small ridge on standardised columns settles collinear calendars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream.core.features import STATIC_NAMES
from stream.core.windows import Array
from training.dataset import Dataset, Fold, Rows

#: Chosen by walk-forward over 2021-2023 (docs/decisions): less lets two years' accidents into the coefficients.
RIDGE = 0.05
#: The last week's return took a coefficient in 2019-2020 that every later year contradicts.
_LEFT_OUT = ("return_168h",)
_USED = [i for i, name in enumerate(STATIC_NAMES) if name not in _LEFT_OUT]
_STEPS = 50
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Linear:
    """log σ = x · weights + bias; one column of `weights` [S, outputs] per output."""

    weights: Array
    bias: Array

    def log_sigma(self, x: Array) -> Array:
        """[n, outputs], natural logarithm of the hourly σ."""
        out: Array = x @ self.weights + self.bias
        return out


def fit(data: Dataset, rows: Rows) -> Linear:
    """The linear part of the network, fitted on `rows`."""
    x, labels = data.features.static[rows][:, _USED].astype(np.float64), data.labels[rows]
    columns = [fit_log(x, labels[:, 0], ridge=RIDGE)]
    columns += [fit_qlike(x, labels[:, k], ridge=RIDGE) for k in range(1, labels.shape[1])]
    weights = np.zeros((len(STATIC_NAMES), labels.shape[1]))
    weights[_USED] = np.stack([w for w, _ in columns], axis=-1)
    return Linear(weights, np.array([b for _, b in columns]))


def _standardised(x: Array) -> tuple[Array, Array, Array]:
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    return (x - mean) / scale, mean, scale


def _unstandardised(beta: Array, intercept: float, mean: Array, scale: Array) -> tuple[Array, float]:
    weights = beta / scale
    return weights, float(intercept - mean @ weights)


def fit_log(x: Array, sigma: Array, *, ridge: float) -> tuple[Array, float]:
    """Weights and intercept of log σ by least squares; rows whose σ is NaN are left out."""
    known = np.isfinite(sigma)
    z, mean, scale = _standardised(x[known])
    y = np.log(sigma[known])
    gram = z.T @ z / len(z) + ridge * np.eye(z.shape[1])
    beta = np.linalg.solve(gram, z.T @ (y - y.mean()) / len(z))
    return _unstandardised(beta, float(y.mean()), mean, scale)


def fit_qlike(x: Array, sigma: Array, *, ridge: float) -> tuple[Array, float]:
    """Weights and intercept of log √E[σ²] by QLIKE; rows whose σ is NaN are left out."""
    known = np.isfinite(sigma)
    z, mean, scale = _standardised(x[known])
    z = np.column_stack([z, np.ones(len(z))])
    square = sigma[known] ** 2
    penalty = np.diag([ridge] * (z.shape[1] - 1) + [0.0])
    gram = z.T @ z / len(z) + penalty
    beta = np.zeros(z.shape[1])
    beta[-1] = np.log(square.mean())
    loss = _qlike_objective(z, square, beta, penalty)
    for _ in range(_STEPS):
        surprise = square * np.exp(-np.clip(z @ beta, -25.0, 0.0)) - 1.0
        move = np.linalg.solve(gram, z.T @ surprise / len(z) - penalty @ beta)
        step = 1.0
        # Scoring can overshoot where squares are heavy-tailed; half a step always exists that does not.
        while (after := _qlike_objective(z, square, beta + step * move, penalty)) > loss and step > 1e-4:
            step /= 2
        if loss - after < _TOLERANCE:
            break
        beta, loss = beta + step * move, after
    # The linear predictor is of log σ²; half of it is log σ.
    return _unstandardised(beta[:-1] / 2, float(beta[-1]) / 2, mean, scale)


def _qlike_objective(z: Array, square: Array, beta: Array, penalty: Array) -> float:
    log_variance = np.clip(z @ beta, -25.0, 0.0)
    return float(np.mean(square * np.exp(-log_variance) + log_variance) + beta @ penalty @ beta / 2)


def forecast_next_24h(data: Dataset, rows: Rows, folds: tuple[Fold, ...], ahead: Rows) -> Array:
    """σ of the next 24 h for the rows `ahead` from the linear part alone, its retransform fitted out of fold."""
    realized, forecast = [], []
    for fold in folds:
        held_out = data.rows(fold.split, fold.end)
        realized.append(data.labels[held_out, 0])
        forecast.append(_sigma(fit(data, data.rows(fold.start, fold.split)), data, held_out))
    return _sigma(fit(data, rows), data, ahead) * mean_ratio(np.concatenate(realized), np.concatenate(forecast))


def mean_ratio(realized: Array, forecast: Array) -> float:
    """Mean of realized over mean of forecast where realized is known: what makes a forecast right on average."""
    known = np.isfinite(realized)
    return float(realized[known].mean() / forecast[known].mean())


def _sigma(model: Linear, data: Dataset, rows: Rows) -> Array:
    out: Array = np.exp(model.log_sigma(data.features.static[rows].astype(np.float64))[:, 0])
    return out
