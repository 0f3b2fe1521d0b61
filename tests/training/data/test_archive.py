"""The archive's dialect: the plan of a period, checksums, and zips that are not what they should be."""

from __future__ import annotations

import contextlib
import io
import itertools
import zipfile
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate_symbol
from stream.testing.wire import kline_row
from training.data.archive import DAY_MS, MAX_CSV_BYTES, ArchiveError, Part, days, decode, parse_checksum, plan, sha256


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1_000


DAY = Part("BTCUSDT", "2025-01-01", ms(2025, 1, 1), ms(2025, 1, 2))
CANDLES = simulate_symbol("BTCUSDT", DAY.from_ms, 24, 3)


def rows(candles: list[Candle], microseconds: bool = False) -> str:
    return "".join(",".join(map(str, kline_row(c, microseconds))) + "\n" for c in candles)


def zipped(text: str | bytes, name: str = "BTCUSDT-1h-2025-01-01.csv", **more: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
        for other, content in more.items():
            archive.writestr(other, content)
    return packed.getvalue()


@given(
    start=st.integers(ms(2017, 8, 17), ms(2026, 1, 1)),
    hours=st.integers(1, 20_000),
    now=st.integers(ms(2017, 8, 17), ms(2026, 3, 1)),
)
def test_a_plan_is_every_day_that_is_over_once_in_order(start: int, hours: int, now: int) -> None:
    end = start + hours * HOUR_MS
    parts = plan("BTCUSDT", start, end, now)
    for one, next_one in itertools.pairwise(parts):
        assert one.to_ms == next_one.from_ms
        assert one.monthly or not next_one.monthly
    today = now - now % DAY_MS
    assert all(p.to_ms <= today for p in parts)
    if parts:
        assert parts[0].from_ms <= start < parts[0].to_ms
        assert parts[-1].to_ms >= min(end, today)
    else:
        assert start - start % DAY_MS >= today
    for part in parts:
        assert part.from_ms < end
        assert (part.to_ms - part.from_ms == DAY_MS) != part.monthly
        assert part.label == datetime.fromtimestamp(part.from_ms / 1e3, UTC).strftime(
            "%Y-%m" if part.monthly else "%Y-%m-%d"
        )


def test_paths_are_the_archives() -> None:
    month = Part("ETHUSDT", "2024-02", ms(2024, 2, 1), ms(2024, 3, 1))
    assert month.path == "/data/spot/monthly/klines/ETHUSDT/1h/ETHUSDT-1h-2024-02.zip"
    assert DAY.checksum_path == "/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01-01.zip.CHECKSUM"
    found = days(month, ms(2024, 2, 27, 5), ms(2024, 2, 29, 1))
    assert [d.label for d in found] == ["2024-02-27", "2024-02-28", "2024-02-29"]


@pytest.mark.parametrize("microseconds", [False, True])
@pytest.mark.parametrize("header", ["", "open_time,open,high,low,close,volume,close_time,a,b,c,d,ignore\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_rows_in_either_unit_with_or_without_a_header(microseconds: bool, header: str, newline: str) -> None:
    text = (header + rows(CANDLES, microseconds)).replace("\n", newline)
    read = decode(zipped(text), DAY)
    assert list(read.candles) == CANDLES
    assert not read.set_aside


def test_units_may_change_within_a_file() -> None:
    assert list(decode(zipped(rows(CANDLES[:9]) + rows(CANDLES[9:], True)), DAY).candles) == CANDLES


def test_an_empty_file_has_no_candles() -> None:
    assert decode(zipped(""), DAY).candles == ()


def test_rows_that_are_no_candle_of_the_grid_are_set_aside_and_counted() -> None:
    lines = rows(CANDLES).splitlines()
    late = lines[3].replace(str(CANDLES[3].open_time), str(CANDLES[3].open_time + 1_695_000))
    free = lines[5].replace(lines[5].split(",")[3], "0.0")
    read = decode(zipped("\n".join([*lines[:3], late, lines[4], free, *lines[6:], lines[6]])), DAY)
    assert [c for c in CANDLES if c not in read.candles] == [CANDLES[3], CANDLES[5]]
    assert dict(read.set_aside) == {"off_grid": 1, "price_range": 1, "row_order": 1}


def overlong() -> bytes:
    # The directory says 10 bytes, the stream has more.
    content = bytearray(zipped(b"1" * (MAX_CSV_BYTES + 10)))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = (10).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no zip"),
        (b"<html>", "no zip"),
        (zipped(rows(CANDLES))[:-30], "no zip"),
        (zipped(rows(CANDLES))[30:], "no zip"),
        (zipped(rows(CANDLES), name="../BTCUSDT-1h-2025-01-01.csv"), "does not hold BTCUSDT-1h-2025-01-01.csv"),
        (zipped(rows(CANDLES), name="ETHUSDT-1h-2025-01-01.csv"), "does not hold BTCUSDT-1h-2025-01-01.csv"),
        (zipped(rows(CANDLES), other="x"), "and nothing else"),
        (zipped(b"0" * (MAX_CSV_BYTES + 1)), f"unpacks to {MAX_CSV_BYTES + 1} bytes"),
        (overlong(), "no zip"),
        (zipped("1,2,3\n"), "not a klines answer"),
        (zipped(rows(CANDLES) + "],[1\n"), "not a klines answer"),
        (zipped(b"17\xff\xfe"), "not a klines answer"),
        (zipped(rows(CANDLES).replace(",", ";")), "not a klines answer"),
        (zipped(rows(simulate_symbol("BTCUSDT", DAY.to_ms, 2, 3))), r"a row of 2025-01-02 00:00 is not of its period"),
        (zipped(rows(simulate_symbol("BTCUSDT", DAY.from_ms - HOUR_MS, 1, 3))), "is not of its period"),
    ],
)
def test_a_zip_that_is_not_what_it_should_be_is_refused(content: bytes, cause: str) -> None:
    with pytest.raises(ArchiveError, match=cause) as refusal:
        decode(content, DAY)
    assert str(refusal.value).startswith(DAY.name)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(content: bytes) -> None:
    packed = zipped(rows(CANDLES))
    for spoilt in (content, packed[:40] + content + packed[40:], packed[: -len(content) or None], zipped(content)):
        with contextlib.suppress(ArchiveError):
            decode(spoilt, DAY)


def test_an_encrypted_or_strangely_packed_member_is_refused() -> None:
    packed = zipped(rows(CANDLES))
    for offset, value, cause in ((8, 1, "no zip that can be read"), (10, 99, "packed in a way")):
        spoilt = bytearray(packed)
        spoilt[spoilt.index(b"PK\x01\x02") + offset] = value
        with pytest.raises(ArchiveError, match=cause):
            decode(bytes(spoilt), DAY)


def test_a_checksum_is_for_one_file() -> None:
    digest = sha256(b"x")
    for line in (f"{digest}  {DAY.name}\n", f"{digest.upper()} *{DAY.name}", f"{digest}  {DAY.name}\r\n"):
        assert parse_checksum(line.encode(), DAY) == digest
    for line in (
        "",
        digest,
        f"{digest}  other.zip\n",
        f"{digest[:-1]}  {DAY.name}",
        f"{digest}  {DAY.name}\nmore " * 99,
    ):
        with pytest.raises(ArchiveError, match="is no checksum of"):
            parse_checksum(line.encode(), DAY)
    with pytest.raises(ArchiveError):
        parse_checksum(b"\xff" * 90, DAY)
