"""The keyed operator: one symbol's state and an input in, a new state and events out.

`step(rules, state, Candle | Prediction)` is plain data in, plain data out: no clock, no I/O, no model call. It
returns `Ready`; the driver computes features and predicts, many symbols in one call, and passes the prediction to
the next step. The daemon, the backtest and batch prediction are drivers; any engine with keyed state can be one.

All that intervals, decisions and the choice of what is served carry is an accumulation over a finite history
(stream/core/deciding/accumulation.py), so a fresh start and a daemon that ran for a year agree.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from stream.core.deciding import accumulation
from stream.core.deciding import policy as risk
from stream.core.deciding.accumulation import RegimesFrom, Rules, Serving, anchor
from stream.core.deciding.past import EACH_HOURS, Past
from stream.core.forecasting import intervals, serving, target
from stream.core.forecasting.contract import Regimes
from stream.core.forecasting.features import LOOKBACK_HOURS, MIN_RETURNS_24H, SIGMA_FLOOR
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.tail import Tail, spare_rows_of
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, Candle

RECENT_HOURS = 48


class OperatorError(ValueError):
    """The driver broke the protocol (an old candle, a prediction that is not awaited): a defect of the driver."""


class RecentForecast(msgspec.Struct, frozen=True, gc=False):
    """One line of the `recent` topic. σ hourly; `realized` is the outcome 24 h later, null until then."""

    open_time: int
    volatility: float
    low: float
    high: float
    realized: float | None = None


class State(msgspec.Struct, frozen=True):
    """The state of one symbol, as plain data."""

    symbol: str
    last_open_time: int | None = None
    #: [LOOKBACK_HOURS, 5], OHLCV by hour, the newest last, NaN where there is no candle.
    window: Tail = msgspec.field(default_factory=lambda: Tail.of(np.full((LOOKBACK_HOURS, 5), np.nan)))
    #: None before the first forecast.
    past: Past | None = None
    #: [EACH_HOURS], σ of the 24 h that end with each hour's candle, NaN where they are incomplete.
    realized: Tail = msgspec.field(default_factory=lambda: Tail.of(np.full(EACH_HOURS, np.nan)))
    awaiting: bool = False
    anchor: int = 0
    memory: risk.PolicyMemory = risk.PolicyMemory()
    #: Memories of `Rules.compared`.
    compared: tuple[risk.PolicyMemory, ...] = ()
    #: None until the first forecast.
    calibrated: intervals.IntervalMemory | None = None
    #: The same around `har`; None while it has not been served since the anchor.
    har_calibrated: intervals.IntervalMemory | None = None
    #: As `Accumulated.days`; they decide what is served.
    days: tuple[float, ...] = ()
    serving: Serving = "model"
    #: As `Accumulated.regimes`; None until the first forecast.
    regimes: tuple[Regimes, ...] | None = None
    regimes_from: RegimesFrom = "bundle"
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
    """Asks the driver to predict for this candle and to pass the prediction to `step` before the next candle."""

    symbol: str
    open_time: int
    window: Tail
    #: The window of the candle before, if that is an hour older.
    follows: Tail | None = None


class Insufficient(msgspec.Struct, frozen=True):
    """The candle is taken, but too few of its last 24 returns exist for a forecast."""

    symbol: str
    open_time: int
    returns_24h: int


class Matured(msgspec.Struct, frozen=True, gc=False):
    """The 24 hours after the candle of `open_time` are over and complete: a forecast of them is scored by `realized`,
    their hourly σ."""

    symbol: str
    open_time: int
    realized: float


class Issued(msgspec.Struct, frozen=True, gc=False):
    """A forecast with its interval, and the decision that rests on it."""

    #: As it is served: while `har` is served, its σ are har's.
    prediction: Prediction
    interval: intervals.Interval
    verdict: risk.Ruling
    serving: Serving
    #: The model's forecast for the next 24 h.
    model_volatility: float
    #: The thresholds of the verdict's regime.
    regimes: Regimes
    regimes_from: RegimesFrom = "bundle"
    #: Memories of the policies of `Rules.compared` after it.
    compared: tuple[risk.PolicyMemory, ...] = ()


Event = Gap | Matured | Ready | Insufficient | Issued


def step(rules: Rules, state: State, item: Candle | Prediction) -> tuple[State, tuple[Event, ...]]:
    """Steps one symbol by one input; returns the new state and the events. Raises `OperatorError` if the driver broke
    the protocol."""
    if isinstance(item, Candle):
        return _take(rules, state, item)
    return _conclude(rules, state, item)


def remember(rules: Rules, state: State, prediction: Prediction) -> State:
    """Returns the state after a forecast from before the accumulation: nothing is decided, but own regimes use it."""
    return msgspec.structs.replace(state, past=_with(rules, state, prediction), awaiting=False)


def give_up(state: State) -> State:
    """Returns the state of a symbol for which the model gave no usable answer: its candle has no forecast."""
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
    window = state.window.later(candle.ohlcv, hours, math.nan)
    closes = window.rows[-intervals.DELAY_HOURS - 1 :, 3]
    exists = np.isfinite(closes)
    returns = int(np.count_nonzero(exists[1:] & exists[:-1]))
    calibrated = None if state.calibrated is None else intervals.passed(state.calibrated, hours)
    har_calibrated = None if state.har_calibrated is None else intervals.passed(state.har_calibrated, hours)
    realized = math.nan
    model, har = _past_at(state, candle.open_time - intervals.DELAY_HOURS * HOUR_MS)
    if returns == intervals.DELAY_HOURS:
        realized = target.realized(closes)
        events.append(Matured(state.symbol, candle.open_time - intervals.DELAY_HOURS * HOUR_MS, realized))
        if calibrated is not None and model == model:
            calibrated = intervals.learn(rules.calibration, calibrated, candle.open_time, model, realized)
        if har_calibrated is not None and har == har:
            har_calibrated = intervals.learn(rules.har_calibration, har_calibrated, candle.open_time, har, realized)
    days = state.days
    if state.calibrated is not None:
        days = _with_day(days, candle.open_time, hours, accumulation.excess(realized, model, har))
    ready = returns >= MIN_RETURNS_24H
    events.append(
        Ready(state.symbol, candle.open_time, window, state.window if hours == 1 else None)
        if ready
        else Insufficient(state.symbol, candle.open_time, returns)
    )
    after = State(
        symbol=state.symbol,
        last_open_time=candle.open_time,
        window=window,
        past=state.past,
        realized=state.realized.later(realized, hours, math.nan),
        awaiting=ready,
        anchor=state.anchor,
        memory=state.memory,
        compared=state.compared,
        calibrated=calibrated,
        har_calibrated=har_calibrated,
        days=days,
        serving=state.serving,
        regimes=state.regimes,
        regimes_from=state.regimes_from,
        recent=_with_outcome(state.recent, candle.open_time, realized),
    )
    return after, tuple(events)


def _conclude(rules: Rules, state: State, prediction: Prediction) -> tuple[State, tuple[Event, ...]]:
    if not state.awaiting or (prediction.symbol, prediction.open_time) != (
        state.symbol,
        state.last_open_time,
    ):
        raise OperatorError(f"nobody waits for the prediction of {prediction.symbol} {prediction.open_time}")
    now = prediction.open_time
    calibrated, har_calibrated, days = state.calibrated, state.har_calibrated, state.days
    memory, compared, start = state.memory, state.compared, anchor(now)
    regimes, regimes_from = state.regimes, state.regimes_from
    # This hour included: its own forecast is not there yet, and its outcome is learnt from.
    since = slice(-1 - (now - start) // HOUR_MS, None)
    if start != state.anchor or calibrated is None or regimes is None:
        sigmas = _hourly(rules, state, now)
        before = sigmas[:, : since.start]
        found = accumulation.accumulate(rules, state.symbol, start, sigmas[:, since], state.realized.rows, before)
        calibrated, har_calibrated, days = found.calibrated, found.har_calibrated, found.days
        memory, *others = found.memories
        compared = tuple(others)
        regimes, regimes_from = found.regimes, found.regimes_from
    har_served = serving.behind(days)
    if har_served and har_calibrated is None:
        sigmas = _hourly(rules, state, now)
        har_calibrated = accumulation.har_intervals(rules, start, sigmas[:, since], state.realized.rows)
    calibrated, interval = intervals.give(rules.calibration, calibrated, now, prediction.volatility)
    if har_calibrated is not None:
        har_calibrated, around_har = intervals.give(rules.har_calibration, har_calibrated, now, prediction.baseline_har)
        interval = around_har if har_served else interval
    closes = state.window.rows[-intervals.DELAY_HOURS :, 3]
    issued, memory = conclude(
        rules, prediction, interval, closes, (memory, *compared), regimes, regimes_from, har_served=har_served
    )
    after = State(
        symbol=state.symbol,
        last_open_time=state.last_open_time,
        window=state.window,
        past=_with(rules, state, prediction),
        realized=state.realized,
        awaiting=False,
        anchor=start,
        memory=memory,
        compared=issued.compared,
        calibrated=calibrated,
        har_calibrated=har_calibrated,
        days=days,
        serving=issued.serving,
        regimes=regimes,
        regimes_from=regimes_from,
        recent=_remember(state.recent, issued.prediction, interval),
    )
    return after, (issued,)


def conclude(
    rules: Rules,
    model_prediction: Prediction,
    interval: intervals.Interval,
    closes: Array,
    memories: tuple[risk.PolicyMemory, ...],
    regimes: tuple[Regimes, ...],
    regimes_from: RegimesFrom,
    *,
    har_served: bool,
) -> tuple[Issued, risk.PolicyMemory]:
    """Returns what is issued of a prediction and its interval, and the policy's memory after it.

    `closes` are those of the last 24 hours, NaN where there is none; `memories` and `regimes` are one for each of
    `Rules.policies` and `Rules.sources`.
    """
    before, *others = memories
    limits = accumulation.regimes_for(rules, rules.policy, regimes, har_served)
    seen = as_seen(model_prediction, har_served=har_served)
    memory, ruling = risk.decide(rules.policy, limits, before, risk.outlook(rules.policy, seen, interval.high))
    compared = tuple(
        risk.advance(
            policy,
            accumulation.regimes_for(rules, policy, regimes, har_served),
            before_it,
            risk.outlook(policy, seen, interval.high),
        )
        for policy, before_it in zip(rules.compared, others, strict=True)
    )
    prediction = as_har(model_prediction, closes) if har_served else model_prediction
    who: Serving = "har" if har_served else "model"
    limits = risk.limits_of(rules.policy, limits)
    issued = Issued(prediction, interval, ruling, who, model_prediction.volatility, limits, regimes_from, compared)
    return issued, memory


def as_seen(model_prediction: Prediction, *, har_served: bool) -> Prediction:
    """Returns the prediction as policies see it. That is what `State.past` keeps of each source, for a later
    accumulation will show them that again: of the headline what is served, of everything else what was predicted."""
    if not har_served:
        return model_prediction
    return msgspec.structs.replace(model_prediction, volatility=model_prediction.baseline_har)


def _with(rules: Rules, state: State, prediction: Prediction) -> Past:
    """Returns `State.past` with this forecast."""
    if state.past is not None:
        return state.past.later(rules, prediction)
    first = np.array(column(rules, prediction))[:, None]
    return Past.of(rules, state.symbol, prediction.open_time, first, spare_rows_of(state.symbol))


def _hourly(rules: Rules, state: State, now: int) -> Array:
    """Returns `Past.hourly`; the forecast of this hour is not there yet."""
    if state.past is None:
        return np.full((len(rules.sources) + 1, rules.sigma_hours(state.symbol)), np.nan)
    return state.past.hourly(rules, state.symbol, now)


def column(rules: Rules, prediction: Prediction) -> list[float]:
    """Returns what is remembered of a prediction: σ by source, and the missing hours."""
    return [*(getattr(prediction, risk.SOURCES[name]) for name in rules.sources), prediction.gaps]


def as_har(prediction: Prediction, closes: Array) -> Prediction:
    """Returns the prediction scaled to har's level: har forecasts the next 24 h as a whole only, so the shape of the
    hours within is the model's."""
    level = prediction.baseline_har / prediction.volatility

    def scaled(sigma: float) -> float:
        return max(sigma * level, SIGMA_FLOOR)

    first = scaled(prediction.horizon_1h)
    return msgspec.structs.replace(
        prediction,
        volatility=prediction.baseline_har,
        horizon_1h=first,
        horizon_6h=scaled(prediction.horizon_6h),
        horizon_12h=scaled(prediction.horizon_12h),
        horizon_24h=scaled(prediction.horizon_24h),
        rolling_24h_next=target.rolling_of_closes(closes, first),
    )


def _with_day(days: tuple[float, ...], open_time: int, hours: int, excess: float) -> tuple[float, ...]:
    """Returns the days after a candle that came `hours` after the one before it; a day whose last candle is missing is
    unknown."""
    hour = open_time // HOUR_MS
    passed = (hour + 1) // 24 - (hour - hours + 1) // 24
    if not passed:
        return days
    newest = excess if serving.is_daily(open_time) else math.nan
    missed = (math.nan,) * min(passed - 1, serving.DAYS)
    return (*days, *missed, newest)[-serving.DAYS :]


def _past_at(state: State, open_time: int) -> tuple[float, float]:
    """Returns σ of the model and of har at an earlier candle of the accumulation, NaN where there was none."""
    if state.past is None or open_time < state.anchor:
        return math.nan, math.nan
    return state.past.at(open_time)


def _with_outcome(recent: tuple[RecentForecast, ...], open_time: int, realized: float) -> tuple[RecentForecast, ...]:
    """Returns the lines with the outcome that this candle made known: that of the forecast of 24 hours before."""
    matured = open_time - intervals.DELAY_HOURS * HOUR_MS
    if math.isnan(realized):
        return recent
    # Lines are at least an hour apart: this one is among the last 24, and their first if no hour is missing.
    for i in range(max(len(recent) - intervals.DELAY_HOURS, 0), len(recent)):
        if recent[i].open_time == matured:
            return (*recent[:i], msgspec.structs.replace(recent[i], realized=realized), *recent[i + 1 :])
    return recent


def _remember(
    recent: tuple[RecentForecast, ...], prediction: Prediction, interval: intervals.Interval
) -> tuple[RecentForecast, ...]:
    oldest = prediction.open_time - (RECENT_HOURS - 1) * HOUR_MS
    entry = RecentForecast(prediction.open_time, prediction.volatility, interval.low, interval.high)
    first = 0
    while first < len(recent) and recent[first].open_time < oldest:
        first += 1
    return (*recent[first:], entry)
