"""`volcast train`: from a candle file to a run directory that `volcast export` turns into a bundle.

Rules of this room:
- Whatever is chosen is chosen inside the training range: retransforms, calibration and the residual's settings
  come from folds that walk forward in it. The year after it is scored once, for the model card, and decides nothing.
- The run directory is the interface to export: `network.keras`, `contract.json`, `windows.npz`. The contract is
  written last, so a run that was cut short cannot be exported.
"""

from __future__ import annotations

import os
import platform
import time
from calendar import isleap
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stream.core import contract, features
from stream.core.candle import HOUR_MS
from stream.core.target import HORIZON_HOURS
from stream.core.windows import Array
from training import baselines, describe, evaluate, linear
from training.dataset import MIN_ROWS, Dataset, DatasetError, Fold, Rows, load, require_rows, time_ms, walk_forward

if TYPE_CHECKING:
    import keras

EPOCHS = 3
PARITY_WINDOWS = 1_000
_VERSIONS = ("volcast", "keras", "numpy")


def train(
    candles: Path,
    out: Path,
    *,
    symbol: str = "BTCUSDT",
    train_from: str = "2019-01-01",
    train_until: str = "2024-01-01",
    seed: int = 7,
    epochs: int = EPOCHS,
) -> dict[str, Any]:
    """Fits the model on the candles of [train_from, train_until), labels included, and writes the run to `out`.

    `ValueError` with one line where the file or the range does not serve. The summary's scores are flat names to
    numbers: of the folds, and of the year after the range where the file holds it.
    """
    began = time.monotonic()
    start, end = time_ms(train_from), time_ms(train_until)
    if start >= end:
        raise DatasetError(f"the training range {train_from} to {train_until} is empty; swap or widen it")
    data = load(Path(candles), symbol)
    rows = require_rows(data, start, end)
    folds = walk_forward(start, end)
    for fold in folds:
        require_rows(data, fold.start, fold.split)
    out = _emptied(Path(out))

    learn = _learn()
    network, fold_rows, fold_sigma = _networks(data, rows, folds, seed=seed, epochs=epochs)
    factors = retransform(data.labels[fold_rows], fold_sigma)
    network = learn.model.finished(network, np.log(factors))
    network.save(out / "network.keras")
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), PARITY_WINDOWS)).astype(np.int64)]
    sequence, static = learn.inputs(data, sample)
    np.savez(out / "windows.npz", sequence=sequence, static=static)

    used = np.nonzero((data.open_time >= start) & (data.open_time < end) & np.isfinite(data.ohlcv[:, 3]))[0]
    trained = contract.Training(
        symbols=(data.symbol,),
        trained_from=int(data.open_time[used[0]]),
        trained_until=int(data.open_time[used[-1]]),
        rows=len(rows),
        data_sha256=data.sha256(start, end),
        seed=seed,
    )
    har = baselines.fit(data, rows, folds, baselines.WITH_CALENDAR)
    calibration = describe.calibration(data, fold_rows, fold_sigma[:, 0] * factors[0])
    agreed = contract.Contract(
        contract=contract.CONTRACT_VERSION,
        features_version=features.VERSION,
        sequence_names=features.SEQUENCE_NAMES,
        static_names=features.STATIC_NAMES,
        sequence_hours=features.SEQUENCE_HOURS,
        horizons=HORIZON_HOURS,
        har=har,
        calibration=calibration,
        regimes=describe.regimes(data, start, end),
        reference=describe.reference(data, start, end),
        training=trained,
        scores=_fold_scores(data, folds, fold_rows, fold_sigma * factors)
        | _scores_after(data, end, network, trained, har, calibration),
        versions={name: version(name) for name in _VERSIONS}
        | {"tensorflow": learn.tensorflow_version(), "python": platform.python_version()},
    )
    contract.check(agreed)
    (out / "contract.json").write_bytes(msgspec.json.format(msgspec.json.encode(agreed, order="sorted"), indent=1))
    return {
        "run": str(out),
        "symbol": data.symbol,
        "rows": len(rows),
        "seconds": round(time.monotonic() - began, 1),
        "data_sha256": trained.data_sha256,
        "retransform": factors.tolist(),
        "scores": agreed.scores,
    }


def _emptied(out: Path) -> Path:
    """The run directory, without the contract of an older run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "contract.json").unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(f"{out}: the run cannot be written there: {error.strerror}; choose another --out") from None
    return out


def _networks(
    data: Dataset, rows: Rows, folds: tuple[Fold, ...], *, seed: int, epochs: int
) -> tuple[keras.Model, Rows, Array]:
    """The network on all `rows`, and the folds' held-out rows with the σ that networks said who never saw them."""
    learn = _learn()
    held_out, forecast = [], []
    with _progress() as progress:
        task = progress.add_task("training", total=(len(folds) + 1) * epochs)

        def network_on(learnt: Rows) -> keras.Model:
            return learn.train(
                data,
                learnt,
                linear.fit(data, learnt),
                seed=seed,
                epochs=epochs,
                on_epoch=lambda: progress.advance(task),
            )

        for fold in folds:
            network = network_on(data.rows(fold.start, fold.split))
            held_out.append(data.rows(fold.split, fold.end))
            forecast.append(np.exp(learn.predict(network, data, held_out[-1])))
        return network_on(rows), np.concatenate(held_out), np.concatenate(forecast)


def retransform(realized: Array, forecast: Array) -> Array:
    """Factors [5] on the outputs' σ, from out-of-fold rows [n, 5].

    The expected σ is right on average: mean over mean. A horizon's σ² is an expected square, and the factor is the
    one that QLIKE wants: the mean of realized square over forecast square.
    """
    factors = [linear.mean_ratio(realized[:, 0], forecast[:, 0])]
    for k in range(1, realized.shape[1]):
        known = np.isfinite(realized[:, k])
        factors.append(float(np.sqrt(np.mean((realized[known, k] / forecast[known, k]) ** 2))))
    return np.array(factors)


def _fold_scores(data: Dataset, folds: tuple[Fold, ...], rows: Rows, sigma: Array) -> dict[str, float]:
    """ "folds.2.next_24h.rmse" and the like: the walk-forward's own figures, retransform taken from all of it."""
    out = {}
    for k, fold in enumerate(folds, 1):
        inside = (data.open_time[rows] >= fold.split) & (data.open_time[rows] < fold.end)
        for measure, value in evaluate.measures(data.labels[rows[inside], 0], sigma[inside, 0]).items():
            out[f"folds.{k}.next_24h.{measure}"] = value
    return out


def _scores_after(
    data: Dataset,
    end: int,
    network: keras.Model,
    trained: contract.Training,
    har: contract.Har,
    calibration: contract.Calibration,
) -> dict[str, float]:
    """Scores over the year after the training range, or none where the file does not hold it."""
    until = _a_year_later(end)
    rows = data.rows(end, until)
    if len(rows) < MIN_ROWS:
        return {}
    sigma = _learn().predict(network, data, rows)
    forecasts = {"model": sigma[:, 0]} | evaluate.references(
        data, rows, (trained.trained_from, trained.trained_until), har
    )
    start, stop = (f"{datetime.fromtimestamp(t / 1_000, UTC):%Y-%m-%d}" for t in (end, until))
    return evaluate.scores(data, rows, sigma, forecasts, calibration, (start, stop), "in training").flat()


def _a_year_later(time_ms: int) -> int:
    start = datetime.fromtimestamp(time_ms / 1_000, UTC)
    leap = isleap(start.year if start.month < 3 else start.year + 1)
    return time_ms + (366 if leap else 365) * 24 * HOUR_MS


def _learn() -> Any:
    """TensorFlow is loaded here and not before: refusing a bad file must not take five seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its kernels reorder sums, and it says so on stderr
    from training import learn

    return learn


def _progress() -> Progress:
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
