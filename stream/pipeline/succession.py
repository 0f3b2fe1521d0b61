"""Succession: the state of a symbol under another model, while the present one goes on.

A new model's state is what a fresh start with it would compute from the same candles, so nothing that the former model
said enters it. It is computed beside the candles, which takes a third of a second a symbol; what closes meanwhile is
added when the new model takes over, between two candles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import State
from stream.core.deciding.replay import follow, same_candles, warm
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.records import Issuer
from stream.ports import Journal, Predictor


@dataclass(frozen=True, slots=True)
class Successor:
    """A model that may take over, with the rules that follow from its contract."""

    predictor: Predictor
    rules: Rules
    #: As the journal keeps it.
    issuer: Issuer


@dataclass(frozen=True, slots=True)
class Change:
    """A model's file has become another one."""

    #: None if there is no file any more.
    model: Successor | None


def past(successor: Successor, state: State, journal: Journal) -> list[Candle]:
    """Returns the candles up to the state's newest that the successor's state depends on. On the worker's thread."""
    if state.last_open_time is None:
        return []
    hours = successor.rules.history_hours(state.symbol)
    return journal.candles(state.symbol, state.last_open_time - (hours - 1) * HOUR_MS, state.last_open_time)


def state_of(successor: Successor, symbol: str, candles: Sequence[Candle]) -> State:
    """Returns the symbol's state under the successor after these candles. On any thread."""
    return warm(successor.rules, symbol, candles, successor.predictor.model, successor.predictor)


def caught_up(successor: Successor, before: State | None, present: State, journal: Journal) -> State:
    """Returns the successor's state after the newest candle of `present`. `before` is the one that was computed some
    candles ago, None if there is none. On the worker's thread."""
    predictor, newest = successor.predictor, present.last_open_time
    if before is not None and before.last_open_time is not None and newest is not None:
        later = journal.candles(present.symbol, before.last_open_time + HOUR_MS, newest)
        state = follow(successor.rules, before, later, predictor.model, predictor)
        # They differ where the exchange has revised an hour meanwhile.
        if same_candles(state, present):
            return state
    return state_of(successor, present.symbol, past(successor, present, journal))
