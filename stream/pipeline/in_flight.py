"""The messages in flight on one connection: sent, and not acknowledged yet. At most one per topic, and no more than the
broker takes.

One message is sent at first, and one more at a time with each answer. After a connection that ended with messages in
flight it stays at one until as many have been answered: if there is a message at which the broker ends the connection,
it is then the only one in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stream.errors import MessageRefusedError
from stream.ports import Publisher

#: More would not be faster, and all of it is sent again if the connection ends.
_MOST = 256


class InFlight:
    """One per connection. Reports each message that the broker takes or refuses; what ends the connection is in
    `lost`."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        cautious: int,
        accepted: Callable[[str], None],
        refused: Callable[[str, MessageRefusedError], None],
        lost: Callable[[str, Exception], None],
    ) -> None:
        """`cautious` is how many answers must come before more than one message is sent at a time. The functions
        receive the topic of a message that was accepted, that was refused, or that was the oldest in flight when the
        connection failed."""
        self._publisher = publisher
        self._limit = max(1, min(_MOST, publisher.receive_maximum))
        self._size = 1
        self._cautious = cautious
        self._accepted, self._refused, self._lost = accepted, refused, lost
        #: By topic, oldest first: what to do once the message is accepted.
        self._messages: dict[str, Callable[[], None] | None] = {}
        self._ended = False
        #: What made the connection useless.
        self.lost: Exception | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, topic: str) -> bool:
        return topic in self._messages

    def may_send(self) -> bool:
        return self.lost is None and len(self._messages) < (1 if self._cautious else self._size)

    def send(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int | None = None,
        accepted: Callable[[], None] | None = None,
    ) -> None:
        """Sends a message; calls `accepted` once the broker has acknowledged it."""
        self._messages[topic] = accepted
        future = self._publisher.publish(topic, payload, retain=retain, expiry_s=expiry_s)
        future.add_done_callback(lambda done: self._answered(topic, done))

    def end(self) -> int:
        """Stops reporting, because the session is over. Returns how many messages were in flight."""
        self._ended = True
        return max(self._cautious, len(self._messages))

    def _answered(self, topic: str, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if self._ended or self.lost is not None or done.cancelled():
            return
        if error is not None and not isinstance(error, MessageRefusedError):
            assert isinstance(error, Exception)
            # Brokers answer in order, so the oldest without an answer is the one at which they ended.
            self.lost = error
            self._lost(next(iter(self._messages)), error)
            return
        self._cautious = max(0, self._cautious - 1)
        self._size = min(self._limit, self._size + 1)
        then = self._messages.pop(topic)
        if error is not None:
            self._refused(topic, error)
            return
        self._accepted(topic)
        if then is not None:
            then()
