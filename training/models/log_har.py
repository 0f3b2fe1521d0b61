"""Fitting of log-HAR (Corsi 2009, in logarithms): with calendar for the bundle, plain for comparison.

What it computes at run time is stream/core/forecasting/baselines.py; persistence and EWMA are features and need no fit.
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
    """log-HAR on `rows`, its retransform fitted out of fold."""
    return fit_unseen(data, rows, folds, names)[0]


def fit_unseen(
    data: Dataset, rows: Rows, folds: tuple[Fold, ...], names: tuple[str, ...]
) -> tuple[Har, tuple[Rows, Array]]:
    """`fit`, and what it said out of fold: the rows of all folds' held-out parts and σ [n] for them, hourly."""
    held_out, forecast = [], []
    for fold in folds:
        learnt, asked = data.rows(fold.start, fold.split), data.rows(fold.split, fold.end)
        if not all(np.isfinite(data.labels[part, 0]).any() for part in (learnt, asked)):
            continue  # what learnt from nothing says is no forecast
        held_out.append(asked)
        before = _plain_fit(data, learnt, names)
        forecast.append(baselines.har(data.features.static[held_out[-1]], before))
    whole = _plain_fit(data, rows, names)
    if not held_out:
        # A range that is mostly missing has no fold to be held out: its own rows are better than a fit on none.
        held_out, forecast = [rows], [baselines.har(data.features.static[rows], whole)]
    unseen, sigma = np.concatenate(held_out), np.concatenate(forecast)
    factor = mean_ratio(data.labels[unseen, 0], sigma)
    return msgspec.structs.replace(whole, retransform=factor), (unseen, sigma * factor)


def _plain_fit(data: Dataset, rows: Rows, names: tuple[str, ...]) -> Har:
    x = baselines.har_inputs(data.features.static[rows], names)
    weights, intercept = fit_log(x, data.labels[rows, 0], ridge=_RIDGE)
    return Har(names, tuple(weights.tolist()), intercept, retransform=1.0)
