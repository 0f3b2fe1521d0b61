"""Shadows: forecasts of a model that runs beside the one that is served, and how both did on the same hours.

Pure. What a shadow forecasts is kept and scored, and never published as the forecast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from stream.core.deciding.operator import Issued, Matured
from stream.core.deciding.policy import ANNUAL
from stream.core.forecasting import qlike
from stream.core.market.candle import HOUR_MS
from stream.core.messages.scoreboard import WINDOW_DAYS, plausible
from stream.core.messages.scoring import Outcome


class ShadowForecast(msgspec.Struct, frozen=True):
    """A forecast of the next 24 h by a shadow: hourly σ, and what happened once it is known."""

    symbol: str
    model_version: str
    open_time: int
    volatility: float
    low: float
    high: float
    realized: float | None = None


class ShadowWindow(msgspec.Struct, frozen=True):
    """The shadow and the model in use on the hours of the last `days` that both have forecast; RMSE in hourly σ."""

    days: int
    matured: int
    qlike: float
    rmse: float
    #: Share of the hours whose outcome lay within the interval.
    coverage: float
    model_qlike: float
    model_rmse: float
    model_coverage: float


class ShadowScore(msgspec.Struct, frozen=True, kw_only=True):
    """The newest forecast of a shadow, annualized, and its scores beside those of the model in use."""

    schema: str = "volcast.shadow/1"
    symbol: str
    model_version: str
    open_time: int
    annualized: float
    low: float
    high: float
    windows: tuple[ShadowWindow, ...]


def taken(
    known: Mapping[int, ShadowForecast], events: Iterable[Issued | Matured], symbol: str, model_version: str
) -> dict[int, ShadowForecast]:
    """Returns the forecasts, by open time, after these events of the shadow's operator: `known` with the new ones, and
    with the outcomes that became known."""
    found = dict(known)
    for event in events:
        if isinstance(event, Issued):
            at, interval = event.prediction.open_time, event.interval
            before = found.get(at)
            found[at] = ShadowForecast(
                symbol,
                model_version,
                at,
                event.model_volatility,
                interval.low,
                interval.high,
                before.realized if before else None,
            )
        elif event.open_time in found:
            found[event.open_time] = msgspec.structs.replace(found[event.open_time], realized=event.realized)
    return found


def score(forecasts: Sequence[ShadowForecast], outcomes: Sequence[Outcome]) -> ShadowScore:
    """Returns the score of one shadow for one symbol. `forecasts`: at least one, in time order; `outcomes`: those of
    what was published, of which the hours that the shadow has forecast too are compared."""
    newest = forecasts[-1]
    windows = [window(days, forecasts, outcomes) for days in WINDOW_DAYS]
    return ShadowScore(
        symbol=newest.symbol,
        model_version=newest.model_version,
        open_time=newest.open_time,
        annualized=newest.volatility * ANNUAL,
        low=newest.low * ANNUAL,
        high=newest.high * ANNUAL,
        windows=tuple(found for found in windows if found is not None),
    )


def window(days: int, forecasts: Sequence[ShadowForecast], outcomes: Sequence[Outcome]) -> ShadowWindow | None:
    """Returns both models' scores on the last `days`; None where no hour of both has matured."""
    matured = {f.open_time: f for f in forecasts if f.realized is not None}
    both = [(matured[o.open_time], o) for o in outcomes if o.open_time in matured and plausible(o)]
    if not both:
        return None
    oldest = max(o.open_time for _, o in both) - (days * 24 - 1) * HOUR_MS
    pairs = [(s, o) for s, o in both if o.open_time >= oldest]
    realized = np.array([o.realized for _, o in pairs])
    sigma = np.array([[s.volatility for s, _ in pairs], [o.model_volatility for _, o in pairs]])
    inside = [[one.low <= o.realized <= one.high for one in (s, o)] for s, o in pairs]
    (ours, theirs), (our_rmse, their_rmse) = (
        qlike.losses(realized, sigma).mean(axis=1).tolist(),
        np.sqrt(((sigma - realized) ** 2).mean(axis=1)).tolist(),
    )
    our_coverage, their_coverage = np.mean(inside, axis=0).tolist()
    return ShadowWindow(days, len(pairs), ours, our_rmse, our_coverage, theirs, their_rmse, their_coverage)
