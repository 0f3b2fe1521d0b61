"""Files that a command writes: refused before the work where they cannot be, complete or absent after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stream.ports import RefusedError


def require_writable(option: str, file: Path | None) -> None:
    """`RefusedError` where there is no place for `file`, said before the minutes that its content takes."""
    if file is None:
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise RefusedError(f"{option} {file}: cannot be written: {folder} is no directory; make it first")
    if not os.access(folder, os.W_OK):
        raise RefusedError(f"{option} {file}: cannot be written: no permission to write in {folder}")


def write(option: str, file: Path, data: bytes) -> None:
    """`RefusedError` where `file`, given by `option`, cannot be written."""
    beside = file.with_name(f".{file.name}.part")
    try:
        try:
            beside.write_bytes(data)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RefusedError(f"{option} {file}: cannot be written: {error.strerror}") from None


def write_json(file: Path | None, figures: Any) -> None:
    """Writes plain data (no NaN) to `file`, where one is given."""
    if file is not None:
        write("--json", file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
