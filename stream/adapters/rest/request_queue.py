"""The queue in which requests wait for their turn: the urgent first, a few at a time, within the weight, and not while
the server wants silence.

Rules of this module:
- A request waits here and nowhere else: the client behind it never has more than `at_once`, so that none runs out of
  time in the client's own pool.
- Who is cancelled while waiting leaves the queue, and the next one has its turn.
- A refusal with Retry-After (429, 418) binds every later request of this queue: none leaves until it is over.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from stream.adapters.rest.weight import WeightBudget
from stream.clock import Clock
from stream.errors import UnreachableError
from stream.ports import Urgency

#: Where a 429 or 418 does not say how long.
_DEFAULT_RETRY_AFTER_S = 30.0
#: The longest the exchange bans anybody (418): three days; and the longest pause (429) that makes sense.
_LONGEST_BAN_S = 259_200.0
_LONGEST_PAUSE_S = 600.0
#: So that the clock has surely passed the moment that is waited for.
_A_LITTLE_S = 0.001


class Place(NamedTuple):
    """A place in the queue. All requests of one question have the same, so that a question that has begun is finished
    before the next of its kind begins."""

    urgency: Urgency
    number: int


@dataclass(slots=True)
class Turn:
    """A request that may leave. `reported` is to be set to the used weight that its answer reports."""

    reported: int | None = None


@dataclass(slots=True, order=True)
class _Waiting:
    place: Place
    arrival: int
    weight: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class RequestQueue:
    """One server's queue; used from one event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        at_once: int,
        patience_s: float = float("inf"),
        budget: WeightBudget | None = None,
        shares: Mapping[Urgency, float] | None = None,
    ) -> None:
        """At most `at_once` requests are under way; a fifth of them is left to what is urgent, so that a server which
        answers none of the others does not keep it waiting. With `shares`, a request waits until no more than its
        urgency's share of the budget is used with it. A pause that the server asks for is waited for where it ends
        within `patience_s`; else requests raise `UnreachableError` at once."""
        self._clock = clock
        self._at_once = at_once
        self._patience_s = patience_s
        self._budget = budget or WeightBudget()
        self._shares = shares
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._active = 0
        self._not_before_s = 0.0
        self._banned_until_s = 0.0
        #: Looks again when the first of the queue may leave, and when that is.
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at_s = 0.0

    def place(self, urgency: Urgency) -> Place:
        """Returns the next place behind all questions of this urgency."""
        return Place(urgency, next(self._numbers))

    @asynccontextmanager
    async def turn(self, place: Place, weight: int = 0) -> AsyncIterator[Turn]:
        """Waits for the turn of a request, which is over with the block. Raises `UnreachableError` where a ban exceeds
        `patience_s`."""
        admitted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, _Waiting(place, next(self._numbers), weight, admitted))
        self._admit()
        turn = Turn()
        try:
            await admitted
            yield turn
        finally:
            # Also where the cancellation came between the admission and here.
            if not admitted.cancelled() and admitted.exception() is None:
                self._active -= 1
                self._budget.settle(weight, turn.reported, self._clock.monotonic_s())
            self._admit()

    async def aclose(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            await asyncio.gather(self._alarm, return_exceptions=True)

    # --- silence -----------------------------------------------------------------------------------------------

    @property
    def silent_for_s(self) -> float:
        """Seconds that the server wants no request for."""
        return max(0.0, self._not_before_s - self._clock.monotonic_s())

    def obey(self, status: int, retry_after_s: int | None) -> None:
        """Raises `UnreachableError` where an answer asks for a pause (418, 429), which later requests wait for."""
        if status not in (418, 429):
            return
        longest_s = _LONGEST_BAN_S if status == 418 else _LONGEST_PAUSE_S
        wait_s = _DEFAULT_RETRY_AFTER_S if retry_after_s is None else min(float(retry_after_s), longest_s)
        self._not_before_s = max(self._not_before_s, self._clock.monotonic_s() + wait_s)
        self._banned_until_s = self._not_before_s
        self._admit()
        raise UnreachableError(f"HTTP {status}: the exchange wants silence for {wait_s:g} s")

    # --- admission ---------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Lets all requests leave that may, and sets the alarm for the first that may not yet."""
        now_s = self._clock.monotonic_s()
        if (banned_for_s := self._banned_until_s - now_s) > self._patience_s:
            for one in self._waiting:
                if not one.admitted.done():
                    one.admitted.set_exception(
                        UnreachableError(f"the exchange wants silence for {banned_for_s:.0f} s more")
                    )
            self._waiting.clear()
        while self._waiting and self._active < self._at_once:
            first = self._waiting[0]
            if first.admitted.done():
                heapq.heappop(self._waiting)
                continue
            if first.place.urgency >= Urgency.HISTORY and self._active >= self._at_once - self._at_once // 5:
                return
            if (wait_s := self._wait_s(first, now_s)) > 0:
                self._look_again(now_s + wait_s + _A_LITTLE_S)
                return
            heapq.heappop(self._waiting)
            self._active += 1
            self._budget.spend(first.weight, now_s)
            first.admitted.set_result(None)

    def _wait_s(self, first: _Waiting, now_s: float) -> float:
        wait_s = max(0.0, self._not_before_s - now_s)
        if self._shares is not None and wait_s <= 0:
            wait_s = self._budget.wait_s(first.weight, self._shares[first.place.urgency], now_s)
        return wait_s

    def _look_again(self, at_s: float) -> None:
        if self._alarm is not None and not self._alarm.done():
            if self._alarm_at_s <= at_s:
                return
            self._alarm.cancel()
        self._alarm_at_s = at_s
        self._alarm = asyncio.create_task(self._wake(at_s), name="request queue")

    async def _wake(self, at_s: float) -> None:
        while (wait_s := at_s - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(wait_s)
        self._alarm = None
        self._admit()
