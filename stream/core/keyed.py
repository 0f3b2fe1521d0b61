"""The keyed operator: one symbol's state and an input in, a new state and events out.

`step(state, Candle | Prediction)` is plain data in, plain data out: no clock, no I/O, no model call. It says
`Ready`; whoever drives it computes features and predicts, many symbols in one call, and hands the prediction
back. The daemon, the backtest and batch prediction are drivers; any engine with keyed state can be one.

Everything that a decision remembers is a fold over a finite history, so a fresh start and a daemon that ran for
a year agree: the fold begins at `anchor(t)`, a multiple of 30 days, and starts over when the anchor moves.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from stream.core import policy as risk
from stream.core.candle import HOUR_MS, Candle
from stream.core.contract import Regimes
from stream.core.features import LOOKBACK_HOURS, MIN_RETURNS_24H
from stream.core.forecast import Prediction
from stream.core.windows import Array

#: All the candles that a forecast and its decision can depend on: 120 days.
HISTORY_HOURS = 2_880
_ANCHOR_STEP_HOURS = 720
#: The fold covers the last 1,440 to 2,159 hours; the first of them needs `LOOKBACK_HOURS` before it.
_FOLD_HOURS = HISTORY_HOURS - LOOKBACK_HOURS + 1
RECENT_HOURS = 48


class OperatorError(ValueError):
    """The driver broke the protocol (an old candle, a prediction nobody waits for): our fault."""


class Rules(msgspec.Struct, frozen=True):
    """What stays the same for all symbols of one run."""

    policy: risk.Policy
    regimes: Regimes


class RecentForecast(msgspec.Struct, frozen=True):
    """One line of the `recent` topic. σ hourly; `realized` is the outcome 24 h later, null until then."""

    open_time: int
    volatility: float
    low: float
    high: float
    realized: float | None = None


class State(msgspec.Struct, frozen=True):
    """Plain data of one symbol. Arrays are never written to after they are stored here."""

    symbol: str
    last_open_time: int | None = None
    #: [LOOKBACK_HOURS, 5], OHLCV by hour, the newest last, NaN where there is no candle.
    window: Array = msgspec.field(default_factory=lambda: np.full((LOOKBACK_HOURS, 5), np.nan))
    #: [_FOLD_HOURS], the forecasts' σ by hour, the newest last, NaN where there is none.
    volatilities: Array = msgspec.field(default_factory=lambda: np.full(_FOLD_HOURS, np.nan))
    awaiting: bool = False
    anchor: int = 0
    memory: risk.Memory = risk.Memory()
    recent: tuple[RecentForecast, ...] = ()


class Gap(msgspec.Struct, frozen=True):
    """Hours that do not exist: the open times of the first and the last."""

    symbol: str
    from_open_time: int
    to_open_time: int

    @property
    def hours(self) -> int:
        return (self.to_open_time - self.from_open_time) // HOUR_MS + 1


class Ready(msgspec.Struct, frozen=True):
    """The driver shall predict this candle and hand the prediction back before the next candle."""

    symbol: str
    open_time: int
    window: Array


class Insufficient(msgspec.Struct, frozen=True):
    """The candle is taken, but too few of its last 24 returns exist for a forecast."""

    symbol: str
    open_time: int
    returns_24h: int


class Issued(msgspec.Struct, frozen=True):
    """A forecast and the decision that rests on it."""

    prediction: Prediction
    verdict: risk.Verdict


Event = Gap | Ready | Insufficient | Issued


def anchor(open_time: int) -> int:
    """Where the fold behind a decision on this candle begins (ms, open time)."""
    oldest = open_time // HOUR_MS - (_FOLD_HOURS - _ANCHOR_STEP_HOURS)
    return oldest // _ANCHOR_STEP_HOURS * _ANCHOR_STEP_HOURS * HOUR_MS


def step(rules: Rules, state: State, item: Candle | Prediction) -> tuple[State, tuple[Event, ...]]:
    """One move of one symbol. `OperatorError` where the driver broke the protocol."""
    if isinstance(item, Candle):
        return _take(state, item)
    return _conclude(rules, state, item)


def give_up(state: State) -> State:
    """The state of a symbol whose model gave no usable answer: its candle is taken, its forecast does not exist."""
    return msgspec.structs.replace(state, awaiting=False)


def _take(state: State, candle: Candle) -> tuple[State, tuple[Event, ...]]:
    last = state.last_open_time
    if candle.symbol != state.symbol or (last is not None and candle.open_time <= last):
        raise OperatorError(f"{candle.symbol} {candle.open_time} does not follow {state.symbol} {last}")
    if state.awaiting:
        raise OperatorError(f"{state.symbol} {last} still waits for its prediction")
    events: list[Event] = []
    hours = 1 if last is None else (candle.open_time - last) // HOUR_MS
    if hours > 1:
        assert last is not None
        events.append(Gap(state.symbol, last + HOUR_MS, candle.open_time - HOUR_MS))
    window = _shifted(state.window, hours)
    window[-1] = candle.ohlcv
    closes = np.isfinite(window[-25:, 3])
    returns = int(np.count_nonzero(closes[1:] & closes[:-1]))
    ready = returns >= MIN_RETURNS_24H
    events.append(
        Ready(state.symbol, candle.open_time, window)
        if ready
        else Insufficient(state.symbol, candle.open_time, returns)
    )
    after = State(
        symbol=state.symbol,
        last_open_time=candle.open_time,
        window=window,
        volatilities=_shifted(state.volatilities, hours),
        awaiting=ready,
        anchor=state.anchor,
        memory=state.memory,
        recent=state.recent,
    )
    return after, tuple(events)


def _conclude(rules: Rules, state: State, prediction: Prediction) -> tuple[State, tuple[Event, ...]]:
    if not state.awaiting or (prediction.symbol, prediction.open_time) != (
        state.symbol,
        state.last_open_time,
    ):
        raise OperatorError(f"nobody waits for the prediction of {prediction.symbol} {prediction.open_time}")
    volatilities = state.volatilities.copy()
    volatilities[-1] = prediction.volatility
    memory, start = state.memory, anchor(prediction.open_time)
    if start != state.anchor:
        memory = _fold(rules.policy, volatilities[:-1], hours=(prediction.open_time - start) // HOUR_MS)
    memory, verdict = risk.decide(rules.policy, memory, prediction, rules.regimes)
    after = State(
        symbol=state.symbol,
        last_open_time=state.last_open_time,
        window=state.window,
        volatilities=volatilities,
        awaiting=False,
        anchor=start,
        memory=memory,
        recent=_remember(state.recent, prediction),
    )
    return after, (Issued(prediction, verdict),)


def _fold(policy: risk.Policy, volatilities: Array, hours: int) -> risk.Memory:
    """The policy's memory after the last `hours` forecasts, from nothing."""
    memory = risk.Memory()
    for volatility in volatilities[-hours:].tolist() if hours else ():
        if not math.isnan(volatility):
            memory = risk.advance(policy, memory, volatility)
    return memory


def _remember(recent: tuple[RecentForecast, ...], prediction: Prediction) -> tuple[RecentForecast, ...]:
    matured = prediction.open_time - 24 * HOUR_MS
    entry = RecentForecast(
        prediction.open_time, prediction.volatility, prediction.volatility_low, prediction.volatility_high
    )
    oldest = prediction.open_time - (RECENT_HOURS - 1) * HOUR_MS
    kept = [
        msgspec.structs.replace(r, realized=prediction.realized_24h)
        if r.open_time == matured and prediction.complete
        else r
        for r in recent
        if r.open_time >= oldest
    ]
    return (*kept, entry)


def _shifted(values: Array, rows: int) -> Array:
    out = np.full_like(values, np.nan)
    if rows < len(values):
        out[: len(values) - rows] = values[rows:]
    return out
