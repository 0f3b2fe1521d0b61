"""200,000 mutated real frames through a real socket: no crash, no wrong candle, each rejection counted by its cause.

The mutations and the oracle are those of the short test, tests/stream/core/market/test_binance_fuzz.py.
"""

from __future__ import annotations

import asyncio
import collections
import random
import runpy
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from repository import ROOT
from websockets.asyncio.server import ServerConnection, serve

from monitor.metrics import Metrics
from stream.adapters.feed.client import BinanceFeed
from stream.clock import Clock
from stream.core.market.binance import KlineUpdate
from stream.telemetry import Fact, FanOut, FeedDisconnected
from stream.testing.sample_model import sample_model

pytestmark = [pytest.mark.bench, pytest.mark.real_data, pytest.mark.timeout(600)]

FRAMES = 200_000
SHORT = runpy.run_path(str(ROOT / "tests" / "stream" / "core" / "market" / "test_binance_fuzz.py"))


class Listener:
    def __init__(self) -> None:
        self.updates = 0
        self.done = asyncio.Event()

    def connected(self) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    def forming(self, update: KlineUpdate, received_at_s: float) -> None:
        self.updates += 1
        self._last(update)

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None:
        self.updates += 1
        self._last(update)

    def _last(self, update: KlineUpdate) -> None:
        if update.candle.symbol == "LASTUSDT":
            self.done.set()


async def test_two_hundred_thousand_mutated_frames() -> None:
    rng, frames = random.Random(20_261_122), SHORT["recorded_frames"]()
    mutated = [SHORT["mutate"](rng, frames) for _ in range(FRAMES)]
    started_s = time.perf_counter()
    # The verdict asserts that whatever is accepted is what the frame says.
    verdicts = collections.Counter(SHORT["verdict"](frame) for frame in mutated)
    judged_s = time.perf_counter() - started_s
    expected = {cause: count for cause, count in verdicts.items() if cause is not None}
    last = SHORT["closed_frames"]()[0].replace(b"BTCUSDT", b"LASTUSDT")

    async def exchange(connection: ServerConnection) -> None:
        for frame in mutated:
            await connection.send(frame, text=True)
        await connection.send(last, text=True)
        await connection.wait_closed()

    facts: list[Fact] = []

    def note(fact: Fact) -> None:
        if isinstance(fact, FeedDisconnected):
            facts.append(fact)

    metrics = Metrics(version="0", symbols=("BTCUSDT",), model=sample_model())
    listener = Listener()
    async with serve(exchange, "127.0.0.1", 0, compression=None) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        feed = BinanceFeed(url, ("BTCUSDT",), clock=Clock(), observe=FanOut([metrics, note]), rng=random.Random(7))
        running = asyncio.create_task(feed.run(listener))
        ended = asyncio.create_task(listener.done.wait())
        await asyncio.wait((running, ended), return_when=asyncio.FIRST_COMPLETED)
        assert ended.done(), running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    counted = {
        sample.labels["reason"]: int(sample.value)
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "volcast_ws_invalid_messages_total" and sample.value
    }
    print(f"\n{FRAMES} mutated frames, judged in {judged_s:.1f} s: {sum(expected.values())} set aside")
    for cause, count in sorted(counted.items(), key=lambda item: -item[1]):
        print(f"  {cause:<18}{count:>8}")
    assert counted == expected
    assert facts == []
