"""Delays between connection attempts, and a limit on their number. Randomness and time are passed in; the caller
sleeps."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

#: How long an address may leave a connection unanswered before the next one is tried in parallel (RFC 8305).
ADDRESS_RACE_S = 0.25


class Backoff:
    """Exponential delays with jitter and a cap. Only `healthy` resets them: a handshake that succeeds does not."""

    def __init__(self, rng: random.Random, *, first_s: float = 1.0, cap_s: float = 60.0, factor: float = 1.8) -> None:
        self._rng = rng
        self._first_s, self._cap_s, self._factor = first_s, cap_s, factor
        self._failures = 0

    def healthy(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        """Counts a failure and returns the seconds to wait after it."""
        # The exponent is bounded: a month of failures must not overflow a float.
        delay = min(self._cap_s, self._first_s * self._factor ** min(self._failures, 64))
        self._failures += 1
        return delay * self._rng.uniform(0.75, 1.25)


class ConnectBudget:
    """A limit of `attempts` connection attempts in any five minutes, whatever they are for.

    The exchange bans an IP address at 300. A third of that leaves a margin for a supervisor that restarts this process
    every few seconds, and for others behind the same address.
    """

    WINDOW_S = 300.0

    def __init__(self, monotonic_s: Callable[[], float], attempts: int = 100) -> None:
        self._monotonic_s = monotonic_s
        self._spent: deque[float] = deque(maxlen=attempts)

    def wait_s(self) -> float:
        """Returns the seconds until one more attempt is within the budget."""
        if len(self._spent) < (self._spent.maxlen or 0):
            return 0.0
        return max(0.0, self._spent[0] + self.WINDOW_S - self._monotonic_s())

    def spend(self) -> None:
        self._spent.append(self._monotonic_s())
