"""Log lines: text for people, JSON for machines; to stderr, UTC, one line each.

The reader of stderr may stop reading (`volcast run 2>&1 | less`). Then lines are dropped and counted; nothing waits.
"""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import select
import sys
import threading
import time
from typing import Literal, TextIO

#: Lines that wait for a slow reader; more are dropped.
_LINES = 1_000
#: How long the end of the process waits until the last lines are read.
_FLUSH_S = 1.0


#: Attributes that every record has; any other was given with `extra=`, to filter by.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class Json(logging.Formatter):
    """Formats a record as one JSON object a line; the values of `extra=` are fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Unhurried(logging.Handler):
    """Writes from a thread of its own, directly to the file: a thread that hangs in `sys.stderr` would hold its lock,
    which the interpreter needs in order to exit."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._encoding = stream.encoding or "utf-8"
        try:
            self._file: int | None = stream.fileno()
        except (io.UnsupportedOperation, ValueError):
            self._file = None
        self._lines: queue.Queue[str] = queue.Queue(_LINES)
        self._dropped = 0
        self._counting = threading.Lock()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def writes_to(self, stream: TextIO) -> bool:
        return self._stream is stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.put(line)

    def put(self, line: str, patience_s: float = 0.0) -> None:
        try:
            self._lines.put(line, block=patience_s > 0, timeout=patience_s)
        except queue.Full:
            with self._counting:
                self._dropped += 1

    def flush(self) -> None:
        """Waits for the queued lines, but not for ever; `logging` calls it at the end of the process."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_S)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._write(line)
                self._report_dropped()
            except (OSError, ValueError):
                # The reader has gone, so the failure cannot be reported either.
                pass
            finally:
                self._lines.task_done()

    def _report_dropped(self) -> None:
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            text = f"{dropped} log line(s) were dropped: nobody read them in time"
            self._write(self.format(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)))

    def _write(self, line: str) -> None:
        if self._file is None:
            self._stream.write(f"{line}\n")
            self._stream.flush()
            return
        data = f"{line}\n".encode(self._encoding, "backslashreplace")
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except BlockingIOError:
                # Another process, which shares the file, has made it non-blocking.
                select.select([], [self._file], [])


def configure(log_format: Literal["text", "json"], *, level: int = logging.INFO) -> None:
    """Takes over the root logger. Of libraries only warnings and worse are logged."""
    handler = _Unhurried(sys.stderr)
    text = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter = Json() if log_format == "json" else text
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in ("stream", "training", "export", "monitor"):
        logging.getLogger(package).setLevel(level)
    # The adapters log every lost connection once.
    logging.getLogger("mqtt").setLevel(logging.ERROR)
    logging.getLogger("websockets").setLevel(logging.ERROR)


def last_words(line: str) -> None:
    """Writes a line for people to stderr, after all that was logged before it; waits only briefly for a reader."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Unhurried) and handler.writes_to(sys.stderr):
            handler.put(line, _FLUSH_S)
            handler.flush()
            return
    print(line, file=sys.stderr)
