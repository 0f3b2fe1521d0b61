"""Publishing: sends the outbox and the retained messages to the broker until it has acknowledged them.

Many messages are in flight at once, one per topic, so that each topic keeps its order; events go before retained
messages. Each event is kept until it is acknowledged; a retained topic only ever carries its newest payload. A retained
payload past its `valid_until` is not published: an old decision must not look like a current one.
A message that the broker refuses waits with those that follow on its topic; the other topics go on. It is retried when
nothing else is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from stream.clock import Clock
from stream.core.messages import schemas, topics
from stream.core.messages.records import Outgoing, Retained
from stream.core.messages.schemas import NodeInfo, NodeState, NodeStateName
from stream.errors import HungUpError, JournalError, MessageRefusedError, UnreachableError
from stream.pipeline.in_flight import InFlight
from stream.pipeline.outbox import Outbox
from stream.pipeline.refused_topics import RefusedTopics
from stream.pipeline.retained_messages import RetainedMessages, remaining_s
from stream.pipeline.worker import Worker
from stream.ports import Journal, Publisher
from stream.telemetry import ForecastAcknowledged, NodeChanged, Observer, OutboxCounted, Published, PublishFailed

log = logging.getLogger(__name__)

#: Acknowledgements are written to the journal in batches of at most this many; a crash before that repeats messages,
#: harmlessly.
_ACKNOWLEDGE_BATCH = 256
#: How long a stop may spend on emptying the outbox, which is durable and can wait.
_LAST_WORDS_S = 1.5
#: Retained messages that are read from the journal at a time for a new connection.
_READ_AT_ONCE = 256
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
        self._outbox = Outbox()
        self._refused = RefusedTopics()
        self._retained = RetainedMessages(journal, worker)
        #: Retained topics whose newest payload is not acknowledged, and which of them are still to be looked at.
        self._unsent: set[str] = set()
        self._unsent_line: deque[str] = deque()
        #: Those of them whose payload must be read first.
        self._unread: deque[str] = deque()
        self._cleared: list[str] = []
        self._acknowledged: list[int] = []
        self._noting: asyncio.Task[None] | None = None
        #: How many messages were in flight when the last connection ended.
        self._cautious = 0
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
        self._outbox.put(outbox)
        self._cleared.extend(gone)
        self._retained.load(item for item in retained if item.topic not in gone)
        self._count()

    def introduce(self, message: NodeInfo) -> None:
        """Publishes a message about the node. On each connection it comes after the node's state and before all other
        retained messages."""
        info = Retained(topics.node_topic(self._instance, "info"), schemas.encode(message), None)
        self._retained.put_first(info)
        self._line_up(info.topic)
        self._wake.set()

    def offer(self, events: Sequence[Outgoing], retained: Sequence[Retained], *, in_journal: bool = True) -> None:
        """Takes events that the journal has, and retained messages, for publishing; `in_journal`: whether it has those,
        too."""
        self._outbox.put(events)
        for item in retained:
            self._retained.put(item, in_journal=in_journal)
            self._line_up(item.topic)
        self._count()
        self._wake.set()

    def _line_up(self, topic: str) -> None:
        if topic not in self._unsent:
            self._unsent.add(topic)
            self._unsent_line.append(topic)

    def pending(self) -> list[Outgoing]:
        """Returns the events that the broker has not acknowledged."""
        return self._outbox.pending()

    def amend(self, payloads: Mapping[int, bytes]) -> None:
        """Replaces the payloads of events that wait, by their number in the outbox."""
        self._outbox.amend(payloads)

    def _count(self) -> None:
        self._observe(OutboxCounted(len(self._outbox)))

    async def retained_payloads(self, topics: Sequence[str]) -> dict[str, bytes]:
        """As `RetainedMessages.payloads`."""
        return await self._retained.payloads(topics)

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
        if self._unsent and not self._unsent_line:
            self._unsent_line.extend(topic for topic in self._retained if topic in self._unsent)
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
        self._refused.connected(self._clock.monotonic_s())
        self._outbox.restart(except_for=self._refused.topics())
        in_flight = InFlight(
            publisher,
            cautious=self._cautious,
            accepted=self._message_accepted,
            refused=self._message_refused,
            lost=self._connection_lost,
        )
        try:
            await self._send_state(in_flight, "starting", ())
            await self._check_journal_in_place()
            await self._send_all_retained(in_flight)
            await self._clear_topics(in_flight)
            while True:
                if self._unread:
                    await self._read_unread()
                await self._drain(in_flight, self._next_event, self._next_retained, self._next_refused)
                await self._clear_topics(in_flight)
                if self._unread and not self._late():
                    continue
                if self._closing:
                    if self._noting is not None:
                        await asyncio.wait([self._noting])
                    await self._note_acknowledged()
                    await self._send_state(in_flight, "stopped", ())
                    return
                if not await self._send_state(in_flight, self._state, self._reasons):
                    await self._pause()
        finally:
            self.connected = False
            self._cautious = in_flight.end()
            if self._noting is not None:
                self._noting.cancel()

    async def _check_journal_in_place(self) -> None:
        """Makes sure that the journal still has what is about to be published: somebody may have removed its file since
        the commit. Raises `UnreachableError` if it is gone."""
        try:
            await self._worker.call(self._journal.check_place)
        except JournalError as error:
            raise UnreachableError(f"nothing is said that is not kept: {error}") from None

    async def _send_all_retained(self, in_flight: InFlight) -> None:
        """Sends all current values again, before the backlog of events: the broker may have lost everything."""
        self._unsent, self._unread = set(self._retained), deque(self._retained)
        self._unsent_line.clear()
        while self._unread:
            await self._read_unread()
            await self._drain(in_flight, self._next_retained)

    async def _read_unread(self) -> None:
        """Reads retained payloads that only the journal has, a part at a time, and lines them up."""
        part = [self._unread.popleft() for _ in range(min(_READ_AT_ONCE, len(self._unread)))]
        try:
            await self._retained.read_again(part)
        except JournalError as error:
            raise UnreachableError(f"what the broker is to retain cannot be read: {error}") from None
        for topic in part:
            if self._retained.get(topic) is None:
                # The journal has lost it.
                self._unsent.discard(topic)
            else:
                self._unsent_line.append(topic)

    async def _send_state(self, in_flight: InFlight, state: NodeStateName, reasons: tuple[str, ...]) -> bool:
        """Publishes the node's state unless this connection has it. Returns whether it was sent."""
        topic = topics.node_topic(self._instance, "state")
        if (state, reasons) == self._state_sent or self._refused.waits(topic, self._clock.monotonic_s()):
            return False

        def accepted() -> None:
            self._state_sent = (state, reasons)

        in_flight.send(topic, schemas.encode(self.node_state(state, reasons)), retain=True, accepted=accepted)
        await self._all_answered(in_flight)
        return True

    async def _pause(self) -> None:
        """Waits until there is something to publish or to retry."""
        wait_s = self._refused.next_try_s(self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wait_s is None else max(wait_s, _LOOK_AGAIN_S)):
                await self._wake.wait()

    async def _drain(self, in_flight: InFlight, *sources: Callable[[InFlight], bool]) -> None:
        """Sends what the sources have, the first before the second and so on, until they have nothing and all of it is
        answered. A source sends one message and returns whether it did."""
        while True:
            # Cleared before looking, so that what is offered from here on is not missed.
            self._wake.clear()
            for send in sources:
                while in_flight.may_send() and not self._late() and send(in_flight):
                    pass
            if len(self._acknowledged) >= _ACKNOWLEDGE_BATCH or not len(in_flight):
                self._note_soon()
            if not len(in_flight):
                return
            await self._answer(in_flight)

    async def _all_answered(self, in_flight: InFlight) -> None:
        while len(in_flight):
            self._wake.clear()
            await self._answer(in_flight)

    async def _answer(self, in_flight: InFlight) -> None:
        """Waits for an answer or for something to publish. Raises what ended the connection."""
        if in_flight.lost is None:
            await self._wake.wait()
        if in_flight.lost is not None:
            raise in_flight.lost

    def _next_event(self, in_flight: InFlight) -> bool:
        event = self._outbox.take()
        if event is not None:
            self._send_event(in_flight, event)
        return event is not None

    def _send_event(self, in_flight: InFlight, event: Outgoing) -> None:
        accepted = partial(self._event_acknowledged, event)
        in_flight.send(event.topic, event.payload, expiry_s=event.expiry_s, accepted=accepted)

    def _next_retained(self, in_flight: InFlight) -> bool:
        while self._unsent_line:
            topic = self._unsent_line.popleft()
            # One that is in flight comes back here if there is a newer payload by then.
            if topic not in in_flight and topic not in self._refused and self._send_retained(in_flight, topic):
                return True
        return False

    def _send_retained(self, in_flight: InFlight, topic: str) -> bool:
        """Sends the newest payload of a topic. Returns False if it must wait, or is out of date."""
        item = self._retained.get(topic)
        if item is None:
            self._unread.append(topic)
            return False
        if item.valid_until is not None and self._exchange_now_ms() is None:
            # After a restart it may be long out of date: it waits for the exchange's time.
            return False
        expiry_s = remaining_s(item, self._exchange_now_ms())
        if expiry_s is not None and expiry_s <= 0:
            self._unsent.discard(topic)
            return False
        accepted = partial(self._retained_acknowledged, item)
        in_flight.send(topic, item.payload, retain=True, expiry_s=expiry_s, accepted=accepted)
        return True

    def _next_refused(self, in_flight: InFlight) -> bool:
        """Retries one refused topic, when nothing else is in flight: it may cost the connection."""
        if len(in_flight):
            return False
        for topic in self._refused.due(self._clock.monotonic_s()):
            event = self._outbox.oldest(topic)
            if event is not None:
                self._send_event(in_flight, event)
                return True
            if topic in self._unsent and self._send_retained(in_flight, topic):
                return True
        return False

    async def _clear_topics(self, in_flight: InFlight) -> None:
        """Clears topics that have left the configuration, one at a time; there are few."""
        for topic in list(self._cleared):
            if self._late() or self._refused.waits(topic, self._clock.monotonic_s()):
                continue
            in_flight.send(topic, b"", retain=True, accepted=partial(self._cleared.remove, topic))
            await self._all_answered(in_flight)
            if topic not in self._cleared:
                # If the journal cannot note this, the topic is cleared once more at the next start, harmlessly.
                with contextlib.suppress(JournalError):
                    await self._worker.call(self._journal.forget_retained, [topic])

    # --- answers -----------------------------------------------------------------------------------------------

    def _message_accepted(self, topic: str) -> None:
        self._refused.accepted(topic)
        self._observe(Published(topic))
        self._wake.set()

    def _message_refused(self, topic: str, error: MessageRefusedError) -> None:
        self._observe(PublishFailed(topic, str(error)))
        self._refused.refused(topic, str(error), self._clock.monotonic_s())
        self._wake.set()

    def _connection_lost(self, topic: str, error: Exception) -> None:
        self._wake.set()
        self._observe(PublishFailed(topic, str(error)))
        if isinstance(error, HungUpError):
            self._refused.hung_up(topic, str(error), self._clock.monotonic_s())
        elif isinstance(error, UnreachableError):
            self._refused.unanswered(topic, self._clock.monotonic_s())

    def _event_acknowledged(self, event: Outgoing) -> None:
        if event.timed and event.arrived_at_s is not None:
            self._observe(ForecastAcknowledged(self._clock.monotonic_s() - event.arrived_at_s))
        self._outbox.acknowledged(event.topic)
        self._count()
        self._acknowledged.append(event.seq)

    def _retained_acknowledged(self, item: Retained) -> None:
        if self._retained.acknowledged(item):
            self._unsent.discard(item.topic)
        else:
            # A newer payload was offered while this one was in flight.
            self._unsent_line.append(item.topic)

    def _note_soon(self) -> None:
        """Lets the journal note what is acknowledged while the next messages go out: the worker may be busy."""
        if self._acknowledged and (self._noting is None or self._noting.done()):
            self._noting = asyncio.ensure_future(self._note_acknowledged())

    async def _note_acknowledged(self) -> None:
        seqs = list(self._acknowledged)
        if not seqs:
            return
        # They stay on the list if the journal cannot note them, and in the worst case are published once more after a
        # restart.
        with contextlib.suppress(JournalError):
            await self._worker.call(self._journal.acknowledge, seqs)
            del self._acknowledged[: len(seqs)]
