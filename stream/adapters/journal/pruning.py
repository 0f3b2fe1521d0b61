"""What the journal forgets: the rule of docs/operations.md, "How large the journal becomes".

Rules of this module:
- The fewer symbols, the longer: all symbols share a number of rows, and each keeps a least number of hours in any case.
- The least is more than anything looks back: restarts, revisions, scores, drift and the report of a quarter.
- Hours count back from the symbol's newest processed candle, not from the clock, which may jump.
- What was revised stays: the highest revision of a symbol must never fall.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from stream.core.market.candle import HOUR_MS


@dataclass(frozen=True, slots=True)
class Kept:
    """How long the rows of a table are kept."""

    table: str
    #: Columns of the primary key.
    key: str
    least_hours: int
    #: Rows that all symbols share.
    rows: int
    #: Which rows may be forgotten at all.
    only: str = "TRUE"


TABLES = (
    # A week: as long as brokers keep events.
    Kept("forecasts", "id, revision", 7 * 24, 36_000, "revision = 0"),
    Kept("decisions", "id, revision", 7 * 24, 36_000, "revision = 0"),
    # Scores reach back 90 days, a quarter has 92. Those that close a UTC day are what decay is tested on.
    Kept("outcomes", "forecast_id", 95 * 24, 230_000, "open_time % 86400000 <> 82800000 AND score_revision = 0"),
    # As long as what it is compared with.
    Kept("shadows", "symbol, model_version, open_time", 95 * 24, 230_000),
    # A year and ten days: 300 days of history at a restart, and the drift of a quarter against its past.
    Kept("candles", "symbol, open_time", 375 * 24, 900_000),
)


def prune(db: sqlite3.Connection, at_most: int) -> int:
    """Deletes the oldest rows that the rule lets go, `at_most` of each table; returns how many there were."""
    newest = db.execute("SELECT symbol, open_time FROM operator_state").fetchall()
    deleted = 0
    for kept in TABLES:
        left = at_most
        hours = max(kept.least_hours, kept.rows // max(len(newest), 1))
        for symbol, open_time in newest:
            left -= db.execute(
                f"DELETE FROM {kept.table} WHERE ({kept.key}) IN (SELECT {kept.key} FROM {kept.table} "
                f"WHERE symbol = ? AND open_time < ? AND {kept.only} ORDER BY open_time LIMIT ?)",
                (symbol, open_time - hours * HOUR_MS, left),
            ).rowcount
            if left <= 0:
                break
        deleted += at_most - left
    return deleted
