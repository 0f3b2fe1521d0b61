"""The only writer of files: to a temporary name in the same folder, synced, renamed. A file is complete or absent."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Errors of file systems that cannot sync a folder.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write(path: Path, data: bytes) -> None:
    """Writes a file. Raises `OSError` where that fails; what was there before then still is."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, with the same suffix, to write to.

    The file is renamed to `path` when the body ends, and removed where the body raises. `temporary` sets the temporary
    path, for a process that is killed often and must not leave more than one.
    """
    if temporary is None:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        # mkstemp makes files private; a result is as readable as any other that the user creates.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Syncs a file's bytes, or a folder's names, to disk as far as the file system can.

    Some (CIFS, FUSE) have no such call for folders, and what was written is there all the same.
    """
    try:
        opened = os.open(path, os.O_RDONLY)
    except PermissionError:
        # A folder that one may write into without reading it.
        if path.is_dir():
            return
        raise
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(opened)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
