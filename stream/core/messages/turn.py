"""A turn: candles that closed together go through the operator and the model, and become records. Pure.

The caller commits the records; the states and histories of a turn count once they are committed, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Event, Matured, Ready, State, give_up, step
from stream.core.forecasting.contract import Model
from stream.core.forecasting.predictions import Prediction
from stream.core.market.outputs import Due
from stream.core.messages import recording, scoring
from stream.core.messages.records import Record
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.schemas import Decay
from stream.core.messages.scoring import Outcome


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of a batch of candles, in their order: records to commit, and what counts once they are."""

    records: list[Record]
    states: list[State]
    histories: list[IssuedHistory]
    #: Alarms that the outcomes among them raised.
    decays: list[Decay]
    #: Symbols for which the model gave no usable answer.
    refused: list[str]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a symbol stands before a turn."""

    state: State
    #: What has been issued, by this node and by others.
    history: IssuedHistory
    #: By open time: forecasts whose 24 hours are not over, as `scoring.awaited` keeps them.
    unscored: Mapping[int, Sequence[bytes]]


def take(
    batch: Sequence[Due],
    standing: Mapping[str, Standing],
    *,
    rules: Rules,
    model: Model,
    predict: Callable[[Sequence[Ready]], Sequence[Prediction]],
    alarms: Callable[[str, Sequence[Outcome]], Sequence[Decay]],
    now_ms: int,
) -> Turn:
    """Takes at most one due candle of each symbol.

    `predict` returns predictions for those symbols for which the model gave a usable answer; `alarms(symbol, outcomes)`
    returns those that these outcomes raise and that were not issued before; `now_ms` is the wall clock's stamp.
    """
    moved = [(due, *step(rules, standing[due.candle.symbol].state, due.candle)) for due in batch]
    ready = [event for _, _, events in moved for event in events if isinstance(event, Ready)]
    predictions = {prediction.symbol: prediction for prediction in predict(ready)}
    turn = Turn([], [], [], [], [one.symbol for one in ready if one.symbol not in predictions])
    for due, moved_state, step_events in moved:
        state, events, before = moved_state, tuple(step_events), standing[due.candle.symbol]
        prediction = predictions.get(state.symbol)
        if prediction is not None:
            state, concluded = step(rules, state, prediction)
            events = (*events, *concluded)
        elif state.awaiting:
            state = give_up(state)
        outcomes = _outcomes(events, before)
        decays = alarms(state.symbol, outcomes)
        record, history = recording.closed_candle(
            due.candle,
            state,
            events,
            outcomes,
            decays,
            history=before.history,
            model=model,
            policy_version=rules.policy.version,
            provenance=due.provenance,
            now_ms=now_ms,
        )
        turn.records.append(record)
        turn.states.append(state)
        turn.histories.append(history)
        turn.decays.extend(decays)
    return turn


def _outcomes(events: Sequence[Event], before: Standing) -> tuple[Outcome, ...]:
    found = [
        scoring.matured(awaited, event.symbol, event.realized)
        for event in events
        if isinstance(event, Matured)
        for awaited in before.unscored.get(event.open_time, ())
    ]
    return tuple(msgspec.structs.replace(o, score_revision=before.history.score_number(o)) for o in found)
