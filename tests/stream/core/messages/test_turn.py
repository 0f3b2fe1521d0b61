"""Many symbols in one turn are what each is alone: ids, values and order, with holes, revised pasts, refused rows,
outcomes that mature and `har` served among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import Ready, State
from stream.core.deciding.policy import Policy
from stream.core.deciding.replay import predict_ready, warm
from stream.core.forecasting.predictions import Prediction
from stream.core.forecasting.rolling import Rolling
from stream.core.forecasting.tail import Tail
from stream.core.market.candle import Candle
from stream.core.market.outputs import Due
from stream.core.messages import scoring, turn
from stream.core.messages.records import Record
from stream.core.messages.revisions import IssuedHistory
from stream.core.messages.turn import Standing, Turn
from stream.testing.market import simulate_symbol
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
HISTORY, HOURS = 1_000, 30
MODEL = sample_model()
RULES = Rules.of(Policy(), MODEL.contract)
#: Symbols beyond these have the history of one of them.
MARKETS = 7
#: So high that `har` is served.
BEHIND = (0.3,) * 30


def refusing(sequence: NDArray[np.float32], static: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gives no usable answer for one row in seven; which, only its own content says."""
    volatility = sample_predict(sequence, static)
    volatility[np.abs(static[:, 5] * 1e6).astype(np.int64) % 7 == 0] = np.nan
    return volatility


@cache
def market(seed: int) -> tuple[Candle, ...]:
    return tuple(simulate_symbol("X", START, HISTORY + HOURS, seed))


@cache
def warmed(seed: int, symbol: str, *, behind: bool) -> State:
    state = warm(RULES, "X", market(seed)[:HISTORY], MODEL, sample_predict)
    return msgspec.structs.replace(state, symbol=symbol, days=BEHIND if behind else state.days)


@dataclass
class Node:
    """What a processor keeps, and its turns."""

    standing: dict[str, Standing]
    rolling: Rolling = field(default_factory=Rolling)
    records: dict[str, list[Record]] = field(default_factory=dict)
    refused: int = 0

    def take(self, batch: Sequence[Due]) -> Turn:
        def predict(ready: Sequence[Ready]) -> Sequence[Prediction]:
            return predict_ready(ready, MODEL, refusing, self.rolling)

        taken = turn.take(
            batch,
            self.standing,
            rules=RULES,
            model=MODEL,
            predict=predict,
            alarms=lambda symbol, outcomes: [],
            now_ms=START,
        )
        self.refused += len(taken.refused)
        for record, state, history in zip(taken.records, taken.states, taken.histories, strict=True):
            unscored: dict[int, Sequence[bytes]] = dict(self.standing[state.symbol].unscored)
            if record.forecasts:
                unscored[record.open_time] = [scoring.awaited(encoded.message) for encoded in record.forecasts]
            self.standing[state.symbol] = Standing(state, history, unscored)
            self.records.setdefault(state.symbol, []).append(record)
        return taken

    def revise(self, symbol: str) -> None:
        """Changes a candle of the past, as a revision does: the state has another window from now on."""
        before = self.standing[symbol]
        rows = before.state.window.rows.copy()
        rows[-5, 1] *= 1.01
        self.standing[symbol] = Standing(
            msgspec.structs.replace(before.state, window=Tail.of(rows)), before.history, before.unscored
        )


def node(symbols: Sequence[str], seed_of: Callable[[str], int]) -> Node:
    return Node(
        {
            symbol: Standing(warmed(seed_of(symbol), symbol, behind=seed_of(symbol) % 3 == 0), IssuedHistory(), {})
            for symbol in symbols
        }
    )


def assert_same_state(a: State, b: State) -> None:
    for name in State.__struct_fields__:
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=True), name
        elif name not in ("calibrated", "har_calibrated"):
            assert one == other, name


@pytest.mark.parametrize("count", [1, 7, 300])
def test_many_together_are_what_each_is_alone(count: int) -> None:
    symbols = [f"S{n:03}USDT" for n in range(count)]
    number = {symbol: n for n, symbol in enumerate(symbols)}

    def seed_of(symbol: str) -> int:
        return number[symbol] % MARKETS

    together = node(symbols, seed_of)
    # Of many, a few are enough to compare with.
    compared = symbols[:: max(1, count // 10)]
    alone = {symbol: node([symbol], seed_of) for symbol in compared}
    for h in range(HOURS):
        # Some miss two early hours, and the past of some is revised before the hour.
        present = [symbol for symbol in symbols if number[symbol] % 3 != 1 or h not in (1, 2)]
        for symbol in (s for s in present if (number[s] + h) % 13 == 5):
            for one in (together, alone[symbol]) if symbol in alone else (together,):
                one.revise(symbol)
        batch = [
            Due(msgspec.structs.replace(market(seed_of(symbol))[HISTORY + h], symbol=symbol), "live", 0.0)
            for symbol in present
        ]
        taken = together.take(batch)
        assert [record.symbol for record in taken.records] == present
        for due in batch:
            if due.candle.symbol in alone:
                alone[due.candle.symbol].take([due])
    for symbol in compared:
        assert together.records[symbol] == alone[symbol].records[symbol]
        assert_same_state(together.standing[symbol].state, alone[symbol].standing[symbol].state)
    records = [record for kept in together.records.values() for record in kept]
    assert any(record.outcomes for record in records)
    if count > 1:
        assert together.refused
        assert any(record.gap for record in records)
        serving = {e.message.serving for record in records for e in record.forecasts}
        assert serving == {"model", "har"}
