"""A folder that a command fills: refused before the work where it cannot be, its files whole and together after it.

What a command writes lies in a hidden folder within until all of it is there. A run that was killed leaves that folder,
and the next run removes it: the lock on it died with its owner.
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
#: What a file system without locks says. What a killed run has left stays there then.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def filled(option: str, folder: Path, last: str) -> Iterator[Path]:
    """An empty folder; its files are moved into `folder` when the body ends, `last` at the end, none where it fails.

    `RefusedError` where `folder`, given by `option`, cannot be made or written.
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
    """Whether the folder is locked, rather than on a file system that knows no locks; `BlockingIOError` where another
    run has it."""
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
