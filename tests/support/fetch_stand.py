"""Fetches from the shipped exchange, with a clock that does not wait, in process and as the command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stream.adapters.candles import files
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.exchange import Exchange
from stream.testing.market import simulate
from training.data.fetch import Fetched, fetching, parts_of


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1_000


LISTED = ms(2024, 11, 10, 7)


#: A Wednesday: January is published, February's first three days are, its fourth and fifth are not.
NOW = ms(2025, 2, 5, 13) + 1_000


HOLES = [ms(2024, 12, 24, 3), ms(2024, 12, 24, 4), ms(2025, 2, 4, 22)]


MARKET = simulate(["BTCUSDT", "ETHUSDT"], LISTED, (NOW - LISTED) // HOUR_MS + 50, seed=5)


TAPE = {
    "BTCUSDT": [c for c in MARKET["BTCUSDT"] if c.open_time not in HOLES],
    "ETHUSDT": [c for c in MARKET["ETHUSDT"] if c.open_time >= ms(2025, 1, 20, 12)],
}


MONTHS = ["2024-11", "2024-12", "2025-01"]


DAYS = ["2025-02-01", "2025-02-02", "2025-02-03"]


def closed(symbol: str = "BTCUSDT", from_ms: int = 0, to_ms: int = NOW) -> list[Candle]:
    return [c for c in TAPE[symbol] if from_ms <= c.open_time and c.close_time < min(to_ms, NOW)]


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


async def read(path: Path) -> files.CandleTable:
    return await asyncio.to_thread(files.read, path)


class Time:
    """A clock that only waiting moves, for the exchange and its client alike."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class Stand:
    """An exchange at `NOW`, and fetches from it."""

    def __init__(self, exchange: Exchange, time: Time) -> None:
        self.exchange, self.time = exchange, time
        self._on_request: Callable[[int], None] = lambda count: None
        self._count = 0
        add = exchange.access_log.add

        def add_and_count(kind: Any, *args: Any, **detail: Any) -> None:
            add(kind, *args, **detail)
            if kind == "request":
                self._count += 1
                self._on_request(self._count)

        exchange.access_log.add = add_and_count  # type: ignore[method-assign]

    async def fetch(self, out: Path, symbols: str = "BTCUSDT", **given: Any) -> Fetched:
        options = {"from_ms": ms(2024, 11, 1), "to_ms": None, "archive_url": self.exchange.rest_url, **given}
        start, end = options.pop("from_ms"), options.pop("to_ms")
        clock = Clock(monotonic_s=self.time.monotonic, sleep=self.time.sleep)
        return await fetching(
            symbols.split(","),
            start,
            end,
            out,
            rest_url=self.exchange.rest_url,
            clock=clock,
            **options,
        )

    def at_request(self, n: int, act: Callable[[], object]) -> None:
        """Acts while the exchange has just got the n-th request from now on, before it answers."""
        self._count = 0
        self._on_request = lambda count: (act(), None)[1] if count == n else None

    def asked(self, since: int = 0) -> list[str]:
        return [e.method for e in self.exchange.access_log.entries("request")[since:]]

    def zips(self, since: int = 0) -> list[str]:
        """Labels of the zips that were asked for, in order."""
        return sorted(
            p[-14:-4].lstrip("h-") if "/daily/" in p else p[-11:-4] for p in self.asked(since) if p.endswith(".zip")
        )


@asynccontextmanager
async def stand(**options: Any) -> AsyncIterator[Stand]:
    time = Time()
    async with Exchange(TAPE, options.pop("now_ms", NOW), monotonic=time.monotonic, **options) as exchange:
        yield Stand(exchange, time)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def finished(out: Path) -> set[str]:
    if not parts_of(out).exists():
        return set()
    return {name.removesuffix(".CHECKSUM") for name in names(parts_of(out)) if name.endswith(".zip.CHECKSUM")}


async def volcast(here: Stand, out: Path, *args: str, before: str = "") -> asyncio.subprocess.Process:
    """`volcast fetch` as a process, with some Python run before it."""
    code = f"{before}\nimport sys\nfrom stream.__main__ import main\nsys.argv[0] = 'volcast'\nmain()"
    flags = ["--symbols", "BTCUSDT,ETHUSDT", "--from", "2024-11-01", "--out", str(out), *args]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "fetch", "--rest-url", here.exchange.rest_url, *flags, stdout=pipe, stderr=pipe
    )
