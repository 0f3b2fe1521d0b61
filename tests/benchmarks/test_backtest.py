"""Speed of the backtest: 64,000 candles and 8 policies, forecasts given, on one core."""

from __future__ import annotations

import time

import msgspec
import pytest
from measured import Measured

from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import to_grid
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict
from training.backtest import runner
from training.backtest.decisions import of_bundle
from training.data.dataset import of_grid

pytestmark = pytest.mark.bench

CANDLES = 64_000
START = 1_483_228_800_000
LIMIT_S = 5.0


class Bundle:
    model = sample_model()
    __call__ = staticmethod(sample_predict)


def test_64_000_candles_and_8_policies() -> None:
    candles = tuple(simulate_symbol("BTCUSDT", START, CANDLES, 7))
    data = of_grid("BTCUSDT", *to_grid(candles))
    term = of_bundle(data, Bundle(), START, START + CANDLES * HOUR_MS)
    # Three rivals on other forecasts ride along: 8 policies in the operator, and three benchmarks beside them.
    policies = [msgspec.structs.replace(Policy(), name=f"band-{k}", no_trade_band=0.05 * k) for k in range(1, 6)]
    started = time.process_time()
    tested = runner.run(data, candles, [term], policies)
    took = time.process_time() - started
    assert len(tested.decided.exposure) == 8
    measured = Measured()
    measured.show(f"backtest of 8 policies on {CANDLES:,} candles, forecasts given, CPU", took, "s", LIMIT_S)
    measured.check()
