"""A data directory with a champion, and a retraining with small bundles in the place of the real training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import small_bundles

from stream import times
from stream.adapters import champions, policies, predictor
from stream.adapters.candles import files
from stream.adapters.candles.files import CandleTable
from stream.core.deciding.replay import to_grid
from stream.core.market.candle import Candle
from stream.core.messages.judged import Because, Verdict
from stream.testing.market import simulate_symbol
from training.data import dataset
from training.data.dataset import Dataset
from training.retraining import attempt
from training.retraining.attempt import Done, Request
from training.retraining.children import Step
from training.retraining.plan import Recipe

#: The first candle, and the time that counts as now: a few hours after a midnight.
FROM, NOW = times.parse("2022-07-20"), times.parse("2023-12-01T05:30")
RECIPE = Recipe(FROM, 7, None)
_DAYS = 500


def market(symbol: str = "BTCUSDT", days: int = _DAYS, seed: int = 5) -> list[Candle]:
    return simulate_symbol(symbol, FROM, days * 24, seed=seed)


class Shelf:
    """Bundles of one market, each made once: by how it was made, and until when it has learnt."""

    def __init__(self, folder: Path, table: CandleTable, from_ms: int = FROM) -> None:
        self._from_ms = from_ms
        self._folder = folder
        self._table = table
        self._data: Dataset | None = None

    def bundle(self, how: str, until_ms: int, from_ms: int | None = None) -> Path:
        path = self._folder / f"{how.replace(':', '-')}-{until_ms}.onnx"
        if not path.exists():
            if self._data is None:
                self._data = dataset.of_grid("BTCUSDT", *to_grid(self._table["BTCUSDT"]))
            small_bundles.learn(self._data, self._from_ms if from_ms is None else from_ms, until_ms, path, how)
        return path


#: Children that do not bring the bundle that is asked for.
_FAILING = {
    "crash": "raise SystemExit('volcast: the training fell over')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "nothing": "pass",
    "foreign": "import sys; open(sys.argv[2], 'wb').write(b'no bundle')",
}
_COPY = "import os, sys; open(sys.argv[2] + '~', 'wb').write(open(sys.argv[1], 'rb').read()); "
_COPY += "os.rename(sys.argv[2] + '~', sys.argv[2])"


@dataclass
class SmallTraining:
    """A retraining's steps by a child that brings a bundle of the shelf: for the gate first, then the refit."""

    shelf: Shelf
    gated: str = "linear"
    refit: str = "linear"
    #: The bundles that were asked for, in their order.
    asked: list[str] = field(default_factory=list)

    def __call__(
        self, candles: Path, symbol: str, until_ms: int, *, pooled: bool, run: Path, bundle: Path
    ) -> list[Step]:
        how = self.gated if bundle.name == "gated.onnx" else self.refit
        self.asked.append(bundle.name)
        made = Path() if how in _FAILING else self.shelf.bundle(how, until_ms)
        code = _FAILING.get(how, _COPY)
        return [Step("training", [sys.executable, "-S", "-c", code, str(made), str(bundle)], bundle)]


@dataclass
class Stand:
    """`folder` is the data directory."""

    folder: Path
    table: CandleTable
    shelf: Shelf

    @classmethod
    def of(cls, folder: Path, series: Sequence[Sequence[Candle]]) -> Stand:
        path = folder.parent / "candles.parquet"
        folder.mkdir(parents=True)
        files.write([candle for each in series for candle in each], path)
        table = files.read(path, now_ms=NOW)
        return cls(folder, table, Shelf(folder.parent, table))

    @property
    def champion(self) -> Path:
        return self.folder / "champion.onnx"

    def crown(self, how: str = "constant", until: str = "2023-06-01") -> str:
        """Makes a model that learnt until then the champion; returns its version."""
        self.champion.write_bytes(self.shelf.bundle(how, times.parse(until)).read_bytes())
        return self.version()

    def training(self, **how: str) -> SmallTraining:
        return SmallTraining(self.shelf, **how)

    def retrain(
        self,
        make: Callable[..., list[Step]] | None = None,
        *,
        followed: tuple[str, ...] = ("BTCUSDT",),
        now_ms: int = NOW,
        shadow_days: int = 0,
        because: Because = "hand",
        recipe: Recipe = RECIPE,
    ) -> Done:
        return attempt.retrain(
            Request(
                data_dir=self.folder,
                out=self.folder / "retraining",
                table=self.table,
                followed=followed,
                now_ms=now_ms,
                because=because,
                shadow_days=shadow_days,
                recipe=recipe,
                make=make or self.training(),
                policy=policies.load(None),
            )
        )

    def version(self) -> str:
        return predictor.load(self.champion).model.version

    def verdicts(self) -> list[Verdict]:
        return champions.verdicts(self.folder)
