"""Predictions: what the inputs rest on, and the levels of symbols that the bundle does not describe."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.deciding.replay import to_grid
from stream.core.forecasting.features import Features, compute
from stream.core.forecasting.predictions import assemble, quality
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

MODEL = sample_model()


def features_of(hours: int) -> Features:
    return compute(*to_grid(simulate_symbol("BTCUSDT", 1_704_067_200_000, hours, seed=3)))


@pytest.mark.parametrize(
    ("gaps", "missing_720h", "expected"),
    [
        (0, 0, "good"),
        (0, 36, "good"),
        (0, 37, "repaired"),
        (1, 1, "repaired"),
        (2, 180, "repaired"),
        (0, 181, "degraded"),
        (3, 3, "degraded"),
    ],
)
def test_quality_tells_of_both_look_backs(gaps: int, missing_720h: int, expected: str) -> None:
    assert quality(gaps, missing_720h) == expected


@pytest.mark.parametrize(("hours", "expected"), [(100, "degraded"), (600, "repaired"), (700, "good"), (800, "good")])
def test_a_young_history_is_not_good_before_the_month_is_there(hours: int, expected: str) -> None:
    table = features_of(hours)
    rows = np.array([hours - 1])
    (made,) = assemble("BTCUSDT", table, rows, sample_predict(table.sequences(rows), table.static[rows]), MODEL)
    assert (made.gaps, made.quality) == (0, expected)


def test_horizons_of_a_symbol_that_the_bundle_does_not_describe_have_its_levels() -> None:
    table = features_of(800)
    rows = np.array([797, 798, 799])
    output = sample_predict(table.sequences(rows), table.static[rows])
    own, other = (assemble(symbol, table, rows, output, MODEL) for symbol in ("BTCUSDT", "ETHUSDT"))
    mixed = assemble(["ETHUSDT", "BTCUSDT", "ETHUSDT"], table, rows, output, MODEL)
    assert mixed == [other[0], own[1], other[2]]
    for a, b in zip(own, other, strict=True):
        assert a.volatility == b.volatility
        for hours, level in zip((1, 6, 12, 24), MODEL.contract.horizon_levels, strict=True):
            assert getattr(b, f"horizon_{hours}h") == pytest.approx(level * getattr(a, f"horizon_{hours}h"))
        assert b.rolling_24h_next > a.rolling_24h_next
