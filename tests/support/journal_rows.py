"""Rows as the daemon leaves them, for tests of the journal's size and of what it forgets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from stream.core.market.candle import HOUR_MS

START = 1_704_067_200_000
DAY_END = 23

OUTCOME_COLUMNS = 17


def fill(db: sqlite3.Connection, symbol: str, hours: dict[str, int], newest: int, payload: bytes) -> None:
    """Writes rows of the newest `hours[table]` hours up to the open time `newest`."""

    def times(table: str) -> Iterator[int]:
        return iter(range(newest - (hours[table] - 1) * HOUR_MS, newest + 1, HOUR_MS))

    def message(open_time: int) -> tuple[Any, ...]:
        return f"binance:spot:{symbol}:1h:{open_time}:0123456789ab", 0, symbol, open_time, payload

    with db:
        db.executemany(
            "INSERT INTO candles VALUES (?, ?, 42283.58, 42554.57, 42261.02, 42475.23, 1271.68108, 'live')",
            [(symbol, t) for t in times("candles")],
        )
        for table in ("forecasts", "decisions"):
            db.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)", map(message, times(table)))
        db.executemany(
            f"INSERT INTO outcomes VALUES ({', '.join('?' * OUTCOME_COLUMNS)})",
            [
                (
                    *(f"binance:spot:{symbol}:1h:{t}:0123456789ab", 0, symbol, t, "live", "0123456789ab"),
                    *(0.00517 + k * 1e-5 for k in range(8)),
                    *(0, "model", 0.00517),
                )
                for t in times("outcomes")
            ],
        )
        db.execute("INSERT OR REPLACE INTO operator_state VALUES (?, ?, 0, 0.5, '0123456789ab', 'p')", (symbol, newest))


def kept_hours(db: sqlite3.Connection, table: str, symbol: str) -> list[int]:
    """Returns the open times that a table has of a symbol, oldest first."""
    rows = db.execute(f"SELECT open_time FROM {table} WHERE symbol = ? ORDER BY 1", (symbol,)).fetchall()
    return [open_time for (open_time,) in rows]
