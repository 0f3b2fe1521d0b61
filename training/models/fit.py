"""Fits the model on a training range, and makes its out-of-fold forecasts inside that range.

Rules of this module:
- Everything is fitted inside the range: retransforms come from folds that walk forward in it. What lies after it is
  not used; scoring it is the task of `volcast evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stream.core.forecasting.windows import Array
from training.data import sample
from training.data.dataset import Dataset, DatasetError, Rows, require_rows, walk_forward
from training.models import linear

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model trained on one range. `sigma` forecasts for any symbol and time."""

    network: keras.Model
    #: Factors [5] that are part of the network.
    retransform: Array
    #: Rows of the validation folds of the symbol that the model is for, in time order, and out-of-fold σ [m, 5] for
    #: them: by models trained only on what lies before their fold, times `retransform`.
    held_out: tuple[Rows, Array]
    #: Symbols that it was trained on, the one that it is for first, and the number of their rows.
    symbols: tuple[str, ...]
    rows: int

    def sigma(self, data: Dataset, rows: Rows) -> Array:
        """Returns hourly σ [n, 5] for rows of any symbol: the next 24 h, then each horizon."""
        return load_training_loop().predict(self.network, data, rows)  # type: ignore[no-any-return]


def fitted(data: Sequence[Dataset], start_ms: int, end_ms: int, *, seed: int = 7, epochs: int | None = None) -> Fitted:
    """Fits the model on the hours of [start, end). `data[0]` is the symbol that it is for; it is trained on the others
    as well (training/data/sample.py). `epochs`: passes over the data; None for `training_loop.EPOCHS`.

    Nothing outside of the range is used, labels included, except the look-back before it.
    Raises `DatasetError` where the range or a fold of it holds too few rows, or a symbol occurs twice.
    """
    symbols = [one.symbol for one in data]
    if len(set(symbols)) < len(symbols):
        raise DatasetError(f"a symbol is there twice among {', '.join(symbols)}: it may be learnt from once")
    scored, folds = data[0], walk_forward(start_ms, end_ms)
    for fold in folds:
        require_rows(scored, fold.start, fold.split)
    training_loop = load_training_loop()
    epochs = training_loop.EPOCHS if epochs is None else epochs
    held_out, forecast = [], []
    with _progress() as progress:
        task = progress.add_task("training", total=(len(folds) + 1) * epochs)

        def network_on(learnt: sample.Sample) -> keras.Model:
            base = linear.fit_base(learnt)
            return training_loop.train(learnt, base, seed=seed, epochs=epochs, on_epoch=lambda: progress.advance(task))

        for fold in folds:
            network = network_on(sample.of_range(data, fold.start, fold.split))
            held_out.append(scored.rows(fold.split, fold.end))
            forecast.append(np.exp(training_loop.predict(network, scored, held_out[-1])))
        whole = sample.of_range(data, start_ms, end_ms)
        network = network_on(whole)
    rows, sigma = np.concatenate(held_out), np.concatenate(forecast)
    factors = retransform(scored.labels[rows], sigma)
    return Fitted(
        training_loop.lstm.finished(network, np.log(factors)),
        factors,
        (rows, sigma * factors),
        whole.symbols,
        len(whole.weight),
    )


def retransform(realized: Array, forecast: Array) -> Array:
    """Returns factors [5] on the outputs' σ, from out-of-fold rows [n, 5].

    The factor of the expected σ is mean realized over mean forecast, which makes it right on average. A horizon's σ² is
    an expected square, and its factor is the one that minimises QLIKE: the root of the mean of (realized / forecast)².
    """
    factors = [linear.mean_ratio(realized[:, 0], forecast[:, 0])]
    for k in range(1, realized.shape[1]):
        known = np.isfinite(realized[:, k])
        factors.append(float(np.sqrt(np.mean((realized[known, k] / forecast[known, k]) ** 2))))
    return np.array(factors)


def load_training_loop() -> Any:
    """Imports `training.models.training_loop`. TensorFlow is loaded here and not before: refusing a bad file must not
    take five seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its kernels reorder sums, and it warns of that on stderr
    from training.models import training_loop

    return training_loop


def _progress() -> Progress:
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
