"""The shipped exchange's archive: a client finds what the real one has, and faults where a test orders them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from stream.core.market.binance import klines_params
from stream.core.market.candle import HOUR_MS, MICROSECONDS_FROM
from stream.testing.exchange import Exchange
from stream.testing.faults import FaultError, parse_fault
from stream.testing.market import simulate


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1_000


FIRST = ms(2024, 12, 15, 6)
NOW = ms(2025, 2, 5, 13)
TAPE = simulate(["BTCUSDT", "ETHUSDT"], FIRST, 2_000, seed=2)


@asynccontextmanager
async def serving(now_ms: int = NOW, **options: Any) -> AsyncIterator[tuple[Exchange, httpx.AsyncClient]]:
    async with (
        Exchange(TAPE, now_ms, **options) as exchange,
        httpx.AsyncClient(base_url=exchange.rest_url, trust_env=False, verify=False) as http,
    ):
        yield exchange, http


def path(label: str, symbol: str = "BTCUSDT", interval: str = "1h") -> str:
    folder = "monthly" if len(label) == 7 else "daily"
    return f"/data/spot/{folder}/klines/{symbol}/{interval}/{symbol}-{interval}-{label}.zip"


async def rows(http: httpx.AsyncClient, label: str) -> list[list[str]]:
    content = (await http.get(path(label))).raise_for_status().content
    checksum = (await http.get(path(label) + ".CHECKSUM")).raise_for_status().text
    name = f"BTCUSDT-1h-{label}"
    assert checksum == f"{hashlib.sha256(content).hexdigest()}  {name}.zip\n"
    with zipfile.ZipFile(io.BytesIO(content)) as zipped:
        assert zipped.namelist() == [f"{name}.csv"]
        return [line.split(",") for line in zipped.read(f"{name}.csv").decode().splitlines()]


async def test_a_month_has_the_rows_of_rest_in_ms_before_2025_and_us_since() -> None:
    async with serving() as (_, http):
        old, new = await rows(http, "2024-12"), await rows(http, "2025-01")
        params = klines_params("BTCUSDT", FIRST, ms(2025, 1, 1) - 1)
        rest = (await http.get("/api/v3/klines", params=params)).json()
        assert old == [[str(cell) for cell in row] for row in rest]
        assert int(old[-1][0]) < MICROSECONDS_FROM < int(new[0][0]) == ms(2025, 1, 1) * 1_000
        assert int(new[0][6]) == (ms(2025, 1, 1) + HOUR_MS) * 1_000 - 1
        assert (len(old), len(new)) == (16 * 24 + 18, 31 * 24)


async def test_the_bytes_are_the_same_each_time() -> None:
    async with serving() as (_, one), serving() as (_, other):
        assert (await one.get(path("2025-01"))).content == (await other.get(path("2025-01"))).content


@pytest.mark.parametrize(
    ("label", "published"),
    [
        ("2024-12-31", ms(2025, 1, 2)),
        ("2025-01-31", ms(2025, 2, 2)),
        ("2024-12", ms(2025, 1, 6)),
        ("2025-01", ms(2025, 2, 3)),
    ],
)
async def test_a_file_appears_when_the_exchanges_clock_says_so(label: str, published: int) -> None:
    for now_ms, status in ((published - 1, 404), (published, 200)):
        async with serving(now_ms) as (_, http):
            for suffix in ("", ".CHECKSUM"):
                assert (await http.get(path(label) + suffix)).status_code == status


@pytest.mark.parametrize(
    "asked",
    [
        path("2024-11"),
        path("2025-13"),
        path("2025-02-30"),
        path("2025-01", "XRPUSDT"),
        path("2025-01", interval="4h"),
        path("2025-01").replace("monthly", "daily"),
        path("2025-01").replace("klines/BTCUSDT", "klines/ETHUSDT"),
        "/data/spot/monthly/klines/../x.zip",
        "/data/spot/",
    ],
)
async def test_what_is_not_there_is_not_found(asked: str) -> None:
    async with serving() as (_, http):
        assert (await http.get(asked)).status_code == 404


async def test_truncated_zips_wrong_checksums_and_missing_files_are_counted_by_part_and_symbol() -> None:
    async with serving() as (exchange, http):
        whole = (await http.get(path("2025-01"))).content
        exchange.fault("truncated_zip", symbol="BTCUSDT", part="2025-01")
        exchange.fault("wrong_checksum", part="2025-01-05", n=2)
        exchange.fault("missing_archive", symbol="ETHUSDT", n=None)
        assert (await http.get(path("2025-01", "ETHUSDT"))).status_code == 404
        assert (await http.get(path("2024-12"))).status_code == 200
        assert (await http.get(path("2025-01"))).content == whole[: len(whole) // 2]
        assert (await http.get(path("2025-01"))).content == whole
        answers = {(await http.get(path("2025-01-05") + ".CHECKSUM")).text for _ in range(2)}
        assert len(answers) == 1
        assert (await http.get(path("2025-01-05") + ".CHECKSUM")).text not in answers
        assert [f["fault"] for f in exchange.state()["faults"]] == ["missing_archive"]
        exchange.fault("mend_archive")
        assert (await http.get(path("2025-01", "ETHUSDT"))).status_code == 200
        assert exchange.state()["faults"] == []


async def test_headers_missing_rows_and_revisions_have_the_right_checksum() -> None:
    async with serving() as (exchange, http):
        before = await rows(http, "2025-01")
        exchange.fault("header_row", part="2025-01")
        assert (await rows(http, "2025-01"))[0][0] == "open_time"
        assert (await rows(http, "2025-01"))[1:] == before
        exchange.fault("mend_archive")
        exchange.fault("missing_rows", part="2025-01", hours=3)
        assert await rows(http, "2025-01") == before[3:]
        exchange.fault("mend_archive")
        volumes = {before[0][5]}
        for _ in range(2):
            exchange.fault("revised_archive", part="2025-01")
            revised = await rows(http, "2025-01")
            assert revised[1:] == before[1:]
            volumes.add(revised[0][5])
        assert len(volumes) == 3


async def test_scripted_statuses_tell_rest_and_archive_apart() -> None:
    async with serving() as (exchange, http):
        exchange.fault("rest_status", status=429, retry_after=5, path="/data/")
        assert (await http.get("/api/v3/ping")).status_code == 200
        refused = await http.get(path("2025-01"))
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        assert (await http.get(path("2025-01"))).status_code == 200
        assert exchange.state()["used_weight"] == 1


@pytest.mark.parametrize("body", [{"fault": "missing_rows", "hours": 0}, {"fault": "truncated_zip", "n": 0}])
def test_a_fault_of_nothing_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(FaultError, match="at least 1"):
        parse_fault(body)


async def test_who_uses_too_much_weight_is_refused_and_who_goes_on_is_banned() -> None:
    now_s = 0.0
    async with serving(weight_per_minute=45, monotonic=lambda: now_s) as (_, http):
        for _ in range(2):
            assert (await http.get("/api/v3/exchangeInfo")).status_code == 200
        now_s = 20.0
        refused = await http.get("/api/v3/exchangeInfo")
        assert (refused.status_code, refused.headers["Retry-After"], refused.json()["code"]) == (429, "40", -1003)
        assert refused.headers["X-MBX-USED-WEIGHT-1M"] == "40"
        # A request that still fits is answered, and does not lead to a ban.
        assert (await http.get("/api/v3/ping")).status_code == 200
        now_s = 60.0
        assert (await http.get("/api/v3/exchangeInfo")).status_code == 200
        for ban_s in ("120", "240"):
            statuses = [(await http.get("/api/v3/exchangeInfo")).status_code for _ in range(13)]
            assert statuses[0] in (200, 429)
            banned = await http.get("/api/v3/ping")
            assert (banned.status_code, banned.headers["Retry-After"]) == (418, ban_s)
            # Requests to the archive have no weight.
            assert (await http.get(path("2025-01"))).status_code == 200
            now_s += float(ban_s)
        assert (await http.get("/api/v3/ping")).status_code == 200
