"""What a bundle would have forecast of the gate's hours, by the daemon's operator, recomputed from candles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream.adapters.predictor import Predictor
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued, Matured
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import events
from stream.core.market.candle import HOUR_MS, Candle
from training.data.panel import IntervalSeries
from training.retraining.gate import Forecasts, Window


def forecasts(
    predictor: Predictor, policy: Policy, symbol: str, candles: Sequence[Candle], window: Window
) -> Forecasts:
    """Returns the model's forecasts of the gate's hours whose outcomes end within it, as far as it has any.

    candles: in order; what a forecast can depend on is taken from those before the gate. σ is the model's own, also
    where `har` would have been served in its place.
    """
    rules = Rules.of(policy, predictor.model.contract)
    since = window.from_ms - rules.history_hours(symbol) * HOUR_MS
    used = [c for c in candles if since <= c.open_time < window.to_ms]
    issued: dict[int, Issued] = {}
    realized: dict[int, float] = {}
    for event in events(rules, symbol, used, predictor.model, predictor, window.from_ms):
        if isinstance(event, Issued):
            issued[event.prediction.open_time] = event
        elif isinstance(event, Matured):
            realized[event.open_time] = event.realized
    at = [t for t in sorted(issued) if t in realized]
    given = [issued[t].interval for t in at]
    return Forecasts(
        np.array(at, np.int64),
        np.array([issued[t].model_volatility for t in at], np.float64),
        IntervalSeries(
            np.array([i.low for i in given], np.float64),
            np.array([i.high for i in given], np.float64),
            predictor.model.contract.calibration.level,
        ),
        np.array([realized[t] for t in at], np.float64),
        sum(issued[t].serving == "har" for t in at),
    )
