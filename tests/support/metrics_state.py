"""Metrics of a node with many symbols in the state in which their text is longest: everything known has a value."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from monitor.metrics import Metrics
from stream import telemetry
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Issued
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import replay
from stream.core.forecasting.drift import MEASURES
from stream.core.messages import builders, schemas
from stream.core.messages.scoreboard import FORECASTERS, WINDOW_DAYS
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
MODEL = sample_model()


def started(symbols: Sequence[str]) -> Metrics:
    """A node that has not heard anything yet."""
    return Metrics(version="1.2.3", symbols=symbols, model=MODEL)


def matured(symbols: Sequence[str]) -> Metrics:
    """A node with forecasts, matured scores and a drift run for each symbol, all with as many digits as floats have."""
    metrics, draw = started(symbols), random.Random(7).random
    candles = simulate_symbol("BTCUSDT", START, 60, 7)
    rules = Rules.of(Policy(), MODEL.contract)
    issued = [e for _, e in replay(rules, "BTCUSDT", candles, MODEL, sample_predict) if isinstance(e, Issued)][-1]
    replace = msgspec.structs.replace
    for symbol in symbols:
        forecast = replace(builders.forecast(issued, MODEL, "live", 9), symbol=symbol)
        decision = replace(builders.decision(issued, "live", 9), symbol=symbol, exposure=draw())
        windows = tuple(
            schemas.ScoreWindow(m, days, 24 * days, draw(), draw() / 100, -draw() / 1_000, -draw(), draw())
            for days in WINDOW_DAYS
            for m in FORECASTERS
        )
        drift = schemas.Drift(
            symbol=symbol, issued_at=START + 123, from_=START, to=START, rows=720, method="wasserstein", detected=True,
            default_detected=True, drifted_share=draw(), reference="bundle", fast=None, report=None,
            features=tuple(schemas.DriftFeature(m, draw(), draw(), True, True) for m in MEASURES),
            model_version=MODEL.version,
        )  # fmt: skip
        for fact in (
            *(telemetry.CandleProcessed(symbol, START, p, 3_000) for p in ("live", "backfill") for _ in range(100)),
            *(telemetry.ForecastCommitted(replace(forecast, provenance="backfill"), decision) for _ in range(99)),
            telemetry.ForecastCommitted(forecast, decision),
            telemetry.ScoreChanged(
                schemas.Score(
                    symbol=symbol, open_time=START, issued_at=5, model_version=MODEL.version, windows=windows,
                    rule=schemas.ServingRule("model", 30, 0.01, 0.05), decay=schemas.DecayState(True, None, None),
                )
            ),
            telemetry.DriftFinished(drift),
            telemetry.CandleRevised(symbol, START),
            telemetry.ForecastRevised(forecast, decision, newest=True),
        ):  # fmt: skip
            metrics(fact)
    return metrics
