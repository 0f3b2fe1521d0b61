"""What the feed and its revisions show: one connection of two that ends is no outage, an old revision no new value."""

from __future__ import annotations

import msgspec
import pytest

from monitor.metrics import Metrics
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay
from stream.core.forecasting.contract import Model
from stream.core.market.candle import HOUR_MS
from stream.core.messages import builders
from stream.telemetry import CandleRevised, FeedConnected, FeedDisconnected, FeedQuiet, ForecastRevised, TradingObserved
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_predict

START = 1_704_067_200_000
B = {"symbol": "BTCUSDT"}


@pytest.fixture
def metrics(model: Model) -> Metrics:
    return Metrics(version="0", symbols=["BTCUSDT"], model=model)


def test_a_connection_that_is_relieved_is_no_outage(metrics: Metrics) -> None:
    read = metrics.registry.get_sample_value
    for _ in range(2):
        metrics(FeedConnected())
    metrics(FeedDisconnected("rotated", still_open=True))
    assert read("volcast_ws_connected") == 1
    assert read("volcast_ws_disconnects_total", {"reason": "rotated"}) == 1
    metrics(FeedDisconnected("stall"))
    assert read("volcast_ws_connected") == 0


def test_every_cause_is_there_before_it_happens(metrics: Metrics) -> None:
    for reason in ("rotated", "stall", "http_301", "http_404", "http_451", "closed_1008"):
        assert metrics.registry.get_sample_value("volcast_ws_disconnects_total", {"reason": reason}) == 0


def test_quiet_and_halted_come_and_go(metrics: Metrics) -> None:
    read = metrics.registry.get_sample_value
    for state in (True, False):
        metrics(FeedQuiet(state))
        metrics(TradingObserved("BTCUSDT", state))
        assert (read("volcast_ws_quiet"), read("volcast_symbol_halted", B)) == (state, state)


def test_only_the_newest_forecasts_revision_is_shown(metrics: Metrics, model: Model) -> None:
    read = metrics.registry.get_sample_value
    candles = simulate_symbol("BTCUSDT", START, 40, 3)
    rules = Rules.of(Policy(), model.contract)
    issued = [e for _, e in replay(rules, "BTCUSDT", candles, model, sample_predict) if isinstance(e, Issued)][-1]
    forecast = builders.forecast(issued, model, "backfill", 0, revision=1)
    decision = builders.decision(issued, "backfill", 0, revision=1)
    assert (forecast.revision, decision.revision) == (1, 1)
    earlier = msgspec.structs.replace(forecast, open_time=forecast.open_time - HOUR_MS)
    metrics(ForecastRevised(earlier, decision, newest=False))
    shown = {"symbol": "BTCUSDT", "horizon": "next"}
    assert read("volcast_forecast_volatility_annualized", shown) is None
    metrics(ForecastRevised(forecast, decision, newest=True))
    assert read("volcast_forecast_volatility_annualized", shown) == pytest.approx(forecast.volatility.annualized)
    assert read("volcast_forecast_revisions_total", B) == 2
    metrics(CandleRevised("BTCUSDT", START))
    assert read("volcast_kline_revisions_total", B) == 1
