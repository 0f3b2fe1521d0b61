"""The exchange's request weight: how much of it is used, and when there is room for a request. Sans-I/O.

Rules of this module:
- The exchange's own count, which comes with every answer and includes other programs of the same address, counts; what
  was asked since and is not answered yet is added to it.
- What this node has sent within a minute counts in any case: some exchanges count the last minute, others start over
  each minute.
"""

from __future__ import annotations

from collections import deque

#: The exchange's usual limit, until exchangeInfo has reported the present one.
WEIGHT_PER_MINUTE = 6_000
MINUTE_S = 60.0
#: A request is counted when it arrives: how much later than it left that may be.
_ON_THE_WAY_S = 1.0


class WeightBudget:
    """The weight that the requests of this address have used within a minute. Times are monotonic seconds."""

    def __init__(self, limit: int = WEIGHT_PER_MINUTE, minute_s: float | None = MINUTE_S) -> None:
        """`minute_s` is how long a minute of the exchange is on this machine's clock; None where it has no fixed
        length, so that only the exchange's count says what it has forgotten."""
        self.limit = limit
        self._window_s = (MINUTE_S if minute_s is None else minute_s) + _ON_THE_WAY_S
        self._own_counts = minute_s is not None
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
        return max(self._reported + self._open, self._sent_weight if self._own_counts else 0)

    def wait_s(self, weight: int, share: float, now_s: float) -> float:
        """Returns how many seconds a request has to wait until no more than `share` of the limit is used with it; 0
        where it may leave now. To be asked again after each answer, which may report that more or less is used."""
        most = int(share * self.limit)
        # A request that weighs more than that still has its turn.
        excess = self.used(now_s) + min(weight, most) - most
        if excess <= 0:
            return 0.0
        forgotten_at_s = self._reported_at_s + self._window_s
        for at_s, sent in self._sent:
            excess -= sent
            if excess <= 0:
                own_at_s = at_s + self._window_s
                return min(own_at_s, forgotten_at_s if forgotten_at_s > now_s else own_at_s) - now_s
        return max(0.0, forgotten_at_s - now_s)

    def _forget(self, now_s: float) -> None:
        while self._sent and self._sent[0][0] <= now_s - self._window_s:
            _, weight = self._sent.popleft()
            self._sent_weight -= weight
            self._reported = max(0, self._reported - weight)
        if now_s >= self._reported_at_s + self._window_s:
            # For a minute no answer has shown what others use: only this node's own requests still count.
            self._reported = min(self._reported, max(0, self._sent_weight - self._open))
