"""The data directory's lock, and the check whether a daemon may use the directory.

The lock is flock itself and not the library filelock: on a file system without locks that library falls back to the
existence of a file, which a killed process leaves behind, and it needs a lock file that it may write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from stream.errors import JournalError

LOCK_NAME = "journal.lock"


class DataDirLock:
    """Reserves a data directory for one daemon. The operating system releases the lock when the process ends."""

    def __init__(self, data_dir: Path) -> None:
        """Takes the lock. Raises `JournalError` where the directory cannot be written or locked, or is in use."""
        self._data_dir = data_dir
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self._file = _open_lock(data_dir)
        except OSError as error:
            raise _not_writable(data_dir, error.strerror) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise _not_locked(data_dir, error) from None

    def renew(self) -> None:
        """Takes the lock anew where its file was removed: other processes can no longer see the old one."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat((self._data_dir / LOCK_NAME).stat(), os.fstat(self._file)):
                return
        again = DataDirLock(self._data_dir)
        os.close(self._file)
        self._file = again._file

    def release(self) -> None:
        os.close(self._file)


def try_lock(data_dir: Path) -> None:
    """Raises `JournalError` where `DataDirLock` would. Creates neither the directory nor the lock file."""
    try:
        existing = next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists())
    except OSError as error:
        raise _not_writable(data_dir, error.strerror) from None
    if not existing.is_dir():
        raise _not_writable(data_dir, os.strerror(errno.ENOTDIR))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _not_writable(data_dir, os.strerror(errno.EACCES))
    try:
        lock = os.open(data_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_writable(data_dir, error.strerror) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise _not_locked(data_dir, error) from None
    finally:
        os.close(lock)


def _open_lock(data_dir: Path) -> int:
    path = data_dir / LOCK_NAME
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        # Nothing is written into the lock file, so one that is only readable serves as well: another user's, as
        # `sudo volcast run` leaves it, or one on a disk that is read-only for now.
        read_only = error.errno == errno.EROFS and path.exists()
        others = isinstance(error, PermissionError) and os.access(data_dir, os.W_OK | os.X_OK)
        if not (read_only or others):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _not_writable(data_dir: Path, reason: str | None) -> JournalError:
    return JournalError(
        f"data directory {data_dir} is not writable ({reason}): mend its permissions or choose another with --data-dir"
    )


def _not_locked(data_dir: Path, error: OSError) -> JournalError:
    if isinstance(error, BlockingIOError):
        return JournalError(
            f"data directory {data_dir} is in use by another volcast: stop it, or choose another with --data-dir"
        )
    return JournalError(
        f"data directory {data_dir} cannot be locked ({error.strerror}), as on some network shares: choose one on a "
        "local disk with --data-dir"
    )
