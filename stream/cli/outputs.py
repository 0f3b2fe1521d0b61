"""Files that a command writes, complete or absent. `stream.cli.paths` refuses before the work what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream import files
from stream.errors import RefusedError


def write(option: str, file: Path, data: bytes) -> None:
    """`RefusedError` where `file`, given by `option`, cannot be written."""
    try:
        if file.exists() and not file.is_file():
            # A pipe or a device is written to, not replaced: as root that would be the end of /dev/null.
            file.write_bytes(data)
        else:
            files.write(file, data)
    except OSError as error:
        raise RefusedError(f"{option} {file}: cannot be written: {error.strerror}") from None


def write_json(file: Path | None, figures: Any) -> None:
    """Writes plain data (no NaN) to `file`, where one is given."""
    if file is not None:
        write("--json", file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
