"""How long to wait before trying again. Randomness is passed in; sleeping is the caller's."""

from __future__ import annotations

import random


class Backoff:
    """Delays between connection attempts: exponential with jitter, capped, and forgiven only by healthy data.

    With `first_s` = 1 even a server that accepts and closes sees far fewer than the 300 attempts in 5 minutes
    that the exchange allows.
    """

    def __init__(self, rng: random.Random, *, first_s: float = 1.0, cap_s: float = 60.0, factor: float = 1.8) -> None:
        self._rng = rng
        self._first_s, self._cap_s, self._factor = first_s, cap_s, factor
        self._failures = 0

    def healthy(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        # The exponent is bounded: a month of failures must not overflow a float.
        delay = min(self._cap_s, self._first_s * self._factor ** min(self._failures, 64))
        self._failures += 1
        return delay * self._rng.uniform(0.75, 1.25)
