"""The exchange's record of connections, messages and requests, with which a test asserts how a client behaves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec

#: Enough for any test; a longer-lived exchange forgets its oldest entries.
MAX_ENTRIES = 100_000

Kind = Literal["connect", "frame", "ping", "pong", "disconnect", "refused", "flapped", "request", "fault", "limit"]


class LogEntry(msgspec.Struct, frozen=True):
    """`at_ms` is virtual time, `monotonic_s` real. `method` is a control frame's method or a request's path."""

    kind: Kind
    at_ms: int
    monotonic_s: float
    connection: int | None = None
    method: str = ""
    detail: dict[str, Any] = {}


class AccessLog:
    def __init__(self, now_ms: Callable[[], int], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._entries: deque[LogEntry] = deque(maxlen=MAX_ENTRIES)

    def add(self, kind: Kind, connection: int | None = None, method: str = "", **detail: Any) -> None:
        self._entries.append(LogEntry(kind, self._now_ms(), self._monotonic(), connection, method, detail))

    def entries(self, *kinds: Kind) -> list[LogEntry]:
        """Returns the entries in order of arrival; of all kinds where none is named."""
        return [e for e in self._entries if not kinds or e.kind in kinds]
