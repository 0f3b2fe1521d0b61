"""Scorekeeping: an alarm is published once, whatever revisions and restarts do to the day that raised it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream.adapters.journal.store import SqliteJournal
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.operator import State
from stream.core.deciding.policy import Policy
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages import scoreboard
from stream.core.messages.recording import encoded
from stream.core.messages.records import Processed, Record
from stream.core.messages.schemas import Decay
from stream.core.messages.scoring import Outcome
from stream.pipeline.revision import _Restating
from stream.pipeline.scorekeeping import Scorekeeper
from stream.pipeline.worker import Worker
from stream.testing.sample_model import sample_model

START = 1_704_067_200_000
MODEL = sample_model()
USUAL = MODEL.contract.usual


def outcome(day: int, deviations: float, **changes: Any) -> Outcome:
    """Returns the outcome of the last forecast of a day, whose ln(realized / forecast) is so many usual deviations from
    the usual mean."""
    open_time = START + (24 * day + 23) * HOUR_MS
    realized = 0.01 * math.exp(USUAL.ratio_mean + deviations * USUAL.ratio_deviation)
    made = Outcome(
        forecast_id=f"binance:spot:BTCUSDT:1h:{open_time}:{MODEL.version}", revision=0, symbol="BTCUSDT",
        open_time=open_time, provenance="live", model_version=MODEL.version, realized=realized, volatility=0.01,
        low=0.005, high=0.02, level=0.9, persistence=0.01, ewma=0.01, har=0.01, model_volatility=0.01,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


#: Sound for ten days, then too low; the alarm comes with the last of these.
DAYS = [outcome(day, 0.0) for day in range(10)]
while not scoreboard.alarms(USUAL, DAYS)[1]:
    DAYS.append(outcome(len(DAYS), 1.9))


def record(of: Outcome, *decays: Decay) -> Record:
    candle = Candle("BTCUSDT", of.open_time + 24 * HOUR_MS, 1.0, 1.0, 1.0, 1.0, 1.0)
    return Record(
        symbol=candle.symbol,
        candles=(candle,),
        provenance="live",
        open_time=candle.open_time,
        outcomes=(of,),
        decays=tuple(encoded(found) for found in decays),
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    with contextlib.closing(SqliteJournal(tmp_path)) as made:
        yield made


def keeper(journal: SqliteJournal) -> Scorekeeper:
    clock = Clock(wall_ms=lambda: 5)
    made = Scorekeeper(
        journal=journal, worker=Worker(clock=clock, observe=lambda fact: None), model=MODEL, clock=clock,
        observe=lambda fact: None, offer=lambda events, retained: None,
    )  # fmt: skip
    made.adopt("BTCUSDT", asyncio.run(made.read(State("BTCUSDT", last_open_time=DAYS[-1].open_time), MODEL)))
    return made


def test_an_alarm_that_a_revision_unmakes_is_not_told_again_a_day_later(journal: SqliteJournal) -> None:
    journal.commit([record(o) for o in DAYS[:-1]])
    (reported,) = keeper(journal).decays("BTCUSDT", [DAYS[-1]])
    journal.commit([record(DAYS[-1], reported)])
    # The exchange revises that day: the alarm would not have been raised.
    journal.commit([record(outcome(len(DAYS) - 1, 0.3, score_revision=1))])
    again = keeper(journal)
    late = outcome(len(DAYS), 1.9)
    assert again._boards["BTCUSDT"].alarm(late) is not None
    assert again.decays("BTCUSDT", [late]) == []
    # A change weeks later raises another alarm.
    journal.commit([record(outcome(len(DAYS) + k, 0.0)) for k in range(40)])
    for k in range(40, 60):
        next_day = outcome(len(DAYS) + k, 1.9)
        if found := keeper(journal).decays("BTCUSDT", [next_day]):
            break
        journal.commit([record(next_day)])
    assert [d.kind for d in found] == [reported.kind]


def restating(journal: SqliteJournal) -> _Restating:
    class Predictor:
        model = MODEL

    newest = DAYS[-1].open_time + 24 * HOUR_MS
    processed = Processed(newest, 0, 0.0, MODEL.version, "p")
    rules = Rules.of(Policy(), MODEL.contract)
    return _Restating("BTCUSDT", processed, journal, rules, Predictor(), 5)  # type: ignore[arg-type]


def test_an_alarm_that_only_a_revision_raises_is_told_once_with_it(journal: SqliteJournal) -> None:
    journal.commit([record(o) for o in [*DAYS[:-1], outcome(len(DAYS) - 1, -0.5)]])
    assert keeper(journal)._boards["BTCUSDT"].memory.alarm is None
    (found,) = restating(journal)._decays([DAYS[-1]])
    expected = scoreboard.alarms(USUAL, DAYS)[1][0]
    assert (found.kind, found.open_time, found.since) == (expected.kind, expected.open_time, expected.since)
    journal.commit([record(DAYS[-1], found)])
    assert restating(journal)._decays([msgspec.structs.replace(DAYS[-1], score_revision=2)]) == ()
    assert journal.reported_alarms("BTCUSDT", MODEL.version) == [found.open_time]
    assert journal.reported_alarms("BTCUSDT", "another") == []


def test_a_damaged_row_stops_no_start(journal: SqliteJournal) -> None:
    spoilt = [msgspec.structs.replace(o, realized=0.0) if k == 3 else o for k, o in enumerate(DAYS[:-1])]
    journal.commit([record(o) for o in spoilt])
    assert keeper(journal).decays("BTCUSDT", [DAYS[-1]]) != []
