"""Fits log-HAR (Corsi 2009, in logarithms): with calendar for the bundle, plain for comparison.

stream/core/forecasting/baselines.py computes its forecasts; persistence and EWMA are features and need no fit.
"""

from __future__ import annotations

import msgspec
import numpy as np

from stream.core.forecasting import baselines
from stream.core.forecasting.baselines import HAR_CALENDAR, HAR_LEVELS
from stream.core.forecasting.contract import Har
from stream.core.forecasting.windows import Array
from training.data.dataset import Dataset, Fold, Rows
from training.models.linear import fit_log, mean_ratio

PLAIN = HAR_LEVELS
WITH_CALENDAR = (*HAR_LEVELS, *HAR_CALENDAR)
#: Least squares; the ridge only keeps constant columns of short ranges solvable.
_RIDGE = 1e-6


def fit(data: Dataset, rows: Rows, folds: tuple[Fold, ...], names: tuple[str, ...]) -> Har:
    """Fits log-HAR on `rows`, its retransform on out-of-fold forecasts."""
    return fit_unseen(data, rows, folds, names)[0]


def fit_unseen(
    data: Dataset, rows: Rows, folds: tuple[Fold, ...], names: tuple[str, ...]
) -> tuple[Har, tuple[Rows, Array]]:
    """Does what `fit` does, and returns the out-of-fold forecasts too: the rows of all validation folds, and hourly
    σ [n] for them."""
    held_out, forecast = [], []
    for fold in folds:
        learnt, asked = data.rows(fold.start, fold.split), data.rows(fold.split, fold.end)
        if not all(np.isfinite(data.labels[part, 0]).any() for part in (learnt, asked)):
            continue  # without known labels a fold can be neither trained on nor scored
        held_out.append(asked)
        before = _plain_fit(data, learnt, names)
        forecast.append(baselines.har(data.features.static[held_out[-1]], before))
    whole = _plain_fit(data, rows, names)
    if not held_out:
        # No fold of a range that is mostly missing can be held out: in-sample forecasts are better than none.
        held_out, forecast = [rows], [baselines.har(data.features.static[rows], whole)]
    unseen, sigma = np.concatenate(held_out), np.concatenate(forecast)
    factor = mean_ratio(data.labels[unseen, 0], sigma)
    return msgspec.structs.replace(whole, retransform=factor), (unseen, sigma * factor)


def _plain_fit(data: Dataset, rows: Rows, names: tuple[str, ...]) -> Har:
    x = baselines.har_inputs(data.features.static[rows], names)
    weights, intercept = fit_log(x, data.labels[rows, 0], ridge=_RIDGE)
    return Har(names, tuple(weights.tolist()), intercept, retransform=1.0)
