"""A processor on a real journal, and what both have produced in the end, for tests that compare two of them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.store import SqliteJournal
from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.deciding.policy import Policy
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.market.outputs import Due
from stream.core.messages.records import Outgoing, Record, Retained
from stream.core.messages.schemas import Decision, Forecast
from stream.errors import JournalError
from stream.pipeline.processing import Processor
from stream.pipeline.worker import Worker
from stream.telemetry import Fact
from stream.testing.sample_model import sample_model, sample_predict

START = 1_704_067_200_000
SYMBOL = "BTCUSDT"
#: Hours of history before the first candle that is processed, and all hours of the tape.
FIRST, HOURS = 50, 130


class Predictor:
    model = sample_model()

    def __call__(self, sequence: Any, static: Any) -> Any:
        return sample_predict(sequence, static)


class FullDisk(SqliteJournal):
    has_space = True

    def commit(self, records: Sequence[Record]) -> list[int]:
        if not self.has_space:
            raise JournalError("journal cannot be written: database or disk is full")
        return super().commit(records)


class Bench:
    def __init__(self, folder: Path, clock: Clock) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.journal = FullDisk(folder)
        self.facts: list[Fact] = []
        self.offered: list[Outgoing] = []
        self.retained: dict[str, Retained] = {}
        self.worker = Worker(clock=clock, observe=self.facts.append)
        self.processor = Processor(
            journal=self.journal,
            worker=self.worker,
            predictor=Predictor(),
            rules=Rules.of(Policy(), Predictor.model.contract),
            clock=clock,
            observe=self.facts.append,
            offer=self._offer,
        )

    def _offer(self, events: Sequence[Outgoing], retained: Sequence[Retained]) -> None:
        self.offered.extend(events)
        self.retained |= {r.topic: r for r in retained}

    async def live(self, candles: Sequence[Candle]) -> None:
        await self.worker.call(self.journal.store_history, candles[:FIRST])
        await self.processor.warm(SYMBOL, candles[:FIRST], None)
        for candle in candles[FIRST:]:
            await self.processor.process([Due(candle, "live", 0.0)])

    def recorded(self) -> dict[str, Any]:
        """Returns the newest revision of everything in the journal."""

        def newest(table: str, kind: type[Any]) -> dict[str, Any]:
            rows = self.journal.messages(table, SYMBOL, None, None, 10_000)
            found = {m.id: m for m in (msgspec.json.decode(row, type=kind) for row in rows)}
            assert len(found) == len(rows)
            return {k: plain(m) for k, m in found.items()}

        return {
            "candles": {c.open_time: c.ohlcv for c in self.journal.candles(SYMBOL, 0, 2**60)},
            "forecasts": newest("forecasts", Forecast),
            "decisions": newest("decisions", Decision),
            "outcomes": {o.forecast_id: plain(o) for o in self.journal.outcomes(SYMBOL, 0, 2**60)},
        }

    def gaps(self) -> list[tuple[int, int]]:
        with contextlib.closing(sqlite3.connect(self.folder / FILE_NAME)) as db:
            rows = db.execute("SELECT from_open_time, to_open_time FROM gaps ORDER BY 1").fetchall()
        return [((a - START) // HOUR_MS, (b - START) // HOUR_MS) for a, b in rows]

    def published(self) -> dict[tuple[str, int], bytes]:
        """Returns the payload of every event offered by (id, revision), and asserts that each was offered once."""
        found: dict[tuple[str, int], bytes] = {}
        for event in self.offered:
            if "gap." in event.topic:
                continue
            message = msgspec.json.decode(event.payload)
            # An alarm is raised once, and has no revision.
            key = (message["id"], message.get("revision", 0))
            assert key not in found, key
            found[key] = event.payload
        return found


def plain(message: Any) -> dict[str, Any]:
    skipped = ("issued_at", "provenance", "revision", "score_revision")
    return {k: v for k, v in msgspec.to_builtins(message).items() if k not in skipped}


def assert_close(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-14)
    else:
        assert a == b


@contextlib.asynccontextmanager
async def bench(folder: Path, clock: Clock | None = None) -> AsyncIterator[Bench]:
    made = await asyncio.to_thread(Bench, folder, clock or Clock())
    try:
        yield made
    finally:
        await asyncio.to_thread(made.worker.close)
        await asyncio.to_thread(made.journal.close)


def wrong(candle: Candle, factor: float) -> Candle:
    close = candle.close * factor
    return msgspec.structs.replace(
        candle, close=close, high=max(candle.high, close), low=min(candle.low, close), volume=candle.volume * 2
    )
