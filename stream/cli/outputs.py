"""Files that a command writes, complete or absent. `stream.cli.paths` refuses impossible ones before the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream import files
from stream.errors import RefusedError


def write(option: str, file: Path, data: bytes) -> None:
    """Writes a file. Raises `RefusedError` where `file`, given by `option`, cannot be written."""
    try:
        if file.exists() and not file.is_file():
            # A pipe or a device is written to, not replaced: root would replace /dev/null itself.
            file.write_bytes(data)
        else:
            files.write(file, data)
    except OSError as error:
        raise RefusedError(f"{option} {file}: cannot be written: {error.strerror}") from None


def write_json(file: Path | None, figures: Any) -> None:
    """Writes plain data (no NaN) to `file`, where one is given."""
    if file is not None:
        write("--json", file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
