"""What is remembered of forecasts is what a plain table of all hours has, as far as anything depends on it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.deciding.accumulation import ACCUMULATION_HOURS, OWN_REGIME_HOURS, OWN_STEP_HOURS, Rules
from stream.core.deciding.past import Past
from stream.core.deciding.policy import Policy
from stream.core.forecasting.features import SIGMA_FLOOR
from stream.core.forecasting.predictions import Prediction
from stream.core.market.candle import HOUR_MS
from stream.testing.sample_model import sample_model

RULES = Rules.of(Policy(), sample_model().contract, (Policy("b", forecast="ewma"),))
FIRST = 473_001
HOURS = OWN_REGIME_HOURS + ACCUMULATION_HOURS + 500


def prediction(symbol: str, hour: int, rng: np.random.Generator) -> Prediction:
    """One of the forecasts is at the floor, like those of a price that does not move."""
    sigma = max(float(np.float32(rng.choice([1e-7, rng.lognormal(-5, 1)]))), SIGMA_FLOOR)
    others = rng.lognormal(-5, 1, 4).tolist()
    return Prediction(
        symbol, hour * HOUR_MS, "m", sigma, sigma, sigma, sigma, sigma, others[0], others[1], others[1], others[2],
        others[3], int(rng.integers(0, 49)), "good",
    )  # fmt: skip


@cache
def table(symbol: str) -> tuple[dict[int, Prediction], np.ndarray]:
    rng = np.random.default_rng(3)
    found = {k: prediction(symbol, FIRST + k, rng) for k in range(HOURS) if rng.random() > 0.05}
    out = np.full((len(RULES.sources) + 1, HOURS), np.nan)
    for k, p in found.items():
        out[:, k] = (p.volatility, p.baseline_har, p.baseline_ewma, p.gaps)
    return found, out


@pytest.mark.parametrize("symbol", ["BTCUSDT", "XUSDT"])
@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, HOURS - 1), later=st.integers(0, 30), silence=st.integers(0, 7_000))
def test_the_past_is_the_table_of_its_hours(symbol: str, cut: int, later: int, silence: int) -> None:
    """`cut`: how many hours are known at first; then the hours pass one by one, with a silence before the last."""
    found, every = table(symbol)
    kept = RULES.sigma_hours(symbol)
    known = sorted(found)
    start = next((k for k in reversed(known) if k < cut), known[0])
    past = Past.of(RULES, symbol, (FIRST + start) * HOUR_MS, every[:, max(start + 1 - kept, 0) : start + 1])
    hours = [k for k in known if start < k <= min(start + 100, HOURS - 1)]
    for k in hours:
        past = past.later(RULES, found[k])
    newest = hours[-1] if hours else start
    lengthened = np.concatenate([every[:, : newest + 1], np.full((len(every), silence), np.nan)], axis=1)
    if silence:
        last = prediction(symbol, FIRST + newest + silence, np.random.default_rng(silence))
        past = past.later(RULES, last)
        lengthened[:, -1] = (last.volatility, last.baseline_har, last.baseline_ewma, last.gaps)
    expected = np.concatenate([lengthened, np.full((len(every), later), np.nan)], axis=1)
    expected = np.concatenate([np.full((len(every), kept), np.nan), expected], axis=1)[:, -kept:]
    now = FIRST + newest + silence + later
    got = past.hourly(RULES, symbol, now * HOUR_MS)
    hour = now - np.arange(kept)[::-1]
    asked = (np.arange(kept) >= kept - ACCUMULATION_HOURS) | (hour % OWN_STEP_HOURS == 0)
    np.testing.assert_array_equal(got[:, asked], expected[:, asked])
    for back in (0, 24, ACCUMULATION_HOURS - 1):
        if back >= later and lengthened.shape[1] > back - later:
            np.testing.assert_array_equal(past.at((now - back) * HOUR_MS), expected[:2, -1 - back])
