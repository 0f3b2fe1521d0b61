"""The exchange's bulk archive: files by name, a few at a time. `training.data.archive` decodes them.

An archive that fails many times in a row counts as unavailable: from then on it is not asked any more, so that a host
that never answers costs seconds and not hours.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from stream.adapters.rest.http_get import HttpGet
from stream.adapters.rest.request_queue import RequestQueue
from stream.clock import Clock
from stream.errors import UnreachableError
from stream.ports import Urgency
from stream.urls import mask

#: Concurrent requests: enough to hide the latency, few enough to spare the server.
CONCURRENT = 4
#: A month of 1h candles has some 40 KB.
_MAX_FILE_BYTES = 4 * 1024 * 1024
_AWAY_AFTER = 12
#: An archive that asks for a longer pause counts as unavailable too: REST has the same candles.
_LONGEST_SILENCE_S = 600.0


class BinanceArchive:
    """Files below `base_url`. One connection pool; used from one event loop."""

    def __init__(self, base_url: str, *, clock: Clock) -> None:
        # A zip has its checksum: nothing on the way may compress it once more.
        self._http = HttpGet(base_url, headers={"Accept-Encoding": "identity"})
        self._name = mask(base_url)
        self._queue = RequestQueue(clock=clock, at_once=CONCURRENT)
        self._failures_in_a_row = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._queue.aclose()
        await self._http.__aexit__(kind, error, trace)

    async def file(self, path: str) -> bytes | None:
        """Returns the file's bytes, or None where the archive has no such file. Raises `UnreachableError` otherwise."""
        if self._queue.silent_for_s > _LONGEST_SILENCE_S:
            raise UnreachableError(f"{self._name}: it wants silence for {self._queue.silent_for_s:.0f} s")
        async with self._queue.turn(self._queue.place(Urgency.NOW)):
            if self._failures_in_a_row >= _AWAY_AFTER:
                raise UnreachableError(f"{self._name}: it failed {_AWAY_AFTER} times in a row")
            try:
                reply = await self._http.get(path, max_bytes=_MAX_FILE_BYTES)
                self._queue.obey(reply.status, reply.count("retry-after"))
                if reply.status not in (200, 404):
                    raise UnreachableError(f"HTTP {reply.status} from {path}")
            except UnreachableError:
                self._failures_in_a_row += 1
                raise
            self._failures_in_a_row = 0
        return reply.body if reply.status == 200 else None
