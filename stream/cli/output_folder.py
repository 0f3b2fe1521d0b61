"""A folder that a command fills: refused before the work where it cannot be written, its files complete after it.

What a command writes stays in a hidden folder within it until all of it is there. A run that was killed leaves that
folder, and the next run removes it: the lock on it ended with its owner.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stream.errors import RefusedError

_PREFIX, _SUFFIX = ".volcast-", ".part"
#: Errors of a file system without locks. There, what a killed run has left is not removed.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def filled(option: str, folder: Path, last: str) -> Iterator[Path]:
    """Yields an empty folder, whose files are moved into `folder` when the body ends, `last` at the end.

    Where the body fails, none is moved. Raises `RefusedError` where `folder`, given by `option`, cannot be made or
    written.
    """
    made: list[Path] = []
    try:
        for missing in reversed([p for p in (folder, *folder.absolute().parents) if not p.exists()]):
            missing.mkdir()
            made.append(missing)
        _remove_leftovers(folder)
        within = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder))
        with _locked(within):
            try:
                yield within
                for file in sorted(within.iterdir(), key=lambda p: p.name == last):
                    # mkdtemp's folder is private, the files in it are as readable as any that the user creates.
                    file.replace(folder / file.name)
            finally:
                shutil.rmtree(within, ignore_errors=True)
    except OSError as error:
        raise RefusedError(f"{option} {folder}: cannot be written: {error.strerror or error}") from None
    finally:
        for empty in reversed(made):
            with contextlib.suppress(OSError):
                empty.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Locks the folder, and yields whether it is locked: False on a file system without locks.

    Raises `BlockingIOError` where another run holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            locked = False
        yield locked
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        # Another run may be writing into it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(leftover) as locked:
            if locked:
                shutil.rmtree(leftover, ignore_errors=True)
