"""Messages that the broker has not acknowledged yet, on one connection: a future for each packet identifier.

A broker must acknowledge in the order in which it received (MQTT 5, section 4.6). The oldest message is late if it is
not acknowledged within the limit, counted from when it became the oldest: a broker that is slow but keeps going is
waited for.
"""

from __future__ import annotations

import asyncio

from stream.errors import HungUpError, MessageRefusedError, UnreachableError


class Deliveries:
    """Belongs to one connection; used on the event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        """`limit_s` is how long an acknowledgement may take."""
        self._loop = loop
        self._limit_s = limit_s
        #: By packet identifier, oldest first.
        self._waiting: dict[int, asyncio.Future[None]] = {}
        #: The loop's time at which the oldest became the oldest.
        self._oldest_since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, mid: int) -> asyncio.Future[None]:
        """Returns a future that is done once the message `mid` is acknowledged."""
        future: asyncio.Future[None] = self._loop.create_future()
        if not self._waiting:
            self._oldest_since_s = self._loop.time()
        self._waiting[mid] = future
        if self._timer is None:
            self._timer = self._loop.call_at(self._oldest_since_s + self._limit_s, self._look)
        return future

    def acknowledge(self, mid: int, refusal: str | None = None) -> None:
        """Ends the wait for the message `mid`, with `MessageRefusedError` where the broker gave a refusal."""
        if mid not in self._waiting:
            return
        if next(iter(self._waiting)) == mid:
            self._oldest_since_s = self._loop.time()
        future = self._waiting.pop(mid)
        if future.done():
            return
        if refusal is None:
            future.set_result(None)
        else:
            future.set_exception(MessageRefusedError(refusal))

    def hang_up(self, reason: str) -> None:
        """Ends all waits with `HungUpError`: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail(HungUpError, reason)

    def _look(self) -> None:
        """Ends all waits if the oldest message is late, else looks again when it would be."""
        self._timer = None
        if not self._waiting:
            return
        late_at_s = self._oldest_since_s + self._limit_s
        if self._loop.time() < late_at_s:
            self._timer = self._loop.call_at(late_at_s, self._look)
        else:
            self._fail(UnreachableError, "the broker did not acknowledge: it did not answer in time")

    def _fail(self, error: type[UnreachableError], reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error(reason))
