"""Fetches into a file that is there, and what archive and REST lack or refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fetch_stand import DAYS, LISTED, MONTHS, Time, closed, finished, ms, read, same, stand

from stream.adapters.candles.files import CandleFileError
from stream.clock import Clock
from stream.core.market.candle import HOUR_MS
from stream.errors import UnreachableError
from training.data.fetch import FetchError, fetching, parts_of


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
