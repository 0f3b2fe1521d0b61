"""A node: settings become adapters, adapters become a daemon, and the daemon runs until it is asked to stop.

Everything that can be refused is refused before anything is published: files, lock, journal, model, port, symbols.
Only then do the feed, the broker's connection and the HTTP server start.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import random
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from monitor.drift import job
from monitor.http import server
from monitor.metrics import Metrics
from stream import models, web
from stream.adapters import policies
from stream.adapters import predictor as predictors
from stream.adapters.bundles import ModelFile, model_path, shadow_path
from stream.adapters.data_dir import DataDirLock
from stream.adapters.feed.client import BinanceFeed
from stream.adapters.journal.store import SqliteJournal
from stream.adapters.mqtt.broker import MqttBroker, stand_by, tls_context
from stream.adapters.mqtt.retained_topics import RetainedTopicsReader
from stream.adapters.mqtt.rivals import Rivals
from stream.adapters.outbound import Way, way_to
from stream.adapters.rest.history import BinanceHistory
from stream.adapters.rest.weight import MINUTE_S
from stream.clock import Clock
from stream.core.deciding.policy import Policy
from stream.core.forecasting.contract import Model
from stream.core.market.exchange_time import ExchangeTime
from stream.core.messages import schemas, topics
from stream.core.messages.builders import model_ref
from stream.core.messages.schemas import NodeInfo
from stream.errors import JournalError, RefusedError, UnreachableError
from stream.pipeline import identity
from stream.pipeline.daemon import Daemon
from stream.pipeline.intake import unknown_symbol
from stream.pipeline.succession import Successor
from stream.settings import EMBEDDED, Settings
from stream.telemetry import Fact, FanOut, FrameRejected, Observer
from stream.testing.broker import EmbeddedBroker

log = logging.getLogger(__name__)

#: How long a start waits for the exchange to confirm a symbol before it continues without the answer.
_PREFLIGHT_S = 5.0
#: The share of the address's request weight that REST may use: a little under the half that is promised.
_WEIGHT_SHARE = 0.49
#: How long a server time serves further questions, in the exchange's seconds: shorter than REST may lag a close.
_TIME_SERVES_S = 1.0
#: A REST ban longer than this raises an error instead of being waited out, so that the feed can open meanwhile.
_PATIENCE_S = 5.0
#: A symbol is refused if the exchange does not list it on two questions this far apart.
_DENIED_AGAIN_S = 2.0

VERSION = importlib.metadata.version("volcast")


@dataclass(frozen=True, slots=True)
class _Ground:
    """The local resources of a node, to be given back with `release`."""

    lock: DataDirLock
    journal: SqliteJournal
    present: Successor
    #: None if the settings name the model, which then stays.
    model_file: ModelFile | None
    shadow_file: ModelFile
    policy: Policy
    drift_state: str
    http_socket: socket.socket
    rest_way: Way
    stream_way: Way
    tls: ssl.SSLContext | None
    broker: EmbeddedBroker | None

    def release(self) -> None:
        if self.broker is not None:
            self.broker.stop()
        self.http_socket.close()
        self.journal.close()
        self.lock.release()


def _prepare(settings: Settings) -> _Ground:
    """Reads the files, takes the lock, opens the journal and binds the port. Raises one of the errors that `run` names
    if any of it fails, and then leaves nothing open."""
    with contextlib.ExitStack() as undo:
        policy = policies.load(settings.policy)
        # Looked at first: what is put there while it is read is noticed.
        chosen = partial(model_path, None, settings.data_dir)
        model_file = ModelFile(chosen, known=True) if settings.model is None else None
        model = model_path(settings.model, settings.data_dir)
        present = models.load(model, policy)
        shadow_file = ModelFile(partial(shadow_path, settings.shadow, settings.data_dir), known=False)
        if settings.shadow is not None:
            models.load_later(settings.shadow, policy, present.rules, settings.symbols)
        rest_way, stream_way = way_to(settings.rest_url), way_to(settings.ws_url)
        tls = broker_tls(settings)
        lock = DataDirLock(settings.data_dir)
        undo.callback(lock.release)
        journal = SqliteJournal(settings.data_dir, lock=lock)
        undo.callback(journal.close)
        http_socket = listen(settings)
        undo.callback(http_socket.close)
        broker = None
        if settings.mqtt_url == EMBEDDED:
            broker = EmbeddedBroker()
            broker.start()
        undo.pop_all()
    drift_state = job.state(settings.drift_period_hours)
    return _Ground(
        lock,
        journal,
        present,
        model_file,
        shadow_file,
        policy,
        drift_state,
        http_socket,
        rest_way,
        stream_way,
        tls,
        broker,
    )


def listen(settings: Settings) -> socket.socket:
    """Returns the bound socket that HTTP is served on. Raises `RefusedError` if it cannot be bound."""
    try:
        return web.bind(settings.http_host, settings.http_port)
    except web.PortInUseError as error:
        raise RefusedError(f"{error}: choose another --http-port, or 0 for any free one") from None
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise RefusedError(f"--http-host {settings.http_host}: cannot listen there: {cause}") from None


def broker_tls(settings: Settings) -> ssl.SSLContext | None:
    """Returns the TLS context with which node and broker verify each other, None for an unencrypted URL. Raises
    `RefusedError` if the certificate files cannot be used."""
    return tls_context(settings.mqtt_url, settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file)


@dataclass(frozen=True, slots=True)
class Node:
    """A running node, as `run` passes it to `alongside`."""

    daemon: Daemon
    http_url: str
    mqtt_url: str
    #: "on", or why drift is not measured.
    drift: str


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    watch: Observer | None = None,
    alongside: Callable[[Node], Awaitable[None]] | None = None,
    clock: Clock | None = None,
) -> None:
    """Runs a node until `stop` is set. `watch` receives every fact; `alongside` runs as long as the node does.

    Raises `RefusedError`, `ContractError`, `PolicyError`, `JournalError` or `BrokerError`, each with a message of one
    line, if the node must not run.
    """
    clock = clock or Clock()
    ground = await asyncio.to_thread(_prepare, settings)
    try:
        await _run(settings, ground, clock, stop, watch, alongside)
    except BaseExceptionGroup as group:
        refused = group.subgroup((RefusedError, JournalError))
        if refused is None:
            raise
        raise RefusedError(str(_first(refused))) from None
    finally:
        await asyncio.to_thread(ground.release)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _run(
    settings: Settings,
    ground: _Ground,
    clock: Clock,
    stop: asyncio.Event,
    watch: Observer | None,
    alongside: Callable[[Node], Awaitable[None]] | None,
) -> None:
    model = ground.present.predictor.model
    metrics = Metrics(version=VERSION, symbols=settings.symbols, model=model)
    observe = FanOut([metrics, _log_once(), *([watch] if watch else [])])
    session = secrets.token_hex(4)
    exchange_time = ExchangeTime(settings.time_scale)
    async with BinanceHistory(
        settings.rest_url,
        clock=clock,
        observe=observe,
        reported_time=lambda server_ms, asked_s: exchange_time.observe(server_ms, clock.monotonic_s(), asked_s),
        weight_share=_WEIGHT_SHARE,
        minute_s=MINUTE_S / max(1.0, settings.time_scale) if settings.time_scale else None,
        time_serves_s=_TIME_SERVES_S / max(1.0, settings.time_scale) if settings.time_scale else 0.0,
        patience_s=_PATIENCE_S,
        way=ground.rest_way,
    ) as history:
        daemon = Daemon(
            instance=settings.instance,
            session=session,
            symbols=settings.symbols,
            data_dir=settings.data_dir,
            journal=ground.journal,
            predictor=ground.present.predictor,
            rules=ground.present.rules,
            feed=BinanceFeed(
                settings.ws_url,
                settings.symbols,
                clock=clock,
                observe=observe,
                rng=random.Random(),
                stall_after_s=settings.stall_after_s,
                newest=history.newest,
                until_calm_s=lambda: exchange_time.until_calm_s(clock.monotonic_s()),
                way=ground.stream_way,
            ),
            history=history,
            exchange_time=exchange_time,
            time_scale=settings.time_scale,
            clock=clock,
            observe=observe,
            issuer=ground.present.issuer,
            load=partial(predictors.parse, name="a bundle in the journal"),
        )
        if not await _unless(stop, _preflight(settings, ground, history)):
            return
        mqtt_url = ground.broker.url if ground.broker else settings.mqtt_url
        # An embedded broker serves this node alone: neither rivals nor a stand-by are looked for there.
        ourselves = daemon.publisher.node_state("lost")
        rivals = partial(
            Rivals, settings.instance, settings.symbols, session=ourselves.session, since_ms=ourselves.since
        )
        client_id = f"volcast-{settings.instance}"
        if settings.standby and ground.broker is None:
            waiting = stand_by(
                mqtt_url, client_id=f"{client_id}-standby", rivals=rivals, rng=random.Random(), tls=ground.tls
            )
            if not await _unless(stop, waiting):
                return
        drift = job.Schedule(
            daemon,
            period_hours=settings.drift_period_hours,
            data_dir=settings.data_dir,
            model=partial(model_path, settings.model, settings.data_dir),
            clock=clock,
            observe=observe,
            state=ground.drift_state,
            # With a faster clock hours pass in seconds: a run at low priority might not end before the tape does.
            command=None if settings.time_scale == 1 else partial(job.drift_command, nice=0),
        )

        def introduce(model: Model) -> None:
            daemon.publisher.introduce(
                NodeInfo(
                    instance=settings.instance,
                    session=session,
                    version=VERSION,
                    symbols=settings.symbols,
                    schemas=schemas.SCHEMAS,
                    model=model_ref(model),
                    policy=ground.policy.version,
                    drift=drift.state,
                )
            )

        introduce(model)
        following = models.tasks(
            daemon,
            data_dir=settings.data_dir,
            journal=ground.journal,
            policy=ground.policy,
            present=ground.present.rules,
            champion=ground.model_file,
            shadow=ground.shadow_file,
            clock=clock,
            observe=observe,
            replaced=introduce,
        )
        broker = MqttBroker(
            mqtt_url,
            client_id=client_id,
            will_topic=topics.node_topic(settings.instance, "state"),
            will=schemas.encode(ourselves),
            observe=observe,
            rng=random.Random(),
            tls=ground.tls,
            rivals=None if ground.broker else rivals,
            recall=None
            if ground.broker
            else RetainedTopicsReader(identity.retained_topics(settings.symbols), daemon.learn),
        )
        # In a thread: reading the page and building the routes takes longer than the event loop should wait.
        shown = partial(models.in_use, daemon.processor, settings.data_dir)
        app = await asyncio.to_thread(server.build_app, daemon, metrics.chunks, version=VERSION, model=shown)
        async with web.serve(app, ground.http_socket) as http_url:
            log.info("volcast %s: %s, model %s, %s", VERSION, ",".join(settings.symbols), model.version, http_url)
            node = Node(daemon, http_url, mqtt_url, drift.state)

            async def accompany() -> None:
                if alongside is not None:
                    await alongside(node)

            await daemon.run(broker, stop, (accompany, drift.run, *following))
        log.info("stopped")


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work`, cancelling it if `stop` is set first. Returns whether it was completed."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    if working.cancelled():
        return False
    working.result()
    return True


async def _preflight(settings: Settings, ground: _Ground, history: BinanceHistory) -> None:
    """Raises `RefusedError` for a symbol that the exchange twice does not list and the journal does not know. An
    exchange that does not answer is no reason to refuse: the daemon waits for it."""
    try:
        async with asyncio.timeout(_PREFLIGHT_S):
            denied = await history.unlisted(settings.symbols)
            if denied:
                await asyncio.sleep(_DENIED_AGAIN_S)
                denied = await history.unlisted(denied)
    except (UnreachableError, TimeoutError) as error:
        log.warning("REST does not answer yet (%s); starting without it", error or "timeout")
        return
    for symbol in denied:
        if await asyncio.to_thread(ground.journal.last_open_time, symbol) is None:
            raise unknown_symbol(symbol)


def _log_once() -> Observer:
    """Returns an observer for facts that come in storms: it logs each cause when it is new and ignores repetitions,
    which the metrics count."""
    logged: set[str] = set()

    def observe(fact: Fact) -> None:
        if isinstance(fact, FrameRejected) and fact.reason not in logged:
            logged.add(fact.reason)
            log.warning(
                "a frame is skipped, as are others like it from now on: %s (%s)",
                fact.detail,
                fact.reason,
                extra={"reason": fact.reason},
            )

    return observe
