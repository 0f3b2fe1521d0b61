"""`--json FILE`: the figures of a command as a file, complete or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stream.ports import RefusedError


def write_json(file: Path | None, figures: Any) -> None:
    """Writes plain data (no NaN) to `file`, where one is given; `RefusedError` where it cannot be written."""
    if file is None:
        return
    beside = file.with_name(f".{file.name}.part")
    try:
        try:
            beside.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RefusedError(f"--json {file}: cannot be written: {error.strerror}") from None
