"""The exchange's request weight: how much of it is used, and when there is room for a request. Sans-I/O.

Rules of this module:
- The exchange's own count, which comes with every answer and includes other programs of the same address, is the truth.
  What was asked since and is not answered yet is added to it.
- What left this node longer ago than a minute is forgotten, by an exchange that counts the last minute as well as by
  one whose count starts over each minute.
"""

from __future__ import annotations

from collections import deque

#: The exchange's usual limit, until exchangeInfo has reported the present one.
WEIGHT_PER_MINUTE = 6_000
#: A minute, and a little for the way: a request is counted when it arrives.
WINDOW_S = 61.0


class WeightBudget:
    """The weight that the requests of this address have used within a minute. Times are monotonic seconds."""

    def __init__(self, limit: int = WEIGHT_PER_MINUTE) -> None:
        self.limit = limit
        #: Requests of the last minute: when each left, and its weight.
        self._sent: deque[tuple[float, int]] = deque()
        self._sent_weight = 0
        #: Weight of the requests that are not answered yet.
        self._open = 0
        #: The exchange's count less what has been forgotten since, and when it was reported.
        self._reported = 0
        self._reported_at_s = float("-inf")

    def spend(self, weight: int, now_s: float) -> None:
        """Counts a request that leaves now; `settle` must follow."""
        self._sent.append((now_s, weight))
        self._sent_weight += weight
        self._open += weight

    def settle(self, weight: int, reported: int | None, now_s: float) -> None:
        """Counts its end. `reported` is the exchange's count; without one the request counts nevertheless."""
        self._forget(now_s)
        self._open -= weight
        if reported is None:
            self._reported += weight
        else:
            self._reported, self._reported_at_s = reported, now_s

    def used(self, now_s: float) -> int:
        self._forget(now_s)
        return self._reported + self._open

    def wait_s(self, weight: int, share: float, now_s: float) -> float:
        """Returns how many seconds a request has to wait until no more than `share` of the limit is used with it; 0
        where it may leave now."""
        most = int(share * self.limit)
        # A request that weighs more than that still has its turn.
        excess = self.used(now_s) + min(weight, most) - most
        if excess <= 0:
            return 0.0
        others_forgotten_s = max(0.0, self._reported_at_s + WINDOW_S - now_s)
        for at_s, sent in self._sent:
            excess -= sent
            if excess <= 0:
                return min(max(0.0, at_s + WINDOW_S - now_s), others_forgotten_s or WINDOW_S)
        return others_forgotten_s

    def _forget(self, now_s: float) -> None:
        while self._sent and self._sent[0][0] <= now_s - WINDOW_S:
            _, weight = self._sent.popleft()
            self._sent_weight -= weight
            self._reported = max(0, self._reported - weight)
        if now_s >= self._reported_at_s + WINDOW_S:
            # Nobody has told for a minute what others use: only this node's own requests still count.
            self._reported = min(self._reported, max(0, self._sent_weight - self._open))
