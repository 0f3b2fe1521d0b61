"""Log lines: text for people, JSON for machines; to stderr, UTC, one line each."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Literal


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(log_format: Literal["text", "json"], *, level: int = logging.INFO) -> None:
    """Takes over the root logger. Libraries speak from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter = _Json() if log_format == "json" else text
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for room in ("stream", "training", "export", "monitor"):
        logging.getLogger(room).setLevel(level)
    # Every lost connection is told once by the adapters.
    logging.getLogger("mqtt").setLevel(logging.ERROR)
    logging.getLogger("websockets").setLevel(logging.ERROR)


def utc(ms: int) -> str:
    """An event's time as a log line says it."""
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M} UTC"
