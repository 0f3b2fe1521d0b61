"""The events that the broker has not acknowledged yet, by topic.

At most one event of a topic is in flight: those behind it wait, so that one that is refused cannot be overtaken. Among
the topics the oldest event goes first. An event leaves only when it is acknowledged.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from stream.core.messages.records import Outgoing


class Outbox:
    """Does the bookkeeping only; the journal keeps the events themselves. A topic is free, or taken by whoever got its
    oldest event from `take`."""

    def __init__(self) -> None:
        #: Never an empty queue.
        self._queues: dict[str, deque[Outgoing]] = {}
        self._taken: set[str] = set()
        #: A heap: the number of the oldest event of each free topic, and the topic.
        self._free: list[tuple[int, str]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, events: Sequence[Outgoing]) -> None:
        """Puts events, in order, behind those of their topics."""
        for event in events:
            queue = self._queues.get(event.topic)
            if queue is not None:
                queue.append(event)
                continue
            self._queues[event.topic] = deque((event,))
            if event.topic not in self._taken:
                heapq.heappush(self._free, (event.seq, event.topic))
        self._count += len(events)

    def take(self) -> Outgoing | None:
        """Takes the free topic with the oldest event and returns that event; None if no topic is free."""
        if not self._free:
            return None
        _, topic = heapq.heappop(self._free)
        self._taken.add(topic)
        return self._queues[topic][0]

    def oldest(self, topic: str) -> Outgoing | None:
        """Returns the oldest event of a topic, free or taken; None if none waits."""
        queue = self._queues.get(topic)
        return queue[0] if queue else None

    def acknowledged(self, topic: str) -> None:
        """Drops the oldest event of a topic that is taken, and frees the topic."""
        queue = self._queues[topic]
        queue.popleft()
        self._count -= 1
        if not queue:
            del self._queues[topic]
        self._release(topic)

    def _release(self, topic: str) -> None:
        self._taken.discard(topic)
        if topic in self._queues:
            heapq.heappush(self._free, (self._queues[topic][0].seq, topic))

    def restart(self, except_for: Container[str]) -> None:
        """Frees all topics but those in `except_for`: what was in flight has failed with its connection."""
        self._taken = {topic for topic in self._queues if topic in except_for}
        self._free = [(queue[0].seq, topic) for topic, queue in self._queues.items() if topic not in self._taken]
        heapq.heapify(self._free)

    def pending(self) -> list[Outgoing]:
        """Returns all events, oldest first."""
        return sorted((event for queue in self._queues.values() for event in queue), key=lambda event: event.seq)

    def amend(self, payloads: Mapping[int, bytes]) -> None:
        """Replaces payloads, by the events' numbers."""
        for queue in self._queues.values():
            for i, event in enumerate(queue):
                if event.seq in payloads:
                    queue[i] = replace(event, payload=payloads[event.seq])
