"""Speaking: what the journal holds goes to the broker, in order, until it has acknowledged.

Events are each published and kept until acknowledged; a retained topic only ever carries its newest payload. A
retained payload past its `valid_until` is not published: an old decision must not look like a present one.
What the broker refuses waits on its topic, and the other topics go past it.
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

#: Acknowledgements wait for company up to this many; a crash before they are noted repeats messages, harmlessly.
_ACKNOWLEDGE_BATCH = 64
#: How long a stop may go on emptying the outbox, which is durable and can wait.
_LAST_WORDS_S = 1.5
#: What is due again and cannot be said for another reason is not looked at more often.
_LOOK_AGAIN_S = 0.5


class EventPublisher:
    """One per node. Everything runs on the event loop except the journal's calls."""

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
        """`exchange_now_ms` is None before the exchange has told its time: then nothing counts as out of date."""
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
        """What the broker does not take, and why."""
        return self._refused.reasons()

    def load(self, outbox: Sequence[Outgoing], retained: Sequence[Retained], gone: Sequence[str]) -> None:
        """What an earlier run left: unacknowledged events, and retained topics. Those in `gone` have left the
        configuration and are cleared at the broker."""
        self._events.extend(outbox)
        self._cleared.extend(gone)
        self._retained |= {item.topic: item for item in retained if item.topic not in gone}
        self._count()

    def introduce(self, info: NodeInfo) -> None:
        """Said on each connection before every other retained value."""
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
        """Events that the broker has not acknowledged."""
        return [*self._events, *self._refused.waiting()]

    def amend(self, payloads: Mapping[int, bytes]) -> None:
        """What waits under these numbers of the outbox is said in other words."""
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
        """Say what can be said in `_LAST_WORDS_S`, then `stopped`, and end the session. The rest stays durable."""
        self._closing = True
        self._close_by_s = self._clock.monotonic_s() + _LAST_WORDS_S
        self._wake.set()

    def time_is_known(self) -> None:
        """What was not said because nobody knew whether it was out of date can be judged now."""
        self._wake.set()

    def _late(self) -> bool:
        return self._closing and self._clock.monotonic_s() >= self._close_by_s

    def node_state(self, state: NodeStateName, reasons: tuple[str, ...] = ()) -> NodeState:
        return NodeState(
            instance=self._instance, state=state, session=self._session_id, since=self._since_ms, reasons=reasons
        )

    async def session(self, publisher: Publisher) -> None:
        """One connection to the broker, from its first word to `stopped`. Returns only after `close`."""
        self.connected = True
        self._state_sent = None
        try:
            self._refused.connected(self._clock.monotonic_s())
            await self._say_state(publisher, "starting", ())
            await self._keep()
            # The broker may have forgotten everything: all current values again, before the backlog of events.
            self._unsent = dict.fromkeys(self._retained)
            await self._publish_retained(publisher)
            while True:
                # Cleared before looking, so that what is offered while we speak is not slept over.
                self._wake.clear()
                await self._publish_events(publisher)
                await self._publish_retained(publisher)
                await self._publish_refused(publisher)
                if self._closing:
                    await self._note_acknowledged()
                    await self._say_state(publisher, "stopped", ())
                    return
                if not self._events:
                    await self._say_state(publisher, self._state, self._reasons)
                    await self._pause()
        finally:
            self.connected = False

    async def _keep(self) -> None:
        """What waits was kept before it is said: long may have passed since, and somebody removed the journal."""
        try:
            await self._worker.call(self._journal.check_place)
        except JournalError as error:
            raise UnreachableError(f"nothing is said that is not kept: {error}") from None

    async def _say_state(self, publisher: Publisher, state: NodeStateName, reasons: tuple[str, ...]) -> None:
        if (state, reasons) == self._state_sent:
            return
        payload = schemas.encode(self.node_state(state, reasons))
        if await self._publish(publisher, topics.node_topic(self._instance, "state"), payload, retain=True):
            self._state_sent = (state, reasons)

    async def _pause(self) -> None:
        """Until there is something to say, or something to say again."""
        wait_s = self._refused.next_try_s(self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wait_s is None else max(wait_s, _LOOK_AGAIN_S)):
                await self._wake.wait()

    async def _publish_events(self, publisher: Publisher) -> None:
        while self._events and not self._late():
            event = self._events[0]
            # Behind what already waits on its topic, else in its turn.
            was_published = event.topic not in self._refused and await self._say_event(publisher, event)
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
                if not await self._say_event(publisher, event):
                    break
                waiting.popleft()
                await self._published(event)
            if not waiting:
                self._refused.accepted(topic)
        if self._acknowledged:
            await self._note_acknowledged()

    async def _say_event(self, publisher: Publisher, event: Outgoing) -> bool:
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
            # They stay on the list, and in the worst case are said once more after a restart.
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
            # Only what was sent is sent: a newer payload may have come while we waited.
            if self._retained[topic] is item:
                del self._unsent[topic]
        for topic in list(self._cleared):
            if self._late() or not await self._publish(publisher, topic, b"", retain=True):
                continue
            self._cleared.remove(topic)
            # Not noted is cleared once more at the next start, harmlessly.
            with contextlib.suppress(JournalError):
                await self._worker.call(self._journal.forget_retained, [topic])

    def _remaining_s(self, item: Retained) -> int | None:
        """Seconds this payload may still live at the broker; None for ever, 0 not at all."""
        now_ms = self._exchange_now_ms()
        if item.expiry_s is None or item.valid_until is None or now_ms is None:
            return item.expiry_s
        return max(0, min(item.expiry_s, -((now_ms - item.valid_until) // 1_000)))

    async def _publish(
        self, publisher: Publisher, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Whether the broker has taken it. What it refuses waits, and is not offered before its time."""
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
