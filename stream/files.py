"""The one writer of files: beside its place, made to last, renamed. A file is complete or absent, never in between."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What file systems say that cannot make a folder's names last on demand.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def write(path: Path, data: bytes) -> None:
    """`OSError` where it cannot be; what was there before then still is."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """A place beside `path` to write to, of the same suffix; it becomes `path` when the body ends, and goes away where
    that raises. `temporary` names the place, for who is killed often and must not leave more than one."""
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
    """Makes a file's bytes, or a folder's names, last as far as the file system can: some (CIFS, FUSE) have no such
    call for folders, and what was written is there all the same."""
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
