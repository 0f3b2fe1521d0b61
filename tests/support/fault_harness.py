"""A whole node on a real exchange and broker, and the oracle that must hold under every fault.

The oracle: the journal's candles are the tape's, each once, in order, with the right values, or differ by exactly the
hours declared as gaps; each (id, revision) was published at least once, and never with two values by all nodes that
ever published on a broker; the newest revision of each forecast is what a replay of the tape computes; nothing is
forecast for an hour before a fresh start's first, and no gap declared there; no candle is processed before its end; the
first value published of a candle is its final one unless the exchange changed it; no limit of the exchange was broken
by the exchange's own log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from fault_oracle import hold, limits, numbers, published_by, words

from stream import node
from stream.adapters.backoff import Backoff, ConnectBudget
from stream.adapters.feed.client import BinanceFeed
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.settings import Settings
from stream.telemetry import CandleProcessed, Fact, OutboxCounted, Resumed
from stream.testing.broker import EmbeddedBroker
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

START = 1_704_067_200_000


HISTORY = 1_100


SYMBOLS = ("BTCUSDT", "ETHUSDT")


#: Three hours of the tape in a second: what a node keeps up with on a busy machine, too.
PACED = 12_000.0


#: Hours of a tape that the test ends once it has seen what it waits for: more than any machine plays until then.
LONG = 1_500


def hour(n: int) -> int:
    return START + n * HOUR_MS


def market(
    symbols: tuple[str, ...] = SYMBOLS, hours: int = 24, history: int = HISTORY, seed: int = 5
) -> dict[str, list[Candle]]:
    return simulate(symbols, START - history * HOUR_MS, history + hours, seed)


def without(tape: dict[str, list[Candle]], missing: dict[str, set[int]]) -> dict[str, list[Candle]]:
    """Returns the tape without these hours, counted from START, by symbol."""
    gone = {s: {hour(h) for h in hours} for s, hours in missing.items()}
    return {s: [c for c in series if c.open_time not in gone.get(s, set())] for s, series in tape.items()}


_NEVER = 2**62


class Watch:
    """Keeps every fact, and stops the node when each symbol's last candle is processed, everything is acknowledged
    and `also` holds."""

    #: The subscriber to what the node publishes.
    ear: Ear

    def __init__(self, last: dict[str, int], also: Callable[[Watch], bool] = lambda watch: True) -> None:
        self.facts: list[Fact] = []
        #: Kinds of facts to keep; None: all.
        self.kept: tuple[type[Any], ...] | None = None
        self.stop = asyncio.Event()
        #: The exchange's own time, and the candles that were processed before they ended by that time.
        self.exchange_now_ms: Callable[[], int] | None = None
        self.early: list[tuple[str, int]] = []
        self._news = asyncio.Event()
        self._waiting = dict(last)
        #: The newest candle of each symbol that was processed.
        self.newest: dict[str, int] = {}
        self._outbox = 0
        self._also = also

    def __call__(self, fact: Fact) -> None:
        if self.kept is None or isinstance(fact, self.kept):
            self.facts.append(fact)
        now_ms = None if self.exchange_now_ms is None else self.exchange_now_ms()
        if isinstance(fact, CandleProcessed) and now_ms is not None and now_ms < fact.open_time + HOUR_MS - 1:
            self.early.append((fact.symbol, fact.open_time))
        # A run that continued for a moment may have left nothing to process for the next one.
        if isinstance(fact, CandleProcessed | Resumed):
            self.newest[fact.symbol] = fact.open_time
            if fact.open_time >= self._waiting.get(fact.symbol, _NEVER):
                del self._waiting[fact.symbol]
        if isinstance(fact, OutboxCounted):
            self._outbox = fact.messages
        if not self._waiting and not self._outbox and self._also(self):
            self.stop.set()
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition is true; it is checked after each fact."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    def expect(self, last: dict[str, int]) -> None:
        """Sets the last candles to wait for."""
        self._waiting = {symbol: at for symbol, at in last.items() if self.newest.get(symbol, 0) < at}

    def live(self) -> int:
        """Returns the number of candles that came over the websocket."""
        return sum(f.provenance == "live" for f in self.facts if isinstance(f, CandleProcessed))

    def of(self, kind: type[Any]) -> list[Any]:
        return [f for f in self.facts if isinstance(f, kind)]


class Ear:
    """A subscriber that keeps every message that is not a retained one."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("mqtt://").partition(":")
        self._port = int(port)
        self.events: dict[tuple[str, int], set[bytes]] = {}
        #: In long runs only hashes of payloads are kept, enough to see whether an event had two values.
        self.brief = False
        self.feed: list[tuple[str, str]] = []
        #: Events of the kinds that a test waits for, decoded.
        self.kept: tuple[str, ...] = ()
        self.messages: list[dict[str, Any]] = []
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Ear:
        self._task = asyncio.create_task(self._listen())
        await self._ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        async with aiomqtt.Client(self._host, self._port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("volcast/v1/binance/#", qos=1)
            self._ready.set()
            async for message in client.messages:
                topic, payload = str(message.topic), bytes(message.payload)  # type: ignore[arg-type]
                if message.retain or not payload:
                    continue
                body = msgspec.json.decode(payload)
                if topic.endswith("/feed"):
                    self.feed.append((body["symbol"], body["state"]))
                elif "/event/" in topic:
                    if topic.endswith(self.kept):
                        self.messages.append(body)
                    # A drift result has no id.
                    key = (body.get("id", topic), body.get("revision", 0))
                    self.events.setdefault(key, set()).add(
                        hashlib.sha256(payload).digest()[:8] if self.brief else payload
                    )

    async def settled(self, keys: set[tuple[str, int]]) -> None:
        """Waits until all of these have come: an acknowledged message may reach a subscriber a moment later."""
        while not keys <= self.events.keys():  # noqa: ASYNC110 - another process's broker has no event to wait for
            await asyncio.sleep(0.01)


#: By broker: the message that was first published there for each (id, revision), by whichever node.
PUBLISHED: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}


@contextlib.contextmanager
def new_broker() -> Iterator[str]:
    """Yields the URL of an empty broker, and forgets what was published at that URL: the system reuses ports."""
    with EmbeddedBroker() as running:
        PUBLISHED[running.url] = {}
        yield running.url


def one_value(broker: str, ear: Ear) -> None:
    """Asserts that ids and revisions still name the same value, whichever node published them."""
    published = PUBLISHED[broker]
    for key, payloads in ear.events.items():
        for payload in payloads:
            message = msgspec.json.decode(payload)
            before = published.setdefault(key, message)
            assert words(message) == words(before), key
            assert numbers(message) == pytest.approx(numbers(before), rel=1e-7, abs=1e-12), key


def settings(exchange: Exchange, broker: str, data_dir: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "symbols": SYMBOLS,
        "ws_url": exchange.ws_url,
        "rest_url": exchange.rest_url,
        "mqtt_url": broker,
        "http_port": 0,
        "data_dir": data_dir,
        "time_scale": exchange.state()["speed"] if exchange.state()["speed"] != "max" else 0.0,
        "drift_period_hours": 0.0,
        "stall_after_s": 1.0,
        "instance": "faults",
    }
    return Settings(**(values | changes))


async def run(
    exchange: Exchange,
    broker: str,
    data_dir: Path,
    *,
    also: Callable[[Watch], bool] = lambda watch: True,
    last: dict[str, int] | None = None,
    clock: Clock | None = None,
    check: bool = True,
    settle: bool | None = None,
    timeout_s: float = 300.0,
    symbols: tuple[str, ...] | None = None,
    alongside: Callable[[Watch], Any] | None = None,
    until: Callable[[Watch], bool] | None = None,
    brief: bool = False,
    since: int = START,
    up_to: int | None = None,
    **changes: Any,
) -> tuple[Watch, Ear]:
    """Runs a node over the exchange's tape from `since`, where its fresh start begins, and asserts the oracle. The tape
    ends once `until` is true; only candles that open before `up_to` are waited for and checked."""
    chosen = symbols or tuple(exchange.tape.symbols)

    def end_ms() -> int:
        return exchange.end_ms if up_to is None else up_to

    def last_played() -> dict[str, int]:
        return {s: max(c.open_time for c in exchange.tape.all(s) if c.open_time < end_ms()) for s in chosen}

    async def act() -> None:
        try:
            if alongside is not None:
                await alongside(watch)
            if until is not None:
                await watch.until(lambda: until(watch))
                exchange.fault("end")
                watch.expect(last_played())
        except Exception:
            watch.stop.set()
            raise

    if last is None:
        last = last_played() if until is None else dict.fromkeys(chosen, _NEVER)
    watch = Watch(last, also)
    watch.exchange_now_ms = exchange.now_ms
    made = settings(exchange, broker, data_dir, symbols=chosen, **changes)
    watch.kept = (CandleProcessed,) if brief else None
    earlier = await asyncio.to_thread(published_by, data_dir)
    async with Ear(broker) as ear:
        ear.brief, watch.ear = brief, ear
        acting = asyncio.create_task(act())
        async with asyncio.timeout(timeout_s):
            await node.run(made, watch.stop, watch=watch, clock=clock)
        acting.cancel()
        (failure,) = await asyncio.gather(acting, return_exceptions=True)
        if isinstance(failure, Exception):
            raise failure
        if check if settle is None else settle:
            published = await asyncio.to_thread(published_by, data_dir)
            async with asyncio.timeout(60):
                await ear.settled(published.keys() - earlier.keys())
        if not brief:
            one_value(broker, ear)
        if check:
            tape = {s: exchange.tape.all(s) for s in chosen}
            await asyncio.to_thread(hold, data_dir, tape, end_ms(), since)
            assert all(len(values) == 1 for values in ear.events.values())
            assert not watch.early
            # A journal of an earlier run may hold hours that the exchange has revised since.
            if not earlier and not any(e.method in _CHANGES for e in exchange.access_log.entries("fault")):
                assert len({event_id for event_id, _ in ear.events}) == len(ear.events)
            once(watch)
    limits(exchange)
    return watch, ear


#: Faults by which the exchange itself changes a candle.
_CHANGES = {"wrong_close", "revise"}


def once(watch: Watch) -> None:
    """Asserts that each candle was processed once, in order."""
    for symbol in {f.symbol for f in watch.of(CandleProcessed)}:
        times = [f.open_time for f in watch.of(CandleProcessed) if f.symbol == symbol]
        assert times == sorted(set(times))


def draw(rng: random.Random, hours: int, count: int, symbols: tuple[str, ...]) -> list[dict[str, Any]]:
    """Draws faults for a max-speed tape, at random hours; the last hours stay free, so that all can recover."""

    def at() -> int:
        return hour(rng.randrange(2, hours - 6))

    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"name": "drop"},
        lambda: {"name": "drop", "outage_hours": rng.randrange(1, 5)},
        lambda: {"name": "shutdown", "hours": rng.randrange(0, 3), "announce": rng.random() < 0.5},
        lambda: {"name": "flap", "n": rng.randrange(1, 4)},
        lambda: {"name": "refuse", "status": rng.choice([500, 502, 503])},
        lambda: {"name": "withhold_close", "n": rng.randrange(1, 4), "symbol": rng.choice([None, *symbols])},
        lambda: {"name": "duplicate_close", "n": rng.randrange(1, 4), "symbol": rng.choice([None, *symbols])},
        lambda: {"name": "delay_close", "until": rng.choice(["update", "close"]), "symbol": rng.choice(symbols)},
        lambda: {"name": "microseconds", "n": rng.randrange(1, 4)},
        lambda: {"name": "malformed", "n": 1},
        lambda: {"name": "burst", "n": rng.randrange(10, 200)},
        lambda: {"name": "rest_status", "status": rng.choice([403, 500, 503]), "n": rng.randrange(1, 3)},
        lambda: {"name": "rest_body", "kind": rng.choice(["html", "truncated", "nested", "off_grid", "duplicate"])},
        lambda: {"name": "slow_rest", "seconds": 0.1, "n": rng.randrange(1, 3)},
        lambda: {"name": "rest_body", "kind": rng.choice(["short", "empty", "unusable", "foreign", "newest"])},
        lambda: {"name": "rest_lag", "seconds": rng.choice([3, 3_000, 7_200])},
        lambda: {"name": "rest_cache", "seconds": 0.5},
        lambda: {"name": "rest_cap", "rows": rng.randrange(5, 500)},
        lambda: {"name": "mend_rest"},
        lambda: {"name": "wrong_time", "seconds": rng.choice([-3_000, 2_400])},
    ]
    drawn = [{**rng.choice(kinds)(), "at": at()} for _ in range(count)]
    return [*drawn, {"name": "mend_rest", "at": hour(hours - 5)}]


async def soak(
    broker: str,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int,
    symbols: tuple[str, ...],
    hours: int,
    faults: int,
    history: int = 100,
    alongside: Callable[[Watch], Any] | None = None,
    timeout_s: float = 300.0,
    brief: bool = False,
) -> Watch:
    """Runs a node over `hours` of every symbol with so many faults and a hole of two hours, and asserts the oracle."""
    rng = random.Random(seed)
    first = rng.randrange(10, hours - 10)
    tape = without(market(symbols, hours, history, seed), {symbols[0]: {first, first + 1}})
    async with Exchange.replaying(tape, START, hours, None, seed=seed) as exchange:
        # The exchange's hours pass in milliseconds: what is limited per minute is counted in its minutes.
        feed = functools.partial(
            BinanceFeed,
            backoff=Backoff(rng, first_s=0.01, cap_s=0.1),
            budget=ConnectBudget(lambda: exchange.now_ms() / 1_000, attempts=290),
            healthy_after_s=0.0,
        )
        monkeypatch.setattr(node, "BinanceFeed", feed)
        for fault in draw(rng, hours, faults, symbols):
            exchange.fault(**fault)
        watch, _ = await run(
            exchange, broker, data_dir, alongside=alongside, timeout_s=timeout_s, brief=brief, stall_after_s=0.4
        )
    return watch
