"""The journal: SQLite (WAL, synchronous=FULL), written before anything is published.

All that a closed candle leaves is in one transaction: candle, forecast, decision, outgoing events, retained payloads
and the symbol's state. What is in here is true; what is not has not happened. Synchronous; one thread at a time calls
it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from stream.adapters.journal import pruning, statements
from stream.adapters.journal.database import Database
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.records import EventMessage, Issuer, Outgoing, Processed, Record, Renumbering, Retained
from stream.core.messages.schemas import Decision, Forecast
from stream.core.messages.scoring import Outcome
from stream.core.messages.shadows import ShadowForecast

log = logging.getLogger(__name__)

T = TypeVar("T", Forecast, Decision)

#: Columns of `outcomes` are the fields of an Outcome, in their order.
_OUTCOME = Outcome.__struct_fields__
#: A few milliseconds of the worker; ten times as many as come in meanwhile with a hundred symbols.
_PRUNED_AT_ONCE = 1_000


class SqliteJournal(Database):
    """Implements `stream.ports.Journal` in `data_dir`: the tables of the file that `Database` keeps."""

    def processed(self, symbol: str) -> Processed | None:
        rows = self.read(
            "SELECT open_time, anchor, exposure, model_version, policy_version FROM operator_state WHERE symbol = ?",
            (symbol,),
        )
        return Processed(*rows[0]) if rows else None

    def symbols(self) -> list[str]:
        """Returns every symbol that was ever configured or processed here."""
        return [s for (s,) in self.read("SELECT symbol FROM operator_state UNION SELECT symbol FROM configured")]

    def configure(self, symbols: Sequence[str]) -> None:
        with self.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO configured VALUES (?)", [(symbol,) for symbol in symbols])

    def highest_revision(self, symbol: str) -> int:
        """Returns the highest revision of a symbol's forecasts and scores; 0 where there are none."""
        query = (
            "SELECT max(coalesce((SELECT max(revision) FROM forecasts WHERE symbol = ?1), 0), "
            "coalesce((SELECT max(score_revision) FROM outcomes WHERE symbol = ?1), 0))"
        )
        ((highest,),) = self.read(query, (symbol,))
        return int(highest)

    def first_forecast(self, symbol: str) -> int | None:
        ((first,),) = self.read("SELECT min(open_time) FROM forecasts WHERE symbol = ?", (symbol,))
        return None if first is None else int(first)

    def keep_issuer(self, issuer: Issuer) -> None:
        """Keeps the bundle and the policy that issue from now on, and deletes those whose newest messages are too old
        to be corrected."""
        with self.transaction() as db:
            statements.keep_issuer(db, issuer)

    def issued_by(self, table: Literal["bundles", "policies"], version: str) -> bytes | None:
        """Returns a bundle or a policy that has issued messages here lately; None where there is none."""
        rows = self.read(f"SELECT body FROM {table} WHERE version = ?", (version,))
        return bytes(rows[0][0]) if rows else None

    def renumber(self, change: Renumbering) -> None:
        """Gives messages that wait to be published another revision, in one transaction."""
        with self.transaction() as db:
            statements.renumber(db, change)

    def candles(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Candle]:
        rows = self.read(
            "SELECT symbol, open_time, open, high, low, close, volume FROM candles "
            "WHERE symbol = ? AND open_time BETWEEN ? AND ? ORDER BY open_time",
            (symbol, from_open_time, to_open_time),
        )
        return [Candle(*row) for row in rows]

    def last_open_time(self, symbol: str) -> int | None:
        """Returns the open time of a symbol's newest candle, processed or not; None where there is none."""
        ((newest,),) = self.read("SELECT max(open_time) FROM candles WHERE symbol = ?", (symbol,))
        return None if newest is None else int(newest)

    def store_history(self, candles: Sequence[Candle]) -> None:
        with self.transaction() as db:
            # A candle that is already here was used as it is: a later copy does not silently replace it.
            db.executemany(
                "INSERT OR IGNORE INTO candles VALUES (?, ?, ?, ?, ?, ?, ?, 'backfill')",
                [(c.symbol, c.open_time, *c.ohlcv) for c in candles],
            )

    def commit(self, records: Sequence[Record]) -> list[int]:
        with self.transaction() as db:
            return _store(db, records)

    def post(self, events: Sequence[EventMessage], retained: Sequence[Retained]) -> list[int]:
        """Stores messages that belong to no candle (drift), durable like the others. Returns the events' numbers."""
        with self.transaction() as db:
            return _queue(db, events, retained)

    def verdicts(self) -> set[str]:
        """Returns the ids of the retraining's verdicts that have been published."""
        return {verdict for (verdict,) in self.read("SELECT id FROM verdicts")}

    def post_verdict(self, verdict: str, events: Sequence[EventMessage]) -> list[int]:
        """Stores the events of a verdict, which counts as published with them. Returns the events' numbers."""
        with self.transaction() as db:
            db.execute("INSERT INTO verdicts VALUES (?)", (verdict,))
            return _queue(db, events, ())

    def outbox(self) -> list[Outgoing]:
        rows = self.read("SELECT seq, topic, payload, expiry_s FROM outbox ORDER BY seq")
        return [Outgoing(*row) for row in rows]

    def acknowledge(self, seqs: Sequence[int]) -> None:
        with self.transaction() as db:
            db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in seqs])

    def prune(self) -> int:
        """Deletes rows that are older than the rule of stream/adapters/journal/pruning.py, a limited number at a time;
        returns how many there were."""
        with self.transaction() as db:
            return pruning.prune(db, _PRUNED_AT_ONCE)

    def retained(self, topics: Sequence[str] | None = None) -> list[Retained]:
        where = "" if topics is None else f"WHERE topic IN ({', '.join('?' * len(topics))}) "
        query = f"SELECT topic, payload, expiry_s, valid_until FROM retained {where}ORDER BY topic"
        return [Retained(*row) for row in self.read(query, topics or ())]

    def forget_retained(self, topics: Sequence[str]) -> None:
        with self.transaction() as db:
            db.executemany("DELETE FROM retained WHERE topic = ?", [(topic,) for topic in topics])

    def messages(
        self, table: str, symbol: str, from_ms: int | None, to_ms: int | None, limit: int, newest: bool = False
    ) -> list[bytes]:
        """Returns at most `limit` payloads of `forecasts` or `decisions` that open in [from, to], oldest first.

        Of each message it is the newest revision. With `newest`, they are the newest `limit` and not the oldest.
        """
        if table not in ("forecasts", "decisions"):
            raise ValueError(f"no messages in table {table!r}")
        rows = self.read(
            f"SELECT payload FROM {table} AS said WHERE symbol = ? AND open_time BETWEEN ? AND ? "
            f"AND NOT EXISTS (SELECT 1 FROM {table} WHERE id = said.id AND revision > said.revision) "
            f"ORDER BY open_time {'DESC' if newest else 'ASC'} LIMIT ?",
            (symbol, from_ms if from_ms is not None else 0, to_ms if to_ms is not None else 2**62, limit),
        )
        found = [bytes(payload) for (payload,) in rows]
        return found[::-1] if newest else found

    def newest(self, symbol: str) -> tuple[Forecast | None, Decision | None]:
        forecasts = self.messages("forecasts", symbol, None, None, 1, newest=True)
        decisions = self.messages("decisions", symbol, None, None, 1, newest=True)
        forecast, decision = _decoded(forecasts, Forecast), _decoded(decisions, Decision)
        return (forecast[0] if forecast else None, decision[0] if decision else None)

    def unscored(self, symbol: str, from_open_time: int) -> list[Forecast]:
        """Returns forecasts of candles from then on that have no outcome yet; of revised ones the newest revision."""
        rows = self.read(
            "SELECT payload FROM forecasts WHERE symbol = ? AND open_time >= ? "
            "AND NOT EXISTS (SELECT 1 FROM outcomes WHERE forecast_id = forecasts.id) ORDER BY open_time, revision",
            (symbol, from_open_time),
        )
        found = _decoded([payload for (payload,) in rows], Forecast)
        return list({f.id: f for f in found}.values())

    def outcomes(self, symbol: str, from_open_time: int, to_open_time: int) -> list[Outcome]:
        """Returns the outcomes of forecasts of candles that open in [from, to], oldest first."""
        rows = self.read(
            f"SELECT {', '.join(_OUTCOME)} FROM outcomes WHERE symbol = ? AND open_time BETWEEN ? AND ? "
            "ORDER BY open_time, forecast_id",
            (symbol, from_open_time, to_open_time),
        )
        return [Outcome(*row) for row in rows]

    def daily_outcomes(self, symbol: str, model_version: str) -> list[Outcome]:
        """Returns all outcomes of one model's forecasts that close a UTC day (stream/core/forecasting/serving.py),
        oldest first."""
        rows = self.read(
            f"SELECT {', '.join(_OUTCOME)} FROM outcomes WHERE symbol = ? AND model_version = ? "
            "AND open_time % 86400000 = 82800000 ORDER BY open_time",
            (symbol, model_version),
        )
        return [Outcome(*row) for row in rows]

    def shadows(self, symbol: str, model_version: str, from_open_time: int, to_open_time: int) -> list[ShadowForecast]:
        """Returns what a shadow forecast for candles that open in [from, to], oldest first."""
        rows = self.read(
            "SELECT symbol, model_version, open_time, volatility, low, high, realized FROM shadows "
            "WHERE symbol = ? AND model_version = ? AND open_time BETWEEN ? AND ? ORDER BY open_time",
            (symbol, model_version, from_open_time, to_open_time),
        )
        return [ShadowForecast(*row) for row in rows]

    def store_shadows(self, forecasts: Sequence[ShadowForecast]) -> None:
        with self.transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO shadows VALUES (?, ?, ?, ?, ?, ?, ?)",
                [msgspec.structs.astuple(forecast) for forecast in forecasts],
            )

    def reported_alarms(self, symbol: str, model_version: str) -> list[int]:
        """Returns the open times of the alarms that were reported about one model, oldest first."""
        query = "SELECT open_time FROM alarms WHERE symbol = ? AND model_version = ? ORDER BY open_time"
        return [int(open_time) for (open_time,) in self.read(query, (symbol, model_version))]


def _decoded(payloads: Sequence[bytes], kind: type[T]) -> list[T]:
    """Returns the decoded payloads, without those that cannot be read.

    SQLite keeps no checksums: a payload that the disk has changed is left out, and does not keep a node from starting.
    """
    found: list[T] = []
    for payload in payloads:
        try:
            found.append(msgspec.json.decode(payload, type=kind))
        except (msgspec.DecodeError, UnicodeError) as error:
            log.warning("a %s in the journal cannot be read and is left out: %s", kind.__name__.lower(), error)
    return found


def _fill(db: sqlite3.Connection, symbol: str, open_time: int) -> None:
    """Removes an hour that exists after all from a declared gap, which becomes what is left of it on either side."""
    holds = "FROM gaps WHERE symbol = ? AND from_open_time <= ? AND to_open_time >= ?"
    where = (symbol, open_time, open_time)
    found = db.execute(f"SELECT from_open_time, to_open_time {holds}", where).fetchall()
    db.execute(f"DELETE {holds}", where)
    for first, last in found:
        rest = ((first, open_time - HOUR_MS), (open_time + HOUR_MS, last))
        db.executemany("INSERT INTO gaps VALUES (?, ?, ?)", [(symbol, a, b) for a, b in rest if a <= b])


def _store(db: sqlite3.Connection, records: Sequence[Record]) -> list[int]:
    """Stores all records with one statement for each table. Returns the numbers of their events, in order."""
    # OR REPLACE: a commit whose fate is unknown (an I/O error after the write) is tried again.
    db.executemany(
        "INSERT OR REPLACE INTO candles VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(c.symbol, c.open_time, *c.ohlcv, record.provenance) for record in records for c in record.candles],
    )
    for record in records:
        for open_time in record.filled:
            _fill(db, record.symbol, open_time)
        if record.gap is not None:
            db.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?)", (record.symbol, *record.gap))
    statements.store_messages(db, "forecasts", [e for record in records for e in record.forecasts])
    statements.store_messages(db, "decisions", [e for record in records for e in record.decisions])
    statements.store_outcomes(db, [outcome for record in records for outcome in record.outcomes])
    db.executemany(
        "INSERT OR REPLACE INTO alarms VALUES (?, ?, ?, ?, ?)",
        [
            (d.message.id, d.message.symbol, d.message.model_version, d.message.open_time, d.payload)
            for record in records
            for d in record.decays
        ],
    )
    db.executemany(
        "INSERT OR REPLACE INTO operator_state VALUES (?, ?, ?, ?, ?, ?)",
        [(r.symbol, r.open_time, r.anchor, r.exposure, r.model_version, r.policy_version) for r in records],
    )
    return _queue(
        db,
        [event for record in records for event in record.events],
        [item for record in records for item in record.retained],
    )


def _queue(db: sqlite3.Connection, events: Sequence[EventMessage], retained: Sequence[Retained]) -> list[int]:
    """Stores messages where the publisher finds them. Returns the numbers of the events, in order."""
    db.executemany("INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?)", retained)
    if not events:
        return []
    query = "INSERT INTO outbox (topic, payload, expiry_s) VALUES (?, ?, ?)"
    first = int(db.execute(query, events[0]).lastrowid or 0)
    db.executemany(query, events[1:])
    # AUTOINCREMENT, and nobody else writes within this transaction: each number is the one before it and one.
    return list(range(first, first + len(events)))
