"""The journal's SQL statements for what was issued: messages, outcomes, models and policies, and changed revisions.

Each runs inside a transaction of the journal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from stream.core.market.candle import HOUR_MS
from stream.core.messages.records import Encoded, Issuer, Renumbering
from stream.core.messages.schemas import Decision, Forecast
from stream.core.messages.scoring import Outcome

#: How long past messages may need correction: longer than REST is asked for revisions (stream/pipeline/revision.py).
_CORRECTED_HOURS = 72


def store_messages(
    db: sqlite3.Connection, table: str, messages: Sequence[Encoded[Forecast]] | Sequence[Encoded[Decision]]
) -> None:
    """Stores forecasts or decisions in the table of that name."""
    rows = [(e.message.id, e.message.revision, e.message.symbol, e.message.open_time, e.payload) for e in messages]
    db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", rows)


def store_outcomes(db: sqlite3.Connection, outcomes: Sequence[Outcome]) -> None:
    places = ", ".join("?" * len(Outcome.__struct_fields__))
    query = f"INSERT OR REPLACE INTO outcomes VALUES ({places})"
    db.executemany(query, [msgspec.structs.astuple(outcome) for outcome in outcomes])


def keep_issuer(db: sqlite3.Connection, issuer: Issuer) -> None:
    """Keeps a model and a policy, and deletes those whose newest messages are too old to be corrected."""
    db.execute("INSERT OR IGNORE INTO bundles VALUES (?, ?)", (issuer.model_version, issuer.bundle))
    db.execute("INSERT OR IGNORE INTO policies VALUES (?, ?)", (issuer.policy_version, issuer.policy))
    since = "(SELECT coalesce(max(open_time), 0) FROM operator_state) - ?"
    for table, messages, kept in (
        ("bundles", "forecasts", issuer.model_version),
        ("policies", "decisions", issuer.policy_version),
    ):
        db.execute(
            f"DELETE FROM {table} WHERE version <> ? AND NOT EXISTS "
            f"(SELECT 1 FROM {messages} WHERE open_time > {since} AND id LIKE '%:' || version)",
            (kept, _CORRECTED_HOURS * HOUR_MS),
        )


def renumber(db: sqlite3.Connection, change: Renumbering) -> None:
    replaced = [(a.message.id, a.message.revision) for a, _ in change.forecasts]
    db.executemany("DELETE FROM forecasts WHERE id = ? AND revision = ?", replaced)
    replaced = [(a.message.id, a.message.revision) for a, _ in change.decisions]
    db.executemany("DELETE FROM decisions WHERE id = ? AND revision = ?", replaced)
    store_messages(db, "forecasts", [b for _, b in change.forecasts])
    store_messages(db, "decisions", [b for _, b in change.decisions])
    store_outcomes(db, change.outcomes)
    db.executemany("UPDATE outbox SET payload = ? WHERE seq = ?", [(p, seq) for seq, p in change.payloads.items()])
    db.executemany("INSERT OR REPLACE INTO retained VALUES (?, ?, ?, ?)", change.retained)
