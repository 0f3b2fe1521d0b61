"""Scores a matured forecast, by QLIKE (stream/core/forecasting/qlike.py) and by its interval.

Pure: it takes the forecast as it was published, so what is scored is what subscribers acted on.
"""

from __future__ import annotations

import msgspec

from stream.core.forecasting import qlike
from stream.core.forecasting.predictions import forecast_id
from stream.core.messages.schemas import Forecast, Scored


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one forecast, with the baselines that it carried. σ of the 24 h after its candle, hourly:
    `realized` is what happened, `volatility` what was served, `model_volatility` what the model forecast."""

    forecast_id: str
    revision: int
    symbol: str
    open_time: int
    provenance: str
    model_version: str
    realized: float
    volatility: float
    low: float
    high: float
    level: float
    persistence: float
    ewma: float
    har: float
    #: +1 each time that a revised candle changed this outcome.
    score_revision: int = 0
    serving: str = "model"
    model_volatility: float = 0.0


def outcome(forecast: Forecast, realized: float, score_revision: int = 0) -> Outcome:
    volatility, baselines = forecast.volatility, forecast.baselines
    return Outcome(
        forecast_id=forecast.id,
        revision=forecast.revision,
        symbol=forecast.symbol,
        open_time=forecast.open_time,
        provenance=forecast.provenance,
        model_version=forecast.model.version,
        realized=realized,
        volatility=volatility.hourly,
        low=volatility.low,
        high=volatility.high,
        level=volatility.level,
        persistence=baselines.persistence,
        ewma=baselines.ewma,
        har=baselines.har,
        score_revision=score_revision,
        serving=forecast.serving,
        model_volatility=volatility.hourly if forecast.model_volatility is None else forecast.model_volatility,
    )


def awaited(forecast: Forecast) -> bytes:
    """Returns all that the outcome of a forecast needs of it, but its symbol and what its id repeats: an eighth of the
    memory that the forecast takes, and each symbol waits for 24 of them."""
    bare = msgspec.structs.replace(outcome(forecast, 0.0), forecast_id="", symbol="")
    return msgspec.msgpack.encode(msgspec.structs.astuple(bare))


def matured(awaited: bytes, symbol: str, realized: float) -> Outcome:
    """Returns the outcome of a forecast for which `awaited` was kept."""
    bare = Outcome(*msgspec.msgpack.decode(awaited))
    made_of = forecast_id(symbol, bare.open_time, bare.model_version)
    return msgspec.structs.replace(bare, forecast_id=made_of, symbol=symbol, realized=realized)


def scored(outcome: Outcome, issued_at: int) -> Scored:
    """Returns the event that publishes an outcome."""
    return Scored(
        id=f"{outcome.forecast_id}:scored",
        revision=outcome.score_revision,
        forecast_id=outcome.forecast_id,
        symbol=outcome.symbol,
        open_time=outcome.open_time,
        issued_at=issued_at,
        volatility=outcome.volatility,
        realized=outcome.realized,
        qlike=qlike.loss(outcome.realized, outcome.volatility),
        covered=outcome.low <= outcome.realized <= outcome.high,
    )
