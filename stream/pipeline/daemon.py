"""The daemon: who runs, in which order it starts and stops, and whether it does its job.

Start: journal, symbols, feed, broker, all at once; nobody waits for the network before being reachable.
Stop: the feed first, then the candle in hand is finished, then the outbox, then `stopped`, all within `_STOP_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream.clock import Clock
from stream.core.deciding.accumulation import Rules
from stream.core.market.exchange_time import ExchangeTime
from stream.core.market.outputs import Due, FeedStateName
from stream.core.messages import schemas, topics
from stream.core.messages.builders import EVENT_EXPIRY_S
from stream.core.messages.records import EventMessage, Issuer, Outgoing, Retained
from stream.core.messages.schemas import Drift, Feed, NodeInfo
from stream.errors import JournalError, UnreachableError
from stream.pipeline import identity
from stream.pipeline.health import BROKER_AWAY, Health
from stream.pipeline.intake import Intake
from stream.pipeline.measurements import Measurements
from stream.pipeline.processing import Processor
from stream.pipeline.publishing import EventPublisher
from stream.pipeline.revision import Load
from stream.pipeline.worker import Worker
from stream.ports import Broker, History, Journal, Predictor
from stream.ports import Feed as FeedPort
from stream.telemetry import (
    CommitFailed,
    DriftFinished,
    Latest,
    Observer,
    Readiness,
)

log = logging.getLogger(__name__)

_TICK_S = 1.0
_STORAGE_EVERY_TICKS = 30
_STOP_S = 3.0
_SCORES_AFTER_S = 0.05
_SCORES_AT_STOP_S = 0.5


class Daemon:
    """Implements `stream.ports.Status`. Build it, then `run` it once."""

    def __init__(
        self,
        *,
        instance: str,
        session: str,
        symbols: Sequence[str],
        data_dir: Path,
        journal: Journal,
        predictor: Predictor,
        rules: Rules,
        feed: FeedPort,
        history: History,
        exchange_time: ExchangeTime,
        time_scale: float,
        clock: Clock,
        observe: Observer,
        issuer: Issuer | None = None,
        load: Load | None = None,
    ) -> None:
        """`issuer` is kept in the journal, so that what it says can be corrected when another speaks; `load` makes a
        predictor of a bundle that was kept so."""
        self._symbols = tuple(symbols)
        self._issuer = issuer
        #: Whether the journal knows who speaks, and of what.
        self._kept = False
        self._journal = journal
        self._predictor = predictor
        self._rules = rules
        self._feed = feed
        self._time = exchange_time
        self._clock = clock
        self._observe = observe
        self._instance, self._session = instance, session
        self._queue: asyncio.Queue[Due] = asyncio.Queue()
        self._stopping = False
        #: What waits came while nothing could be written, and is late (docs/contract.md §7).
        self._late = False
        self._worker = Worker(clock=clock, observe=observe)
        self._measurements = Measurements(
            data_dir, journal=journal, worker=self._worker, exchange_time=exchange_time, clock=clock, observe=observe
        )
        self.processor = Processor(
            journal=journal,
            worker=self._worker,
            predictor=predictor,
            rules=rules,
            clock=clock,
            observe=observe,
            offer=self._offer,
            load=load,
        )
        self.publisher = EventPublisher(
            instance=instance,
            session=session,
            journal=journal,
            worker=self._worker,
            clock=clock,
            exchange_now_ms=self.exchange_now_ms,
            observe=observe,
        )
        self.intake = Intake(
            symbols,
            history=history,
            journal=journal,
            processor=self.processor,
            worker=self._worker,
            queue=self._queue,
            exchange_time=exchange_time,
            time_scale=time_scale,
            clock=clock,
            observe=observe,
            notify_feed=self._notify_feed,
        )
        self.health = Health(
            symbols,
            intake=self.intake,
            processor=self.processor,
            worker=self._worker,
            publisher=self.publisher,
            journal=journal,
            exchange_time=exchange_time,
            time_scale=time_scale,
            clock=clock,
            is_idle=self._queue.empty,
        )

    # --- run ---------------------------------------------------------------------------------------------------

    async def run(
        self, broker: Broker, stop: asyncio.Event, alongside: Iterable[Callable[[], Coroutine[Any, Any, None]]] = ()
    ) -> None:
        """Until `stop` is set. `alongside` are further tasks (HTTP, drift) that live as long as the daemon does.

        A `RefusedError` or a defect in any of them ends all, as an exception group.
        """
        await self._load()
        try:
            await self._run(broker, stop, alongside)
        finally:
            await asyncio.to_thread(self._worker.close)

    async def _run(
        self, broker: Broker, stop: asyncio.Event, alongside: Iterable[Callable[[], Coroutine[Any, Any, None]]]
    ) -> None:
        async with asyncio.TaskGroup() as group:
            speaking = group.create_task(broker.run(self.publisher.session), name="broker")
            listening = [
                group.create_task(self.intake.run(), name="intake"),
                group.create_task(self._listen(), name="feed"),
            ]
            working = group.create_task(self._work(), name="work")
            others = [
                group.create_task(self._tick(), name="tick"),
                group.create_task(self._measurements.lag(), name="lag"),
                group.create_task(self._publish_scores(), name="scores"),
                *(group.create_task(task()) for task in alongside),
            ]
            await stop.wait()
            log.info("stopping")
            self._stopping = True
            self.publisher.publish_state("stopping")
            for task in listening:
                task.cancel()
            await asyncio.wait(listening)
            # What was taken from the feed and not finished is still at the exchange: REST has it at the next start.
            working.cancel()
            await asyncio.wait([working], timeout=_STOP_S)
            await self._last_scores()
            self.publisher.close()
            await asyncio.wait([speaking], timeout=_STOP_S)
            for task in (speaking, *others):
                task.cancel()

    async def _load(self) -> None:
        """What an earlier run left, and what it left for symbols that are no longer ours."""
        outbox = await self._worker.call(self._journal.outbox)
        retained = await self._worker.call(self._journal.retained)
        known = await self._worker.call(self._journal.symbols)
        gone = [
            topics.symbol_topic(symbol, leaf)
            for symbol in known
            if symbol not in self._symbols
            for leaf in topics.RETAINED_TOPICS
        ]
        self.publisher.load(outbox, retained, gone)
        await self._keep_terms()

    async def _keep_terms(self) -> None:
        """Who speaks and of what is kept before anything is said; tried again where the journal cannot take it now."""
        if self._kept:
            return
        try:
            await self._worker.call(self._journal.configure, self._symbols)
            if self._issuer is not None:
                await self._worker.call(self._journal.keep_issuer, self._issuer)
        except JournalError as error:
            self._observe(CommitFailed(str(error)))
        else:
            self._kept = True

    async def learn(self, payloads: Mapping[str, bytes]) -> None:
        """Hears what the broker retains of our symbols, before anything is said on this connection."""
        ours = self.publisher.retained_payload
        for symbol in self._symbols:
            if all(payloads.get(topic, ours(topic)) == ours(topic) for topic in identity.retained_topics([symbol])):
                continue
            try:
                await self.processor.learn(symbol, payloads, self.publisher)
            except JournalError as error:
                raise UnreachableError(f"nothing is said before what others said is kept: {error}") from None
            self.publisher.offer([], identity.newer(payloads, symbol, ours))

    def introduce(self, info: NodeInfo) -> None:
        self.publisher.introduce(info)

    async def _listen(self) -> None:
        await self.intake.settled()
        await self._feed.run(self.intake)

    async def _work(self) -> None:
        waiting: Due | None = None
        while True:
            due = waiting or await self._queue.get()
            # One candle of each symbol: those that closed together are predicted together.
            batch, waiting = {due.candle.symbol: due}, None
            while waiting is None and not self._queue.empty():
                due = self._queue.get_nowait()
                if due.candle.symbol in batch:
                    waiting = due
                else:
                    batch[due.candle.symbol] = due
            if self._late:
                batch = {symbol: Due(due.candle, "backfill") for symbol, due in batch.items()}
            self.health.begin()
            # Finished even when we are told to stop: half a candle does not exist.
            processing = asyncio.ensure_future(self.processor.process(list(batch.values())))
            try:
                await asyncio.shield(processing)
            except asyncio.CancelledError:
                await asyncio.wait([processing], timeout=_STOP_S)
                raise
            self._late = self._late and (waiting is not None or not self._queue.empty())
            self.health.end({symbol: due.candle.open_time for symbol, due in batch.items()})
            self.intake.took()
            self._publish_state()

    async def _tick(self) -> None:
        ticks = 0
        while True:
            self.health.beat()
            self._late = self._late or self._worker.failing is not None
            if not self._stopping:
                # Then the intake has ended, and repairs nothing any more.
                self.intake.watch()
                self.intake.audit()
            self._publish_state()
            if self._measurements.exchange_time() is not None:
                self.publisher.time_is_known()
            if self._journal.stuck is not None:
                await self._worker.call(self._journal.try_again)
            if ticks % _STORAGE_EVERY_TICKS == 0:
                await self._keep_terms()
                await self._measurements.storage()
            ticks += 1
            await self._clock.sleep(_TICK_S)

    async def _publish_scores(self) -> None:
        while True:
            await self.processor.scores_wait()
            # The messages of the candle first: scores take the processor from them.
            await self._clock.sleep(_SCORES_AFTER_S)
            await self.processor.publish_scores()

    async def _last_scores(self) -> None:
        """What is due is told before the end, unless the journal does not answer; the next start tells it too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SCORES_AT_STOP_S):
                await self.processor.publish_scores()

    # --- what others say ---------------------------------------------------------------------------------------

    def _offer(self, events: Sequence[Outgoing], retained: Sequence[Retained]) -> None:
        self.publisher.offer(events, retained)

    def _notify_feed(
        self, symbol: str, state: FeedStateName, from_open_time: int | None, to_open_time: int | None
    ) -> None:
        now_ms = self._clock.wall_ms()
        log.info("%s: feed is %s", symbol, state, extra={"symbol": symbol, "state": state})
        message = Feed(
            symbol=symbol, state=state, since=now_ms, from_=from_open_time, to=to_open_time, issued_at=now_ms
        )
        self.publisher.offer([], [Retained(topics.symbol_topic(symbol, "feed"), schemas.encode(message))])

    async def publish_drift(self, drift: Drift, expiry_s: int) -> None:
        """A finished drift run: durable like a forecast, and an event where one of its signals found something.
        `JournalError` where it cannot be."""
        payload = schemas.encode(drift)
        retained = [Retained(topics.symbol_topic(drift.symbol, "drift"), payload, expiry_s)]
        topic = topics.event_topic(drift.symbol, "drift.detected")
        events = (
            [EventMessage(topic, payload, EVENT_EXPIRY_S)]
            if drift.detected or (drift.fast and drift.fast.detected)
            else []
        )
        try:
            seqs = await self._worker.call(self._journal.post, events, retained)
        except JournalError as error:
            self._observe(CommitFailed(str(error)))
            raise
        self._offer([Outgoing(seq, *event) for seq, event in zip(seqs, events, strict=True)], retained)
        self._observe(DriftFinished(drift))

    # --- status ------------------------------------------------------------------------------------------------

    @property
    def symbols(self) -> Sequence[str]:
        return self._symbols

    @property
    def heartbeat_age_s(self) -> float:
        return self.health.heartbeat_age_s

    def exchange_now_ms(self) -> int | None:
        return self._time.now_ms(self._clock.monotonic_s()) if self._time.known else None

    def readiness(self) -> Readiness:
        return self.health.readiness()

    def readiness_ok(self) -> bool:
        return self.readiness().ready

    def _publish_state(self) -> None:
        if self._stopping:
            return
        readiness = self.readiness()
        # Whether the broker is there, the broker need not be told.
        reasons = tuple(r for r in readiness.reasons if r != BROKER_AWAY)
        if not reasons:
            # A node that serves the baseline does what it shall; that it does is said all the same.
            self.publisher.publish_state("ready", readiness.remarks)
        elif self.publisher.state == "starting" and self._worker.failing is None:
            self.publisher.publish_state("starting", reasons)
        else:
            self.publisher.publish_state("degraded", (*reasons, *readiness.remarks))

    def latest(self, symbol: str) -> Latest:
        found = Latest()
        found.forecast = self.publisher.retained_payload(topics.symbol_topic(symbol, "forecast"))
        found.decision = self.publisher.retained_payload(topics.symbol_topic(symbol, "decision"))
        found.score = self.publisher.retained_payload(topics.symbol_topic(symbol, "score"))
        found.drift = self.publisher.retained_payload(topics.symbol_topic(symbol, "drift"))
        return found

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]:
        return await self._worker.call(
            self._journal.messages, "forecasts", symbol, from_ms, to_ms, limit, from_ms is None
        )
