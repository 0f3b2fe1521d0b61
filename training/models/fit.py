"""Fits the model on a training range, and makes its out-of-fold forecasts inside that range.

Rules of this module:
- Everything is fitted inside the range: weights of the parts and retransforms come from folds that walk forward in it.
  What lies after it is not used; scoring it is the task of `volcast evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stream.core.forecasting.contract import LOG_SIGMA_RANGE, OUTPUT_WIDTH
from stream.core.forecasting.windows import Array
from training.data import sample
from training.data.dataset import Dataset, DatasetError, Rows, require_rows, walk_forward
from training.models import blend, linear, trees
from training.models.blend import Blend

if TYPE_CHECKING:
    import keras

    from training.models.training_loop import Lstm

#: What is scored beside the whole model, by name: each with the weights of its trees and its LSTM, None as chosen.
ABLATIONS: Mapping[str, tuple[float | None, float | None]] = {
    "base": (0.0, 0.0),
    "trees": (1.0, 0.0),
    "base+trees": (None, 0.0),
    "base+lstm": (0.0, None),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What was learnt from one sample: each part forecasts for any symbol and time."""

    base: linear.Linear
    trees: trees.Trees
    lstm: Lstm

    def logs(self, data: Dataset, rows: Rows) -> Array:
        """Returns log σ of the base and of the trees, and what the LSTM adds: [3, n, 5]."""
        static = data.features.static[rows]
        return np.stack([self.base.log_sigma(static), self.trees.log_sigma(static), self.lstm.residual(data, rows)])


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model trained on one range. `sigma` forecasts for any symbol and time."""

    parts: Parts
    blend: Blend
    #: The same parts with other weights, by the names of `ABLATIONS`.
    ablations: Mapping[str, Blend]
    #: Rows of the validation folds of the symbol that the model is for, in time order, and out-of-fold σ [m, 5] for
    #: them: by parts trained only on what lies before their fold.
    held_out: tuple[Rows, Array]
    #: Factors on the horizons' σ of other symbols, from their out-of-fold rows; 1 where there are none.
    horizon_levels: tuple[float, ...]
    #: Symbols that it was trained on, the one that it is for first, and the number of their rows.
    symbols: tuple[str, ...]
    rows: int

    def sigma(self, data: Dataset, rows: Rows) -> Array:
        """Returns hourly σ [n, 5] for rows of any symbol: the next 24 h, then each horizon."""
        return _sigma(self.blend, self.parts.logs(data, rows))

    def sigmas(self, data: Dataset, rows: Rows) -> dict[str, Array]:
        """Returns the same of each ablation."""
        logs = self.parts.logs(data, rows)
        return {name: _sigma(weights, logs) for name, weights in self.ablations.items()}

    def network(self) -> keras.Model:
        """Returns base and LSTM as one network (`training.models.lstm.finished`), whose output plus `leaves` is log
        volatility: with the weights of the blend, the trees' anchor and the factors in it."""
        weights = (1 - self.blend.trees) * self.parts.base.weights
        weights[: len(trees.anchor())] += self.blend.trees * trees.anchor()[:, None]
        bias = (1 - self.blend.trees) * self.parts.base.bias + self.blend.log_factor
        network: keras.Model = self.parts.lstm.finished(linear.Linear(weights, bias), self.blend.lstm)
        return network

    def leaves(self) -> trees.Trees:
        """Returns the trees with the weights of the blend."""
        return self.parts.trees.times(self.blend.trees)


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
    with _progress() as progress:
        task = progress.add_task("training", total=(len(folds) + 1) * (epochs + 1))

        def learn(learnt: sample.Sample) -> Parts:
            base, grown = linear.fit_base(learnt), trees.fit(learnt, seed=seed)
            progress.advance(task)
            lstm = training_loop.train(learnt, base, seed=seed, epochs=epochs, on_epoch=lambda: progress.advance(task))
            return Parts(base, grown, lstm)

        held_out = [
            _HeldOut.of(learn(sample.of_range(data, fold.start, fold.split)), data, fold.split, fold.end)
            for fold in folds
        ]
        whole = sample.of_range(data, start_ms, end_ms)
        parts = learn(whole)
    unseen = _HeldOut.joined(held_out)
    known = scored.rows(start_ms, end_ms)
    in_sample = parts.logs(scored, known), scored.labels[known, 0]
    weights = blend.chosen(unseen.logs, unseen.labels, unseen.weight)

    def levelled(weights: Blend) -> Blend:
        return replace(weights, log_factor=_log_factors(weights, unseen, in_sample))

    finished = levelled(weights)
    return Fitted(
        parts,
        finished,
        {
            name: levelled(
                blend.unscaled(weights.trees if of_trees is None else of_trees, weights.lstm if lstm is None else lstm)
            )
            for name, (of_trees, lstm) in ABLATIONS.items()
        },
        (unseen.rows, _sigma(finished, unseen.logs[:, unseen.first])),
        _horizon_levels(finished, unseen),
        whole.symbols,
        len(whole.weight),
    )


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Out-of-fold forecasts of the parts [3, n, 5] for rows of all symbols, with labels and weights."""

    logs: Array
    labels: Array
    weight: Array
    #: Whether a row is of the symbol that the model is for; those rows in its own dataset.
    first: NDArray[np.bool_]
    rows: Rows

    @classmethod
    def of(cls, parts: Parts, data: Sequence[Dataset], start_ms: int, end_ms: int) -> _HeldOut:
        held = sample.of_range(data, start_ms, end_ms, held_out=True)
        logs = np.concatenate([parts.logs(one, rows) for one, rows in held.parts], axis=1)
        rows = held.parts[0][1]
        return cls(logs, held.labels, held.weight, np.arange(len(held.weight)) < len(rows), rows)

    @classmethod
    def joined(cls, folds: Sequence[_HeldOut]) -> _HeldOut:
        return cls(
            np.concatenate([fold.logs for fold in folds], axis=1),
            *(
                np.concatenate([getattr(fold, name) for fold in folds])
                for name in ("labels", "weight", "first", "rows")
            ),
        )


def _log_factors(weights: Blend, unseen: _HeldOut, in_sample: tuple[Array, Array]) -> Array:
    """Returns the logarithms of the factors [5] on the outputs' σ.

    The factor of the expected σ is mean realized over mean forecast, which makes it right on average, of the symbol
    that the model is for: the geometric mean of that of the folds and that of the rows learnt from, which is steadier
    than either. A horizon's σ² is an expected square, and its factor is the one that minimises QLIKE: the root of the
    mean of (realized / forecast)².
    """
    logs, realized = in_sample
    sigma, labels = np.exp(weights.log_sigma(unseen.logs[:, unseen.first])), unseen.labels[unseen.first]
    of_folds = linear.mean_ratio(labels[:, 0], sigma[:, 0])
    of_learnt = linear.mean_ratio(realized, np.exp(weights.log_sigma(logs))[:, 0])
    of_horizons = np.nanmean((labels[:, 1:] / sigma[:, 1:]) ** 2, axis=0)
    return np.log([of_folds * of_learnt, *of_horizons]) / 2


def _horizon_levels(finished: Blend, unseen: _HeldOut) -> tuple[float, ...]:
    """Returns the factors that make the squares of other symbols' horizons right on average."""
    labels = unseen.labels[~unseen.first, 1:]
    if not len(labels):
        return (1.0,) * (OUTPUT_WIDTH - 1)
    squares = _sigma(finished, unseen.logs[:, ~unseen.first])[:, 1:] ** 2
    known = np.isfinite(labels)
    if not known.any(axis=0).all():
        return (1.0,) * (OUTPUT_WIDTH - 1)
    ratios = np.mean(labels**2, axis=0, where=known) / np.mean(squares, axis=0, where=known)
    return tuple(float(f"{level:.4g}") for level in np.sqrt(ratios))


def _sigma(weights: Blend, logs: Array) -> Array:
    sigma: Array = np.exp(np.clip(weights.log_sigma(logs), *LOG_SIGMA_RANGE))
    return sigma


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
