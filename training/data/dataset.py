"""From a candle file to rows with features and labels, and their splits in time.

Rules of this module:
- A row belongs to a range only if its candle and all 24 hours of its label do: between the rows of a range and the
  next range lies an embargo of 24 h, so no label reaches over a split.
- The look-back of a row may reach before the range: it lies in the past wherever the row is.
- A label that touches a missing hour is NaN, and each output is trained on the rows that have it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream import times
from stream.adapters.candles import files
from stream.core.forecasting import features, target
from stream.core.forecasting.contract import OUTPUT_WIDTH
from stream.core.forecasting.features import LOOKBACK_HOURS, Features
from stream.core.forecasting.target import HORIZON_HOURS, Targets
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS
from stream.errors import InputError

Rows = NDArray[np.int64]
LABEL_HOURS = max(HORIZON_HOURS)
#: A range with fewer rows than this is not trained on: a linear model alone has 50 coefficients.
MIN_ROWS = 500


class DatasetError(InputError):
    """The candles do not hold what was asked for: the fault of the chosen file or range."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One symbol on the hourly grid: candles, features, and labels [T, 5].

    `labels` are the targets of the network's outputs: σ of the next 24 h, then √(mean squared return) per horizon.
    """

    symbol: str
    open_time: NDArray[np.int64]
    ohlcv: Array
    features: Features
    targets: Targets
    labels: Array

    def rows(self, start_ms: int, end_ms: int) -> Rows:
        """Returns the rows that may be forecast, whose candle and whole label lie in [start, end), with a known label
        for at least one output."""
        last = end_ms - (LABEL_HOURS + 1) * HOUR_MS
        inside = (self.open_time >= start_ms) & (self.open_time <= last)
        return np.nonzero(inside & self.features.ready & np.isfinite(self.labels).any(axis=1))[0]

    def sha256(self, start_ms: int, end_ms: int) -> str:
        """Returns the sha256 of the candles that rows of [start, end) can touch, look-back and labels included."""
        return candles_sha256(self.symbol, self.open_time, self.ohlcv, start_ms, end_ms)


def candles_sha256(symbol: str, open_time: NDArray[np.int64], ohlcv: Array, start_ms: int, end_ms: int) -> str:
    """Returns `Dataset.sha256` of an hourly grid, without its features."""
    used = (open_time >= start_ms - (LOOKBACK_HOURS - 1) * HOUR_MS) & (open_time < end_ms)
    used &= np.isfinite(ohlcv[:, 3])
    digest = hashlib.sha256(symbol.encode())
    digest.update(open_time[used].astype("<i8").tobytes())
    digest.update(ohlcv[used].astype("<f8").tobytes())
    return digest.hexdigest()


def load(path: Path, symbol: str) -> Dataset:
    """Reads the symbol's candles from `path` and computes their features and labels."""
    symbol = symbol.upper()
    return of_grid(symbol, *files.read(path, asked=symbol).grid(symbol))


def load_others(path: Path, symbol: str) -> tuple[Dataset, ...]:
    """Returns the datasets of every other symbol in `path`, in alphabetical order. Raises `DatasetError` where there
    is none."""
    table = files.read(path, default_symbol=None)
    others = [name for name in table.symbols if name != symbol.upper()]
    if not others:
        raise DatasetError(f"{path}: no pair but {symbol.upper()} to learn from; leave the pool out or choose another")
    return tuple(of_grid(name, *table.grid(name)) for name in others)


def sha256(data: Sequence[Dataset], start_ms: int, end_ms: int) -> str:
    """Returns the sha256 of one symbol's candles (`Dataset.sha256`), or a combined one of several in their order."""
    return joined_sha256([one.sha256(start_ms, end_ms) for one in data])


def joined_sha256(digests: Sequence[str]) -> str:
    """Returns the sha256 of several symbols' candles, of each one's in their order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def trained_hours(data: Dataset, start_ms: int, end_ms: int) -> tuple[int, int]:
    """Returns the first and the last candle of [start, end), as open times in ms. It must have one."""
    used = np.nonzero((data.open_time >= start_ms) & (data.open_time < end_ms) & np.isfinite(data.ohlcv[:, 3]))[0]
    return int(data.open_time[used[0]]), int(data.open_time[used[-1]])


def unseen(data: Dataset, trained_until: int) -> tuple[int, int]:
    """Returns the range after the last candle that a model learnt from, up to the end of the data: ms, the end
    exclusive. Raises `DatasetError` where there is nothing after it."""
    start, end = trained_until + HOUR_MS, int(data.open_time[-1]) + HOUR_MS
    if start >= end:
        raise DatasetError(
            f"the file ends on {times.day(data.open_time[-1])} and the model learnt until {times.day(trained_until)}: "
            "no hour is left to score it on; fetch more, walk forward (--walk-forward), or name a period (--from, "
            "--to), whose figures are then no test"
        )
    return start, end


def of_grid(symbol: str, open_time: NDArray[np.int64], ohlcv: Array) -> Dataset:
    """Computes the dataset of an hourly grid (`stream.adapters.candles.files.CandleTable.grid`)."""
    targets = target.labels(ohlcv[:, 3])
    labels = np.stack([targets.next_24h, *(np.sqrt(targets.mean_square[h]) for h in HORIZON_HOURS)], axis=-1)
    assert labels.shape[-1] == OUTPUT_WIDTH
    return Dataset(symbol, open_time, ohlcv, features.compute(open_time, ohlcv), targets, labels)


@dataclass(frozen=True, slots=True)
class Fold:
    """One step of a walk forward: trained on [start, split), scored on [split, end). ms."""

    start: int
    split: int
    end: int


def walk_forward(start_ms: int, end_ms: int) -> tuple[Fold, ...]:
    """Returns three folds over [start, end): each of the last three fifths is scored after training on all before it.

    Of five years these are the last three years.
    """
    fifth = (end_ms - start_ms) // 5
    marks = [start_ms + k * fifth // HOUR_MS * HOUR_MS for k in range(2, 5)]
    return tuple(Fold(start_ms, a, b) for a, b in zip(marks, [*marks[1:], end_ms], strict=True))


def require_rows(data: Dataset, start_ms: int, end_ms: int) -> Rows:
    """Returns `Dataset.rows`; raises `DatasetError`, which names what the file holds, where they are too few."""
    rows = data.rows(start_ms, end_ms)
    if len(rows) < MIN_ROWS:
        first, last = (times.day(t) for t in data.open_time[[0, -1]].tolist())
        raise DatasetError(
            f"only {len(rows)} hours of {data.symbol} with a known outcome in the range asked for, {MIN_ROWS} are "
            f"needed; the file holds {first} to {last}: choose another range or fetch more"
        )
    return rows
