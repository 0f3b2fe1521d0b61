"""The daemon: which tasks run, in which order they start and stop, and which state the node publishes.

Start: the journal first, then intake, feed and broker at once; the node is reachable before the network answers.
Stop: the feed ends first, then the candles in hand are finished, then the outbox is emptied and `stopped` published;
each of these steps may take `_STOP_S`.
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
from stream.core.messages.schemas import Drift, Feed
from stream.errors import JournalError, UnreachableError
from stream.pipeline import identity, progress
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
_PRUNE_EVERY_TICKS = 300
_STOP_S = 3.0
_SCORES_AFTER_S = 0.05
_SCORES_AT_STOP_S = 0.5


class Daemon:
    """The pipeline of one node. Implements `stream.ports.Status`; `run` may be called once."""

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
        """`issuer` is stored in the journal, so that what it issues can be corrected after another model or policy has
        replaced it; `load` makes a predictor from a bundle that was stored that way."""
        self._symbols = tuple(symbols)
        self._issuer = issuer
        #: Whether the journal has stored the issuer and the symbols.
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
        #: By symbol: the score of the model that runs beside, as JSON.
        self.shadows: dict[str, bytes] = {}
        #: Whether the queued candles came while the journal could not be written: then they are late and pass as
        #: backfill (docs/contract.md §7).
        self._late = False
        #: The level at which the log tells of each symbol what is routine.
        self._routine = progress.routine_level(len(self._symbols))
        self._progress = progress.Progress(len(self._symbols), clock=clock, observe=observe)
        self.worker = Worker(clock=clock, observe=observe)
        self._measurements = Measurements(
            data_dir, journal=journal, worker=self.worker, exchange_time=exchange_time, clock=clock, observe=observe
        )
        self.processor = Processor(
            journal=journal,
            worker=self.worker,
            predictor=predictor,
            rules=rules,
            clock=clock,
            observe=observe,
            offer=self._offer,
            load=load,
            routine=self._routine,
        )
        self.publisher = EventPublisher(
            instance=instance,
            session=session,
            journal=journal,
            worker=self.worker,
            clock=clock,
            exchange_now_ms=self.exchange_now_ms,
            observe=observe,
        )
        self.intake = Intake(
            symbols,
            history=history,
            journal=journal,
            processor=self.processor,
            worker=self.worker,
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
            worker=self.worker,
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
        """Runs until `stop` is set. `alongside` are further tasks (such as drift) that run as long as the daemon does.

        An error in any task, be it a `RefusedError` or a defect, ends all of them and is raised in an exception group.
        """
        await self._load()
        try:
            await self._run(broker, stop, alongside)
        finally:
            await asyncio.to_thread(self.worker.close)

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
            # Candles that were received and not processed are not lost: REST brings them at the next start.
            working.cancel()
            await asyncio.wait([working], timeout=_STOP_S)
            await self._last_scores()
            self.publisher.close()
            await asyncio.wait([speaking], timeout=_STOP_S)
            for task in (speaking, *others):
                task.cancel()

    async def _load(self) -> None:
        """Loads the outbox and the retained messages that an earlier run left, and the retained topics to clear of
        symbols that have left the configuration."""
        outbox = await self.worker.call(self._journal.outbox)
        retained = await self.worker.call(self._journal.retained)
        known = await self.worker.call(self._journal.symbols)
        gone = [
            topics.symbol_topic(symbol, leaf)
            for symbol in known
            if symbol not in self._symbols
            for leaf in topics.RETAINED_TOPICS
        ]
        self.publisher.load(outbox, retained, gone)
        await self._keep_terms()

    async def _keep_terms(self) -> None:
        """Stores the symbols and the issuer in the journal before anything is published; `_tick` retries it if the
        journal cannot be written now."""
        if self._kept:
            return
        try:
            await self.worker.call(self._journal.configure, self._symbols)
            if self._issuer is not None:
                await self.worker.call(self._journal.keep_issuer, self._issuer)
        except JournalError as error:
            self._observe(CommitFailed(str(error)))
        else:
            self._kept = True

    async def learn(self, payloads: Mapping[str, bytes]) -> None:
        """Takes in what the broker retains for the node's symbols, by topic, before anything is published on this
        connection. Raises `UnreachableError`, so that it is retried on the next one, if the journal cannot store it."""
        for symbol in self._symbols:
            retained = [topic for topic in identity.retained_topics([symbol]) if topic in payloads]
            try:
                ours = await self.publisher.retained_payloads(retained)
                if all(payloads[topic] == ours.get(topic) for topic in retained):
                    continue
                await self.processor.learn(symbol, payloads, self.publisher)
                ours = await self.publisher.retained_payloads(retained)
            except JournalError as error:
                raise UnreachableError(f"nothing is said before what others said is kept: {error}") from None
            self.publisher.offer([], identity.newer(payloads, symbol, ours.get), in_journal=False)

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
            # Finished even when stopping: a candle is processed as a whole or not at all.
            processing = asyncio.ensure_future(self.processor.process(list(batch.values())))
            try:
                await asyncio.shield(processing)
            except asyncio.CancelledError:
                await asyncio.wait([processing], timeout=_STOP_S)
                raise
            self._late = self._late and (waiting is not None or not self._queue.empty())
            self.health.end({symbol: due.candle.open_time for symbol, due in batch.items()})
            self.intake.took()
            # Of many symbols that start one after another, each would change the state: then the tick publishes it.
            if len(self._symbols) < progress.MANY or not self._progress.starting:
                self.publish_state()

    async def _tick(self) -> None:
        ticks = 0
        while True:
            self.health.beat()
            self._late = self._late or self.worker.failing is not None
            if not self._stopping:
                # While stopping, the intake has ended and can repair nothing any more.
                self.intake.watch()
                self.intake.audit()
            self.publish_state()
            self._progress.report(*self.health.warmed_up())
            if self._measurements.exchange_time() is not None:
                self.publisher.time_is_known()
            if self._journal.stuck is not None:
                await self.worker.call(self._journal.try_again)
            if ticks % _STORAGE_EVERY_TICKS == 0:
                await self._keep_terms()
                await self._measurements.storage()
            if ticks % _PRUNE_EVERY_TICKS == 0:
                # A journal that cannot be written keeps what it has.
                with contextlib.suppress(JournalError):
                    await self.worker.call(self._journal.prune)
            ticks += 1
            await self._clock.sleep(_TICK_S)

    async def _publish_scores(self) -> None:
        while True:
            await self.processor.scores_wait()
            # The candle's messages go first: computing the scores would compete with them for the CPU.
            await self._clock.sleep(_SCORES_AFTER_S)
            await self.processor.publish_scores()

    async def _last_scores(self) -> None:
        """Publishes the scores that are due before the end, unless the journal does not answer in time; the next start
        publishes them too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SCORES_AT_STOP_S):
                await self.processor.publish_scores()

    # --- messages to publish -----------------------------------------------------------------------------------

    def _offer(self, events: Sequence[Outgoing], retained: Sequence[Retained]) -> None:
        self.publisher.offer(events, retained)

    def _notify_feed(
        self, symbol: str, state: FeedStateName, from_open_time: int | None, to_open_time: int | None
    ) -> None:
        now_ms = self._clock.wall_ms()
        level = logging.INFO if state in ("gap", "halted") else self._routine
        log.log(level, "%s: feed is %s", symbol, state, extra={"symbol": symbol, "state": state})
        message = Feed(
            symbol=symbol, state=state, since=now_ms, from_=from_open_time, to=to_open_time, issued_at=now_ms
        )
        retained = Retained(topics.symbol_topic(symbol, "feed"), schemas.encode(message))
        self.publisher.offer([], [retained], in_journal=False)

    async def publish_drift(self, drift: Drift, expiry_s: int) -> None:
        """Stores and publishes the result of a drift run: as a retained message that expires after `expiry_s`, and as
        an event if one of its signals detected drift. Raises `JournalError` if it cannot be stored."""
        payload = schemas.encode(drift)
        retained = [Retained(topics.symbol_topic(drift.symbol, "drift"), payload, expiry_s)]
        topic = topics.event_topic(drift.symbol, "drift.detected")
        events = (
            [EventMessage(topic, payload, EVENT_EXPIRY_S)]
            if drift.detected or (drift.fast and drift.fast.detected)
            else []
        )
        try:
            seqs = await self.worker.call(self._journal.post, events, retained)
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

    def publish_state(self) -> None:
        """Publishes the node's state if it is another than before."""
        if self._stopping:
            return
        readiness = self.readiness()
        # Subscribers receive the state from the broker, so the broker's absence is not among its reasons.
        reasons = tuple(r for r in readiness.reasons if r != BROKER_AWAY)
        if not reasons:
            # Serving a baseline is no fault of the node, but is reported all the same.
            self.publisher.publish_state("ready", readiness.remarks)
        elif self.publisher.state == "starting" and self.worker.failing is None:
            self.publisher.publish_state("starting", reasons)
        else:
            self.publisher.publish_state("degraded", (*reasons, *readiness.remarks))

    async def latest(self, symbol: str) -> Latest:
        leaves: tuple[topics.SymbolTopic, ...] = ("forecast", "decision", "score", "drift")
        named = {leaf: topics.symbol_topic(symbol, leaf) for leaf in leaves}
        payloads = await self.publisher.retained_payloads(list(named.values()))
        found = Latest()
        for leaf, topic in named.items():
            setattr(found, leaf, payloads.get(topic))
        found.shadow = self.shadows.get(symbol)
        return found

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]:
        return await self.worker.call(
            self._journal.messages, "forecasts", symbol, from_ms, to_ms, limit, from_ms is None
        )
