"""The one definition of the target: realized volatility of coming hours, as training labels and as outcomes to score.

The headline is the standard deviation (ddof 1) of the next 24 hourly log returns: none of them is known, so
nothing overlaps. `rolling_24h_next` is the reference project's quantity, of which 23 of 24 returns are known.
A label that touches a missing hour is NaN: it is neither trained on nor scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.core.forecasting.features import SIGMA_FLOOR, Features
from stream.core.forecasting.windows import Array, Trailing

HORIZON_HOURS = (1, 6, 12, 24)
_RETURNS_24H = 24
#: |x| of an hourly return in units of its expected root mean square: the means of the eight octiles of Student's t
#: with four degrees of freedom, scaled to a variance of 1.
_COMING_RETURN = (0.0591, 0.1794, 0.3065, 0.4469, 0.6110, 0.8203, 1.1348, 2.0989)
_COMING_RETURNS = np.array([sign * size for size in _COMING_RETURN for sign in (1, -1)])


@dataclass(frozen=True, slots=True)
class Targets:
    """Labels of each row's future, hourly σ, [T]; NaN where it is incomplete."""

    next_24h: Array
    mean_square: dict[int, Array]
    rolling_24h_next: Array


def _ahead(x: Array, rows: int) -> Array:
    out = np.full_like(x, np.nan)
    if rows < x.shape[-1]:
        out[..., :-rows] = x[..., rows:]
    return out


def labels(close: Array) -> Targets:
    """Returns the targets of every row of an hourly grid of closes ([..., T], NaN where an hour has no candle)."""
    r = np.full_like(close, np.nan)
    r[..., 1:] = np.diff(np.log(close), axis=-1)
    exists = np.isfinite(r)
    r0 = np.where(exists, r, 0.0)
    total, squares, count = Trailing(r0), Trailing(r0 * r0), Trailing(exists.astype(np.float64))

    def complete(value: Array, rows: int) -> Array:
        return np.where(count.sum(rows) == rows, value, np.nan)

    variance = (squares.sum(24) - total.sum(24) ** 2 / 24) / 23
    sigma = complete(np.sqrt(np.maximum(variance, SIGMA_FLOOR**2)), 24)
    return Targets(
        next_24h=_ahead(sigma, 24),
        mean_square={h: _ahead(complete(np.maximum(squares.sum(h) / h, SIGMA_FLOOR**2), h), h) for h in HORIZON_HOURS},
        rolling_24h_next=_ahead(sigma, 1),
    )


def realized(close: Array) -> float:
    """Returns σ (ddof 1) of the 24 hourly log returns between 25 closes: the outcome of a forecast made at the first of
    them. NaN if a close is missing."""
    r = np.diff(np.log(close))
    apart = r - r.sum() / len(r)
    # Not floored by max(): that would turn a missing hour into the floor.
    sigma = float(np.sqrt((apart * apart).sum() / (len(r) - 1)))
    return SIGMA_FLOOR if sigma < SIGMA_FLOOR else sigma


def realized_hours(close: Array) -> Array:
    """Returns `realized` at each hour of a grid of closes [T] (NaN where an hour has no candle): [T], NaN where one of
    the 25 closes that end with it is missing."""
    out = np.full(len(close), np.nan)
    if len(close) > _RETURNS_24H:
        windows = np.lib.stride_tricks.sliding_window_view(np.log(close), _RETURNS_24H + 1)
        r = np.diff(windows, axis=1)
        apart = r - (r.sum(axis=1) / _RETURNS_24H)[:, None]
        sigma = np.sqrt((apart * apart).sum(axis=1) / (_RETURNS_24H - 1))
        # Not floored by max(): that would turn a missing hour into the floor.
        out[_RETURNS_24H:] = np.where(sigma < SIGMA_FLOOR, SIGMA_FLOOR, sigma)
    return out


def rolling_24h_next(features: Features, rows: slice | NDArray[np.int64], sigma_1h: Array) -> Array:
    """Returns the forecast of the rolling 24 h std one hour from now: 23 returns are known, one is forecast.

    With S = Σr and Q = Σr² of the n known returns, a coming return x makes the sample variance
    (Q + x² - (S + x)² / (n + 1)) / n. Its root is averaged over x = ±`_COMING_RETURN` × `sigma_1h`: the root of
    the average would lie above the expected root, for a fat-tailed return by about a percent of RMSE.
    """
    n = features.known_count[..., rows].astype(np.float64)
    return _one_on(features.known_sum[..., rows], features.known_squares[..., rows], n, sigma_1h)


def rolling_of_closes(closes: Array, sigma_1h: float) -> float:
    """Returns the same for one symbol now, from the closes of the last 24 hours, NaN where one is missing."""
    r = np.diff(np.log(closes))
    r = r[np.isfinite(r)]
    return float(_one_on(r.sum(), (r * r).sum(), np.asarray(float(len(r))), np.array([sigma_1h]))[0])


def _one_on(total: Array, squares: Array, n: Array, sigma_1h: Array) -> Array:
    moves = _COMING_RETURNS[:, None] * sigma_1h
    variance = (squares + moves * moves - (total + moves) ** 2 / (n + 1)) / np.maximum(n, 1.0)
    roots = np.sqrt(np.maximum(variance, SIGMA_FLOOR**2))
    # accumulate, not sum: one row is then added up in the same order as that row among many.
    return np.asarray(np.add.accumulate(roots, axis=0)[-1] / len(_COMING_RETURNS))
