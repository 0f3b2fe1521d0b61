"""What a scrape of many symbols costs the event loop. Run by `make bench`."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from urllib.parse import urlencode

import pytest
from metrics_state import matured

from monitor.http import server
from stream import web
from stream.core.messages.builders import model_ref
from stream.telemetry import Latest, Readiness
from stream.testing.sample_model import sample_model

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

SYMBOLS = tuple(f"S{n}USDT" for n in range(1_000))
WORST_LAG_LIMIT_MS = 20.0
SIZE_LIMIT_BYTES = 1_000_000


class Idle:
    symbols = SYMBOLS
    heartbeat_age_s = 0.0

    def readiness(self) -> Readiness:
        return Readiness(True)

    async def latest(self, symbol: str) -> Latest:
        return Latest()

    async def history(self, symbol: str, from_ms: int | None, to_ms: int | None, limit: int) -> list[bytes]:
        return []


async def test_a_scrape_of_1000_symbols_does_not_hold_the_loop() -> None:
    metrics = matured(SYMBOLS)
    app = await asyncio.to_thread(
        server.build_app,
        Idle(),
        metrics.chunks,
        version="bench",
        model=lambda: server.ModelInUse(model_ref(sample_model()), None),
    )
    every_line = "?" + urlencode([("name[]", f"{name}{end}") for name in metrics.labels for end in ("", "_total")])
    lags_ms: list[float] = []

    async def beat() -> None:
        while True:
            asked_s = time.perf_counter()
            await asyncio.sleep(0.001)
            lags_ms.append(1e3 * (time.perf_counter() - asked_s - 0.001))

    async def scrape(url: str) -> tuple[int, float]:
        """Returns the size and the worst lag meanwhile."""
        lags_ms.clear()
        began_s = time.perf_counter()
        # Another process: a client of this one would hold the loop too.
        scraper = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"import urllib.request as u; print(len(u.urlopen('{url}').read()))",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        size, _ = await scraper.communicate()
        took_s, lags = time.perf_counter() - began_s, sorted(lags_ms)
        print(
            f"/metrics of {len(SYMBOLS)} symbols: {int(size) / 1e6:.2f} MB; with the start of its client {took_s:.2f} s"
        )
        print(f"the loop meanwhile: median lag {lags[len(lags) // 2]:.1f} ms, worst {lags[-1]:.1f} ms")
        return int(size), lags[-1]

    async with web.serve(app, web.bind("127.0.0.1", 0)) as url:
        # As `volcast run` does once it is up.
        gc.freeze()
        beating = asyncio.create_task(beat())
        size, worst_ms = await scrape(f"{url}/metrics")
        # Everything there is, which nobody has to ask for at once.
        _, worst_of_every_line_ms = await scrape(f"{url}/metrics{every_line}")
        beating.cancel()
        gc.unfreeze()
    assert size <= SIZE_LIMIT_BYTES
    assert worst_ms <= WORST_LAG_LIMIT_MS
    assert worst_of_every_line_ms <= WORST_LAG_LIMIT_MS
