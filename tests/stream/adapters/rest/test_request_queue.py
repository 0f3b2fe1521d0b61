"""The queue of requests, by itself: who goes first, who waits for the weight, and who leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.adapters.rest.request_queue import RequestQueue
from stream.adapters.rest.weight import MINUTE_S, WeightBudget
from stream.clock import Clock
from stream.errors import UnreachableError
from stream.ports import Urgency


class Time:
    """A clock that moves when the test moves it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_s + seconds, woken))
        await woken

    async def pass_(self, seconds: float) -> None:
        self.now_s += seconds
        for until_s, woken in self._sleepers:
            if until_s <= self.now_s and not woken.done():
                woken.set_result(None)
        await settle()


async def settle() -> None:
    """Lets all tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


class Stand:
    """A queue, and requests that end when the test ends them."""

    def __init__(self, *, at_once: int = 1, limit: int = 6_000, shares: dict[Urgency, float] | None = None) -> None:
        self.time = Time()
        self.budget = WeightBudget(limit)
        self.queue = RequestQueue(
            clock=Clock(monotonic_s=self.time.monotonic, sleep=self.time.sleep),
            at_once=at_once,
            patience_s=5.0,
            budget=self.budget,
            shares=shares,
        )
        self.left: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(
        self, name: str, urgency: Urgency = Urgency.NOW, weight: int = 2, reported: int | None = None
    ) -> None:
        self._ends[name] = asyncio.Event()

        async def request() -> None:
            async with self.queue.turn(self.queue.place(urgency), weight) as turn:
                self.left.append(name)
                await self._ends[name].wait()
                turn.reported = reported

        self._tasks[name] = asyncio.create_task(request())
        await settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()

    def error(self, name: str) -> BaseException | None:
        return self._tasks[name].exception() if self._tasks[name].done() else None

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self.queue.aclose()


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    made = Stand()
    yield made
    await made.close()


async def test_the_urgent_goes_first_and_equals_go_in_order(stand: Stand) -> None:
    await stand.ask("first", Urgency.AUDIT)
    for name, urgency in (
        ("audit", Urgency.AUDIT), ("history 1", Urgency.HISTORY), ("history 2", Urgency.HISTORY),
        ("repair", Urgency.REPAIR), ("close", Urgency.NOW),
    ):  # fmt: skip
        await stand.ask(name, urgency)
    assert stand.left == ["first"]
    for name in ("first", "close", "repair", "history 1", "history 2"):
        await stand.end(name)
    assert stand.left == ["first", "close", "repair", "history 1", "history 2", "audit"]


async def test_a_question_that_has_begun_goes_before_later_ones_of_its_kind(stand: Stand) -> None:
    begun, later = stand.queue.place(Urgency.HISTORY), stand.queue.place(Urgency.HISTORY)
    order: list[str] = []

    async def page(name: str, of: object) -> None:
        async with stand.queue.turn(of):  # type: ignore[arg-type]
            order.append(name)

    await stand.ask("something else")
    pages = [asyncio.create_task(page("later", later)), asyncio.create_task(page("second page", begun))]
    await settle()
    await stand.end("something else")
    await asyncio.gather(*pages)
    assert order == ["second page", "later"]


async def test_who_is_cancelled_leaves_the_queue_and_nobody_behind_it_waits_for_it(stand: Stand) -> None:
    for name in ("one", "two", "three"):
        await stand.ask(name)
    await stand.cancel("two")
    await stand.end("one")
    assert stand.left == ["one", "three"]
    # One that is under way frees its place, too.
    await stand.ask("four")
    await stand.cancel("three")
    assert stand.left == ["one", "three", "four"]


async def test_a_cancellation_between_admission_and_departure_frees_the_place(stand: Stand) -> None:
    await stand.ask("one")
    await stand.ask("two")
    stand._ends["one"].set()
    # In this step of the loop the first ends and admits the second, which is cancelled before it can run.
    await asyncio.sleep(0)
    stand._tasks["two"].cancel()
    await settle()
    await stand.ask("three")
    assert stand.left[-1] == "three"


async def test_a_pause_binds_all_and_a_ban_beyond_our_patience_is_told_at_once(stand: Stand) -> None:
    with pytest.raises(UnreachableError, match="silence for 3 s"):
        stand.queue.obey(429, 3)
    await stand.ask("waits")
    assert stand.left == []
    await stand.time.pass_(2.9)
    assert stand.left == []
    await stand.time.pass_(0.2)
    assert stand.left == ["waits"]
    await stand.ask("behind")
    with pytest.raises(UnreachableError, match="silence for 600 s"):
        stand.queue.obey(418, 600)
    await stand.ask("after")
    for name in ("behind", "after"):
        await settle()
        assert isinstance(stand.error(name), UnreachableError), name
    assert stand.left == ["waits"]


async def test_a_server_that_answers_no_history_keeps_no_close_waiting() -> None:
    stand = Stand(at_once=10)
    for n in range(12):
        await stand.ask(f"{n}", Urgency.AUDIT if n % 2 else Urgency.HISTORY)
    assert len(stand.left) == 8
    await stand.ask("close", Urgency.NOW)
    await stand.ask("repair", Urgency.REPAIR)
    assert stand.left[8:] == ["close", "repair"]
    await stand.end("close", "repair")
    assert len(stand.left) == 10
    await stand.end("0")
    assert len(stand.left) == 11
    await stand.close()


SHARES = {Urgency.NOW: 1.0, Urgency.REPAIR: 0.9, Urgency.HISTORY: 0.8, Urgency.AUDIT: 0.5}


async def test_what_is_less_urgent_leaves_weight_to_what_is_more() -> None:
    stand = Stand(at_once=20, limit=10, shares=SHARES)
    for n in range(6):
        await stand.ask(f"history {n}", Urgency.HISTORY)
    assert stand.left == [f"history {n}" for n in range(4)]
    await stand.ask("close", Urgency.NOW)
    assert stand.left[-1] == "close"
    # The limit is reached: even a close waits, and goes first once the oldest weight is forgotten.
    await stand.time.pass_(10.0)
    await stand.ask("next close", Urgency.NOW)
    assert stand.left[-1] == "close"
    await stand.time.pass_(MINUTE_S - 8.0)
    assert stand.left[5:] == ["next close", "history 4", "history 5"]
    await stand.close()


async def test_the_weight_of_others_counts_until_the_exchange_tells_less() -> None:
    stand = Stand(at_once=20, limit=100, shares=dict.fromkeys(Urgency, 0.5))
    await stand.ask("one", reported=49)
    await stand.end("one")
    await stand.ask("two")
    assert stand.left == ["one"]
    await stand.time.pass_(MINUTE_S + 2)
    assert stand.left == ["one", "two"]
    await stand.close()


REQUESTS = st.lists(st.tuples(st.sampled_from([1, 2, 20]), st.floats(0, 30), st.floats(0, 15)), min_size=1, max_size=80)


@given(st.booleans(), REQUESTS)
def test_no_window_of_the_exchange_ever_has_more_than_the_share(
    rolling: bool, requests: list[tuple[int, float, float]]
) -> None:
    """Whatever is asked when, and however long each answer takes, and whether the exchange reports the last minute or
    starts over at each minute: the share is kept."""
    budget, now_s, share = WeightBudget(100), 5_000.0, 0.5
    arrived: list[tuple[float, int]] = []
    under_way: list[tuple[float, int]] = []

    def settle_until(until_s: float) -> None:
        for end_s, weight in sorted(u for u in under_way if u[0] <= until_s):
            since_s = end_s - 60 if rolling else end_s // 60 * 60
            reported = sum(w for at_s, w in arrived if since_s < at_s <= end_s)
            budget.settle(weight, reported, end_s)
            under_way.remove((end_s, weight))

    for weight, pause_s, takes_s in requests:
        now_s += pause_s
        settle_until(now_s)
        while (wait_s := budget.wait_s(weight, share, now_s)) > 0:
            now_s += wait_s + 0.001
            settle_until(now_s)
        budget.spend(weight, now_s)
        # It arrives within the second that the window is longer than a minute.
        arrived.append((now_s + min(takes_s, 0.9), weight))
        under_way.append((now_s + takes_s, weight))
    for at_s, _ in arrived:
        assert sum(w for other_s, w in arrived if at_s - 60 < other_s <= at_s) <= 50
        assert sum(w for other_s, w in arrived if other_s // 60 == at_s // 60) <= 50


def test_a_minute_of_no_fixed_length_is_over_when_the_exchange_says_so() -> None:
    """As where its clock jumps from close to close: however much was sent, its count is low again."""
    budget = WeightBudget(100, None)
    for _ in range(50):
        assert budget.wait_s(20, 0.5, 0.0) == 0
        budget.spend(20, 0.0)
        budget.settle(20, 20, 0.0)
    budget.spend(20, 0.0)
    budget.settle(20, 50, 0.0)
    assert budget.wait_s(20, 0.5, 0.0) > 0
