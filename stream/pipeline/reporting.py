"""Reporting: what the log and the observers learn of a turn once it is committed."""

from __future__ import annotations

import logging

from stream.core.market.candle import HOUR_MS
from stream.core.market.outputs import Due
from stream.core.messages.records import Record
from stream.telemetry import (
    CandleProcessed,
    CandleRevised,
    ForecastCommitted,
    ForecastRevised,
    ForecastScored,
    GapDeclared,
    Observer,
)
from stream.times import utc

log = logging.getLogger(__name__)


def processed(due: Due, record: Record, buffer_hours: int, observe: Observer) -> None:
    """Reports a closed candle and what came of it."""
    symbol, open_time = due.candle.symbol, due.candle.open_time
    if record.gap is not None:
        first, last = record.gap
        hours = (last - first) // HOUR_MS + 1
        log.warning(
            "%s: gap: the exchange never published %d hour(s) from %s to %s",
            symbol,
            hours,
            utc(first),
            utc(last),
            extra={"symbol": symbol, "hours": hours, "from": first, "to": last},
        )
        observe(GapDeclared(symbol, first, last, hours))
    observe(CandleProcessed(symbol, open_time, due.provenance, buffer_hours))
    for forecast, decision in zip(record.forecasts, record.decisions, strict=True):
        observe(ForecastCommitted(forecast.message, decision.message))
    for outcome in record.outcomes:
        observe(ForecastScored(outcome))


def revised(record: Record, newest_id: str, observe: Observer) -> None:
    """Reports hours that the exchange has revised; `newest_id` is the id of the symbol's newest forecast."""
    log.warning(
        "%s: the exchange revised %d hour(s) from %s on; %d forecast(s) and %d score(s) are issued again",
        record.symbol,
        len(record.candles),
        utc(record.candles[0].open_time),
        len(record.forecasts),
        len(record.outcomes),
        extra={"symbol": record.symbol, "hours": len(record.candles), "forecasts": len(record.forecasts)},
    )
    for candle in record.candles:
        observe(CandleRevised(candle.symbol, candle.open_time))
    for forecast, decision in zip(record.forecasts, record.decisions, strict=True):
        newest = forecast.message.id == newest_id
        observe(ForecastRevised(forecast.message, decision.message, newest))
    for outcome in record.outcomes:
        observe(ForecastScored(outcome))
