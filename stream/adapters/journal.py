"""The journal: SQLite (WAL, synchronous=FULL), written first and spoken from afterwards.

One closed candle is one transaction: candle, forecast, decision, outgoing events, retained payloads and how far
the symbol came. What is in here is true; what is not has not happened. Synchronous; one thread at a time calls it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from stream.core.candle import Candle
from stream.core.messages import Decision, Forecast
from stream.ports import JournalError, Outgoing, Processed, Record, Retained

FILE_NAME = "journal.sqlite"
LOCK_NAME = "journal.lock"

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
)


class DataDirLock:
    """Keeps a data directory to one daemon. The operating system lets go of it when the process ends."""

    def __init__(self, data_dir: Path) -> None:
        """`JournalError` where the directory cannot be written or another process holds it."""
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JournalError(
                f"data directory {data_dir} is not writable ({error.strerror}): mend its permissions "
                "or choose another with --data-dir"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise JournalError(
                f"data directory {data_dir} is in use by another volcast: stop it, or choose another with --data-dir"
            ) from None

    def release(self) -> None:
        os.close(self._file)


class SqliteJournal:
    """`stream.ports.Journal` in `data_dir`."""

    def __init__(self, data_dir: Path, *, read_only: bool = False) -> None:
        """Opens, and creates or migrates. `read_only` is for looking beside a running daemon."""
        self._path = data_dir / FILE_NAME
        try:
            if read_only and not self._path.exists():
                raise JournalError(f"there is no journal in {data_dir}: start `volcast run` there first")
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA busy_timeout = 5000")
            if read_only:
                self._db.execute("PRAGMA query_only = ON")
            else:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._migrate()
        except sqlite3.Error as error:
            raise JournalError(f"journal {self._path} cannot be opened: {error}") from None

    def close(self) -> None:
        self._db.close()

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise JournalError(
                f"journal {self._path} has schema {version}, made by a newer volcast than this one "
                f"(schema {len(MIGRATIONS)}): run that version, or choose another --data-dir"
            )
        for number in range(version, len(MIGRATIONS)):
            self._db.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors, a full disk among them.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise JournalError(f"journal {self._path} cannot be written: {error}") from None

    def _read(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"journal {self._path} cannot be read: {error}") from None

    def processed(self, symbol: str) -> Processed | None:
        rows = self._read(
            "SELECT open_time, anchor, exposure, model_version, policy_version FROM operator_state WHERE symbol = ?",
            (symbol,),
        )
        return Processed(*rows[0]) if rows else None

    def symbols(self) -> list[str]:
        """Every symbol that was ever processed here."""
        return [symbol for (symbol,) in self._read("SELECT symbol FROM operator_state ORDER BY symbol")]

    def candles(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Candle]:
        rows = self._read(
            "SELECT symbol, open_time, open, high, low, close, volume FROM candles "
            "WHERE symbol = ? AND open_time BETWEEN ? AND ? ORDER BY open_time",
            (symbol, from_open_time, to_open_time),
        )
        return [Candle(*row) for row in rows]

    def last_open_time(self, symbol: str) -> int | None:
        """The newest candle of a symbol, processed or not."""
        ((newest,),) = self._read("SELECT max(open_time) FROM candles WHERE symbol = ?", (symbol,))
        return None if newest is None else int(newest)

    def store_history(self, candles: Sequence[Candle]) -> None:
        with self._transaction() as db:
            # What is already here was used as it is: a later copy does not silently replace it.
            db.executemany(
                "INSERT OR IGNORE INTO candles VALUES (?, ?, ?, ?, ?, ?, ?, 'backfill')",
                [(c.symbol, c.open_time, *c.ohlcv) for c in candles],
            )

    def commit(self, records: Sequence[Record]) -> list[int]:
        seqs: list[int] = []
        with self._transaction() as db:
            for record in records:
                seqs += self._store(db, record)
        return seqs

    def _store(self, db: sqlite3.Connection, record: Record) -> list[int]:
        # OR REPLACE: a commit whose fate is unknown (an I/O error after the write) is tried again.
        candle = record.candle
        db.execute(
            "INSERT OR REPLACE INTO candles VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (candle.symbol, candle.open_time, *candle.ohlcv, record.provenance),
        )
        for table, message in (("forecasts", record.forecast), ("decisions", record.decision)):
            if message is not None:
                db.execute(
                    f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)",
                    (message.id, message.revision, message.symbol, message.open_time, msgspec.json.encode(message)),
                )
        if record.gap is not None:
            db.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?)", (candle.symbol, *record.gap))
        db.execute(
            "INSERT OR REPLACE INTO operator_state VALUES (?, ?, ?, ?, ?, ?)",
            (
                candle.symbol,
                candle.open_time,
                record.anchor,
                record.exposure,
                record.model_version,
                record.policy_version,
            ),
        )
        return _queue(db, record.events, record.retained)

    def post(self, events: Sequence[tuple[str, bytes, int]], retained: Sequence[Retained]) -> list[int]:
        """Messages that belong to no candle (drift): durable like the others."""
        with self._transaction() as db:
            return _queue(db, events, [(r.topic, r.payload, r.expiry_s, r.valid_until) for r in retained])

    def outbox(self) -> list[Outgoing]:
        rows = self._read("SELECT seq, topic, payload, expiry_s FROM outbox ORDER BY seq")
        return [Outgoing(*row) for row in rows]

    def acknowledge(self, seqs: Sequence[int]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in seqs])

    def retained(self) -> list[Retained]:
        rows = self._read("SELECT topic, payload, expiry_s, valid_until FROM retained ORDER BY topic")
        return [Retained(*row) for row in rows]

    def forget_retained(self, topics: Sequence[str]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM retained WHERE topic = ?", [(topic,) for topic in topics])

    def messages(
        self, table: str, symbol: str, from_ms: int | None, to_ms: int | None, limit: int, newest: bool = False
    ) -> list[bytes]:
        """Payloads of `forecasts` or `decisions` that open in [from, to], oldest first; with `newest`, the newest
        `limit` of them."""
        if table not in ("forecasts", "decisions"):
            raise ValueError(f"no messages in table {table!r}")
        rows = self._read(
            f"SELECT payload FROM {table} WHERE symbol = ? AND open_time BETWEEN ? AND ? "
            f"ORDER BY open_time {'DESC' if newest else 'ASC'}, revision LIMIT ?",
            (symbol, from_ms if from_ms is not None else 0, to_ms if to_ms is not None else 2**62, limit),
        )
        found = [bytes(payload) for (payload,) in rows]
        return found[::-1] if newest else found

    def newest(self, symbol: str) -> tuple[Forecast | None, Decision | None]:
        forecasts = self.messages("forecasts", symbol, None, None, 1, newest=True)
        decisions = self.messages("decisions", symbol, None, None, 1, newest=True)
        return (
            msgspec.json.decode(forecasts[0], type=Forecast) if forecasts else None,
            msgspec.json.decode(decisions[0], type=Decision) if decisions else None,
        )

    def size_bytes(self) -> int:
        return sum(p.stat().st_size for p in self._path.parent.glob(f"{FILE_NAME}*"))


def _queue(
    db: sqlite3.Connection,
    events: Sequence[tuple[str, bytes, int]],
    retained: Sequence[tuple[str, bytes, int | None, int | None]],
) -> list[int]:
    """Puts messages where the speaker finds them; the numbers of the events, in order."""
    db.executemany("INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?)", retained)
    query = "INSERT INTO outbox (topic, payload, expiry_s) VALUES (?, ?, ?)"
    return [int(db.execute(query, event).lastrowid or 0) for event in events]
