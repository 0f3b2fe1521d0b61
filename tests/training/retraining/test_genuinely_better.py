"""Real candles: what has learnt from 2019 to 2021 alone loses its place in June 2024 to what has learnt since."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from retrain_stand import Shelf, Stand

from stream import times
from stream.adapters.candles import files
from training.retraining import gate
from training.retraining.plan import Recipe

NOW = times.parse("2024-06-30T06:00")
FROM = times.parse("2018-03-01")


@pytest.mark.real_data
@pytest.mark.slow
def test_a_challenger_that_has_seen_the_years_since_is_promoted(real_data: Path, tmp_path: Path) -> None:
    """Of the recipe the trees alone, which take seconds; all else is as in a retraining."""
    table = files.read(real_data / "btcusdt_1h.parquet", now_ms=NOW)
    (tmp_path / "var").mkdir()
    shelf = Shelf(tmp_path, table, FROM)
    stand = Stand(tmp_path / "var", table, shelf)
    shutil.copy(shelf.bundle("trees", times.parse("2022-01-01"), times.parse("2019-01-01")), stand.champion)
    old = stand.version()
    judged = stand.retrain(
        stand.training(gated="trees", refit="trees"), now_ms=NOW, recipe=Recipe(FROM, 7, None)
    ).judged
    assert judged.refusals == ()
    assert (judged.outcome, judged.champion) == ("promoted", old)
    assert stand.version() == judged.refit
    (figures,) = judged.symbols
    assert figures.forecasts == gate.DAYS * 24 - 24
