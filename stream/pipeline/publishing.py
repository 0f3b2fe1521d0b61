"""Publishing: sends the outbox and the retained messages to the broker, in order, until it has acknowledged them.

Each event is published, and kept until it is acknowledged; a retained topic only ever carries its newest payload. A
retained payload past its `valid_until` is not published: an old decision must not look like a current one.
A message that the broker refuses waits with those that follow on its topic; the other topics go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from stream.clock import Clock
from stream.core.messages import schemas, topics
from stream.core.messages.records import Outgoing, Retained
from stream.core.messages.schemas import NodeInfo, NodeState, NodeStateName
from stream.errors import HungUpError, JournalError, MessageRefusedError, UnreachableError
from stream.pipeline.refused_topics import RefusedTopics
from stream.pipeline.worker import Worker
from stream.ports import Journal, Publisher
from stream.telemetry import ForecastAcknowledged, NodeChanged, Observer, OutboxCounted, Published, PublishFailed

log = logging.getLogger(__name__)

#: Acknowledgements are written to the journal in batches of at most this many; a crash before that repeats messages,
#: harmlessly.
_ACKNOWLEDGE_BATCH = 64
#: How long a stop may spend on emptying the outbox, which is durable and can wait.
_LAST_WORDS_S = 1.5
#: Shortest pause before refused topics are looked at again: one that is due may still have nothing to publish.
_LOOK_AGAIN_S = 0.5


class EventPublisher:
    """Sends events and retained messages to the broker. One per node; runs on the event loop, except for calls of the
    journal."""

    def __init__(
        self,
        *,
        instance: str,
        session: str,
        journal: Journal,
        worker: Worker,
        clock: Clock,
        exchange_now_ms: Callable[[], int | None],
        observe: Observer,
    ) -> None:
        """`exchange_now_ms()` is None before the exchange's time is known: until then a retained message with a
        `valid_until` waits."""
        self._instance = instance
        self._session_id = session
        self._journal = journal
        self._worker = worker
        self._clock = clock
        self._exchange_now_ms = exchange_now_ms
        self._observe = observe
        self._events: deque[Outgoing] = deque()
        self._refused = RefusedTopics()
        self._retained: dict[str, Retained] = {}
        self._unsent: dict[str, None] = {}
        self._cleared: list[str] = []
        self._acknowledged: list[int] = []
        self._wake = asyncio.Event()
        self._state: NodeStateName = "starting"
        self._reasons: tuple[str, ...] = ()
        self._since_ms = clock.wall_ms()
        self._state_sent: tuple[NodeStateName, tuple[str, ...]] | None = None
        self._closing = False
        self._close_by_s = 0.0
        self.connected = False

    @property
    def state(self) -> NodeStateName:
        return self._state

    @property
    def remarks(self) -> tuple[str, ...]:
        """Which topics the broker refuses, and why: one sentence per reason."""
        return self._refused.reasons()

    def load(self, outbox: Sequence[Outgoing], retained: Sequence[Retained], gone: Sequence[str]) -> None:
        """Takes what an earlier run left: unacknowledged events, and retained messages. The topics in `gone` have left
        the configuration and are cleared at the broker."""
        self._events.extend(outbox)
        self._cleared.extend(gone)
        self._retained |= {item.topic: item for item in retained if item.topic not in gone}
        self._count()

    def introduce(self, info: NodeInfo) -> None:
        """Sets the message about the node, which each connection publishes after the node's state and before all other
        retained messages."""
        topic = topics.node_topic(self._instance, "info")
        self._retained = {topic: Retained(topic, schemas.encode(info), None), **self._retained}

    def offer(self, events: Sequence[Outgoing], retained: Sequence[Retained]) -> None:
        self._events.extend(events)
        for item in retained:
            self._retained[item.topic] = item
            self._unsent[item.topic] = None
        self._count()
        self._wake.set()

    def pending(self) -> list[Outgoing]:
        """Returns the events that the broker has not acknowledged."""
        return [*self._events, *self._refused.waiting()]

    def amend(self, payloads: Mapping[int, bytes]) -> None:
        """Replaces the payloads of events that wait, by their number in the outbox."""
        self._events = deque(replace(e, payload=payloads.get(e.seq, e.payload)) for e in self._events)
        self._refused.amend(payloads)

    def _count(self) -> None:
        self._observe(OutboxCounted(len(self._events) + len(self._refused)))

    def retained_payload(self, topic: str) -> bytes | None:
        item = self._retained.get(topic)
        return item.payload if item else None

    def publish_state(self, state: NodeStateName, reasons: tuple[str, ...] = ()) -> None:
        if (state, reasons) == (self._state, self._reasons):
            return
        if state != self._state:
            self._since_ms = self._clock.wall_ms()
            why = f": {'; '.join(reasons)}" if reasons else ""
            log.info("node %s is %s%s", self._instance, state, why, extra={"state": state, "reasons": reasons})
        self._state, self._reasons = state, reasons
        self._observe(NodeChanged(state, reasons))
        self._wake.set()

    def close(self) -> None:
        """Lets the session publish what it can within `_LAST_WORDS_S`, then `stopped`, and end. The rest stays in the
        journal."""
        self._closing = True
        self._close_by_s = self._clock.monotonic_s() + _LAST_WORDS_S
        self._wake.set()

    def time_is_known(self) -> None:
        """Wakes the session, because retained messages that waited for the exchange's time can be judged now."""
        self._wake.set()

    def _late(self) -> bool:
        return self._closing and self._clock.monotonic_s() >= self._close_by_s

    def node_state(self, state: NodeStateName, reasons: tuple[str, ...] = ()) -> NodeState:
        return NodeState(
            instance=self._instance, state=state, session=self._session_id, since=self._since_ms, reasons=reasons
        )

    async def session(self, publisher: Publisher) -> None:
        """Publishes on one connection to the broker, from `starting` to `stopped`. Returns only after `close`; raises
        `UnreachableError` if the broker does not acknowledge or the journal is not in its place."""
        self.connected = True
        self._state_sent = None
        try:
            self._refused.connected(self._clock.monotonic_s())
            await self._send_state(publisher, "starting", ())
            await self._check_journal_in_place()
            # The broker may have lost everything: all current values go out again, before the backlog of events.
            self._unsent = dict.fromkeys(self._retained)
            await self._publish_retained(publisher)
            while True:
                # Cleared before looking, so that what is offered during the publishing below is not missed.
                self._wake.clear()
                await self._publish_events(publisher)
                await self._publish_retained(publisher)
                await self._publish_refused(publisher)
                if self._closing:
                    await self._note_acknowledged()
                    await self._send_state(publisher, "stopped", ())
                    return
                if not self._events:
                    await self._send_state(publisher, self._state, self._reasons)
                    await self._pause()
        finally:
            self.connected = False

    async def _check_journal_in_place(self) -> None:
        """Makes sure that the journal still has what is about to be published: somebody may have removed its file since
        the commit. Raises `UnreachableError` if it is gone."""
        try:
            await self._worker.call(self._journal.check_place)
        except JournalError as error:
            raise UnreachableError(f"nothing is said that is not kept: {error}") from None

    async def _send_state(self, publisher: Publisher, state: NodeStateName, reasons: tuple[str, ...]) -> None:
        if (state, reasons) == self._state_sent:
            return
        payload = schemas.encode(self.node_state(state, reasons))
        if await self._publish(publisher, topics.node_topic(self._instance, "state"), payload, retain=True):
            self._state_sent = (state, reasons)

    async def _pause(self) -> None:
        """Waits until there is something to publish or to retry."""
        wait_s = self._refused.next_try_s(self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wait_s is None else max(wait_s, _LOOK_AGAIN_S)):
                await self._wake.wait()

    async def _publish_events(self, publisher: Publisher) -> None:
        while self._events and not self._late():
            event = self._events[0]
            # If others already wait on its topic, the event is put behind them.
            was_published = event.topic not in self._refused and await self._send_event(publisher, event)
            self._events.popleft()
            if was_published:
                await self._published(event)
            else:
                self._refused.put(event)
        if self._acknowledged:
            await self._note_acknowledged()

    async def _publish_refused(self, publisher: Publisher) -> None:
        for topic in self._refused.due(self._clock.monotonic_s()):
            waiting = self._refused.events(topic)
            while waiting and not self._late():
                event = waiting[0]
                if not await self._send_event(publisher, event):
                    break
                waiting.popleft()
                await self._published(event)
            if not waiting:
                self._refused.accepted(topic)
        if self._acknowledged:
            await self._note_acknowledged()

    async def _send_event(self, publisher: Publisher, event: Outgoing) -> bool:
        return await self._publish(publisher, event.topic, event.payload, expiry_s=event.expiry_s)

    async def _published(self, event: Outgoing) -> None:
        if event.timed and event.arrived_at_s is not None:
            self._observe(ForecastAcknowledged(self._clock.monotonic_s() - event.arrived_at_s))
        self._count()
        self._acknowledged.append(event.seq)
        if len(self._acknowledged) >= _ACKNOWLEDGE_BATCH:
            await self._note_acknowledged()

    async def _note_acknowledged(self) -> None:
        seqs = list(self._acknowledged)
        if not seqs:
            return
        try:
            await self._worker.call(self._journal.acknowledge, seqs)
        except JournalError:
            # They stay on the list, and in the worst case are published once more after a restart.
            return
        del self._acknowledged[: len(seqs)]

    async def _publish_retained(self, publisher: Publisher) -> None:
        for topic in list(self._unsent):
            if self._late():
                return
            item = self._retained[topic]
            if item.valid_until is not None and self._exchange_now_ms() is None:
                # After a restart it may be long out of date: it waits for the exchange's time.
                continue
            expiry_s = self._remaining_s(item)
            outdated = expiry_s is not None and expiry_s <= 0
            if not outdated and not await self._publish(publisher, topic, item.payload, retain=True, expiry_s=expiry_s):
                continue
            # A newer payload may have been offered while this one was being published; it is still to be sent.
            if self._retained[topic] is item:
                del self._unsent[topic]
        for topic in list(self._cleared):
            if self._late() or not await self._publish(publisher, topic, b"", retain=True):
                continue
            self._cleared.remove(topic)
            # If the journal cannot note this, the topic is cleared once more at the next start, harmlessly.
            with contextlib.suppress(JournalError):
                await self._worker.call(self._journal.forget_retained, [topic])

    def _remaining_s(self, item: Retained) -> int | None:
        """Returns for how many seconds the broker may keep this payload: None for ever, 0 if it is out of date."""
        now_ms = self._exchange_now_ms()
        if item.expiry_s is None or item.valid_until is None or now_ms is None:
            return item.expiry_s
        return max(0, min(item.expiry_s, -((now_ms - item.valid_until) // 1_000)))

    async def _publish(
        self, publisher: Publisher, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Publishes a message unless its topic waits for a retry. Returns whether the broker has acknowledged it: False
        also if it refused this message. Raises `UnreachableError` if it ended the connection or did not answer."""
        if self._refused.waits(topic, self._clock.monotonic_s()):
            return False
        try:
            await publisher.publish(topic, payload, retain=retain, expiry_s=expiry_s)
        except MessageRefusedError as error:
            self._observe(PublishFailed(topic, str(error)))
            self._refused.refused(topic, str(error), self._clock.monotonic_s())
            return False
        except UnreachableError as error:
            self._observe(PublishFailed(topic, str(error)))
            if isinstance(error, HungUpError):
                self._refused.hung_up(topic, str(error), self._clock.monotonic_s())
            else:
                self._refused.unanswered(topic, self._clock.monotonic_s())
            raise
        self._refused.accepted(topic)
        self._observe(Published(topic))
        return True
