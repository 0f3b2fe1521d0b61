"""Many faults at once, drawn by seed, and many reconnects: a short form of what tests/benchmarks/test_soak.py does."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import fault_harness as stand
import pytest

from stream.adapters.backoff import Backoff
from stream.adapters.feed.client import BinanceFeed
from stream.clock import Clock
from stream.core.market.binance import KlineUpdate
from stream.telemetry import CandleProcessed, Fact
from stream.testing.exchange import Exchange

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
RECONNECTS = 300


@pytest.fixture
def broker() -> Iterator[str]:
    """A broker that is empty for each test: the tapes differ, and on one broker an id names one value."""
    with stand.new_broker() as url:
        yield url


@pytest.mark.parametrize("seed", [1, 2])
async def test_forty_faults_over_six_hundred_candles(
    seed: int, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = await stand.soak(broker, tmp_path, monkeypatch, seed=seed, symbols=SYMBOLS, hours=200, faults=40)
    assert len(watch.of(CandleProcessed)) == 3 * 200 - 2


class Deaf:
    def __init__(self) -> None:
        self.connections = 0
        self.enough = asyncio.Event()

    def connected(self) -> None:
        self.connections += 1
        if self.connections > RECONNECTS:
            self.enough.set()

    def disconnected(self, reason: str) -> None: ...

    def forming(self, update: KlineUpdate, received_at_s: float) -> None: ...

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None: ...


@pytest.mark.fault(30)
@pytest.mark.fault(6)
async def test_reconnects_leave_no_task_and_no_file_behind_and_keep_to_the_exchanges_limit() -> None:
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        await asyncio.sleep(0)

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def monotonic_s() -> float:
        return now_s

    tape = stand.market(hours=4, history=2)
    facts: list[Fact] = []
    async with Exchange(tape, stand.START, speed=1.0, monotonic=monotonic_s) as exchange:
        before = (len(asyncio.all_tasks()), await asyncio.to_thread(open_files))
        exchange.fault("flap", n=RECONNECTS)
        listener = Deaf()
        rng = random.Random(4)
        feed = BinanceFeed(
            exchange.ws_url, SYMBOLS, clock=Clock(monotonic_s=monotonic_s, sleep=sleep), observe=facts.append, rng=rng,
            # No backoff between failures: the budget alone must limit the connects.
            backoff=Backoff(rng, first_s=0.01, cap_s=0.01), stall_after_s=1e9,
        )  # fmt: skip
        running = asyncio.create_task(feed.run(listener))
        async with asyncio.timeout(60):
            await listener.enough.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        while exchange.state()["connections"]:  # noqa: ASYNC110 - the other end of the socket follows
            await asyncio.sleep(0.01)
        assert exchange.limits()["broken"] == 0
        # The budget's hundred, and the one that arrives as the window ends.
        assert exchange.limits()["connects_in_5_min"] <= 101
        async with asyncio.timeout(60):
            while len(asyncio.all_tasks()) > before[0] or await asyncio.to_thread(open_files) > before[1] + 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
