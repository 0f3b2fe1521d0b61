"""The law: intervals for a whole period at once are the ones that the operator gives candle by candle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay, to_grid
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict
from training.data.dataset import Dataset, Rows, of_grid
from training.evaluation.adaptive import adaptive

START = 1_704_067_200_000
HOURS = 4_600
MODEL = sample_model()
CANDLES = simulate_symbol("BTCUSDT", START, HOURS, 7)


def forecast(data: Dataset, rows: Rows) -> np.ndarray:
    return sample_predict(data.features.sequences(rows), data.features.static[rows])[:, 0].astype(np.float64)


@settings(max_examples=5)
@given(st.sets(st.integers(2_900, HOURS - 2), max_size=60), st.integers(2_890, 3_700))
def test_the_batch_of_intervals_is_the_operators(missing: set[int], first: int) -> None:
    candles = [c for i, c in enumerate(CANDLES) if i not in missing]
    since = START + first * HOUR_MS
    rules = Rules.of(Policy(), MODEL.contract)
    issued = {
        e.prediction.open_time: e
        for _, e in replay(rules, "BTCUSDT", candles, MODEL, sample_predict, since)
        if isinstance(e, Issued)
    }
    data = of_grid("BTCUSDT", *to_grid(candles))
    rows = np.nonzero(data.features.ready & (data.open_time >= since))[0]
    got = adaptive(data, rows, lambda asked: forecast(data, asked), MODEL.contract.calibration)
    assert list(issued) == data.open_time[rows].tolist()
    # While har is served the interval that is told is har's; the model's own goes on beside it.
    own = np.array([e.serving == "model" for e in issued.values()])
    assert own.sum() > 300
    for bound in ("low", "high"):
        published = np.array([getattr(e.interval, bound) for e in issued.values()])
        assert getattr(got, bound)[own] == pytest.approx(published[own], rel=1e-9)
