"""Files that a command writes, complete or absent. `stream.commands.paths` refuses before the work what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream.errors import RefusedError


def write(option: str, file: Path, data: bytes) -> None:
    """`RefusedError` where `file`, given by `option`, cannot be written."""
    temporary = file.with_name(f".{file.name}.part")
    try:
        if file.exists() and not file.is_file():
            # A pipe or a device is written to, not replaced: as root that would be the end of /dev/null.
            file.write_bytes(data)
            return
        try:
            temporary.write_bytes(data)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RefusedError(f"{option} {file}: cannot be written: {error.strerror}") from None


def write_json(file: Path | None, figures: Any) -> None:
    """Writes plain data (no NaN) to `file`, where one is given."""
    if file is not None:
        write("--json", file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
