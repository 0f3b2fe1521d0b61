"""The usual errors of a sound model, from its out-of-fold forecasts."""

from __future__ import annotations

import numpy as np

from stream.core.forecasting import serving
from stream.core.forecasting.contract import Usual
from stream.core.forecasting.windows import Array
from training.data.dataset import Dataset, DatasetError, Rows, walk_forward
from training.models import log_har

#: Training on another number of threads moves a forecast in its last digits; the stored numbers shall not show it.
_DIGITS = 4
#: Errors are divided by their usual deviation, which would be zero for a price that never moves.
_LEAST_DEVIATION = 1e-3


def usual(data: Dataset, rows: Rows, model: Array, har: Array) -> Usual:
    """Computes the usual errors of out-of-fold forecasts [n] of the next 24 h for `rows`, hourly σ, to four digits.

    `model` is compared with `har`, on one forecast a day. Raises `DatasetError` where fewer than two days are known.
    """
    realized = data.labels[rows, 0]
    daily = np.array([serving.is_daily(int(t)) for t in data.open_time[rows]], np.bool_)
    daily &= np.isfinite(realized) & np.isfinite(model) & np.isfinite(har)
    if daily.sum() < 2:
        raise DatasetError(
            f"{data.symbol}: what errors are usual cannot be told from {daily.sum()} days; learn from a longer range"
        )
    known = zip(realized[daily].tolist(), model[daily].tolist(), har[daily].tolist(), strict=True)
    excess = np.array([serving.excess(*day) for day in known])
    ratio = np.log(realized[daily] / model[daily])
    deviations = (max(float(x.std()), _LEAST_DEVIATION) for x in (excess, ratio))
    excess_deviation, ratio_deviation = map(_rounded, deviations)
    return Usual(_rounded(float(excess.mean())), excess_deviation, _rounded(float(ratio.mean())), ratio_deviation)


def of_range(data: Dataset, start_ms: int, end_ms: int, rows: Rows, model: Array) -> Usual:
    """Computes `usual` of a model trained on [start, end), compared with `har` fitted on the same folds.

    rows, model: the rows of the validation folds and σ [n] for them, as in `training.models.fit.Fitted.held_out`.
    """
    every, folds = data.rows(start_ms, end_ms), walk_forward(start_ms, end_ms)
    _, (har_rows, har) = log_har.fit_unseen(data, every, folds, log_har.WITH_CALENDAR)
    assert np.array_equal(har_rows, rows)
    return usual(data, rows, model, har)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
