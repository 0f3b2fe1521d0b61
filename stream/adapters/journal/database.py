"""Opens the journal's file, migrates it, rebuilds it where it is damaged, restores it where it was removed, and retries
where it could not be written. What it contains is defined in `stream.adapters.journal.store`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream.adapters.data_dir import DataDirLock
from stream.adapters.journal import access, files, schema
from stream.adapters.journal.schema import MIGRATIONS
from stream.clock import Clock
from stream.errors import JournalError

log = logging.getLogger(__name__)

FILE_NAME = "journal.sqlite"
_FILES = (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm")


class Database:
    """The file in `data_dir`, and the one connection to it."""

    def __init__(
        self,
        data_dir: Path,
        *,
        read_only: bool = False,
        clock: Clock | None = None,
        lock: DataDirLock | None = None,
    ) -> None:
        """Opens the file: creates it, migrates it after a backup, or rebuilds it where it is damaged.

        `read_only` is for reading alongside a running daemon. `clock` dates the name of a damaged file that is moved
        aside. `lock` is renewed when a removed file is restored. Raises `JournalError` where this fails.
        """
        self._path = data_dir / FILE_NAME
        self._lock = lock
        #: Identifies the file that is open for writing.
        self._inode: os.stat_result | None = None
        self._clock = clock or Clock()
        self._read_only = read_only
        #: Why nothing can be written at present; None while it can.
        self.stuck: str | None = None
        try:
            if read_only:
                if not self._path.exists():
                    raise JournalError(f"there is no journal in {data_dir}: start `volcast run` there first")
                self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA busy_timeout = 5000")
                self._db.execute("PRAGMA query_only = ON")
                if 0 < self._refuse_newer(self._db) < len(MIGRATIONS):
                    raise JournalError(
                        f"journal {self._path} was made by an older volcast: start `volcast run` on it once, which "
                        "brings it up to date after a backup"
                    )
            else:
                self._heal_before_opening()
                self._open()
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"journal {self._path} cannot be opened: {error}{access.cure(error)}") from None

    def close(self) -> None:
        self._db.close()

    def _open(self) -> None:
        try:
            self._db = access.open_writable(self._path)
        except sqlite3.Error as error:
            if not access.passes(error):
                raise
            self._open_to_read(error)
            return
        try:
            self._migrate()
            self._inode = self._path.stat()
        except BaseException:
            self._db.close()
            raise

    def check_place(self) -> None:
        """Makes sure that what is written is where the next start looks for it.

        A file that was removed is still open, and is restored completely. One that was replaced by another is not
        touched: this raises `JournalError`, as does a restoration that fails.
        """
        try:
            if self._inode is None or files.in_place(self._path, self._inode):
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.renew()
            files.put_back(self._db, self._path)
            self._db.close()
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise JournalError(
                f"journal {self._path} is not where it was any more: {error}{access.cure(error)}"
            ) from None
        log.error("journal %s was removed under the running node: it is put back, with all that was in it", self._path)

    def _open_to_read(self, error: sqlite3.Error) -> None:
        if whose := access.stranger(self._path):
            raise JournalError(
                f"journal {self._path} cannot be written: {whose}: give it to the user that runs volcast, run as its "
                "owner, or choose another --data-dir"
            )
        try:
            self._db = access.open_readable(self._path)
            complete = self._refuse_newer(self._db) == len(MIGRATIONS)
        except sqlite3.Error:
            raise error from None
        if not complete:
            self._db.close()
            raise error
        self.stuck = f"journal {self._path} cannot be written: {error}{access.cure(error)}"
        log.error("%s; retrying, and nothing new is published until it can be written", self.stuck)

    def try_again(self) -> None:
        """Opens a file that could not be written again: a connection to a read-only file stays read-only."""
        if self.stuck is None:
            return
        with contextlib.suppress(sqlite3.Error):
            self._reopen()

    def _reopen(self) -> None:
        # The old one is closed first: connections of one process share open files, and so what they may do with them.
        self._db.close()
        try:
            self._db = access.open_writable(self._path, create=False)
            self._inode = self._path.stat()
            self.stuck = None
        except sqlite3.Error:
            self._db = access.open_readable(self._path)
            raise

    def _heal_before_opening(self) -> None:
        if files.finish_rebuild(self._path, self._clock.wall_ms()) is not None:
            log.warning("journal %s: a rebuild that was cut short is finished", self._path)
        try:
            found = files.damage(self._path)
        except sqlite3.Error as error:
            if access.passes(error):
                return
            raise
        if found is None:
            return
        # A file of a newer version is not rebuilt, as far as its version can be read.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(files.look(self._path, damaged=True)) as db:
            self._refuse_newer(db)
        self._rebuild(found)

    def _rebuild(self, found: str) -> None:
        log.error("%s", files.rebuild(self._path, schema.create, found, self._clock.wall_ms()))

    def _refuse_newer(self, db: sqlite3.Connection) -> int:
        """Returns the file's schema version. Raises `JournalError` where it is newer than this program."""
        version = schema.version(db)
        if version > len(MIGRATIONS):
            raise JournalError(
                f"journal {self._path} has schema {version}, made by a newer volcast than this one "
                f"(schema {len(MIGRATIONS)}): run that version, or choose another --data-dir"
            )
        return version

    def _migrate(self) -> None:
        version = self._refuse_newer(self._db)
        if 0 < version < len(MIGRATIONS):
            kept = self._path.with_name(f"{FILE_NAME}.before-{len(MIGRATIONS)}")
            files.copy(self._db, kept)
            log.info("journal %s: schema %d becomes %d; as it was: %s", self._path, version, len(MIGRATIONS), kept)
        schema.create(self._db)

    def _heal(self, error: sqlite3.Error) -> bool:
        """Rebuilds the journal if the error shows that it is damaged. Returns whether it did: the caller may retry."""
        if self._read_only or not files.is_damage(error):
            return False
        self._db.close()
        try:
            self._rebuild(str(error))
        finally:
            self._open()
        return True

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits everything that the body does, or nothing: then `JournalError` gives the reason."""
        self.check_place()
        try:
            if self.stuck is not None:
                self._reopen()
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
            failure = error
        else:
            # The file may have been removed meanwhile, and the caller relies on the commit.
            self.check_place()
            return
        try:
            detail = ", and was rebuilt meanwhile" if self._heal(failure) else access.cure(failure)
        except (sqlite3.Error, OSError) as error:
            detail = f"; it cannot be rebuilt: {error}{access.cure(error)}"
        text = f"journal {self._path} cannot be written: {failure}{detail}"
        if access.passes(failure) and not self._read_only:
            self.stuck = text
        raise JournalError(text)

    def read(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Returns the rows of a query. Raises `JournalError` where the file cannot be read."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            failure = error
        try:
            if self._heal(failure):
                return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            failure = sqlite3.DatabaseError(f"{failure}; it cannot be rebuilt: {error}")
        raise JournalError(f"journal {self._path} cannot be read: {failure}")

    def size_bytes(self) -> int:
        return sum(p.stat().st_size for p in self._path.parent.glob(f"{FILE_NAME}*") if p.name in _FILES)
