"""The outbox, and the publisher on connections that end anywhere: no event is lost, overtaken or changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.clock import Clock
from stream.core.messages.records import Outgoing
from stream.errors import HungUpError, MessageRefusedError, UnreachableError
from stream.pipeline.outbox import Outbox
from stream.pipeline.publishing import EventPublisher
from stream.pipeline.worker import Worker

TOPICS = ("a", "b", "c", "d")
PREFIX = "volcast/v1/node/"


def events_of(topics: Sequence[str], first: int = 1) -> list[Outgoing]:
    return [Outgoing(first + i, topic, f"{topic}{first + i}".encode(), 60) for i, topic in enumerate(topics)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.lists(st.sampled_from(TOPICS), max_size=5)),
            st.tuples(st.sampled_from(["take", "acknowledge", "restart"]), st.just([])),
        ),
        max_size=60,
    )
)
def test_each_topic_keeps_its_order_and_the_oldest_free_event_goes_first(steps: list[tuple[str, list[str]]]) -> None:
    outbox, waiting, in_flight = Outbox(), list[Outgoing](), list[Outgoing]()
    number = 1
    for step, topics in steps:
        if step == "put":
            added = events_of(topics, number)
            number += len(added)
            outbox.put(added)
            waiting += added
        elif step == "take":
            taken = {event.topic for event in in_flight}
            free = [event for event in waiting if event.topic not in taken]
            event = outbox.take()
            assert event == (free[0] if free else None)
            in_flight += [event] if event is not None else []
        elif step == "acknowledge" and in_flight:
            # Answers need not come in the order of the events here: only within a topic.
            event = in_flight.pop()
            outbox.acknowledged(event.topic)
            waiting.remove(event)
        elif step == "restart":
            outbox.restart(except_for=())
            in_flight = []
        assert outbox.pending() == waiting
        assert len(outbox) == len(waiting)


class Journal:
    """Remembers what is acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def check_place(self) -> None:
        pass

    def acknowledge(self, seqs: Sequence[int]) -> None:
        self.acknowledged += seqs


class Connection:
    """Answers messages in order; the connection ends at the message `ends_at`, or at a topic in `poison`."""

    def __init__(self, receive_maximum: int, ends_at: int | None, denied: Collection[str], poison: Collection[str]):
        self.receive_maximum = receive_maximum
        self._ends_at, self._denied, self._poison = ends_at, denied, poison
        self._in_flight: list[tuple[str, asyncio.Future[None]]] = []
        self._ended = False
        self.accepted: list[bytes] = []
        #: What had been taken in when the connection ended: the broker has it, and its answer is lost.
        self.unanswered: list[bytes] = []

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        assert topic not in [in_flight for in_flight, _ in self._in_flight]
        self._in_flight.append((topic, future))
        assert len(self._in_flight) <= self.receive_maximum
        loop.call_soon(self._answer, topic, payload, future)
        return future

    def _answer(self, topic: str, payload: bytes, future: asyncio.Future[None]) -> None:
        if self._ended:
            self.unanswered.append(payload)
            return
        if topic in self._poison or len(self.accepted) == self._ends_at:
            self._ended = True
            for _, waiting in self._in_flight:
                waiting.set_exception(HungUpError("gone"))
            return
        self._in_flight.remove((topic, future))
        if topic in self._denied:
            future.set_exception(MessageRefusedError("no"))
            return
        if not topic.startswith(PREFIX):
            self.accepted.append(payload)
        future.set_result(None)


connections = st.lists(
    st.tuples(
        st.integers(1, 5), st.integers(0, 12), st.sets(st.sampled_from(TOPICS)), st.sets(st.sampled_from(TOPICS))
    ),
    max_size=6,
)


@settings(deadline=None)
@given(st.lists(st.sampled_from(TOPICS), max_size=30), connections)
async def test_whatever_ends_connections_each_event_is_published_in_the_order_of_its_topic(
    topics: list[str], script: list[tuple[int, int, set[str], set[str]]]
) -> None:
    now_s = 0.0
    clock = Clock(wall_ms=lambda: 7, monotonic_s=lambda: now_s)
    journal, worker = Journal(), Worker(clock=clock, observe=lambda fact: None)
    publisher = EventPublisher(
        instance="n",
        session="s",
        journal=journal,  # type: ignore[arg-type]
        worker=worker,
        clock=clock,
        exchange_now_ms=lambda: 0,
        observe=lambda fact: None,
    )
    events = events_of(topics)
    publisher.offer(events, [])
    accepted: list[bytes] = []
    try:
        for receive_maximum, ends_at, denied, poison in script:
            connection = Connection(receive_maximum, ends_at, denied, poison)
            publisher.close()
            with contextlib.suppress(UnreachableError):
                await publisher.session(connection)
            accepted += connection.accepted
        # Long enough for every refused topic to be retried.
        now_s = 10_000.0
        publisher.close()
        last = Connection(65_535, None, (), ())
        await publisher.session(last)
        accepted += last.accepted
    finally:
        worker.close()
    first_of_each = list(dict.fromkeys(accepted))
    for topic in TOPICS:
        mine = [event.payload for event in events if event.topic == topic]
        assert [payload for payload in first_of_each if payload.startswith(topic.encode())] == mine
    assert set(journal.acknowledged) == {event.seq for event in events}
    assert publisher.pending() == []
