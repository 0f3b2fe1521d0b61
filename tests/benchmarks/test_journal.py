"""How large the journal of 100 symbols is after a year, with messages of the size that the daemon writes."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from journal_rows import START, fill

from stream.adapters.journal.database import FILE_NAME
from stream.adapters.journal.pruning import TABLES, prune
from stream.adapters.journal.store import SqliteJournal
from stream.core.market.candle import HOUR_MS

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

SYMBOLS = 100
#: 300 days before the first hour, and a year.
HOURS = 7_200 + 8_760
LIMIT_MB = 250
#: The mean of a forecast and a decision.
PAYLOAD_BYTES = 910


def test_a_year_of_100_symbols(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).close()
    path = tmp_path / FILE_NAME
    newest = START + HOURS * HOUR_MS
    # What the rule keeps, and a day more of each, for the daemon prunes all the time and not once a year.
    hours = {kept.table: max(kept.least_hours, kept.rows // SYMBOLS) + 24 for kept in TABLES}
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        for n in range(SYMBOLS):
            symbol = f"S{n:03}USDT"
            fill(db, symbol, hours, newest, b"x" * PAYLOAD_BYTES)
            daily = [
                (f"binance:spot:{symbol}:1h:{t}:0123456789ab", 0, symbol, t, "live", "0123456789ab")
                + (0.00517,) * 8
                + (0, "model", 0.00517)
                for t in range(START + (7_200 + 23) * HOUR_MS, newest - hours["outcomes"] * HOUR_MS, 24 * HOUR_MS)
            ]
            with db:
                db.executemany(f"INSERT INTO outcomes VALUES ({', '.join('?' * 17)})", daily)
        prune(db, 10**9)
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size_mb = sum(file.stat().st_size for file in tmp_path.glob(f"{FILE_NAME}*")) / 1e6
    print(f"\n{SYMBOLS} symbols after a year: {size_mb:.0f} MB (limit {LIMIT_MB} MB)")
    assert size_mb <= LIMIT_MB
