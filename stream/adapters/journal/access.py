"""Opens the journal's file: for writing where that is possible, else for reading until it is.

A disk that is mounted read-only, and a file of our own that was made read-only, are waited for. Another user's file is
no temporary fault: it is refused. A connection to a file that was read-only stays read-only, and must be opened anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import sqlite3
import stat
from pathlib import Path

_PASSING = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_COMPANIONS = ("", "-wal", "-shm")


def open_writable(path: Path, *, create: bool = True) -> sqlite3.Connection:
    """Returns a connection that has proven that it can write. Raises `sqlite3.Error` where none can."""
    _free_companions(path)
    db = _connect(path, f"mode={'rwc' if create else 'rw'}")
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # SQLite opens a file that it may not write for reading, and reports it only at the first write. Another process
        # that writes here is noticed now too, and not with the first candle.
        db.execute("BEGIN IMMEDIATE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("ROLLBACK")
    except BaseException:
        db.close()
        raise
    return db


def open_readable(path: Path) -> sqlite3.Connection:
    """Returns a read-only connection to a file that cannot be written at present.

    Nor can another process write it meanwhile: we hold the lock of its directory. Raises `sqlite3.Error` where the file
    cannot be read either.
    """
    log = path.with_name(f"{path.name}-wal")
    # SQLite keeps an index file for its log, and creates it as read-only as the database is. Without a log it has none.
    pending = log.exists() and log.stat().st_size > 0
    db = _connect(path, "mode=ro" if pending else "mode=ro&immutable=1")
    try:
        db.execute("PRAGMA user_version").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _free_companions(path: Path) -> None:
    """Makes log and index as writable as the database: created while it was read-only, they are read-only too."""
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        for companion in _COMPANIONS[1:]:
            part = path.with_name(path.name + companion)
            if part.exists() and mode & stat.S_IWUSR and not part.stat().st_mode & stat.S_IWUSR:
                part.chmod(stat.S_IMODE(mode))


def _connect(path: Path, options: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?{options}"
    db = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA busy_timeout = 5000")
    return db


def passes(error: sqlite3.Error) -> bool:
    """Returns whether the error means that the file may not be written, which may be repaired while we wait.

    A full or failing disk is not among these: it needs no new connection, and one might not be had.
    """
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _PASSING


def stranger(path: Path) -> str | None:
    """Returns a clause that names a part of the journal that we may not write, and the other user who owns it.

    Returns None where only the disk or the permissions of our own files forbid writing.
    """
    for part in (path.parent, *(path.with_name(path.name + companion) for companion in _COMPANIONS)):
        try:
            owner = part.stat().st_uid
            if os.statvfs(part).f_flag & os.ST_RDONLY:
                return None
        except OSError:
            continue
        if owner != os.geteuid() and not os.access(part, os.W_OK, effective_ids=True):
            return f"{part} belongs to {_name(owner)}"
    return None


def _name(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"


def cure(error: sqlite3.Error | OSError) -> str:
    """Returns what to do, as the end of a line that says what happened; empty where there is no advice."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return ": make room on its disk"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ": another process holds it; end that one, or choose another --data-dir"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return ": mend its permissions or mount its disk for writing, or choose another --data-dir"
    return ""
