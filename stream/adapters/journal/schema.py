"""The journal's tables, and the migration from each schema to the next."""

from __future__ import annotations

import sqlite3

#: Each entry brings the schema from its index to the next number. Entries are never changed, only added.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE candles (
        symbol TEXT NOT NULL, open_time INTEGER NOT NULL,
        open REAL NOT NULL, high REAL NOT NULL, low REAL NOT NULL, close REAL NOT NULL, volume REAL NOT NULL,
        provenance TEXT NOT NULL,
        PRIMARY KEY (symbol, open_time)
    ) WITHOUT ROWID;
    CREATE TABLE forecasts (
        id TEXT NOT NULL, revision INTEGER NOT NULL, symbol TEXT NOT NULL, open_time INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (id, revision)
    ) WITHOUT ROWID;
    CREATE INDEX forecasts_by_time ON forecasts (symbol, open_time);
    CREATE TABLE decisions (
        id TEXT NOT NULL, revision INTEGER NOT NULL, symbol TEXT NOT NULL, open_time INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (id, revision)
    ) WITHOUT ROWID;
    CREATE INDEX decisions_by_time ON decisions (symbol, open_time);
    CREATE TABLE gaps (
        symbol TEXT NOT NULL, from_open_time INTEGER NOT NULL, to_open_time INTEGER NOT NULL,
        PRIMARY KEY (symbol, from_open_time)
    ) WITHOUT ROWID;
    CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL, payload BLOB NOT NULL, expiry_s INTEGER NOT NULL
    );
    CREATE TABLE retained (
        topic TEXT PRIMARY KEY, payload BLOB NOT NULL, expiry_s INTEGER, valid_until INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE operator_state (
        symbol TEXT PRIMARY KEY, open_time INTEGER NOT NULL, anchor INTEGER NOT NULL, exposure REAL NOT NULL,
        model_version TEXT NOT NULL, policy_version TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE outcomes (
        forecast_id TEXT PRIMARY KEY, revision INTEGER NOT NULL, symbol TEXT NOT NULL, open_time INTEGER NOT NULL,
        provenance TEXT NOT NULL, model_version TEXT NOT NULL, realized REAL NOT NULL,
        volatility REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, level REAL NOT NULL,
        persistence REAL NOT NULL, ewma REAL NOT NULL, har REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX outcomes_by_time ON outcomes (symbol, open_time);
    """,
    """
    ALTER TABLE outcomes ADD COLUMN score_revision INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE outcomes ADD COLUMN serving TEXT NOT NULL DEFAULT 'model';
    ALTER TABLE outcomes ADD COLUMN model_volatility REAL NOT NULL DEFAULT 0;
    UPDATE outcomes SET model_volatility = volatility;
    CREATE TABLE alarms (
        id TEXT PRIMARY KEY, symbol TEXT NOT NULL, model_version TEXT NOT NULL, open_time INTEGER NOT NULL,
        payload BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE bundles (version TEXT PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE policies (version TEXT PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE configured (symbol TEXT PRIMARY KEY) WITHOUT ROWID;
    """,
    # With rowids: rows this long, sorted by their key, take a page of 4 KiB each.
    """
    ALTER TABLE forecasts RENAME TO forecasts_before;
    ALTER TABLE decisions RENAME TO decisions_before;
    DROP INDEX forecasts_by_time;
    DROP INDEX decisions_by_time;
    CREATE TABLE forecasts (
        id TEXT NOT NULL, revision INTEGER NOT NULL, symbol TEXT NOT NULL, open_time INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (id, revision)
    );
    CREATE TABLE decisions (
        id TEXT NOT NULL, revision INTEGER NOT NULL, symbol TEXT NOT NULL, open_time INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (id, revision)
    );
    INSERT INTO forecasts SELECT * FROM forecasts_before ORDER BY open_time;
    INSERT INTO decisions SELECT * FROM decisions_before ORDER BY open_time;
    DROP TABLE forecasts_before;
    DROP TABLE decisions_before;
    CREATE INDEX forecasts_by_time ON forecasts (symbol, open_time);
    CREATE INDEX decisions_by_time ON decisions (symbol, open_time);
    """,
    """
    CREATE TABLE shadows (
        symbol TEXT NOT NULL, model_version TEXT NOT NULL, open_time INTEGER NOT NULL,
        volatility REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, realized REAL,
        PRIMARY KEY (symbol, model_version, open_time)
    ) WITHOUT ROWID;
    CREATE TABLE verdicts (id TEXT PRIMARY KEY) WITHOUT ROWID;
    """,
)


def version(db: sqlite3.Connection) -> int:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    return int(found)


def create(db: sqlite3.Connection) -> None:
    """Migrates a database of any schema, also an empty one, to the present one."""
    for number in range(version(db), len(MIGRATIONS)):
        db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
