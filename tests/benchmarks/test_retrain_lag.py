"""A daemon while a retraining runs beside it, promotion included: it does not notice. Run by `make bench`."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from measured import Measured

from stream import node, times
from stream.adapters.candles import files
from stream.clock import Clock
from stream.settings import Settings
from stream.telemetry import Fact, ForecastAcknowledged
from stream.testing.broker import EmbeddedBroker
from stream.testing.market import simulate_symbol

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

LAG_P99_LIMIT_MS = 20.0
#: Of the median delay of a close to that without a retraining.
DELAY_RATIO_LIMIT = 2.0
#: A candle is late when it is not acknowledged this long after its closing frame. They come every 100 ms here.
LATE_S = 1.0
TICK_S = 0.005
WAITING, IDLE = 20, 200
FROM, NOW = times.parse("2022-07-20"), times.parse("2023-12-01T05:30")


class Watch:
    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self.stop = asyncio.Event()
        self.changed = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, ForecastAcknowledged):
            self.delays_s.append(fact.delay_s)
            self.changed.set()


async def test_loop_lag_and_delay_while_a_retraining_runs(
    exchange: tuple[str, str], speed: int, tmp_path: Path
) -> None:
    watch, lags_s = Watch(), list[float]()
    candles = tmp_path / "btc.parquet"
    await asyncio.to_thread(lambda: files.write(simulate_symbol("BTCUSDT", FROM, 500 * 24, seed=5), candles))

    async def probe() -> None:
        clock = Clock()
        while True:
            asked_s = clock.monotonic_s()
            await asyncio.sleep(TICK_S)
            lags_s.append(clock.monotonic_s() - asked_s - TICK_S)

    async def retrain(_: node.Node) -> None:
        while len(watch.delays_s) < WAITING + IDLE:
            watch.changed.clear()
            await watch.changed.wait()
        probing = asyncio.create_task(probe())
        command = [
            sys.executable, "-m", "stream", "retrain", "--data-dir", str(tmp_path / "var"), "--candles", str(candles),
            "--from", times.iso(FROM), "--now", times.iso(NOW), "--epochs", "3",
        ]  # fmt: skip
        made = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, stderr = await made.communicate()
        assert made.returncode == 0, stderr.decode()
        probing.cancel()
        watch.stop.set()

    with EmbeddedBroker() as broker:
        settings = Settings(
            ws_url=exchange[0], rest_url=exchange[1], mqtt_url=broker.url, http_port=0, data_dir=tmp_path / "var",
            time_scale=speed, drift_period_hours=0.0,
        )  # fmt: skip
        await node.run(settings, watch.stop, watch=watch, alongside=retrain)
    idle_s = statistics.median(watch.delays_s[WAITING : WAITING + IDLE])
    delays_s = watch.delays_s[WAITING + IDLE :]
    lags_ms = sorted(1e3 * s for s in lags_s)
    measured = Measured()
    p99_ms = lags_ms[int(0.99 * len(lags_ms))]
    measured.show("loop lag while a retraining runs, p99", p99_ms, "ms", LAG_P99_LIMIT_MS)
    measured.show("closing frame to acknowledgement without one, p50", 1e3 * idle_s, "ms")
    measured.show(f"  beside one, of {len(delays_s)}, p50", 1e3 * statistics.median(delays_s), "ms")
    measured.show("  to that without", statistics.median(delays_s) / idle_s, "times", DELAY_RATIO_LIMIT)
    measured.show("  the latest", max(delays_s), "s", LATE_S)
    measured.check()
