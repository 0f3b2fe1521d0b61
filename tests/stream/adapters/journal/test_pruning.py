"""What the journal forgets, and what it must not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_rows import START, fill, kept_hours

from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.pruning import TABLES, prune
from stream.adapters.journal.store import SqliteJournal
from stream.core.deciding.accumulation import OWN_HISTORY_HOURS
from stream.core.forecasting import drift
from stream.core.market.candle import HOUR_MS
from stream.core.messages.scoreboard import WINDOW_DAYS

QUARTER_HOURS = 92 * 24
#: So many symbols that each has the least share.
MANY = 300
LEAST = {kept.table: kept.least_hours for kept in TABLES}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    SqliteJournal(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as opened:
        yield opened


def crowd(db: sqlite3.Connection, symbols: int) -> None:
    """Adds symbols that have a state and nothing else."""
    rows = [(f"C{n}USDT", START, 0, 0.5, "m", "p") for n in range(symbols)]
    db.executemany("INSERT INTO operator_state VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.commit()


def test_what_is_kept_is_more_than_anything_looks_back() -> None:
    assert LEAST["candles"] > OWN_HISTORY_HOURS
    assert LEAST["candles"] > QUARTER_HOURS + drift.WINDOW_HOURS + drift.LOOKBACK_HOURS + drift.OWN_REFERENCE_HOURS
    assert LEAST["outcomes"] > max(WINDOW_DAYS) * 24 + 24
    assert LEAST["outcomes"] > QUARTER_HOURS + 24
    # REST may revise candles of the last 48 hours (stream/pipeline/revision.py).
    assert min(LEAST["forecasts"], LEAST["decisions"]) > 48 + 24


def test_each_of_many_symbols_keeps_its_least_and_each_of_few_keeps_more(db: sqlite3.Connection) -> None:
    newest = START + 20_000 * HOUR_MS
    hours = {table: least + 50 for table, least in LEAST.items()}
    fill(db, "AUSDT", hours, newest, b"x" * 900)
    fill(db, "BUSDT", hours, newest - 500 * HOUR_MS, b"x" * 900)
    assert prune(db, 100_000) == 0
    crowd(db, MANY)
    assert prune(db, 100_000) > 0
    for symbol, last in (("AUSDT", newest), ("BUSDT", newest - 500 * HOUR_MS)):
        for table in ("forecasts", "decisions", "candles"):
            least = LEAST[table]
            assert kept_hours(db, table, symbol) == list(range(last - least * HOUR_MS, last + 1, HOUR_MS))
    assert prune(db, 100_000) == 0


def test_outcomes_that_close_a_day_and_revised_rows_stay(db: sqlite3.Connection) -> None:
    newest = START + 20_000 * HOUR_MS
    hours = {table: least + 100 for table, least in LEAST.items()}
    fill(db, "AUSDT", hours, newest, b"x")
    oldest = {table: newest - (n - 1) * HOUR_MS for table, n in hours.items()}
    db.execute("UPDATE forecasts SET revision = 3 WHERE open_time = ?", (oldest["forecasts"] + 5 * HOUR_MS,))
    db.execute("UPDATE outcomes SET score_revision = 2 WHERE open_time = ?", (oldest["outcomes"] + 5 * HOUR_MS,))
    crowd(db, MANY)
    prune(db, 100_000)
    cut = newest - LEAST["forecasts"] * HOUR_MS
    assert [t for t in kept_hours(db, "forecasts", "AUSDT") if t < cut] == [oldest["forecasts"] + 5 * HOUR_MS]
    cut = newest - LEAST["outcomes"] * HOUR_MS
    old = [t for t in kept_hours(db, "outcomes", "AUSDT") if t < cut]
    daily = [t for t in range(oldest["outcomes"], cut, HOUR_MS) if t // HOUR_MS % 24 == 23]
    assert old == sorted({*daily, oldest["outcomes"] + 5 * HOUR_MS})


def test_a_large_backlog_is_forgotten_in_parts_the_oldest_first(db: sqlite3.Connection) -> None:
    newest = START + 20_000 * HOUR_MS
    fill(db, "AUSDT", {**LEAST, "forecasts": LEAST["forecasts"] + 1 + 250}, newest, b"x")
    crowd(db, MANY)
    before = kept_hours(db, "forecasts", "AUSDT")
    assert prune(db, 100) == 100
    assert kept_hours(db, "forecasts", "AUSDT") == before[100:]
    assert [prune(db, 100) for _ in range(3)] == [100, 50, 0]


def test_the_journal_prunes_itself_and_what_waits_in_the_outbox_stays(tmp_path: Path) -> None:
    with contextlib.closing(SqliteJournal(tmp_path)) as journal:
        journal.post([("volcast/v1/x", b"{}", 60)], [])  # type: ignore[list-item]
        with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
            fill(other, "AUSDT", {**LEAST, "decisions": LEAST["decisions"] + 10}, START + 20_000 * HOUR_MS, b"x")
            crowd(other, MANY)
        assert journal.prune() == 9
        assert [event.topic for event in journal.outbox()] == ["volcast/v1/x"]
