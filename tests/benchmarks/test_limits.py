"""Speed and memory limits of the daemon, on real parts. Run by `make bench`, which exits 1 where one is broken.

Every figure is printed beside its limit; the delay stands beside the bare floor of the same run: a client that
receives the same frames, runs the same model and publishes, and does nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path

import aiomqtt
import numpy as np
import pytest
from measured import Measured
from websockets.asyncio.client import connect

from stream import node
from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.clock import Clock
from stream.core.forecasting import features
from stream.core.market import binance
from stream.core.market.binance import KlineUpdate
from stream.settings import Settings
from stream.telemetry import Fact, ForecastAcknowledged, ForecastCommitted, Inferred

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

RESIDENT_LIMIT_MB = 220
FIRST_FORECAST_LIMIT_S = 1.0
#: To the floor of the same run.
DELAY_P50_RATIO_LIMIT, DELAY_P10_RATIO_LIMIT = 2.2, 2.0
DELAY_P99_LIMIT_MS = 10.0
CANDLES = 300
WAITING = 5


class Watch:
    def __init__(self, clock: Clock) -> None:
        self.delays_s: list[float] = []
        self.inferred_s: list[float] = []
        self.first_forecast_s: float | None = None
        self.stop = asyncio.Event()
        self._clock = clock

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, ForecastCommitted) and self.first_forecast_s is None:
            self.first_forecast_s = self._clock.monotonic_s()
        if isinstance(fact, Inferred):
            self.inferred_s.append(fact.seconds)
        if isinstance(fact, ForecastAcknowledged):
            self.delays_s.append(fact.delay_s)
            if len(self.delays_s) >= CANDLES:
                self.stop.set()


async def floor(ws_url: str, broker_url: str) -> list[float]:
    """Receive, run the model, publish: what no design can go below on this machine. After the node, not beside it:
    on the same loop each would wait for the other."""
    predictor = predictors.load(packaged_model())
    sequence = np.zeros((1, features.SEQUENCE_HOURS, len(features.SEQUENCE_NAMES)), np.float32)
    static = np.zeros((1, len(features.STATIC_NAMES)), np.float32)
    host, port = broker_url.removeprefix("mqtt://").split(":")
    delays_s: list[float] = []
    url = binance.stream_url(ws_url, ["BTCUSDT"])
    async with (
        aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client,
        connect(url, proxy=None, compression=None) as socket,
    ):
        async for data in socket:
            received_s = time.monotonic()
            frame = binance.decode_frame(data)
            if isinstance(frame, KlineUpdate) and frame.closed:
                payload = predictor(sequence, static).tobytes()
                await client.publish("floor", payload, qos=1)
                delays_s.append(time.monotonic() - received_s)
            if len(delays_s) >= CANDLES // 3:
                break
    return delays_s


async def test_closing_frame_to_acknowledgement_beside_the_floor(
    exchange: tuple[str, str], speed: int, broker: str, tmp_path: Path
) -> None:
    clock = Clock()
    watch = Watch(clock)
    settings = Settings(
        ws_url=exchange[0], rest_url=exchange[1], mqtt_url=broker, http_port=0, data_dir=tmp_path,
        time_scale=speed, drift_period_hours=0.0,
    )  # fmt: skip
    started_s = clock.monotonic_s()

    async def settle(running: node.Node) -> None:
        # As `volcast run` does.
        gc.freeze()

    await node.run(settings, watch.stop, watch=watch, alongside=settle)
    floor_ms = sorted(1e3 * d for d in await floor(exchange[0], broker))
    # The first closes wait for the warm-up.
    delays_ms = sorted(1e3 * d for d in watch.delays_s[WAITING:])
    assert watch.first_forecast_s is not None
    first_s = watch.first_forecast_s - started_s

    def part(values_ms: list[float], share: float) -> float:
        return values_ms[int(share * len(values_ms))]

    p50, floor_p50 = part(delays_ms, 0.5), part(floor_ms, 0.5)
    measured = Measured()
    measured.show("start to first forecast (history, warm-up, model)", first_s, "s", FIRST_FORECAST_LIMIT_S)
    measured.show("closing frame to the broker's acknowledgement, p50", p50, "ms")
    measured.show("  of which features and model, p50", 1e3 * statistics.median(watch.inferred_s), "ms")
    measured.show("closing frame to the broker's acknowledgement, p99", part(delays_ms, 0.99), "ms", DELAY_P99_LIMIT_MS)
    measured.show("bare floor (receive, run the model, publish), p50", floor_p50, "ms")
    measured.show("bare floor (receive, run the model, publish), p99", part(floor_ms, 0.99), "ms")
    measured.show("acknowledgement to the floor, p50", p50 / floor_p50, "times", DELAY_P50_RATIO_LIMIT)
    ratio_p10 = part(delays_ms, 0.1) / part(floor_ms, 0.1)
    measured.show("acknowledgement to the floor, p10", ratio_p10, "times", DELAY_P10_RATIO_LIMIT)
    measured.check()


def test_resident_memory_for_one_symbol(exchange: tuple[str, str], speed: int, broker: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "stream", "run", "--ws-url", exchange[0], "--rest-url", exchange[1], "--mqtt-url", broker,
        "--http-port", "0", "--data-dir", str(tmp_path), "--time-scale", str(speed), "--drift-period-hours", "0",
    ]  # fmt: skip
    host, port = broker.removeprefix("mqtt://").split(":")

    async def until_forecasts(count: int) -> None:
        seen = 0
        async with aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("volcast/v1/binance/spot/+/1h/event/forecast.issued", qos=1)
            async for _ in client.messages:
                seen += 1
                if seen >= count:
                    return

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        asyncio.run(asyncio.wait_for(until_forecasts(200), 120))
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.terminate()
    peak_mb = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1_024
    measured = Measured()
    measured.show("resident memory of the daemon, peak over 200 candles", peak_mb, "MB", RESIDENT_LIMIT_MB)
    measured.check()
