"""A node whose journal holds more than the rule keeps: it forgets that while it runs, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import fault_harness as stand
import pytest
from journal_rows import kept_hours

from stream.adapters.journal.database import FILE_NAME
from stream.core.market.candle import HOUR_MS
from stream.testing.exchange import Exchange

HOURS = 40


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with stand.new_broker() as url:
        yield url


def age(data_dir: Path) -> None:
    """Adds forecasts of three weeks before the start, and as many other symbols as leave each the least share."""
    with contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as db, db:
        old = [(f"old:{h}", 0, "BTCUSDT", stand.hour(-500 + h), b"{}") for h in range(100)]
        db.executemany("INSERT INTO forecasts VALUES (?, ?, ?, ?, ?)", old)
        others = [(f"C{n}USDT", stand.START, 0, 0.5, "m", "p") for n in range(300)]
        db.executemany("INSERT INTO operator_state VALUES (?, ?, ?, ?, ?, ?)", others)


def forecast_hours(data_dir: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as db:
        return kept_hours(db, "forecasts", "BTCUSDT")


async def test_what_the_rule_lets_go_is_forgotten_and_the_node_goes_on_as_if_it_were_there(
    broker: str, tmp_path: Path
) -> None:
    tape = stand.market(hours=HOURS)
    async with Exchange.replaying(tape, stand.START, HOURS, None) as exchange:
        half = {symbol: stand.hour(HOURS // 2) for symbol in stand.SYMBOLS}
        await stand.run(exchange, broker, tmp_path, last=half, check=False)
        await asyncio.to_thread(age, tmp_path)
        assert min(await asyncio.to_thread(forecast_hours, tmp_path)) == stand.hour(-500)
        await stand.run(exchange, broker, tmp_path)
    hours = await asyncio.to_thread(forecast_hours, tmp_path)
    # All of them are younger than a week: they stay.
    assert hours == list(range(hours[0], stand.hour(HOURS - 1) + 1, HOUR_MS))
    assert hours[0] >= stand.hour(-1)
