"""Topics that the broker does not take: what waits on them, and when it is offered again.

One topic must not hold up the others. Within a topic order stays: what follows a refused message waits behind it. A
broker may refuse in so many words, or end the connection at that one message each time, or never acknowledge it; then
the topic is found out by what was being said when the connection ended.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stream.core.messages.records import Outgoing

log = logging.getLogger(__name__)

#: A refused message is offered again after so long, twice as long each time, and on each new connection.
_REFUSED_S, _REFUSED_CAP_S = 1.0, 60.0
#: One at which the broker hangs up costs a connection, and waits accordingly; a new connection is no reason.
_HUNG_UP_S, _HUNG_UP_CAP_S = 60.0, 900.0
#: Connections in a row that end at the same topic until the topic is at fault; fewer with a broker known for it.
_STRIKES, _STRIKES_KNOWN = 3, 2
#: Topics that are named in the log for one reason; more are counted, and listed nowhere.
_NAMED = 3


@dataclass(slots=True)
class _Held:
    reason: str
    hung_up: bool
    pause_s: float
    retry_at_s: float
    events: deque[Outgoing] = field(default_factory=deque)


class RefusedTopics:
    """Bookkeeping alone: who publishes says what came of it."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._strikes: tuple[str, int] = ("", 0)
        self._warned: Counter[str] = Counter()
        self._accepted_here = False

    def __len__(self) -> int:
        """Events that wait."""
        return sum(len(held.events) for held in self._held.values())

    def __contains__(self, topic: str) -> bool:
        return topic in self._held

    def waits(self, topic: str, now_s: float) -> bool:
        """Whether it is too early to offer anything on this topic."""
        held = self._held.get(topic)
        return held is not None and now_s < held.retry_at_s

    def put(self, event: Outgoing) -> None:
        """Behind what already waits on its topic, which must be one that is withheld."""
        self._held[event.topic].events.append(event)

    def due(self, now_s: float) -> list[str]:
        """Topics with events that may be offered again."""
        return [topic for topic, held in self._held.items() if held.events and now_s >= held.retry_at_s]

    def events(self, topic: str) -> deque[Outgoing]:
        """What waits on a topic, oldest first."""
        held = self._held.get(topic)
        return held.events if held is not None else deque()

    def waiting(self) -> list[Outgoing]:
        """Everything that waits."""
        return [event for held in self._held.values() for event in held.events]

    def amend(self, payloads: Mapping[int, bytes]) -> None:
        """What waits under these numbers of the outbox is said in other words."""
        for held in self._held.values():
            held.events = deque(replace(e, payload=payloads.get(e.seq, e.payload)) for e in held.events)

    def next_try_s(self, now_s: float) -> float | None:
        """How long until something may be offered again; None where nothing waits."""
        return min((held.retry_at_s - now_s for held in self._held.values()), default=None)

    def reasons(self) -> tuple[str, ...]:
        """For people: each reason once, with the first of its topics."""
        topics: dict[str, list[str]] = {}
        for topic, held in self._held.items():
            topics.setdefault(held.reason, []).append(topic)
        return tuple(
            f"the broker does not take {found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}: {reason}"
            for reason, found in topics.items()
        )

    # --- what came of publishing -------------------------------------------------------------------------------

    def connected(self, now_s: float) -> None:
        """Permissions may have changed: what was refused in words is offered at once."""
        self._accepted_here = False
        for held in self._held.values():
            if not held.hung_up:
                held.retry_at_s = now_s

    def accepted(self, topic: str) -> None:
        """The broker takes the topic; events that waited on it are the caller's to say, and stay here until then."""
        self._accepted_here = True
        if topic == self._strikes[0]:
            self._strikes = ("", 0)
        held = self._held.get(topic)
        if held is None:
            return
        if held.events:
            held.retry_at_s = 0.0
            return
        del self._held[topic]
        log.info("the broker takes %s again", topic, extra={"topic": topic})

    def refused(self, topic: str, reason: str, now_s: float) -> None:
        self._hold(topic, reason, now_s, hung_up=False)

    def hung_up(self, topic: str, reason: str, now_s: float) -> None:
        """The broker ended the connection at a message of this topic."""
        self._strike(topic, f"it ends the connection there ({reason})", now_s)

    def unanswered(self, topic: str, now_s: float) -> None:
        """No acknowledgement came in time. A broker that acknowledges nothing has nothing against the topic."""
        if self._accepted_here:
            self._strike(topic, "it does not acknowledge it, and others it does", now_s)

    def _strike(self, topic: str, reason: str, now_s: float) -> None:
        before, strikes = self._strikes
        self._strikes = (topic, strikes + 1 if topic == before else 1)
        known = any(held.hung_up for held in self._held.values())
        if topic in self._held or self._strikes[1] >= (_STRIKES_KNOWN if known else _STRIKES):
            self._hold(topic, reason, now_s, hung_up=True)

    def _hold(self, topic: str, reason: str, now_s: float, *, hung_up: bool) -> None:
        first_s, cap_s = (_HUNG_UP_S, _HUNG_UP_CAP_S) if hung_up else (_REFUSED_S, _REFUSED_CAP_S)
        held = self._held.get(topic)
        if held is None:
            self._held[topic] = held = _Held(reason, hung_up, first_s, 0.0)
            self._warn(topic, reason)
        else:
            held.pause_s = min(cap_s, max(first_s, 2 * held.pause_s))
            held.reason, held.hung_up = reason, hung_up
        held.retry_at_s = now_s + held.pause_s

    def _warn(self, topic: str, reason: str) -> None:
        self._warned[reason] += 1
        if self._warned[reason] <= _NAMED:
            more = "; more for this reason are only counted" if self._warned[reason] == _NAMED else ""
            log.warning(
                "the broker does not take %s: %s; it is kept, retrying%s",
                topic,
                reason,
                more,
                extra={"topic": topic, "reason": reason},
            )
