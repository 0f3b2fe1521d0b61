"""Topics that the broker refuses, why, and when they are retried.

One topic must not hold up the others. Within a topic the order stays: what follows a refused message waits behind it. A
broker may refuse a message with a reason, or end the connection at it each time, or never acknowledge it; in the latter
two cases the topic at fault is that of the oldest message without an answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: First and longest pause before a refused message is retried, doubled each time; a new connection retries it at once.
_REFUSED_S, _REFUSED_CAP_S = 1.0, 60.0
#: The same for one at which the broker ends the connection. A retry may cost the connection, so a new one causes none.
_HUNG_UP_S, _HUNG_UP_CAP_S = 60.0, 900.0
#: How many connections in a row must end at the same topic before the topic is at fault; the second number is for a
#: broker that is known to end connections at a topic.
_STRIKES, _STRIKES_KNOWN = 3, 2
#: How many topics the log names for one reason; further ones are only counted.
_NAMED = 3


@dataclass(slots=True)
class _Held:
    reason: str
    hung_up: bool
    pause_s: float
    retry_at_s: float


class RefusedTopics:
    """Does the bookkeeping only: the publisher reports what came of each attempt. Times named `now_s` are monotonic."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._strikes: tuple[str, int] = ("", 0)
        self._warned: Counter[str] = Counter()
        self._accepted_here = False

    def __contains__(self, topic: str) -> bool:
        return topic in self._held

    def topics(self) -> set[str]:
        return set(self._held)

    def waits(self, topic: str, now_s: float) -> bool:
        """Returns whether it is too early to publish anything on this topic."""
        held = self._held.get(topic)
        return held is not None and now_s < held.retry_at_s

    def due(self, now_s: float) -> list[str]:
        """Returns the topics that may be retried now."""
        return [topic for topic, held in self._held.items() if now_s >= held.retry_at_s]

    def next_try_s(self, now_s: float) -> float | None:
        """Returns the seconds until the first refused topic may be retried; None if no topic is refused."""
        return min((held.retry_at_s - now_s for held in self._held.values()), default=None)

    def reasons(self) -> tuple[str, ...]:
        """Returns sentences for people: each reason once, with the first of its topics."""
        topics: dict[str, list[str]] = {}
        for topic, held in self._held.items():
            topics.setdefault(held.reason, []).append(topic)
        return tuple(
            f"the broker does not take {found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}: {reason}"
            for reason, found in topics.items()
        )

    # --- results of publishing ---------------------------------------------------------------------------------

    def connected(self, now_s: float) -> None:
        """Notes a new connection: messages refused with a reason are retried at once, for permissions may differ."""
        self._accepted_here = False
        for held in self._held.values():
            if not held.hung_up:
                held.retry_at_s = now_s

    def accepted(self, topic: str) -> None:
        """Notes that the broker takes the topic."""
        self._accepted_here = True
        if topic == self._strikes[0]:
            self._strikes = ("", 0)
        if self._held.pop(topic, None) is not None:
            log.info("the broker takes %s again", topic, extra={"topic": topic})

    def refused(self, topic: str, reason: str, now_s: float) -> None:
        self._hold(topic, reason, now_s, hung_up=False)

    def hung_up(self, topic: str, reason: str, now_s: float) -> None:
        """Notes that the broker ended the connection at a message of this topic."""
        self._strike(topic, f"it ends the connection there ({reason})", now_s)

    def unanswered(self, topic: str, now_s: float) -> None:
        """Notes that a message was not acknowledged in time. That counts against the topic only if the broker has
        acknowledged another message on this connection."""
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
