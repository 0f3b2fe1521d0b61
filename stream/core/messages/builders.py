"""Builds messages of the operator's events: predictions and rulings become forecasts and decisions.

Pure: the wall-clock stamp and the provenance are passed in, and nothing else differs between a live
forecast, a backfilled one and a replayed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from stream.core.deciding.operator import Gap, Issued, RecentForecast
from stream.core.deciding.policy import ANNUAL, Reason
from stream.core.forecasting.contract import Model
from stream.core.market.candle import HOUR_MS, Provenance
from stream.core.messages.revisions import IssuedHistory, newest_lines
from stream.core.messages.schemas import (
    Baselines,
    Decision,
    Forecast,
    GapEvent,
    Horizon,
    Input,
    ModelRef,
    ReasonCode,
    Recent,
    RecentEntry,
    Volatility,
)

#: A forecast may be acted on until two intervals after its candle's close.
VALID_FOR_MS = 2 * HOUR_MS
#: How long the broker keeps a retained forecast, decision or `recent`, and an event for a subscriber that is away.
RETAINED_EXPIRY_S = VALID_FOR_MS // 1_000
EVENT_EXPIRY_S = 7 * 86_400


def close_time(open_time: int) -> int:
    return open_time + HOUR_MS - 1


def model_ref(model: Model) -> ModelRef:
    contract = model.contract
    return ModelRef(model.version, model.sha256, contract.features_version, contract.training.trained_until)


def forecast(issued: Issued, model: Model, provenance: Provenance, issued_at: int, revision: int = 0) -> Forecast:
    p, interval = issued.prediction, issued.interval
    return Forecast(
        id=p.id,
        revision=revision,
        symbol=p.symbol,
        open_time=p.open_time,
        close_time=close_time(p.open_time),
        issued_at=issued_at,
        valid_until=close_time(p.open_time) + VALID_FOR_MS,
        provenance=provenance,
        volatility=Volatility(p.volatility, p.volatility * ANNUAL, interval.low, interval.high, interval.level),
        horizons=(
            Horizon(1, p.horizon_1h),
            Horizon(6, p.horizon_6h),
            Horizon(12, p.horizon_12h),
            Horizon(24, p.horizon_24h),
        ),
        rolling_24h_next=p.rolling_24h_next,
        realized_24h=p.realized_24h,
        baselines=Baselines(p.baseline_persistence, p.baseline_ewma, p.baseline_har),
        serving=issued.serving,
        model_volatility=issued.model_volatility,
        model=model_ref(model),
        input=Input(p.gaps, p.quality),
    )


def decision(issued: Issued, provenance: Provenance, issued_at: int, revision: int = 0) -> Decision:
    p, v = issued.prediction, issued.verdict
    return Decision(
        id=f"{p.id}:{v.policy_version}",
        revision=revision,
        forecast_id=p.id,
        symbol=p.symbol,
        open_time=p.open_time,
        issued_at=issued_at,
        valid_until=close_time(p.open_time) + VALID_FOR_MS,
        provenance=provenance,
        regime=v.regime,
        exposure=v.exposure,
        previous_exposure=v.previous_exposure,
        action=v.action,
        target_volatility_annualized=v.target_volatility_annualized,
        reasons=tuple(ReasonCode(r.code, r.values) for r in (*v.reasons, *_of_the_operator(issued))),
    )


def _of_the_operator(issued: Issued) -> Iterator[Reason]:
    """Yields the reasons of a decision that come from the operator and not from the policy."""
    if issued.serving == "har":
        yield Reason("baseline_served", {"model_hourly": issued.model_volatility})
    if issued.regimes_from == "uncalibrated":
        yield Reason("regimes_uncalibrated")


def recent(
    symbol: str, entries: tuple[RecentForecast, ...], model: Model, issued_at: int, history: IssuedHistory | None = None
) -> Recent:
    """Builds the `recent` message: the last hours as they were published, and as the operator has them (`entries`)
    where nothing was."""
    known = history.lines if history else {}
    lines = lines_of(entries, known) if entries else known
    return Recent(
        symbol=symbol,
        model_version=model.version,
        issued_at=issued_at,
        highest_revision=history.highest if history else 0,
        forecasts=tuple(lines[t] for t in sorted(lines)),
    )


def lines_of(entries: tuple[RecentForecast, ...], known: Mapping[int, RecentEntry]) -> dict[int, RecentEntry]:
    """Returns the lines of `recent` by open time. What was published is repeated, whatever a restart, another
    accumulation or another model now makes of that hour; only its outcome follows the candles."""
    lines = dict(known)
    for e in entries:
        before = lines.get(e.open_time)
        if before is None:
            lines[e.open_time] = RecentEntry(e.open_time, e.volatility, e.low, e.high, e.realized)
        elif e.realized is not before.realized and e.realized is not None and e.realized != before.realized:
            lines[e.open_time] = msgspec.structs.replace(before, realized=e.realized)
    return newest_lines(lines)


def gap(event: Gap, state: Literal["opened", "closed"], issued_at: int) -> GapEvent:
    return GapEvent(
        id=f"binance:spot:{event.symbol}:1h:{event.from_open_time}:{event.to_open_time}:{state}",
        symbol=event.symbol,
        state=state,
        from_=event.from_open_time,
        to=event.to_open_time,
        hours=event.hours,
        issued_at=issued_at,
    )
