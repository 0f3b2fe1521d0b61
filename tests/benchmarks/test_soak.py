"""Many candles with many faults, and many reconnects: nothing lost, nothing wrong, and nothing grows.

`make bench` runs one seed of a moderate length. The long form, as in docs/faults.md:
VOLCAST_SOAK_CANDLES=50000 VOLCAST_SOAK_SEEDS=20 python -m pytest tests/benchmarks/test_soak.py -m bench -s
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import fault_harness as stand
import pytest

from stream.adapters.backoff import Backoff
from stream.adapters.feed.client import BinanceFeed
from stream.clock import Clock
from stream.core.market.binance import KlineUpdate
from stream.telemetry import CandleProcessed
from stream.testing.exchange import Exchange

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3_600)]

CANDLES = int(os.environ.get("VOLCAST_SOAK_CANDLES", "6000"))
SEEDS = int(os.environ.get("VOLCAST_SOAK_SEEDS", "1"))
#: 1,000 faults in 50,000 candles.
CANDLES_PER_FAULT = 50
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT")
RECONNECTS = 5_000
#: The harness is in the same process and remembers what was said, some 250 bytes a message.
SOAK_GROWTH_LIMIT = 0.10
HARNESS_BYTES_PER_CANDLE = 900
RECONNECT_GROWTH_LIMIT = 0.05


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with stand.new_broker() as url:
        yield url


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
async def test_soak(seed: int, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = CANDLES // len(SYMBOLS)
    samples: list[tuple[int, int, int, int]] = []

    async def measure(watch: stand.Watch) -> None:
        while True:
            await asyncio.sleep(0.5)
            done = len(watch.of(CandleProcessed))
            samples.append((done, resident_bytes(), open_files(), len(asyncio.all_tasks())))

    began_s = time.monotonic()
    watch = await stand.soak(
        broker, tmp_path, monkeypatch, seed=seed, symbols=SYMBOLS, hours=hours, faults=CANDLES // CANDLES_PER_FAULT,
        alongside=measure, timeout_s=3_000, brief=True,
    )  # fmt: skip
    processed = len(watch.of(CandleProcessed))
    # A third in, everything that is loaded once is loaded.
    early = next(s for s in samples if s[0] >= processed // 3)
    late = samples[-1]
    grown = late[1] - early[1] - HARNESS_BYTES_PER_CANDLE * (late[0] - early[0])
    print(
        f"\nseed {seed}: {processed} candles, {CANDLES // CANDLES_PER_FAULT} faults, "
        f"{time.monotonic() - began_s:.0f} s; "
        f"resident {early[1] / 2**20:.0f} to {late[1] / 2**20:.0f} MiB (harness aside {grown / early[1]:+.1%}), "
        f"files {early[2]} to {late[2]}, tasks {early[3]} to {late[3]}"
    )
    assert processed == hours * len(SYMBOLS) - 2
    assert grown < SOAK_GROWTH_LIMIT * early[1]
    # A connection more or less may be open at the moment of looking.
    assert late[2] <= early[2] + 8
    assert late[3] <= early[3] + 12


class Deaf:
    def __init__(self) -> None:
        self.connections = 0
        self.at_first: tuple[int, int, int] | None = None
        self.enough = asyncio.Event()

    def connected(self) -> None:
        self.connections += 1
        if self.connections == 500:
            self.at_first = (resident_bytes(), open_files(), len(asyncio.all_tasks()))
        if self.connections > RECONNECTS:
            self.enough.set()

    def disconnected(self, reason: str) -> None: ...

    def forming(self, update: KlineUpdate, received_at_s: float) -> None: ...

    async def closed(self, update: KlineUpdate, received_at_s: float) -> None: ...


async def test_five_thousand_reconnects_in_virtual_time() -> None:
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        await asyncio.sleep(0)

    def monotonic_s() -> float:
        return now_s

    tape = stand.market(hours=4, history=2)
    async with Exchange(tape, stand.START, speed=1.0, monotonic=monotonic_s) as exchange:
        exchange.fault("flap", n=RECONNECTS)
        listener, rng = Deaf(), random.Random(4)
        feed = BinanceFeed(
            exchange.ws_url, SYMBOLS, clock=Clock(monotonic_s=monotonic_s, sleep=sleep), observe=lambda fact: None,
            rng=rng, backoff=Backoff(rng, first_s=0.01, cap_s=0.01), stall_after_s=1e9,
        )  # fmt: skip
        running = asyncio.create_task(feed.run(listener))
        await listener.enough.wait()
        late = (resident_bytes(), open_files(), len(asyncio.all_tasks()))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        limits = exchange.limits()
    early = listener.at_first
    assert early is not None
    print(
        f"\n{RECONNECTS} reconnects in {now_s / 3_600:.1f} virtual hours: resident {early[0] / 2**20:.1f} to "
        f"{late[0] / 2**20:.1f} MiB, files {early[1]} to {late[1]}, tasks {early[2]} to {late[2]}; "
        f"at most {limits['connects_in_5_min']} attempts in 5 minutes"
    )
    assert late[0] < early[0] * (1 + RECONNECT_GROWTH_LIMIT)
    assert late[1] <= early[1] + 2
    assert late[2] <= early[2] + 2
    assert limits["broken"] == 0
    assert limits["connects_in_5_min"] <= 101
