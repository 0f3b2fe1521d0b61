"""Publishing: order, acknowledgement, old decisions, and what is published on each connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from stream.adapters.journal.store import SqliteJournal
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.records import IN_JOURNAL, EventMessage, Outgoing, Record, Retained
from stream.errors import HungUpError, MessageRefusedError, UnreachableError
from stream.pipeline.publishing import EventPublisher
from stream.pipeline.refused_topics import RefusedTopics
from stream.pipeline.worker import Worker
from stream.telemetry import Fact, OutboxCounted, Published, PublishFailed

T0 = 1_704_067_200_000


class Publisher:
    """A fake connection that records what it publishes. After `accepts` messages it is lost. Topics in `denied` are
    refused; at those in `poison` the connection ends; those in `unanswered` are never acknowledged."""

    def __init__(
        self,
        accepts: int = 1_000,
        *,
        denied: Collection[str] = (),
        poison: Collection[str] = (),
        unanswered: Collection[str] = (),
        receive_maximum: int = 65_535,
    ) -> None:
        self.accepts, self.denied, self.poison, self.unanswered = accepts, denied, poison, unanswered
        self.receive_maximum = receive_maximum
        self.offered: list[str] = []
        self.published: list[tuple[str, bytes, bool, int | None]] = []
        self.any_published = asyncio.Event()
        self.ended: UnreachableError | None = None
        #: Topics of the messages without an answer, and the largest number of them.
        self.in_flight: list[str] = []
        self.most_in_flight = 0

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> asyncio.Future[None]:
        assert topic not in self.in_flight, "two messages of one topic are in flight"
        self.in_flight.append(topic)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        assert len(self.in_flight) <= self.receive_maximum
        return asyncio.ensure_future(self._take(topic, payload, retain, expiry_s))

    async def _take(self, topic: str, payload: bytes, retain: bool, expiry_s: int | None) -> None:
        await asyncio.sleep(0)
        if self.ended is not None:
            raise self.ended
        self.offered.append(topic)
        if topic in self.poison:
            self.ended = HungUpError("Not authorized")
        elif topic in self.unanswered:
            self.ended = UnreachableError("the broker did not acknowledge")
        elif topic not in self.denied and len(self.published) >= self.accepts:
            self.ended = UnreachableError("gone")
        if self.ended is not None:
            raise self.ended
        self.in_flight.remove(topic)
        if topic in self.denied:
            raise MessageRefusedError("Not authorized")
        self.published.append((topic, payload, retain, expiry_s))
        self.any_published.set()

    def topics(self) -> list[str]:
        return [topic for topic, _, _, _ in self.published]

    def states(self) -> list[str]:
        return [
            json.loads(payload)["state"] for topic, payload, _, _ in self.published if topic.endswith("node/n/state")
        ]


class Stand:
    def __init__(self, data_dir: Path) -> None:
        self.journal = SqliteJournal(data_dir)
        self.now_ms: int | None = T0
        self.now_s = 0.0
        self.facts: list[Fact] = []
        clock = Clock(wall_ms=lambda: 7, monotonic_s=lambda: self.now_s)
        self.worker = Worker(clock=clock, observe=self.facts.append)
        self.publisher = EventPublisher(
            instance="n",
            session="s",
            journal=self.journal,
            worker=self.worker,
            clock=clock,
            exchange_now_ms=lambda: self.now_ms,
            observe=self.facts.append,
        )

    async def talk(self, publisher: Publisher, *, close: bool = True) -> None:
        """Runs one session, ended by the node's last message or by the connection."""
        if close:
            self.publisher.close()
        await self.publisher.session(publisher)


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    made = await asyncio.to_thread(Stand, tmp_path)
    yield made
    await asyncio.to_thread(made.worker.close)
    await asyncio.to_thread(made.journal.close)


async def commit(stand: Stand, hours: int) -> list[Outgoing]:
    records = [
        Record(
            symbol="B",
            candles=(Candle("B", T0 + h * HOUR_MS, 1, 1, 1, 1, 1),),
            provenance="live",
            open_time=T0 + h * HOUR_MS,
            events=(EventMessage(f"e/{h}", b"x", 60),),
        )
        for h in range(hours)
    ]
    await asyncio.to_thread(stand.journal.commit, records)
    return await asyncio.to_thread(stand.journal.outbox)


async def kept(stand: Stand, *retained: Retained) -> list[Retained]:
    """Stores retained messages, as a commit does before they are offered."""
    await asyncio.to_thread(stand.journal.post, [], retained)
    return list(retained)


async def test_events_go_out_in_order_and_leave_the_outbox_when_acknowledged(stand: Stand) -> None:
    stand.publisher.offer(await commit(stand, 100), [])
    publisher = Publisher()
    await stand.talk(publisher)
    assert [t for t in publisher.topics() if t.startswith("e/")] == [f"e/{h}" for h in range(100)]
    assert await asyncio.to_thread(stand.journal.outbox) == []
    assert publisher.states() == ["starting", "stopped"]


@pytest.mark.parametrize("accepts", range(1, 12))
async def test_a_connection_lost_anywhere_repeats_at_most_and_loses_nothing(stand: Stand, accepts: int) -> None:
    stand.publisher.offer(await commit(stand, 10), await kept(stand, Retained("r", b"new", None)))
    first, second = Publisher(accepts), Publisher()
    with contextlib.suppress(UnreachableError):
        await stand.talk(first, close=False)
    assert any(isinstance(f, PublishFailed) for f in stand.facts)
    await stand.talk(second)
    events = [t for t in (*first.topics(), *second.topics()) if t.startswith("e/")]
    assert sorted(set(events), key=events.index) == [f"e/{h}" for h in range(10)]
    assert "r" in second.topics()
    assert await asyncio.to_thread(stand.journal.outbox) == []


async def test_many_topics_are_in_flight_at_once_within_what_the_broker_takes(stand: Stand) -> None:
    stand.publisher.offer(await commit(stand, 2_000), [])
    for receive_maximum, most in ((20, 20), (65_535, 256)):
        publisher = Publisher(receive_maximum=receive_maximum, accepts=1_000)
        with contextlib.suppress(UnreachableError):
            await stand.talk(publisher)
        assert publisher.most_in_flight == most


async def test_after_a_connection_that_ended_in_between_one_message_is_sent_at_a_time(stand: Stand) -> None:
    """The message that ends connections is then the only suspect."""
    stand.publisher.offer(await commit(stand, 100), [])
    first, second = Publisher(50), Publisher(10)
    for publisher in (first, second):
        with pytest.raises(UnreachableError):
            await stand.talk(publisher, close=False)
    assert first.most_in_flight > 10
    assert second.most_in_flight == 1


async def test_events_go_before_retained_messages(stand: Stand) -> None:
    events = await commit(stand, 10)
    stand.publisher.publish_state("ready")
    publisher = Publisher(receive_maximum=3)
    talking = asyncio.create_task(stand.talk(publisher, close=False))
    # A connection begins with the retained messages; once they are out, it says how the node is.
    while "ready" not in publisher.states():
        publisher.any_published.clear()
        await publisher.any_published.wait()
    stand.publisher.offer(events, await kept(stand, *[Retained(f"r/{n}", b"x", None) for n in range(10)]))
    stand.publisher.close()
    await talking
    leaves = [topic[0] for topic in publisher.topics() if topic[1] == "/"]
    assert leaves == ["e"] * 10 + ["r"] * 10


async def test_each_connection_begins_with_starting_and_all_retained_values(stand: Stand) -> None:
    stand.publisher.publish_state("ready")
    stand.publisher.offer([], await kept(stand, Retained("r/a", b"1", None), Retained("r/b", b"2", None)))
    for _ in range(2):
        publisher = Publisher()
        await stand.talk(publisher)
        assert publisher.states()[0] == "starting"
        assert {"r/a", "r/b"} <= set(publisher.topics())


async def test_only_the_newest_payload_of_a_retained_topic_is_said(stand: Stand) -> None:
    for i in range(5):
        stand.publisher.offer([], await kept(stand, Retained("r", str(i).encode(), None)))
    publisher = Publisher()
    await stand.talk(publisher)
    assert [p for t, p, _, _ in publisher.published if t == "r"] == [b"4"]


@pytest.mark.parametrize(
    ("now_ms", "expiry_s"),
    [(T0, 7_200), (T0 + HOUR_MS, 3_600), (T0 + 2 * HOUR_MS - 1, 1), (T0 + 2 * HOUR_MS, None), (None, None)],
)
async def test_a_decision_past_its_time_is_not_said_and_none_outlives_it(
    stand: Stand, now_ms: int | None, expiry_s: int | None
) -> None:
    stand.now_ms = now_ms
    stand.publisher.offer([], await kept(stand, Retained("d", b"x", 7_200, T0 + 2 * HOUR_MS)))
    publisher = Publisher()
    await stand.talk(publisher)
    assert [e for t, _, _, e in publisher.published if t == "d"] == ([] if expiry_s is None else [expiry_s])


async def test_after_a_restart_a_decision_waits_for_the_exchanges_time(stand: Stand) -> None:
    stand.now_ms = None
    stand.publisher.load(
        [], await kept(stand, Retained("d", b"x", 7_200, T0 + HOUR_MS), Retained("old", b"y", 7_200, T0 - 1)), []
    )
    publisher = Publisher()
    talking = asyncio.create_task(stand.talk(publisher, close=False))
    await publisher.any_published.wait()
    stand.now_ms = T0
    stand.publisher.time_is_known()
    stand.publisher.close()
    await talking
    assert [(t, e) for t, _, _, e in publisher.published if t in ("d", "old")] == [("d", 3_600)]


async def test_a_stop_does_not_wait_for_a_backlog(stand: Stand) -> None:
    stand.publisher.offer(await commit(stand, 50), [])
    stand.publisher.close()
    stand.now_s += 2.0
    publisher = Publisher()
    await stand.talk(publisher, close=False)
    assert publisher.states() == ["starting", "stopped"]
    assert len(await asyncio.to_thread(stand.journal.outbox)) == 50


async def test_what_left_the_configuration_is_cleared_and_forgotten(stand: Stand) -> None:
    await asyncio.to_thread(stand.journal.post, [], [Retained("old", b"x", None), Retained("ours", b"y", None)])
    stand.publisher.load([], await asyncio.to_thread(stand.journal.retained), ["old", "never-said"])
    publisher = Publisher()
    await stand.talk(publisher)
    published = {topic: payload for topic, payload, _, _ in publisher.published}
    assert (published["old"], published["never-said"], published["ours"]) == (b"", b"", b"y")
    assert [r.topic for r in await asyncio.to_thread(stand.journal.retained)] == ["ours"]


RECENT = "volcast/v1/binance/spot/X/1h/recent"


async def test_what_was_acknowledged_is_read_again_for_each_connection(stand: Stand) -> None:
    """The second connection finds what the journal has, also where somebody has changed it there since."""
    stored = Retained(RECENT, b"first", None)
    await asyncio.to_thread(stand.journal.post, [], [stored])
    stand.publisher.offer([], [stored, Retained("z", b"the last word", None)])
    with contextlib.suppress(UnreachableError):
        await stand.talk(Publisher(accepts=2), close=False)
    await kept(stand, Retained(RECENT, b"second", None))
    assert await stand.publisher.retained_payloads([RECENT, "absent"]) == {RECENT: b"second"}
    again = Publisher()
    await stand.talk(again)
    assert [payload for topic, payload, _, _ in again.published if topic == RECENT] == [b"second"]


async def test_payloads_that_only_the_journal_has_go_out_after_the_events(stand: Stand) -> None:
    """As after several turns; more than are read at a time."""
    stored = await kept(stand, *[Retained(f"r/{k}", b"%d" % k, None) for k in range(600)])
    stand.publisher.offer(await commit(stand, 10), [item._replace(payload=IN_JOURNAL) for item in stored])
    publisher = Publisher()
    stand.publisher.close()
    await stand.talk(publisher)
    assert {t: p for t, p, _, _ in publisher.published if t.startswith("r/")} == {r.topic: r.payload for r in stored}


@pytest.mark.parametrize("denied", [False, True])
async def test_payloads_are_read_while_a_connection_lasts(stand: Stand, denied: bool) -> None:
    publisher = Publisher(denied=["r"] if denied else [])
    talking = asyncio.create_task(stand.talk(publisher, close=False))
    await publisher.any_published.wait()
    (item,) = await kept(stand, Retained("r", b"x", None))
    stand.publisher.offer(await commit(stand, 3), [item._replace(payload=IN_JOURNAL)])
    stand.publisher.close()
    await talking
    assert "r" in publisher.offered
    assert ("r" in publisher.topics()) is not denied


async def test_what_the_journal_has_lost_is_not_cleared_at_the_broker(stand: Stand) -> None:
    stand.publisher.load([], [Retained(RECENT, b"first", None)], [])
    publisher = Publisher()
    await stand.talk(publisher)
    assert RECENT not in publisher.topics()


async def test_what_another_node_has_said_is_kept_here(stand: Stand) -> None:
    stand.publisher.load([], await kept(stand, Retained(RECENT, b"ours", None)), [])
    stand.publisher.offer([], [Retained(RECENT, b"theirs", None)], in_journal=False)
    stand.publisher.offer([], [Retained("z", b"the last word", None)])
    with contextlib.suppress(UnreachableError):
        await stand.talk(Publisher(accepts=2), close=False)
    again = Publisher()
    await stand.talk(again)
    assert [payload for topic, payload, _, _ in again.published if topic == RECENT] == [b"theirs"]


async def test_thousands_of_retained_messages_all_go_out_once(stand: Stand) -> None:
    stored = [Retained(f"volcast/v1/binance/spot/{k}/1h/recent", b"%d" % k, None) for k in range(1_000)]
    stand.publisher.load([], await kept(stand, *stored), [])
    publisher = Publisher(accepts=2_000)
    await stand.talk(publisher)
    assert {t: p for t, p, _, _ in publisher.published if t.endswith("recent")} == {r.topic: r.payload for r in stored}
    assert len(publisher.published) == len(stored) + 2


async def test_every_acknowledged_message_is_told(stand: Stand) -> None:
    stand.publisher.offer(await commit(stand, 3), [])
    publisher = Publisher()
    await stand.talk(publisher)
    assert [f.topic for f in stand.facts if isinstance(f, Published)] == publisher.topics()


# --- what the broker does not take -----------------------------------------------------------------------------


async def post(stand: Stand, *topics: str) -> list[Outgoing]:
    """Stores events of these topics, numbered within each; returns the outbox."""
    counts: dict[str, int] = {}
    events = []
    for topic in topics:
        counts[topic] = counts.get(topic, 0) + 1
        events.append((topic, str(counts[topic]).encode(), 60))
    await asyncio.to_thread(stand.journal.post, events, [])
    return await asyncio.to_thread(stand.journal.outbox)


def published_on(publisher: Publisher, topic: str) -> list[bytes]:
    return [payload for t, payload, _, _ in publisher.published if t == topic]


@pytest.mark.fault(45)
async def test_one_topic_that_the_broker_refuses_holds_up_no_other(stand: Stand) -> None:
    stand.publisher.offer(
        await post(stand, "a", "b", "a", "b"), await kept(stand, Retained("r", b"1", None), Retained("s", b"1", None))
    )
    publisher = Publisher(denied=("a", "r"))
    await stand.talk(publisher)
    assert published_on(publisher, "b") == [b"1", b"2"]
    assert published_on(publisher, "s") == [b"1"]
    assert publisher.states()[-1] == "stopped"
    assert [(e.topic, e.payload) for e in await asyncio.to_thread(stand.journal.outbox)] == [("a", b"1"), ("a", b"2")]
    assert stand.publisher.remarks == ("the broker does not take r and 1 more: Not authorized",)
    failed = [f for f in stand.facts if isinstance(f, PublishFailed)]
    assert {(f.topic, f.reason) for f in failed} == {("a", "Not authorized"), ("r", "Not authorized")}
    assert [f.messages for f in stand.facts if isinstance(f, OutboxCounted)][-1] == 2


@pytest.mark.fault(45)
async def test_what_was_refused_is_said_in_order_once_the_broker_takes_it(stand: Stand) -> None:
    stand.publisher.offer(await post(stand, "a", "b", "a"), await kept(stand, Retained("r", b"1", None)))
    await stand.talk(Publisher(denied=("a", "r")))
    events = await post(stand, "a")
    stand.publisher.offer(events[-1:], await kept(stand, Retained("r", b"2", None)))
    publisher = Publisher()
    await stand.talk(publisher)
    assert published_on(publisher, "a") == [b"1", b"2", b"1"]
    assert published_on(publisher, "b") == []
    assert published_on(publisher, "r") == [b"2"]
    assert stand.publisher.remarks == ()
    assert await asyncio.to_thread(stand.journal.outbox) == []


@pytest.mark.fault(45)
def test_a_refused_topic_is_offered_again_with_growing_pauses_and_on_each_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    withheld, pauses_s = RefusedTopics(), []
    for _ in range(8):
        withheld.refused("a", "Not authorized", 100.0)
        pauses_s.append(withheld.next_try_s(100.0))
    assert pauses_s == [1, 2, 4, 8, 16, 32, 60, 60]
    assert withheld.waits("a", 159.0)
    assert not withheld.waits("a", 160.0)
    withheld.connected(120.0)
    assert not withheld.waits("a", 120.0)
    withheld.accepted("a")
    assert caplog.messages == [
        "the broker does not take a: Not authorized; it is kept, retrying",
    ]


def test_topics_refused_for_one_reason_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    withheld = RefusedTopics()
    for n in range(50):
        withheld.refused(f"t/{n}", "Not authorized", 0.0)
    withheld.refused("t/0", "Quota exceeded", 0.0)
    assert len(caplog.messages) == 3
    assert caplog.messages[-1].endswith("more for this reason are only counted")
    assert len(withheld.reasons()) == 2


@pytest.mark.fault(45)
async def test_a_topic_at_which_the_broker_hangs_up_is_found_out_and_left_aside(stand: Stand) -> None:
    stand.publisher.offer(await post(stand, "b", "a", "b", "a"), [])
    for _ in range(3):
        with pytest.raises(HungUpError):
            await stand.talk(Publisher(poison=("a",)), close=False)
    assert stand.publisher.remarks == ("the broker does not take a: it ends the connection there (Not authorized)",)
    publisher = Publisher(poison=("a",))
    await stand.talk(publisher)
    assert published_on(publisher, "b") == [b"2"]
    assert "a" not in publisher.offered
    assert [e.topic for e in await asyncio.to_thread(stand.journal.outbox)] == ["a", "a"]


@pytest.mark.fault(45)
async def test_a_topic_that_is_never_acknowledged_is_left_aside_and_a_mute_broker_is_waited_for(stand: Stand) -> None:
    stand.publisher.offer(await post(stand, "a", "b"), [])
    state = "volcast/v1/node/n/state"
    for _ in range(5):
        with pytest.raises(UnreachableError):
            await stand.talk(Publisher(unanswered=(state, "a", "b")), close=False)
    assert stand.publisher.remarks == ()
    for _ in range(3):
        with pytest.raises(UnreachableError):
            await stand.talk(Publisher(unanswered=("a",)), close=False)
    publisher = Publisher(unanswered=("a",))
    await stand.talk(publisher)
    assert published_on(publisher, "b") == [b"1"]
    assert stand.publisher.remarks == ("the broker does not take a: it does not acknowledge it, and others it does",)


async def test_a_topic_left_aside_is_tried_again_after_a_while(stand: Stand) -> None:
    stand.publisher.offer(await post(stand, "a", "a"), [])
    for _ in range(3):
        with pytest.raises(HungUpError):
            await stand.talk(Publisher(poison=("a",)), close=False)
    stand.now_s += 61
    publisher = Publisher()
    await stand.talk(publisher)
    assert published_on(publisher, "a") == [b"1", b"2"]
    assert stand.publisher.remarks == ()


async def test_connections_that_end_at_one_message_and_then_another_blame_neither(stand: Stand) -> None:
    stand.publisher.offer(await post(stand, "a", "b"), [])
    for poison in ("a", "a", "b", "a", "a"):
        with pytest.raises(HungUpError):
            await stand.talk(Publisher(poison=(poison,)), close=False)
        if poison == "b":
            stand.publisher.offer([Outgoing(99, "a", b"3", 60)], [])
    assert stand.publisher.remarks == ()
