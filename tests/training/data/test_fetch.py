"""Fetch against the shipped exchange: whatever happens on the way, the file is the one that an easy fetch writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from fetch_stand import DAYS, HOLES, LISTED, MONTHS, closed, finished, ms, names, read, same, stand, volcast
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data.fetch import parts_of


async def test_months_days_and_the_tail_make_the_tape(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        fetched = await here.fetch(out, "ETHUSDT,BTCUSDT")
        assert here.zips() == sorted([*MONTHS, *DAYS, "2025-01", *DAYS])
        klines = [e for e in here.exchange.access_log.entries("request") if e.method.endswith("/klines")]
    table = await read(out)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert table[symbol] == closed(symbol)
    btc, eth = sorted(fetched.series, key=lambda s: s.symbol)
    # The hours of 4 and 5 February but for the one that nobody has.
    assert (btc.rest_hours, eth.rest_hours) == (24 + 13 - 1, 24 + 13)
    assert [(h.from_ms, h.to_ms, h.hours) for h in btc.holes] == [(HOLES[0], HOLES[1], 2), (HOLES[2], HOLES[2], 1)]
    assert eth.holes == []
    assert btc.first_open_time == LISTED
    # Where it begins, the tail, and for BTCUSDT the hole of December; each hole twice.
    assert len(klines) == 2 + 3 + 2
    assert fetched.rows == len(closed("BTCUSDT")) + len(closed("ETHUSDT"))


async def test_a_period_is_kept_to_the_hour(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    start, end = ms(2024, 12, 30, 5) + 1, ms(2025, 2, 2, 3)
    async with stand() as here:
        await here.fetch(out, from_ms=start, to_ms=end)
        assert here.zips() == ["2024-12", "2025-01", "2025-02-01", "2025-02-02"]
    assert (await read(out))["BTCUSDT"] == closed(from_ms=start, to_ms=end)


LABELS = st.sampled_from([None, *MONTHS, *DAYS, "2025-01-31", "2024-12-24"])


FAULTS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["truncated_zip", "wrong_checksum", "missing_archive"]),
            st.fixed_dictionaries({"part": LABELS, "n": st.sampled_from([1, 2, 5, None])}),
        ),
        st.tuples(st.just("header_row"), st.fixed_dictionaries({"part": LABELS})),
        st.tuples(st.just("missing_rows"), st.fixed_dictionaries({"part": LABELS, "hours": st.integers(1, 30)})),
        st.tuples(
            st.just("rest_status"),
            st.fixed_dictionaries(
                {
                    "status": st.sampled_from([403, 418, 429, 503]),
                    "n": st.integers(1, 9),
                    "retry_after": st.sampled_from([None, 1, 400]),
                    "path": st.just("/data/"),
                }
            ),
        ),
    ),
    max_size=4,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=FAULTS,
    trouble=st.fixed_dictionaries(
        {"status": st.sampled_from([418, 429, 500, 503]), "n": st.integers(1, 4), "retry_after": st.just(3)}
    ),
)
@pytest.mark.fault(35)
def test_no_fault_changes_the_file(
    tmp_path_factory: pytest.TempPathFactory, easy: Path, faults: list[Any], trouble: dict[str, Any]
) -> None:
    out = tmp_path_factory.mktemp("fault") / "a.parquet"

    async def run() -> None:
        async with stand() as here:
            for name, params in faults:
                here.exchange.fault(name, **params)
            here.exchange.fault("rest_status", **trouble, path="/api/")
            await here.fetch(out, "BTCUSDT,ETHUSDT")

    asyncio.run(run())
    assert out.read_bytes() == easy.read_bytes()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.integers(1, 34), min_size=1, max_size=2))
def test_an_interrupted_fetch_resumes_to_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, easy: Path, requests: list[int]
) -> None:
    out = tmp_path_factory.mktemp("resume") / "a.parquet"

    async def run() -> None:
        async with stand() as here:
            for n in requests:
                task = asyncio.create_task(here.fetch(out, "BTCUSDT,ETHUSDT"))
                here.at_request(n, task.cancel)
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                # One that resumes may have been done before.
                assert not out.exists() or same(out, easy)
            in_hand = finished(out)
            since = len(here.asked())
            here.at_request(0, lambda: None)
            await here.fetch(out, "BTCUSDT,ETHUSDT")
            assert not in_hand & {path.rpartition("/")[2] for path in here.asked(since)}

    asyncio.run(run())
    assert out.read_bytes() == easy.read_bytes()


@pytest.mark.parametrize("n", [6, 17, 30])
async def test_a_killed_fetch_resumes_to_the_same_file(tmp_path: Path, easy: Path, n: int) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        process = await volcast(here, out)
        here.at_request(n, process.kill)
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        in_hand, since = finished(out), len(here.asked())
        process = await volcast(here, out)
        _, stderr = await process.communicate()
        assert (process.returncode, stderr) == (0, b"")
        assert not in_hand & {path.rpartition("/")[2] for path in here.asked(since)}
    assert same(out, easy)


async def test_ctrl_c_is_one_line_that_says_that_it_resumes(tmp_path: Path, easy: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        here.exchange.fault("rest_status", status=429, retry_after=500, path="/api/v3/klines")
        process = await volcast(here, out)
        assert process.stderr is not None
        assert re.fullmatch(rb"waiting [45]\d\d s: the exchange limits requests\n", await process.stderr.readline())
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        assert process.returncode == 1
        line = f"volcast: interrupted; {parts_of(out)} keeps what came: the same command resumes\n"
        assert stderr.decode() == line
        process = await volcast(here, out)
        await process.communicate()
    assert same(out, easy)


async def test_a_full_disk_leaves_no_half_file_and_what_came_is_kept(tmp_path: Path, easy: Path) -> None:
    out = tmp_path / "a.parquet"
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    nearly = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    async with stand() as here:
        for limit, name in ((nearly, ".zip"), (full, "a.parquet")):
            process = await volcast(here, out, before=limit)
            _, stderr = await process.communicate()
            assert process.returncode == 1
            (line,) = stderr.decode().splitlines()
            assert line.startswith("volcast: ")
            assert f"{name}: cannot be written: " in line
            assert "File too large" in line
            assert names(tmp_path) == {"a.parquet.parts"}
            assert {name for name in names(parts_of(out)) if name.endswith(".zip")} == finished(out)
            assert not any(name.startswith(".") for name in names(parts_of(out)))
        process = await volcast(here, out)
        await process.communicate()
    assert same(out, easy)


async def test_the_command_tells_everything_in_lines_and_in_json(tmp_path: Path) -> None:
    out, figures = tmp_path / "a.parquet", tmp_path / "facts.json"
    async with stand() as here:
        here.exchange.fault("truncated_zip", symbol="ETHUSDT", part="2025-01", n=None)
        here.exchange.fault("revised_archive", symbol="BTCUSDT", part="2024-12")
        process = await volcast(here, out, "--to", "2025-02-01", "--json", str(figures))
        stdout, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")
    rows = [len(closed(symbol, to_ms=ms(2025, 2, 1))) for symbol in ("BTCUSDT", "ETHUSDT")]
    assert stdout.decode().splitlines()[0] == f"{sum(rows)} candles: {out}"
    for line in (
        f"BTCUSDT: 2024-11-10 07:00 to 2025-01-31 23:00, {rows[0]} from the archive, 0 from REST",
        "BTCUSDT: the exchange has no candle for 2 hour(s) from 2024-12-24 03:00 to 2024-12-24 04:00",
        f"ETHUSDT: 2025-01-20 12:00 to 2025-01-31 23:00, 0 from the archive, {rows[1]} from REST",
        "ETHUSDT: REST replaces the archive's 2025-01: "
        "ETHUSDT-1h-2025-01.zip: its checksum is wrong, or it is not whole",
    ):
        assert line in stdout.decode().splitlines()
    assert "BTCUSDT: archive, which counts, and REST differ at 2024-12-01 00:00: " in stdout.decode()
    summary = json.loads(figures.read_text())
    assert summary["rows"] == sum(rows)
    btc, eth = summary["series"]
    assert btc["holes"] == [{"from_ms": HOLES[0], "to_ms": HOLES[1], "hours": 2}]
    assert eth["facts"]["replaced"][0]["part"] == "2025-01"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--archive-url", "http://archive.example"], "--archive-url: http://archive.example is not encrypted"),
        (["--archive-url", "ftp://archive.example"], "must be https://host"),
        (["--archive-url", "https://[x"], "is no URL"),
        (["--out", "a.xlsx"], "'a.xlsx' must end in .parquet or .csv"),
    ],
)
async def test_nonsense_is_one_line(tmp_path: Path, args: list[str], words: str) -> None:
    async with stand() as here:
        process = await volcast(here, tmp_path / "a.parquet", *args)
        _, stderr = await process.communicate()
        assert here.asked() == []
    assert process.returncode == 2
    (line,) = stderr.decode().splitlines()
    assert line.startswith("volcast: ")
    assert words in line
