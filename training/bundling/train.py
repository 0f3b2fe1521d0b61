"""`volcast train`: from a candle file to a run directory that `volcast export` turns into a bundle.

Rules of this module:
- The run directory is the interface to export: `network.keras`, `trees.npz`, `contract.json`, and `windows.npz` to
  compare the exported graph with. It becomes a complete run at once or stays what it was: files are written under
  temporary names and renamed at the end, the contract last.
  An interrupted run cannot be exported.
"""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.core.forecasting import contract, features
from stream.core.forecasting.target import HORIZON_HOURS
from stream.core.forecasting.windows import Array
from stream.files import replacing
from training.bundling import describe, drift_rule, usual_errors
from training.data import dataset
from training.data.dataset import Dataset, DatasetError, Fold, Rows, load, require_rows, walk_forward
from training.models import fit, log_har, run
from training.scoring import measures

PARITY_WINDOWS = 1_000
#: Artificial windows beside the real ones.
RANDOM_WINDOWS = 256
_VERSIONS = ("volcast", "keras", "lightgbm", "numpy")
Inputs = NDArray[np.float32]


def train(
    candles: Path,
    out: Path,
    *,
    symbol: str = "BTCUSDT",
    pool: Path | None = None,
    train_from: str = "2018-03-01",
    train_until: str = "2024-01-01",
    seed: int = 7,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Fits the model on the candles of [train_from, train_until), labels included, and writes the run to `out`.

    `pool`: candle file whose other pairs are trained on too. Raises `ValueError` with a one-line message where a file
    or the range cannot be used. Returns a summary; its scores are those of the folds, by flat names.
    """
    began = time.monotonic()
    start, end = times.parse(train_from), times.parse(train_until)
    if start >= end:
        raise DatasetError(f"the training range {train_from} to {train_until} is empty; swap or widen it")
    data = load(Path(candles), symbol)
    rows = require_rows(data, start, end)
    folds = walk_forward(start, end)
    for fold in folds:
        require_rows(data, fold.start, fold.split)
    pooled = (data, *(dataset.load_others(Path(pool), symbol) if pool else ()))
    out = Path(out)
    _require_writable(out)

    model = fit.fitted(pooled, start, end, seed=seed, epochs=epochs)
    learnt = tuple(one for one in pooled if one.symbol in model.symbols)
    agreed = _contract(data, rows, folds, model, _training(learnt, start, end, model, seed))
    given = rows[np.linspace(0, len(rows) - 1, min(len(rows), PARITY_WINDOWS)).astype(np.int64)]
    _write(out, model, _windows(data.features.sequences(given), data.features.static[given]), agreed)
    return {
        "run": str(out),
        "symbol": data.symbol,
        "symbols": model.symbols,
        "rows": model.rows,
        "seconds": round(time.monotonic() - began, 1),
        "data_sha256": agreed.training.data_sha256,
        "weights": {"trees": model.blend.trees.tolist(), "lstm": model.blend.lstm.tolist()},
        "retransform": np.exp(model.blend.log_factor).tolist(),
        "scores": agreed.scores,
    }


def _training(data: tuple[Dataset, ...], start: int, end: int, model: fit.Fitted, seed: int) -> contract.Training:
    first, last = dataset.trained_hours(data[0], start, end)
    return contract.Training(
        symbols=model.symbols,
        trained_from=first,
        trained_until=last,
        rows=model.rows,
        data_sha256=dataset.sha256(data, start, end),
        seed=seed,
    )


def _contract(
    data: Dataset, rows: Rows, folds: tuple[Fold, ...], model: fit.Fitted, training: contract.Training
) -> contract.Contract:
    held_out, sigma = model.held_out
    start, end = folds[0].start, folds[-1].end
    har, (har_rows, har_sigma) = log_har.fit_unseen(data, rows, folds, log_har.WITH_CALENDAR)
    # Both have forecast the held-out rows of the same folds.
    assert np.array_equal(har_rows, held_out)
    agreed = contract.Contract(
        contract=contract.CONTRACT_VERSION,
        features_version=features.VERSION,
        sequence_names=features.SEQUENCE_NAMES,
        static_names=features.STATIC_NAMES,
        sequence_hours=features.SEQUENCE_HOURS,
        horizons=HORIZON_HOURS,
        har=har,
        calibration=describe.calibration(data, held_out, sigma[:, 0]),
        har_calibration=describe.calibration(data, har_rows, har_sigma),
        regimes=describe.regimes(data, start, end),
        horizon_levels=model.horizon_levels,
        reference=drift_rule.reference(data, start, end),
        usual=usual_errors.usual(data, held_out, sigma[:, 0], har_sigma),
        training=training,
        scores=_fold_scores(data, folds, held_out, sigma),
        versions={name: version(name) for name in _VERSIONS}
        | {"tensorflow": fit.load_training_loop().tensorflow_version(), "python": platform.python_version()},
    )
    contract.check(agreed)
    return agreed


def _fold_scores(data: Dataset, folds: tuple[Fold, ...], rows: Rows, sigma: Array) -> dict[str, float]:
    """Returns the scores of each validation fold, as "folds.2.next_24h.rmse"; the retransform is that of all folds."""
    out = {}
    for k, fold in enumerate(folds, 1):
        inside = (data.open_time[rows] >= fold.split) & (data.open_time[rows] < fold.end)
        for measure, value in measures.measures(data.labels[rows[inside], 0], sigma[inside, 0]).items():
            if value is not None:
                out[f"folds.{k}.next_24h.{measure}"] = value
    return out


def _require_writable(out: Path) -> None:
    """Makes the directory and checks that a file can be written there, before minutes are spent on training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise _unwritable(out, error) from None


def _windows(sequence: Inputs, static: Inputs) -> tuple[Inputs, Inputs]:
    """Returns the windows, and `RANDOM_WINDOWS` artificial ones: noise within the clipping bounds, statics shuffled."""
    chance = np.random.default_rng(0)
    noise = np.clip(chance.normal(0, 3, (RANDOM_WINDOWS, *sequence.shape[1:])), -8, 8).astype(np.float32)
    shuffled = chance.permuted(static, axis=0)[chance.integers(0, len(static), RANDOM_WINDOWS)]
    return np.concatenate([sequence, noise]), np.concatenate([static, shuffled])


def _write(out: Path, model: fit.Fitted, windows: tuple[Inputs, Inputs], agreed: contract.Contract) -> None:
    """Writes the run's files, each complete or absent; where they cannot be written, those of the older run stay."""
    sequence, static = windows
    network, leaves = model.network(), model.leaves()
    expected = run.volatility(network, leaves, sequence, static)
    text = msgspec.json.format(msgspec.json.encode(agreed, order="sorted"), indent=1)
    writers: dict[str, Callable[[Path], Any]] = {
        "contract.json": lambda path: path.write_bytes(text),
        "windows.npz": lambda path: np.savez(path, sequence=sequence, static=static, volatility=expected),
        "trees.npz": leaves.save,
        "network.keras": network.save,
    }
    try:
        with contextlib.ExitStack() as stack:
            for name, write in writers.items():
                write(stack.enter_context(replacing(out / name)))
            # From here on the older run is invalid: its contract is removed first, the new one is written last.
            (out / "contract.json").unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> DatasetError:
    return DatasetError(f"{out}: the run cannot be written there: {error.strerror or error}; choose another --out")
