"""The journal as a file: copies it, moves a damaged one aside, and carries over what can be read of it.

Rules of this module:
- A copy is complete or absent: it is written under another name, checked, and renamed.
- A damaged file is never written to and never deleted. Its successor is finished before it is moved aside, so a
  kill at any point leaves either of them in place, and the next start goes on from there.
- Each row is checked before it is carried over: a damaged page can hold anything.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from stream.core.market.candle import HOUR_MS, Candle, CandleError, check
from stream.core.messages.topics import ROOT
from stream.files import sync

log = logging.getLogger(__name__)

#: Suffixes of the files of a database in WAL mode, which are moved together: the database, its log and its index.
_COMPANIONS = ("", "-wal", "-shm")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_KINDS: dict[str, tuple[type, ...]] = {"TEXT": (str,), "INTEGER": (int,), "REAL": (int, float), "BLOB": (bytes,)}
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)


def is_damage(error: sqlite3.Error) -> bool:
    """Returns whether the file itself is at fault, rather than its disk, its lock or its permissions."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _DAMAGED


def look(path: Path, *, damaged: bool = False) -> sqlite3.Connection:
    """Returns a connection that cannot write, not even to tidy up after a process that was killed.

    With `damaged` it reads a truncated file as far as it goes.
    """
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    if damaged:
        # SQLite refuses a file shorter than its header says, except with this pragma, which is meant for repairs.
        db.execute("PRAGMA writable_schema = ON")
    return db


def damage(path: Path) -> str | None:
    """Returns what is wrong with the file; None where it is sound or absent. Reads all of it: 1 ms per MB."""
    if not path.exists():
        return None
    if not path.stat().st_size:
        return "the file is empty"
    with contextlib.closing(look(path)) as db:
        return _damage(db)


def _damage(db: sqlite3.Connection) -> str | None:
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if is_damage(error):
            return str(error)
        raise
    return None if verdict == "ok" else " ".join(str(verdict).split())


def copy(source: sqlite3.Connection, target: Path) -> None:
    """Copies `source` as it is at one moment, even while others write to it.

    Raises `OSError` or `sqlite3.Error` where it fails; then there is no new file.
    """
    part = _part(target)
    try:
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as db:
            source.backup(db)
            if found := _damage(db):
                raise sqlite3.DatabaseError(f"it is damaged ({found})")
            # A copy is a single file, without log and index, whatever becomes of it.
            db.execute("PRAGMA journal_mode = DELETE")
        _publish(part, target)
    finally:
        _unlink(part)


def in_place(path: Path, opened: os.stat_result) -> bool:
    """Returns whether the file is the one that was opened: False where there is none.

    Raises `FileExistsError` where it is another.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if os.path.samestat(found, opened):
        return True
    raise FileExistsError("another file was put in its place under the running node; restart the node")


def put_back(source: sqlite3.Connection, path: Path) -> None:
    """Writes `source`, whose file was removed, to a file again."""
    # Next to the new file, an old log would be taken for its newest pages.
    for companion in _COMPANIONS[1:]:
        path.with_name(path.name + companion).unlink(missing_ok=True)
    copy(source, path)


def rebuild(path: Path, create: Callable[[sqlite3.Connection], None], found: str, now_ms: int) -> str:
    """Replaces a damaged journal by a new one, made by `create`, and carries over what can be read.

    Returns one line that reports what was kept and where. `path` must not be open in this process.
    """
    part = _part(path)
    try:
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as fresh:
            create(fresh)
            fresh.execute("BEGIN")
            kept = _salvage(path, fresh)
            fresh.execute("COMMIT")
        _publish(part, _rebuilt(path))
    finally:
        _unlink(part)
    aside = finish_rebuild(path, now_ms)
    return (
        f"journal {path} was damaged ({found}): kept as {aside.name if aside else 'nothing'}, a new one holds "
        f"{', '.join(f'{n} {name}' for name, n in kept.items())} of it; candles are asked from the exchange again"
    )


def finish_rebuild(path: Path, now_ms: int) -> Path | None:
    """Moves the damaged file aside and its finished successor in, even if the process that began it was killed.

    Returns where the damaged file went; None where nothing was to be done.
    """
    if not _rebuilt(path).exists():
        return None
    aside = path.with_name(f"{path.name}.corrupt-{datetime.fromtimestamp(now_ms / 1_000, UTC):%Y%m%dT%H%M%SZ}")
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{aside.name.partition('.again-')[0]}.again-{number}")
    for companion in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + companion).replace(aside.with_name(aside.name + companion))
    _rebuilt(path).replace(path)
    sync(path.parent)
    return aside


def _part(path: Path) -> Path:
    part = path.with_name(f"{path.name}.part")
    _unlink(part)
    return part


def _rebuilt(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilt")


def _unlink(path: Path) -> None:
    for companion in (*_COMPANIONS, "-journal"):
        path.with_name(path.name + companion).unlink(missing_ok=True)


def _publish(part: Path, target: Path) -> None:
    sync(part)
    part.replace(target)
    sync(target.parent)


# --- salvage ---------------------------------------------------------------------------------------------------


def _salvage(path: Path, fresh: sqlite3.Connection) -> dict[str, int]:
    """Copies every plausible row. Returns how many rows each table has kept."""
    tables = [name for (name,) in fresh.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    kept: dict[str, int] = {}
    with contextlib.closing(look(path, damaged=True)) as damaged:
        # Bytes of a damaged page need not be text; they are checked below.
        damaged.text_factory = lambda raw: raw.decode(errors="replace")
        for table in tables:
            if table.startswith("sqlite_"):
                continue
            columns = _shared_columns(damaged, fresh, table)
            good = [row for row in _readable(damaged, table, columns) if _believable(table, columns, row)]
            names, places = ", ".join(name for _, name, *_ in columns), ", ".join("?" * len(columns))
            fresh.executemany(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({places})", good)
            kept[table] = len(good)
        _never_reuse_numbers(damaged, fresh)
    _know_how_far(fresh)
    for symbol, newest in fresh.execute("SELECT symbol, open_time FROM operator_state").fetchall():
        _keep_unbroken(fresh, symbol, newest)
    fresh.execute("DELETE FROM candles WHERE symbol NOT IN (SELECT symbol FROM operator_state)")
    (kept["candles"],) = fresh.execute("SELECT count(*) FROM candles").fetchone()
    return kept


def _shared_columns(damaged: sqlite3.Connection, fresh: sqlite3.Connection, table: str) -> list[Any]:
    """Returns the columns that a table has in both files, as SQLite describes them.

    An older schema has fewer. Where the damaged file's columns cannot be read, all are returned.
    """
    columns = fresh.execute(f"PRAGMA table_info({table})").fetchall()
    try:
        present = {name for _, name, *_ in damaged.execute(f"PRAGMA table_info({table})")}
    except sqlite3.Error:
        present = set()
    return [column for column in columns if column[1] in present] or columns


def _readable(damaged: sqlite3.Connection, table: str, columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Returns the rows from the front up to the damage, and from the back down to it."""
    names = ", ".join(name for _, name, *_ in columns)
    keys = [name for _, name, *_, key in columns if key]
    found: dict[tuple[Any, ...], None] = {}
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{key} {direction}" for key in keys)
        try:
            rows = damaged.execute(f"SELECT {names} FROM {table} ORDER BY {order}")
            # One at a time: what came before the damage is kept.
            while (row := rows.fetchone()) is not None:
                found[row] = None
            break
        except sqlite3.Error:
            continue
    return list(found)


def _believable(table: str, columns: Sequence[Any], row: tuple[Any, ...]) -> bool:
    """Returns whether a row is one that we could have written."""
    named: dict[str, Any] = {}
    for (_, name, kind, required, _, key), value in zip(columns, row, strict=True):
        named[name] = value
        if value is None:
            if required or key:
                return False
            continue
        if not isinstance(value, _KINDS[kind]) or (isinstance(value, float) and not math.isfinite(value)):
            return False
        if name.endswith("open_time") and not (isinstance(value, int) and value > 0 and value % HOUR_MS == 0):
            return False
    if table == "candles":
        try:
            check(Candle(*(named[n] for n in ("symbol", "open_time", "open", "high", "low", "close", "volume"))))
        except CandleError:
            return False
    return _believable_payload(table, named) if "payload" in named else True


def _believable_payload(table: str, named: dict[str, Any]) -> bool:
    """Returns whether a message is complete, and the one that its row says it is."""
    try:
        message = msgspec.json.decode(named["payload"])
    except _UNREADABLE:
        return False
    if not isinstance(message, dict):
        return False
    if "topic" in named:
        return str(named["topic"]).startswith(f"{ROOT}/")
    # forecasts hold volcast.forecast/1: the damage may have put a page into another table.
    kind = f"volcast.{table.removesuffix('s')}/"
    columns = ("id", "revision", "symbol", "open_time")
    return str(message.get("schema")).startswith(kind) and all(message.get(name) == named[name] for name in columns)


def _never_reuse_numbers(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> None:
    """Keeps numbers of the outbox from being used twice: the publisher may still hold one."""
    try:
        row = damaged.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    except sqlite3.Error:
        row = None
    used = row[0] if row and isinstance(row[0], int) else 0
    (newest,) = fresh.execute("SELECT coalesce(max(seq), 0) FROM outbox").fetchone()
    fresh.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox'")
    fresh.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('outbox', ?)", (max(used, newest),))


def _know_how_far(fresh: sqlite3.Connection) -> None:
    """Lets a symbol that lost its state go on after its newest decision.

    So what was forecast is not forecast anew, and no hour since then is skipped.
    """
    rows = fresh.execute(
        "SELECT symbol, open_time, payload FROM decisions WHERE symbol NOT IN (SELECT symbol FROM operator_state) "
        "ORDER BY open_time, revision"
    ).fetchall()
    newest = {symbol: (open_time, msgspec.json.decode(payload)) for symbol, open_time, payload in rows}
    for symbol, (open_time, decision) in newest.items():
        fresh.execute(
            "INSERT INTO operator_state (symbol, open_time, anchor, exposure, model_version, policy_version) "
            "VALUES (?, ?, 0, ?, '', '')",
            (symbol, open_time, float(decision.get("exposure", 0.0))),
        )


def _keep_unbroken(fresh: sqlite3.Connection, symbol: str, newest: int) -> None:
    """Keeps the candles that lead up to `newest` without an undeclared hole.

    Earlier ones are fetched from the exchange again: a hole that the damage made must not pass for a gap of the
    exchange's.
    """
    declared = {
        hour
        for first, last in fresh.execute(
            "SELECT from_open_time, to_open_time FROM gaps WHERE symbol = ?", (symbol,)
        ).fetchall()
        for hour in range(first, last + HOUR_MS, HOUR_MS)
    }
    times = [t for (t,) in fresh.execute("SELECT open_time FROM candles WHERE symbol = ?", (symbol,))]
    first, expected = newest + HOUR_MS, newest
    for open_time in sorted((t for t in times if t <= newest), reverse=True):
        while expected > open_time and expected in declared:
            expected -= HOUR_MS
        if open_time != expected:
            break
        first, expected = open_time, open_time - HOUR_MS
    fresh.execute("DELETE FROM candles WHERE symbol = ? AND (open_time < ? OR open_time > ?)", (symbol, first, newest))
