"""Fitting of log-HAR (Corsi 2009, in logarithms): with calendar for the bundle, plain for comparison.

What it computes at run time is stream/core/baselines.py; persistence and EWMA are features and need no fit.
"""

from __future__ import annotations

import msgspec
import numpy as np

from stream.core import baselines
from stream.core.baselines import HAR_CALENDAR, HAR_LEVELS
from stream.core.contract import Har
from training.dataset import Dataset, Fold, Rows
from training.linear import fit_log, mean_ratio

PLAIN = HAR_LEVELS
WITH_CALENDAR = (*HAR_LEVELS, *HAR_CALENDAR)
#: Least squares; the ridge only keeps constant columns of short ranges solvable.
_RIDGE = 1e-6


def fit(data: Dataset, rows: Rows, folds: tuple[Fold, ...], names: tuple[str, ...]) -> Har:
    """log-HAR on `rows`, its retransform fitted out of fold."""
    realized, forecast = [], []
    for fold in folds:
        held_out = data.rows(fold.split, fold.end)
        realized.append(data.labels[held_out, 0])
        forecast.append(
            baselines.har(data.features.static[held_out], _plain_fit(data, data.rows(fold.start, fold.split), names))
        )
    factor = mean_ratio(np.concatenate(realized), np.concatenate(forecast))
    return msgspec.structs.replace(_plain_fit(data, rows, names), retransform=factor)


def _plain_fit(data: Dataset, rows: Rows, names: tuple[str, ...]) -> Har:
    x = baselines.har_inputs(data.features.static[rows], names)
    weights, intercept = fit_log(x, data.labels[rows, 0], ridge=_RIDGE)
    return Har(names, tuple(weights.tolist()), intercept, retransform=1.0)
