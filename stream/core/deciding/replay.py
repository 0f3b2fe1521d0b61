"""The synchronous driver: candles of one symbol in, events of the operator out.

Start-up warms an operator with it, `volcast predict` is a call of it, and tests compare the daemon with it.
Features and the model run once over the whole table, which gives the same rows as one candle at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.core.deciding import batch
from stream.core.deciding.accumulation import Rules, anchor, forecast_hours
from stream.core.deciding.operator import (
    RECENT_HOURS,
    Event,
    Issued,
    Matured,
    Ready,
    State,
    column,
    give_up,
    remember,
    step,
)
from stream.core.deciding.past import EACH_HOURS, Past
from stream.core.forecasting import features, target
from stream.core.forecasting.contract import Model
from stream.core.forecasting.features import LOOKBACK_HOURS, Features
from stream.core.forecasting.predictions import Prediction, assemble
from stream.core.forecasting.rolling import Rolling
from stream.core.forecasting.tail import Tail, spare_rows_of
from stream.core.forecasting.windows import Array
from stream.core.market.candle import HOUR_MS, Candle

#: (sequence [n, 48, F], static [n, S]) -> volatility [n, 5]; a row's answer must not depend on the other rows.
Predict = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

#: Rows whose sequences are held in memory at once: 48 × 8 floats each.
_CHUNK = 8_192


def to_grid(candles: Sequence[Candle]) -> tuple[NDArray[np.int64], Array]:
    """Returns candles in order as (open_time [T], ohlcv [T, 5]) on the hourly grid, NaN where none exists. Raises
    `ValueError` if they are not in order, repeat an hour or lie off the grid."""
    if not candles:
        return np.empty(0, np.int64), np.empty((0, 5))
    times = np.array([c.open_time for c in candles], np.int64)
    if np.any(np.diff(times) <= 0) or np.any(times % HOUR_MS):
        raise ValueError("candles must be in order, each hour once")
    grid = np.arange(times[0], times[-1] + 1, HOUR_MS, dtype=np.int64)
    ohlcv = np.full((len(grid), 5), np.nan)
    ohlcv[(times - times[0]) // HOUR_MS] = [c.ohlcv for c in candles]
    return grid, ohlcv


def predict_rows(
    symbol: str, table: Features, rows: NDArray[np.int64], model: Model, predict: Predict
) -> list[Prediction]:
    """Returns the predictions for `rows` of one symbol's feature table, computed in chunks that bound memory."""
    out: list[Prediction] = []
    for first in range(0, len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK]
        out += assemble(symbol, table, chunk, predict(table.sequences(chunk), table.static[chunk]), model)
    return out


def replay(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    model: Model,
    predict: Predict,
    since: int | None = None,
) -> Iterator[tuple[State, Event]]:
    """Drives a fresh operator over `candles` and yields each event with the state after it.

    Forecasts begin with the first candle that opens at or after `since` (default: the first there is); the
    hours that its decision's accumulation needs are run before it and not yielded.
    """
    yield from drive(
        rules, symbol, candles, _predictions(rules, symbol, *to_grid(candles), model, predict, since), since
    )


def events(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    model: Model,
    predict: Predict,
    since: int | None = None,
) -> Iterator[Matured | Issued]:
    """Yields the outcomes and forecasts of `replay` without the states between them, for a fraction of the work."""
    yield from batch.events(
        rules, symbol, candles, _predictions(rules, symbol, *to_grid(candles), model, predict, since), since
    )


def stretches(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    model: Model,
    predict: Predict,
    since: int | None = None,
) -> Iterator[batch.Stretch]:
    """Yields the forecasts of `events` as columns, and without the reasons of their decisions, for less work still."""
    yield from batch.stretches(
        rules, symbol, candles, _predictions(rules, symbol, *to_grid(candles), model, predict, since), since
    )


def _predictions(
    rules: Rules,
    symbol: str,
    grid: NDArray[np.int64],
    ohlcv: Array,
    model: Model,
    predict: Predict,
    since: int | None,
) -> dict[int, Prediction]:
    """Returns predictions by open time, of all hours that what is issued from `since` on depends on."""
    if not len(grid):
        return {}
    table = features.compute(grid, ohlcv)
    start = anchor(since) if since is not None else int(grid[0])
    rows = np.nonzero(table.ready & forecast_hours(grid, start, own=symbol != rules.described))[0]
    return {p.open_time: p for p in predict_rows(symbol, table, rows, model, predict)}


def drive(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    predictions: Mapping[int, Prediction],
    since: int | None = None,
) -> Iterator[tuple[State, Event]]:
    """Does what `replay` does, with the predictions given, by open time."""
    state = State(symbol)
    start = anchor(since) if since is not None else None
    for candle in candles:
        # The look-back before the accumulation fills the window; of its forecasts only some are needed, for own
        # regimes.
        state, events = step(rules, state, candle)
        yield from ((state, e) for e in events if since is None or candle.open_time >= since)
        if not any(isinstance(e, Ready) for e in events):
            continue
        prediction = predictions.get(candle.open_time)
        if prediction is None:
            # Before the accumulation none was asked for; within it the model gave no usable answer. Either way there
            # is no forecast.
            state = give_up(state)
            continue
        if start is not None and candle.open_time < start:
            state = remember(rules, state, prediction)
            continue
        state, events = step(rules, state, prediction)
        yield from ((state, e) for e in events if since is None or candle.open_time >= since)


def warm(rules: Rules, symbol: str, candles: Sequence[Candle], model: Model, predict: Predict) -> State:
    """Returns the operator's state after `candles`, as if it had always run: for start-up and recovery.

    Only the hours that `State.recent` shows are stepped through. What is remembered of earlier hours are arrays, and
    the first step accumulates over them.
    """
    if not candles:
        return State(symbol)
    grid, ohlcv = to_grid(candles)
    newest = int(grid[-1])
    predictions = _predictions(rules, symbol, grid, ohlcv, model, predict, newest)
    # A forecast that the model refused leaves the lines before it as they were.
    oldest = max(predictions, default=newest) - (RECENT_HOURS - 1) * HOUR_MS
    shown = next(k for k, c in enumerate(candles) if c.open_time >= oldest)
    state = _before(rules, symbol, candles[:shown], grid, ohlcv, predictions)
    for candle in candles[shown:]:
        state, events = step(rules, state, candle)
        if not any(isinstance(e, Ready) for e in events):
            continue
        prediction = predictions.get(candle.open_time)
        # The newest candle may be one that the model gave no usable answer for.
        state = give_up(state) if prediction is None else step(rules, state, prediction)[0]
    return state


def follow(rules: Rules, state: State, candles: Sequence[Candle], model: Model, predict: Predict) -> State:
    """Returns the operator's state after further candles, one at a time."""
    for candle in candles:
        state, events = step(rules, state, candle)
        ready = [e for e in events if isinstance(e, Ready)]
        if not ready:
            continue
        found = predict_ready(ready, model, predict, Rolling())
        state = step(rules, state, found[0])[0] if found else give_up(state)
    return state


def same_candles(a: State, b: State) -> bool:
    """Returns whether two states have seen the same candles in the hours that features look back."""
    return a.last_open_time == b.last_open_time and np.array_equal(a.window.rows, b.window.rows, equal_nan=True)


def _before(
    rules: Rules,
    symbol: str,
    candles: Sequence[Candle],
    grid: NDArray[np.int64],
    ohlcv: Array,
    predictions: Mapping[int, Prediction],
) -> State:
    """Returns the state after `candles`, the first ones of the grid, as it is before anything has been decided."""
    if not candles:
        return State(symbol)
    last = candles[-1].open_time
    end = (last - int(grid[0])) // HOUR_MS + 1
    window = np.full((LOOKBACK_HOURS, 5), np.nan)
    window[-min(end, LOOKBACK_HOURS) :] = ohlcv[max(end - LOOKBACK_HOURS, 0) : end]
    realized = np.full(EACH_HOURS, np.nan)
    realized[-min(end, EACH_HOURS) :] = target.realized_hours(ohlcv[:end, 3])[-EACH_HOURS:]
    known = [p for p in predictions.values() if p.open_time <= last]
    spare = spare_rows_of(symbol)
    bare = State(symbol, last_open_time=last, window=Tail.of(window, spare), realized=Tail.of(realized, spare))
    if not known:
        return bare
    until = max(p.open_time for p in known)
    sigmas = np.full((len(rules.sources) + 1, rules.sigma_hours(symbol)), np.nan)
    for prediction in known:
        back = (until - prediction.open_time) // HOUR_MS
        if back < sigmas.shape[1]:
            sigmas[:, -1 - back] = column(rules, prediction)
    return msgspec.structs.replace(bare, past=Past.of(rules, symbol, until, sigmas, spare))


def predict_ready(ready: Sequence[Ready], model: Model, predict: Predict, rolling: Rolling) -> list[Prediction]:
    """Returns predictions for the operators that wait, in their order: one model call for those that closed together.

    A symbol for which the model gave no usable answer is not among them. `rolling` keeps what the next hour's features
    need; it makes them faster and no different.
    """
    found: dict[tuple[str, int], Prediction] = {}
    for open_time in sorted({r.open_time for r in ready}):
        together = [r for r in ready if r.open_time == open_time]
        symbols = [r.symbol for r in together]
        table, sequences = rolling.newest(
            open_time, symbols, [r.window for r in together], [r.follows for r in together]
        )
        volatility = predict(sequences, table.static)
        for prediction in assemble(symbols, table, np.arange(len(symbols)), volatility, model):
            found[prediction.symbol, open_time] = prediction
    return [found[r.symbol, r.open_time] for r in ready if (r.symbol, r.open_time) in found]
