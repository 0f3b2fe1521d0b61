"""The newest message of each retained topic, for publishing it again on the next connection.

Once the broker has acknowledged a payload, it is in the journal alone, and is read from there when somebody needs it:
the payloads of a symbol take 18 kB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from stream.core.messages.records import IN_JOURNAL, Retained
from stream.pipeline.worker import Worker
from stream.ports import Journal


class RetainedMessages:
    """Used on the event loop, except for calls of the journal."""

    def __init__(self, journal: Journal, worker: Worker) -> None:
        self._journal = journal
        self._worker = worker
        self._messages: dict[str, Retained] = {}
        #: Topics whose newest payload the journal does not have.
        self._only_here: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Yields the topics, in the order in which they are to be published."""
        return iter(self._messages)

    def get(self, topic: str) -> Retained | None:
        """Returns the message of a topic; None if there is none, or if its payload must be read first."""
        found = self._messages.get(topic)
        return None if found is None or found.payload == IN_JOURNAL else found

    def load(self, messages: Iterable[Retained]) -> None:
        """Takes what the journal has from an earlier run."""
        for message in messages:
            self._messages[message.topic] = message
            self.acknowledged(message)

    def put(self, message: Retained, *, in_journal: bool) -> None:
        self._messages[message.topic] = message
        if in_journal:
            self._only_here.discard(message.topic)
        else:
            self._only_here.add(message.topic)

    def put_first(self, message: Retained) -> None:
        """Puts a message that the journal does not keep before all others."""
        self._messages.pop(message.topic, None)
        self._messages = {message.topic: message, **self._messages}
        self._only_here.add(message.topic)

    def acknowledged(self, message: Retained) -> bool:
        """Forgets a payload that can be read again. Returns False if there is a newer message on its topic."""
        if self._messages[message.topic] is not message:
            return False
        if message.topic not in self._only_here:
            self._messages[message.topic] = message._replace(payload=IN_JOURNAL)
        return True

    async def payloads(self, topics: Sequence[str]) -> dict[str, bytes]:
        """Returns the newest payloads of these topics, as far as there are any. Raises `JournalError` if they cannot be
        read."""
        found = {topic: self._messages[topic].payload for topic in topics if topic in self._messages}
        absent = [topic for topic, payload in found.items() if payload == IN_JOURNAL]
        if absent:
            kept = await self._worker.call(self._journal.retained, absent)
            found |= {message.topic: message.payload for message in kept}
        return {topic: payload for topic, payload in found.items() if payload != IN_JOURNAL}

    async def read_again(self, topics: Sequence[str]) -> None:
        """Makes `get` return the messages of these topics. Raises `JournalError` if they cannot be read."""
        for topic, payload in (await self.payloads(topics)).items():
            # A newer one may have come meanwhile.
            if self._messages[topic].payload == IN_JOURNAL:
                self._messages[topic] = self._messages[topic]._replace(payload=payload)


def remaining_s(message: Retained, now_ms: int | None) -> int | None:
    """Returns for how many seconds the broker may keep this payload: None for ever, 0 if it is out of date. `now_ms` is
    the exchange's time."""
    if message.expiry_s is None or message.valid_until is None or now_ms is None:
        return message.expiry_s
    return max(0, min(message.expiry_s, -((now_ms - message.valid_until) // 1_000)))
