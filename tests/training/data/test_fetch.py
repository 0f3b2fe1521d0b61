"""Fetch against the shipped exchange: whatever happens on the way, the file is the one that an easy fetch writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.adapters.candles import files
from stream.adapters.candles.files import CandleFileError
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS, Candle
from stream.errors import UnreachableError
from stream.testing.exchange import Exchange
from stream.testing.market import simulate
from training.data.fetch import Fetched, FetchError, fetching, parts_of


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


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a fetch without any trouble writes."""
    out = tmp_path_factory.mktemp("easy") / "a.parquet"

    async def run() -> None:
        async with stand() as here:
            await here.fetch(out, "BTCUSDT,ETHUSDT")

    asyncio.run(run())
    return out


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


@pytest.mark.parametrize("spoil", ["half", "gone", "checksum"])
async def test_a_part_that_is_not_what_it_was_is_fetched_again(tmp_path: Path, spoil: str) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        await here.fetch(out)
        before, since = out.read_bytes(), len(here.asked())
        part = parts_of(out) / "BTCUSDT-1h-2024-12.zip"
        if spoil == "half":
            part.write_bytes(part.read_bytes()[:99])
        elif spoil == "gone":
            part.unlink()
        else:
            part.with_name(f"{part.name}.CHECKSUM").write_bytes(b"\xff")
        await here.fetch(out)
        assert here.zips(since) == ["2024-12"]
    assert out.read_bytes() == before


async def test_a_second_fetch_asks_for_what_is_new_and_ends_at_the_same_file(tmp_path: Path, easy: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        await here.fetch(out, "BTCUSDT,ETHUSDT", to_ms=ms(2025, 1, 25))
        assert here.zips() == sorted([*MONTHS, "2025-01"])
    async with stand() as here:
        await here.fetch(out, "BTCUSDT,ETHUSDT")
        # A month is fetched whole: the second time only the days are new.
        assert here.zips() == sorted(DAYS * 2)
        since = len(here.asked())
        await here.fetch(out, "BTCUSDT,ETHUSDT")
        assert here.zips(since) == []
        assert sum(path.endswith("/klines") for path in here.asked(since)) == 2
    assert same(out, easy)


async def test_a_later_day_replaces_rest_by_the_archive(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    start = ms(2025, 1, 1)
    async with stand(now_ms=ms(2025, 1, 20, 12)) as here:
        (first,) = (await here.fetch(out, from_ms=start)).series
        assert first.rest_hours == 24 + 12
        assert len(list(parts_of(out).glob(f"*-rest-*-{ms(2025, 1, 20, 11)}.json.gz"))) == 1
    async with stand() as here:
        (second,) = (await here.fetch(out, from_ms=start)).series
        assert second.rest_hours == 24 + 13 - 1
        assert not list(parts_of(out).glob(f"*-rest-*-{ms(2025, 1, 20, 11)}.json.gz"))
    assert (await read(out))["BTCUSDT"] == closed(from_ms=start)


async def test_a_month_that_was_not_published_yet_comes_as_days(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand(now_ms=ms(2024, 12, 1, 18)) as here:
        (series,) = (await here.fetch(out)).series
        assert len(here.zips()) == 20
        assert series.rest_hours == 24 + 18
    async with stand() as here:
        await here.fetch(out)
    assert finished(out) == {f"BTCUSDT-1h-{label}.zip" for label in (*MONTHS, *DAYS)}
    assert (await read(out))["BTCUSDT"] == closed()


async def test_a_file_with_more_than_a_candle_file_keeps_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    rows = [f"{LISTED + n * HOUR_MS + (n == 2) * 1_695},1,1,1,1,1" for n in range(5)]
    out.write_text("\n".join(["open_time,open,high,low,close,volume", *rows]) + "\n")
    async with stand() as here:
        with pytest.raises(FetchError, match=r"holds 1 candle\(s\) off the hour, which would be lost"):
            await here.fetch(out)
        assert here.asked() == []


async def test_what_was_not_asked_for_stays_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        await here.fetch(out, "ETHUSDT")
        await here.fetch(out, to_ms=ms(2024, 12, 1))
        fetched = await here.fetch(out, from_ms=ms(2025, 1, 10), to_ms=ms(2025, 1, 12))
    table = await read(out)
    assert table["ETHUSDT"] == closed("ETHUSDT")
    assert table["BTCUSDT"] == [*closed(to_ms=ms(2024, 12, 1)), *closed(from_ms=ms(2025, 1, 10), to_ms=ms(2025, 1, 12))]
    assert fetched.kept == fetched.rows - 48


@pytest.mark.fault(35)
async def test_a_revised_archive_is_told_and_fetched_anew_and_counts_more_than_rest(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        (series,) = (await here.fetch(out)).series
        assert (series.facts.revised, series.facts.disagreements) == ([], [])
        here.exchange.fault("revised_archive", part="2025-01")
        since = len(here.asked())
        (series,) = (await here.fetch(out)).series
        assert here.zips(since) == ["2025-01"]
    first_hour = ms(2025, 1, 1)
    assert series.facts.revised == ["2025-01"]
    assert [d.open_time for d in series.facts.disagreements] == [first_hour]
    old, new = ({c.open_time: c for c in found} for found in (closed(), (await read(out))["BTCUSDT"]))
    assert new.pop(first_hour).volume == old.pop(first_hour).volume + 1
    assert new == old


async def test_an_archive_that_lacks_hours_is_mended_by_rest_and_a_hole_of_both_is_a_fact(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        here.exchange.fault("missing_rows", part="2025-01", hours=5)
        (series,) = (await here.fetch(out)).series
    assert series.rest_hours == 24 + 13 - 1 + 5
    assert [h.hours for h in series.holes] == [2, 1]
    assert (await read(out))["BTCUSDT"] == closed()


async def test_a_part_that_stays_wrong_is_asked_for_thrice_and_replaced_by_rest(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        here.exchange.fault("truncated_zip", part="2024-12", n=None)
        here.exchange.fault("wrong_checksum", part="2025-02-01", n=None)
        here.exchange.fault("wrong_checksum", part="2024-11", n=2)
        (series,) = (await here.fetch(out)).series
        assert here.zips().count("2024-12") == here.zips().count("2025-02-01") == here.zips().count("2024-11") == 3
        assert [r.part for r in series.facts.replaced] == ["2024-12", "2025-02-01"]
        assert all("checksum is wrong, or it is not whole" in r.reason for r in series.facts.replaced)
        here.exchange.fault("mend_archive")
        (series,) = (await here.fetch(out)).series
        assert series.facts.replaced == []
        assert series.rest_hours == 24 + 13 - 1


async def test_an_archive_that_is_away_is_left_alone_and_rest_has_everything(tmp_path: Path, easy: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        here.exchange.fault("rest_status", status=503, n=1_000, path="/data/")
        fetched = await here.fetch(out, "BTCUSDT,ETHUSDT")
        assert sum(path.startswith("/data/") for path in here.asked()) <= 12 + 4
    assert all(series.archive_hours == 0 and series.facts.replaced for series in fetched.series)
    assert same(out, easy)


async def test_parts_in_hand_serve_when_the_archive_cannot_be_asked(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        await here.fetch(out)
        before = out.read_bytes()
        here.exchange.fault("missing_archive", part="2024-11")
        here.exchange.fault("rest_status", status=503, n=1_000, path="/data/spot/daily/klines/BTCUSDT/1h/")
        (series,) = (await here.fetch(out)).series
    assert [u.part for u in series.facts.unchecked] == ["2024-11", *DAYS]
    assert out.read_bytes() == before


async def test_the_weight_of_others_is_left_to_them(tmp_path: Path) -> None:
    limit = 42
    async with stand(weight_per_minute=limit) as here:
        here.exchange.fault("missing_archive")
        await here.fetch(tmp_path / "a.parquet", "BTCUSDT,ETHUSDT")
        spent = [(e.monotonic_s, e.detail["weight"]) for e in here.exchange.access_log.entries("request")]
    total = sum(weight for _, weight in spent)
    assert total > limit
    for at_s, _ in spent:
        used = sum(weight for other_s, weight in spent if at_s - 60 < other_s <= at_s)
        assert used <= limit
    assert [s for s in here.time.slept if s > 50]


async def test_rest_that_fails_too_is_one_line_and_what_came_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    async with stand() as here:
        here.at_request(12, lambda: here.exchange.fault("rest_status", status=503, n=1_000, path="/api/v3/klines"))
        with pytest.raises(FetchError, match=r"HTTP 503 .*resumes") as error:
            await here.fetch(out)
        assert "\n" not in str(error.value)
        assert not out.exists()
        assert len(finished(out)) == len([*MONTHS, *DAYS])


async def test_a_ban_is_not_sat_out(tmp_path: Path) -> None:
    async with stand() as here:
        here.exchange.fault("rest_status", status=418, retry_after=7_200, path="/api/v3/klines")
        with pytest.raises(FetchError, match="silence for 7200 s; run the same command after that: it resumes"):
            await here.fetch(tmp_path / "a.parquet")
        assert sum(here.time.slept) < 60


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"symbols": "NOSUCH"}, "does not list NOSUCH"),
        ({"symbols": "BTCUSDT,../../x"}, "'../../x' is no symbol"),
        ({"from_ms": ms(2026, 1, 1)}, "no closed candle in that period"),
        ({"symbols": "ETHUSDT", "to_ms": ms(2025, 1, 1)}, "no candle of ETHUSDT in that period"),
    ],
)
async def test_what_cannot_be_is_said_before_the_archive_is_asked(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    async with stand() as here:
        with pytest.raises(FetchError, match=words):
            await here.fetch(tmp_path / "a.parquet", **given)
        assert not any(path.startswith("/data/") for path in here.asked())
    assert finished(tmp_path / "a.parquet") == set()


async def test_a_file_that_is_no_candle_file_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    out.write_text("my,notes\n1,2\n")
    async with stand() as here:
        with pytest.raises(CandleFileError, match="no column open_time"):
            await here.fetch(out)
        with pytest.raises(CandleFileError, match="make the folder first"):
            await here.fetch(tmp_path / "nowhere" / "a.parquet")
        assert here.asked() == []
    assert out.read_text() == "my,notes\n1,2\n"


async def test_an_exchange_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    time = Time()
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        await fetching(
            ["BTCUSDT"],
            LISTED,
            None,
            tmp_path / "a.parquet",
            rest_url="http://127.0.0.1:9",
            archive_url="http://127.0.0.1:9",
            clock=Clock(monotonic_s=time.monotonic, sleep=time.sleep),
        )
    assert time.slept == [0.5, 1, 2, 4]
