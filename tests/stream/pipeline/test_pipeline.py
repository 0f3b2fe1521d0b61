"""The whole node in this process, on a real exchange and broker with faults. The oracle: the journal equals the
tape."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from stream import node
from stream.adapters.journal.store import SqliteJournal
from stream.core.market.candle import HOUR_MS, Candle
from stream.core.messages.schemas import Forecast
from stream.errors import RefusedError
from stream.settings import Settings
from stream.telemetry import (
    CandleProcessed,
    CandleRepeated,
    Fact,
    ForecastCommitted,
    GapDeclared,
    OutboxCounted,
    Resumed,
)
from stream.testing.broker import EmbeddedBroker
from stream.testing.exchange import Exchange
from stream.testing.market import simulate

START = 1_704_067_200_000
HISTORY = 3_000
HOURS = 30
SYMBOLS = ("BTCUSDT", "ETHUSDT")
HOLE = (20, 21)


@pytest.fixture(scope="module")
def tape() -> dict[str, list[Candle]]:
    whole = simulate(SYMBOLS, START - HISTORY * HOUR_MS, HISTORY + HOURS, 5)
    return {s: [c for c in series if (c.open_time - START) // HOUR_MS not in HOLE] for s, series in whole.items()}


@pytest.fixture(scope="module")
def broker() -> AsyncIterator[str]:
    with EmbeddedBroker() as running:
        yield running.url


class Watch:
    """Stops the node when each symbol's last candle is processed and everything is acknowledged."""

    def __init__(self, symbols: tuple[str, ...], last_open_time: int) -> None:
        self.facts: list[Fact] = []
        self.stop = asyncio.Event()
        self._last = last_open_time
        self._waiting = set(symbols)
        self._outbox = 0

    def __call__(self, fact: Fact) -> None:
        self.facts.append(fact)
        # A run that continued for a moment may have left nothing to process for the next one.
        if isinstance(fact, CandleProcessed | Resumed) and fact.open_time >= self._last:
            self._waiting.discard(fact.symbol)
        if isinstance(fact, OutboxCounted):
            self._outbox = fact.messages
        if not self._waiting and not self._outbox:
            self.stop.set()

    def of(self, kind: type[Fact]) -> list[Fact]:
        return [f for f in self.facts if isinstance(f, kind)]


def settings(exchange: Exchange, broker: str, data_dir: Path, **changes: object) -> Settings:
    values = {
        "symbols": SYMBOLS,
        "ws_url": exchange.ws_url,
        "rest_url": exchange.rest_url,
        "mqtt_url": broker,
        "http_port": 0,
        "data_dir": data_dir,
        "time_scale": 0.0,
        "drift_period_hours": 0.0,
        "stall_after_s": 1.0,
        "instance": data_dir.name.replace("[", "-").replace("]", "-"),
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


async def run(exchange: Exchange, broker: str, data_dir: Path, last_hour: int = HOURS - 1) -> Watch:
    watch = Watch(SYMBOLS, START + last_hour * HOUR_MS)
    async with asyncio.timeout(120):
        await node.run(settings(exchange, broker, data_dir), watch.stop, watch=watch)
    return watch


def check_journal(data_dir: Path, tape: dict[str, list[Candle]], gaps: list[Fact]) -> dict[tuple[str, int], Forecast]:
    found: dict[tuple[str, int], Forecast] = {}
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        for symbol in SYMBOLS:
            played = [c for c in tape[symbol] if c.open_time >= START]
            stored = journal.candles(symbol, START, 2**60)
            assert [(c.open_time, c.ohlcv) for c in stored] == [(c.open_time, c.ohlcv) for c in played]
            rows = journal.messages("forecasts", symbol, START, None, 1_000)
            forecasts = [msgspec.json.decode(row, type=Forecast) for row in rows]
            assert [f.open_time for f in forecasts] == [c.open_time for c in played]
            found |= {(symbol, f.open_time): f for f in forecasts}
        assert journal.outbox() == []
    declared = {(g.symbol, g.from_open_time, g.to_open_time) for g in gaps if isinstance(g, GapDeclared)}
    hole = (START + HOLE[0] * HOUR_MS, START + HOLE[-1] * HOUR_MS)
    assert declared == {(symbol, *hole) for symbol in SYMBOLS}
    return found


def _retained_symbols(data_dir: Path) -> set[str]:
    with contextlib.closing(SqliteJournal(data_dir, read_only=True)) as journal:
        return {r.topic.split("/")[4] for r in journal.retained()}


def values(forecasts: dict[tuple[str, int], Forecast]) -> dict[tuple[str, int], Forecast]:
    """Returns the forecasts without what may differ between two runs."""
    return {k: msgspec.structs.replace(f, issued_at=0, provenance="live") for k, f in forecasts.items()}


@pytest.fixture
def exchange(tape: dict[str, list[Candle]]) -> Callable[[], Exchange]:
    return lambda: Exchange.replaying(tape, START, HOURS, None)


@pytest.fixture(scope="module")
def undisturbed(
    tape: dict[str, list[Candle]], broker: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Forecast]:
    data_dir = tmp_path_factory.mktemp("undisturbed")

    async def go() -> Watch:
        async with Exchange.replaying(tape, START, HOURS, None) as running:
            return await run(running, broker, data_dir)

    watch = asyncio.run(go())
    return values(check_journal(data_dir, tape, watch.of(GapDeclared)))


@pytest.mark.parametrize(
    "faults",
    [
        [{"name": "withhold_close", "at": START + 5 * HOUR_MS}],
        [{"name": "withhold_close", "symbol": "ETHUSDT", "n": 3, "at": START + 5 * HOUR_MS}],
        [{"name": "duplicate_close", "n": 4, "at": START + 3 * HOUR_MS}],
        [{"name": "drop", "at": START + 7 * HOUR_MS}],
        [{"name": "drop", "outage_hours": 4, "at": START + 7 * HOUR_MS}],
        [{"name": "mute", "at": START + 9 * HOUR_MS}],
        [{"name": "rest_status", "status": 503, "n": 3, "at": START + 4 * HOUR_MS},
         {"name": "drop", "at": START + 4 * HOUR_MS}],
        [{"name": "withhold_close", "at": START + 19 * HOUR_MS}],
    ],
    ids=["withheld", "one-symbol-withheld", "duplicated", "dropped", "outage", "mute", "rest-too", "beside-a-hole"],
)  # fmt: skip
async def test_the_journal_is_the_tape_whatever_the_socket_does(
    faults: list[dict[str, object]],
    exchange: Callable[[], Exchange],
    tape: dict[str, list[Candle]],
    undisturbed: dict[tuple[str, int], Forecast],
    broker: str,
    tmp_path: Path,
) -> None:
    async with exchange() as running:
        for fault in faults:
            running.fault(**fault)  # type: ignore[arg-type]
        watch = await run(running, broker, tmp_path)
    stored = await asyncio.to_thread(check_journal, tmp_path, tape, watch.of(GapDeclared))
    assert values(stored) == undisturbed
    if faults[0]["name"] == "duplicate_close":
        assert len(watch.of(CandleRepeated)) == 4 * len(SYMBOLS)


async def test_two_runs_over_the_tape_are_one(
    exchange: Callable[[], Exchange],
    tape: dict[str, list[Candle]],
    undisturbed: dict[tuple[str, int], Forecast],
    broker: str,
    tmp_path: Path,
) -> None:
    async with exchange() as running:
        first = await run(running, broker, tmp_path, last_hour=12)
        second = await run(running, broker, tmp_path)
    gaps = first.of(GapDeclared) + second.of(GapDeclared)
    assert values(await asyncio.to_thread(check_journal, tmp_path, tape, gaps)) == undisturbed
    times = [f.forecast.id for f in first.of(ForecastCommitted) + second.of(ForecastCommitted)]
    assert len(times) == len(set(times))


async def test_topics_of_a_symbol_that_left_the_configuration_are_cleared(
    exchange: Callable[[], Exchange], broker: str, tmp_path: Path
) -> None:
    import aiomqtt

    host, port = broker.removeprefix("mqtt://").split(":")
    async with exchange() as running:
        await run(running, broker, tmp_path)
        watch = Watch((), 0)
        watch.stop.clear()
        alone = settings(running, broker, tmp_path, symbols=("BTCUSDT",))
        subscribed, cleared = asyncio.Event(), asyncio.Event()

        async def listen() -> None:
            async with aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client:
                await client.subscribe("volcast/v1/binance/spot/ETHUSDT/1h/decision")
                subscribed.set()
                async for message in client.messages:
                    if not message.payload:
                        cleared.set()

        listening = asyncio.create_task(listen())
        await subscribed.wait()
        stop = asyncio.Event()
        node_task = asyncio.create_task(node.run(alone, stop))
        async with asyncio.timeout(120):
            await cleared.wait()
        stop.set()
        await node_task
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert await asyncio.to_thread(_retained_symbols, tmp_path) == {"BTCUSDT"}


@pytest.mark.fault(22)
async def test_a_symbol_nobody_knows_is_refused(exchange: Callable[[], Exchange], broker: str, tmp_path: Path) -> None:
    async with exchange() as running:
        unknown = settings(running, broker, tmp_path, symbols=("BTCUSDT", "NOSUCH"))
        with pytest.raises(RefusedError, match="does not list NOSUCH"):
            await node.run(unknown, asyncio.Event())
