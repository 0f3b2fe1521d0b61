"""The keyed operator: one symbol's state and an input in, a new state and events out.

`step(state, Candle | Prediction)` is plain data in, plain data out: no clock, no I/O, no model call. It says
`Ready`; whoever drives it computes features and predicts, many symbols in one call, and hands the prediction
back. The daemon, the backtest and batch prediction are drivers; any engine with keyed state can be one.

Everything that intervals and decisions remember is a fold over a finite history, so a fresh start and a daemon that
ran for a year agree: the fold begins at `anchor(t)`, a multiple of 30 days, and starts over when the anchor moves.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from stream.core import intervals, target
from stream.core import policy as risk
from stream.core.candle import HOUR_MS, Candle
from stream.core.contract import Calibration, Contract, Regimes
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
    calibration: Calibration
    #: Further policies that are carried along to be compared; nothing is said about them.
    beside: tuple[risk.Policy, ...] = ()

    @classmethod
    def of(cls, policy: risk.Policy, contract: Contract, beside: tuple[risk.Policy, ...] = ()) -> Rules:
        return cls(policy, contract.regimes, contract.calibration, beside)

    @property
    def policies(self) -> tuple[risk.Policy, ...]:
        return (self.policy, *self.beside)

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose forecasts must be remembered: the model's, and what policies act on otherwise."""
        return ("model", *sorted({p.forecast for p in self.policies} - {"model"}))


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
    #: [sources + 1, _FOLD_HOURS], σ by source (`Rules.sources`) and the missing hours of the last 48, by hour, the
    #: newest last, NaN where there was no forecast. None before the first.
    said: Array | None = None
    #: Open time of the newest column of `said`.
    said_until: int = 0
    #: [_FOLD_HOURS], σ of the 24 h that end with each hour's candle, NaN where they are incomplete.
    realized: Array = msgspec.field(default_factory=lambda: np.full(_FOLD_HOURS, np.nan))
    awaiting: bool = False
    anchor: int = 0
    memory: risk.Memory = risk.Memory()
    #: Memories of `Rules.beside`.
    beside: tuple[risk.Memory, ...] = ()
    #: None until the first forecast.
    calibrated: intervals.Memory | None = None
    recent: tuple[RecentForecast, ...] = ()

    @property
    def volatilities(self) -> Array:
        """[_FOLD_HOURS], the model's σ by hour; the newest is that of the newest forecast."""
        return np.full(_FOLD_HOURS, np.nan) if self.said is None else self.said[0]


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


class Matured(msgspec.Struct, frozen=True):
    """The 24 hours after the candle of `open_time` are over and complete: what a forecast of them is scored by."""

    symbol: str
    open_time: int
    realized: float


class Issued(msgspec.Struct, frozen=True):
    """A forecast with its interval, and the decision that rests on it."""

    prediction: Prediction
    interval: intervals.Interval
    verdict: risk.Verdict
    #: Where the policies of `Rules.beside` stand after it.
    beside: tuple[risk.Memory, ...] = ()


Event = Gap | Matured | Ready | Insufficient | Issued


def anchor(open_time: int) -> int:
    """Where the fold behind a decision on this candle begins (ms, open time)."""
    oldest = open_time // HOUR_MS - (_FOLD_HOURS - _ANCHOR_STEP_HOURS)
    return oldest // _ANCHOR_STEP_HOURS * _ANCHOR_STEP_HOURS * HOUR_MS


def step(rules: Rules, state: State, item: Candle | Prediction) -> tuple[State, tuple[Event, ...]]:
    """One move of one symbol. `OperatorError` where the driver broke the protocol."""
    if isinstance(item, Candle):
        return _take(rules, state, item)
    return _conclude(rules, state, item)


def give_up(state: State) -> State:
    """The state of a symbol whose model gave no usable answer: its candle is taken, its forecast does not exist."""
    return msgspec.structs.replace(state, awaiting=False)


def _take(rules: Rules, state: State, candle: Candle) -> tuple[State, tuple[Event, ...]]:
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
    closes = window[-intervals.DELAY_HOURS - 1 :, 3]
    exists = np.isfinite(closes)
    returns = int(np.count_nonzero(exists[1:] & exists[:-1]))
    outcomes = _shifted(state.realized, hours)
    calibrated = None if state.calibrated is None else intervals.passed(state.calibrated, hours)
    if returns == intervals.DELAY_HOURS:
        outcomes[-1] = realized = target.realized(closes)
        events.append(Matured(state.symbol, candle.open_time - intervals.DELAY_HOURS * HOUR_MS, realized))
        earlier = _said_at(state, candle.open_time - intervals.DELAY_HOURS * HOUR_MS)
        if calibrated is not None and earlier == earlier:
            calibrated = intervals.learn(rules.calibration, calibrated, candle.open_time, earlier, realized)
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
        said=state.said,
        said_until=state.said_until,
        realized=outcomes,
        awaiting=ready,
        anchor=state.anchor,
        memory=state.memory,
        beside=state.beside,
        calibrated=calibrated,
        recent=_with_outcome(state.recent, candle.open_time, float(outcomes[-1])),
    )
    return after, tuple(events)


def _conclude(rules: Rules, state: State, prediction: Prediction) -> tuple[State, tuple[Event, ...]]:
    if not state.awaiting or (prediction.symbol, prediction.open_time) != (
        state.symbol,
        state.last_open_time,
    ):
        raise OperatorError(f"nobody waits for the prediction of {prediction.symbol} {prediction.open_time}")
    now, sources = prediction.open_time, rules.sources
    if state.said is None:
        said = np.full((len(sources) + 1, _FOLD_HOURS), np.nan)
    else:
        said = _later(state.said, (now - state.said_until) // HOUR_MS)
    memory, beside, calibrated, start = state.memory, state.beside, state.calibrated, anchor(now)
    if start != state.anchor or calibrated is None:
        # This hour included: its own forecast is not there yet, and its outcome is learnt from.
        past = slice(-1 - (now - start) // HOUR_MS, None)
        calibrated, highs = intervals.folded(rules.calibration, start, said[0, past], state.realized[past])
        memory, *others = _folded(rules, start, said[:, past], highs)
        beside = tuple(others)
    calibrated, interval = intervals.give(rules.calibration, calibrated, now, prediction.volatility)
    said[:, -1] = [*(getattr(prediction, risk.SOURCES[name]) for name in sources), prediction.gaps]
    memory, verdict = risk.decide(
        rules.policy, rules.regimes, memory, risk.outlook(rules.policy, prediction, interval.high)
    )
    if rules.beside:
        beside = tuple(
            risk.advance(policy, rules.regimes, before, risk.outlook(policy, prediction, interval.high))
            for policy, before in zip(rules.beside, beside, strict=True)
        )
    after = State(
        symbol=state.symbol,
        last_open_time=state.last_open_time,
        window=state.window,
        said=said,
        said_until=now,
        realized=state.realized,
        awaiting=False,
        anchor=start,
        memory=memory,
        beside=beside,
        calibrated=calibrated,
        recent=_remember(state.recent, prediction, interval),
    )
    return after, (Issued(prediction, interval, verdict, beside),)


def _said_at(state: State, open_time: int) -> float:
    """The model's σ of an earlier candle, NaN where there was none."""
    back = (state.said_until - open_time) // HOUR_MS
    return math.nan if state.said is None or not 0 <= back < _FOLD_HOURS else float(state.said[0, -1 - back])


def _folded(rules: Rules, start: int, said: Array, highs: Array) -> list[risk.Memory]:
    """The memories of all policies after the forecasts of these hours ([sources + 1, n], [n]), from nothing."""
    first = start // HOUR_MS
    rows = [k for k, sigma in enumerate(said[0].tolist()) if sigma == sigma]
    columns = {name: said[i, rows].tolist() for i, name in enumerate((*rules.sources, "gaps"))}
    relative, gaps = (highs[rows] / said[0, rows]).tolist(), [int(g) for g in columns["gaps"]]
    seen = {
        name: [
            risk.Outlook(first + k, sigma, sigma * wide, missing)
            for k, sigma, wide, missing in zip(rows, columns[name], relative, gaps, strict=True)
        ]
        for name in rules.sources
    }
    return [risk.fold(policy, rules.regimes, seen[policy.forecast]) for policy in rules.policies]


def _with_outcome(recent: tuple[RecentForecast, ...], open_time: int, realized: float) -> tuple[RecentForecast, ...]:
    """The lines with what this candle made known: the outcome of the forecast of 24 hours before."""
    matured = open_time - intervals.DELAY_HOURS * HOUR_MS
    if math.isnan(realized):
        return recent
    # Lines are hours apart or more: this one is among the last 24, and their first where no hour is missing.
    for i in range(max(len(recent) - intervals.DELAY_HOURS, 0), len(recent)):
        if recent[i].open_time == matured:
            return (*recent[:i], msgspec.structs.replace(recent[i], realized=realized), *recent[i + 1 :])
    return recent


def _remember(
    recent: tuple[RecentForecast, ...], prediction: Prediction, interval: intervals.Interval
) -> tuple[RecentForecast, ...]:
    oldest = prediction.open_time - (RECENT_HOURS - 1) * HOUR_MS
    entry = RecentForecast(prediction.open_time, prediction.volatility, interval.low, interval.high)
    return (*(r for r in recent if r.open_time >= oldest), entry)


def _shifted(values: Array, rows: int) -> Array:
    out = np.empty_like(values)
    kept = max(len(values) - rows, 0)
    out[:kept] = values[len(values) - kept :]
    out[kept:] = np.nan
    return out


def _later(values: Array, columns: int) -> Array:
    """The same for the last axis."""
    out = np.empty_like(values)
    kept = max(values.shape[1] - columns, 0)
    out[:, :kept] = values[:, values.shape[1] - kept :]
    out[:, kept:] = np.nan
    return out
