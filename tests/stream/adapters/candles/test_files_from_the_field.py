"""Candle files as users have them: each is read as the candles that it holds, or refused with one line."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import zipfile
from pathlib import Path

import polars as pl
import pytest

from stream.adapters.candles import files
from stream.adapters.candles.files import CandleFileError
from stream.core.market.candle import HOUR_MS
from stream.testing.market import simulate

HOUR = 1_704_067_200_000  # 2024-01-01 00:00 UTC
MINUTE_MS = 60_000
NOW = HOUR + 1_000 * HOUR_MS
TAPE = simulate(["BTCUSDT"], HOUR, 48, seed=5)["BTCUSDT"]


def archive_rows(times: int = 1, tape=TAPE) -> list[list[str]]:
    """Returns rows as the exchange's archive and REST have them; `times` 1,000 for microseconds."""
    return [
        [
            *(str(c.open_time * times), f"{c.open:.8f}", f"{c.high:.8f}", f"{c.low:.8f}", f"{c.close:.8f}"),
            *(f"{c.volume:.8f}", str((c.close_time + 1) * times - 1), f"{c.quote_volume:.8f}", str(c.trades)),
            *(f"{c.taker_buy_base:.8f}", "0", "0"),
        ]
        for c in tape
    ]


def text(rows, separator: str = ",", header: str = "") -> bytes:
    return "\n".join([*([header] if header else []), *(separator.join(row) for row in rows), ""]).encode()


def zipped(content: bytes, name: str = "BTCUSDT-1h-2024-01.csv") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return out.getvalue()


def feather() -> bytes:
    out = io.BytesIO()
    frame = pl.DataFrame({"date": [c.open_time for c in TAPE]}).with_columns(
        pl.col("date").cast(pl.Datetime("ms", "UTC")),
        *(pl.Series(name, [getattr(c, name) for c in TAPE]) for name in files.OHLCV),
    )
    frame.write_ipc(out, compression="lz4")
    return out.getvalue()


SIX = [row[:6] for row in archive_rows()]
HEADER = "open_time,open,high,low,close,volume"
SEMICOLON = text(SIX, ";", HEADER.replace(",", ";"))
KINDS = {
    "archive, ms": ("a.zip", zipped(text(archive_rows()))),
    "archive, µs": ("a.zip", zipped(text(archive_rows(1_000)))),
    "archive with a header": (
        "a.zip",
        zipped(
            text(
                archive_rows(),
                header="open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
                "taker_buy_quote_volume,ignore",
            )
        ),
    ),
    "unpacked archive": ("a.csv", text(archive_rows())),
    "six columns, no header": ("a.csv", text(SIX)),
    "gz": ("a.csv.gz", gzip.compress(text(SIX, header=HEADER))),
    "answer of REST": (
        "a.json",
        json.dumps([[int(r[0]), *r[1:6], int(r[6]), *r[7:]] for r in archive_rows()]).encode(),
    ),
    "objects": ("a.json", json.dumps([dict(zip(HEADER.split(","), row, strict=True)) for row in SIX]).encode()),
    "feather": ("a.feather", feather()),
    "semicolons": ("a.csv", SEMICOLON),
    "semicolons and decimal commas": ("a.csv", SEMICOLON.replace(b".", b",")),
    "tabs": ("a.tsv", text(SIX, "\t", HEADER.replace(",", "\t"))),
    "byte order mark and CRLF": ("a.csv", b"\xef\xbb\xbf" + text(SIX, header=HEADER).replace(b"\n", b"\r\n")),
    "UTF-16": ("a.csv", text(SIX, header=HEADER).decode().encode("utf-16")),
    "separator line": ("a.csv", b"sep=;\r\n" + SEMICOLON),
    "address line": ("a.csv", b"https://example.invalid/candles\n" + text(SIX, header=HEADER)),
    "quoted, in capitals, spaced": ("a.csv", text(SIX, header='"Open time", "Open" ,HIGH,Low,Close,"Volume"')),
    "short names": ("a.csv", text(SIX, header="t,o,h,l,c,v")),
    "empty lines": ("a.csv", text(SIX, header=HEADER).replace(b"\n", b"\n\n") + b"  \n\n,,,,,\n"),
    "joined files": ("a.csv", text(SIX[:9], header=HEADER) + text(SIX[9:], header=HEADER)),
    "newest first": ("a.csv", text(SIX[::-1], header=HEADER)),
    "day and hour apart": (
        "a.csv",
        text(
            [[f"2024-01-{1 + k // 24:02}", f"{k % 24:02}:00", *row[1:]] for k, row in enumerate(SIX)],
            header=HEADER.replace("open_time", "<DATE>,<TIME>"),
        ),
    ),
    "seconds": ("a.csv", text([[str(int(r[0]) // 1_000), *r[1:]] for r in SIX], header=HEADER)),
    "nanoseconds": ("a.csv", text([[r[0] + "000000", *r[1:]] for r in SIX], header=HEADER)),
}


@pytest.fixture
def written(tmp_path):
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_files_as_people_have_them_hold_the_same_candles(kind, written):
    table = files.read(written(*KINDS[kind]), now_ms=NOW)
    assert table.symbols == ("BTCUSDT",)
    assert [c.open_time for c in table["BTCUSDT"]] == [c.open_time for c in TAPE]
    assert [c.ohlcv for c in table["BTCUSDT"]] == [pytest.approx(c.ohlcv, rel=1e-7) for c in TAPE]


def test_a_pipe_is_read_too(tmp_path):
    import threading

    pipe = tmp_path / "a.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(KINDS["gz"][1],))
    writer.start()
    assert len(files.read(pipe, now_ms=NOW)) == len(TAPE)
    writer.join()


@pytest.mark.parametrize(
    "header", ["timestamp", "date", "Date", "time", "Open time", "datetime", "unix", "openTime", ""]
)
@pytest.mark.parametrize("form", ["2024-01-01T{:02}:00:00Z", "2024-01-01 {:02}:00:00", "2024-01-01T{:02}:00:00+00:00"])
def test_the_time_column_has_many_names_and_naive_times_are_utc(header, form, written):
    rows = [[form.format(hour), *SIX[hour][1:]] for hour in range(24)]
    table = files.read(written("a.csv", text(rows, header=HEADER.replace("open_time", header))), now_ms=NOW)
    assert table.grid("BTCUSDT")[0].tolist() == [HOUR + hour * HOUR_MS for hour in range(24)]


def other_zip(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        (
            "a.csv",
            text([[*r[:2], *r[1:]] for r in SIX], header="open_time,open, open,high,low,close,volume"),
            "leave one",
        ),
        (
            "a.csv",
            text([[*r[:2], *r[1:]] for r in SIX], header="open_time,open,open,high,low,close,volume"),
            "leave one",
        ),
        ("a.csv", text(SIX, header="open_time,open,high,low,close,vol in BTC"), "no column volume; a candle file has"),
        ("a.csv", text([r[:4] for r in SIX]), "no header, and 4 columns"),
        ("a.csv", SEMICOLON.replace(b";40000.00", b";40.000,00", 1), "is not a number"),
        ("a.csv", b"\n \n", "it is empty"),
        ("a.csv.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "cannot be unpacked"),
        ("a.zip", zipped(b"x" * 99)[:-30], "cannot be unpacked"),
        ("a.zip", other_zip("a.csv", "b.csv"), "a zip of 2 files (a.csv, b.csv); unpack it"),
        ("a.xlsx", other_zip("[Content_Types].xml", "xl/workbook.xml"), "a zip of 2 files (no .csv)"),
        ("a.feather", b"ARROW1\0\0 and no more", "cannot be read as feather"),
        ("a.db", b"SQLite format 3\0" + b"\0" * 99, "none of parquet, feather, CSV or JSON"),
        ("a.json", b'{"code": -1121, "msg": "Invalid symbol."}', "it is no list of candles"),
        ("a.json", b"[[1, 2", "cannot be read as JSON"),
        ("a.json", b"[]", "it is no list of candles"),
        ("BTC_USDT_USDT-1h-futures.feather", feather(), "no symbol of a spot pair"),
    ],
)
def test_what_cannot_be_read_is_refused_with_one_line(name, content, cause, written):
    path = written(name, content)
    with pytest.raises(CandleFileError) as refusal:
        files.read(path, now_ms=NOW)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert cause in message


# -- hours that are not over


def warned(caplog) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


@pytest.mark.parametrize(
    ("now", "unfinished"),
    [(24 * HOUR_MS, 24), (24 * HOUR_MS - 1, 25), (23 * HOUR_MS + 1, 25), (48 * HOUR_MS, 0), (HOUR_MS, 47)],
)
def test_the_running_hour_and_the_future_are_left_out_and_said(now, unfinished, written, caplog):
    table = files.read(written("a.csv", text(SIX, header=HEADER)), now_ms=HOUR + now)
    assert (len(table), table.unfinished) == (48 - unfinished, unfinished)
    assert (f"{unfinished} row(s) left out: they have an hour that is not over" in warned(caplog)) == bool(unfinished)


def test_a_file_without_an_hour_that_is_over_is_refused(written):
    with pytest.raises(CandleFileError, match=r"no row's hour is over by 2024-01-01 00:30 UTC, this machine's time"):
        files.read(written("a.csv", text(SIX, header=HEADER)), now_ms=HOUR + HOUR_MS // 2)


@pytest.mark.parametrize(
    ("shift", "unfinished"),
    [
        # By its close_time the candle ends later than now, or covers less than the hour.
        (10 * 24 * HOUR_MS, 1),
        (-20 * MINUTE_MS, 1),
        # The first moment of the next hour is another way to write the end.
        (1, 0),
    ],
)
def test_close_time_has_a_word_in_it(shift, unfinished, written):
    rows = archive_rows()
    rows[-1][6] = str(int(rows[-1][6]) + shift)
    table = files.read(written("a.csv", text(rows)), now_ms=HOUR + 100 * HOUR_MS)
    assert table.unfinished == unfinished


def test_an_hour_that_a_halt_cut_short_stays(written):
    rows = archive_rows()
    rows[20][6] = str(int(rows[20][6]) - 20 * MINUTE_MS)
    assert files.read(written("a.csv", text(rows)), now_ms=NOW).unfinished == 0


def test_a_file_that_was_written_during_its_last_hour_has_that_hour_half(written, caplog):
    """A dump of 23:30 that is read at half past midnight."""
    path = written("a.csv", text(SIX, header=HEADER))
    at_s = (HOUR + 47 * HOUR_MS + HOUR_MS // 2) / 1_000
    os.utime(path, (at_s, at_s))
    assert files.read(path, now_ms=HOUR + 48 * HOUR_MS + HOUR_MS // 2).unfinished == 1
    assert "or was not when the file was written" in warned(caplog)
    # A file that is older than its own rows has lost its date: the date is ignored.
    os.utime(path, (315_532_800, 315_532_800))
    assert files.read(path, now_ms=NOW).unfinished == 0


# -- spacing


def spaced(step_ms: int, rows: int, first: int = HOUR) -> list[list[str]]:
    return [[str(first + k * step_ms), "1", "2", "0.5", "1", "3"] for k in range(rows)]


@pytest.mark.parametrize("rows", [3, 12, 500])
@pytest.mark.parametrize(
    ("step", "shown"),
    [(1, "1 min"), (15, "15 min"), (30, "30 min"), (90, "90 min"), (120, "2 h"), (240, "4 h"), (1_440, "24 h")],
)
def test_another_interval_is_refused_by_what_was_found(step, shown, rows, written):
    path = written("a.csv", text(spaced(step * MINUTE_MS, rows), header=HEADER))
    with pytest.raises(CandleFileError) as refusal:
        files.read(path, now_ms=NOW * 2)
    assert str(refusal.value) == f"{path}: candles of BTCUSDT are {shown} apart; Volcast reads 1h candles: fetch those"


@pytest.mark.parametrize(("step", "shown"), [(15, "15 min"), (240, "4 h"), (1_440, "24 h")])
def test_another_interval_in_a_part_of_the_file_is_refused(step, shown, written):
    rows = [*spaced(HOUR_MS, 1_000), *spaced(step * MINUTE_MS, 40, HOUR + 1_000 * HOUR_MS)]
    with pytest.raises(CandleFileError, match=rf"are {shown} apart from 2024-02-11 16:00 UTC on; Volcast reads 1h"):
        files.read(written("a.csv", text(rows, header=HEADER)), now_ms=NOW * 2)


def test_the_length_of_one_candle_is_enough(written):
    rows = archive_rows()[:2]
    for row in rows:
        row[6] = str(int(row[0]) + 15 * MINUTE_MS - 1)
    with pytest.raises(CandleFileError, match="by their close_time its candles are 15 min long"):
        files.read(written("a.csv", text(rows)), now_ms=NOW)


def test_holes_and_candles_off_the_hour_are_no_interval(written, caplog):
    """The exchange's February 2018: a halt, then two days of candles that open at HH:28:15."""
    off = spaced(HOUR_MS, 54, HOUR + 100 * HOUR_MS + 28 * MINUTE_MS + 15_000)
    rows = [*spaced(HOUR_MS, 66), *off, *spaced(HOUR_MS, 400, HOUR + 160 * HOUR_MS)]
    table = files.read(written("a.csv", text(rows, header=HEADER)), now_ms=NOW)
    assert (len(table), table.off_hour) == (466, 54)
    assert "54 row(s) left out: they do not open on the hour" in warned(caplog)


def test_hours_of_another_time_zone_are_refused(written):
    rows = spaced(HOUR_MS, 48, HOUR + 30 * MINUTE_MS)
    with pytest.raises(CandleFileError, match="48 of 48 candles do not open on the hour"):
        files.read(written("a.csv", text(rows, header=HEADER)), now_ms=NOW)


# -- symbols


def test_any_spelling_of_a_symbol_is_one_symbol(written):
    rows = [
        [spelled, *row] for spelled, row in zip(["BTC/USDT", "btcusdt", "BTC-USDT", "BTC_USDT"] * 12, SIX, strict=True)
    ]
    table = files.read(written("a.csv", text(rows, header=f"pair,{HEADER}")), asked="BTCUSDT", now_ms=NOW)
    assert (table.symbols, len(table)) == (("BTCUSDT",), 48)


def test_another_symbol_than_asked_for_and_none_at_all_are_refused(written):
    path = written("a.csv", text([["BTC/USDT", *row] for row in SIX], header=f"symbol,{HEADER}"))
    with pytest.raises(CandleFileError, match="no candles of ETHUSDT; it holds BTCUSDT: choose one of these"):
        files.read(path, asked="ETHUSDT", now_ms=NOW)
    path = written("a.csv", text([["BTC/USDT:USDT", *row] for row in SIX], header=f"symbol,{HEADER}"))
    with pytest.raises(CandleFileError, match=r"row 1: 'BTC/USDT:USDT' is no symbol of a spot pair"):
        files.read(path, now_ms=NOW)


@pytest.mark.parametrize("name", ["ETHUSDT-1h-2024-01.csv", "ETH_USDT-1h.csv", "ethusdt_1h.csv", "my_ethusdt-60m.csv"])
def test_the_name_of_a_file_says_whose_candles_it_holds(name, written, caplog):
    path = written(name, text(SIX, header=HEADER))
    assert files.read(path, now_ms=NOW).symbols == ("ETHUSDT",)
    assert "it has no column symbol: its candles are taken for ETHUSDT" in warned(caplog)
    with pytest.raises(CandleFileError, match="by its name it holds candles of ETHUSDT, not BTCUSDT; choose --symbol"):
        files.read(path, asked="BTCUSDT", now_ms=NOW)


@pytest.mark.parametrize("name", ["candles-1h.csv", "other_1h.csv", "my-data_1h.csv", "btcusdt.csv"])
def test_the_name_of_a_file_that_names_no_pair_says_nothing(name, written):
    assert files.read(written(name, text(SIX, header=HEADER)), asked="XRPUSDT", now_ms=NOW).symbols == ("XRPUSDT",)


def test_where_nothing_says_whose_candles_they_are_it_is_told_or_refused(written, caplog):
    path = written("a.csv", text(SIX, header=HEADER))
    assert files.read(path, asked="ETHUSDT", now_ms=NOW).symbols == ("ETHUSDT",)
    assert "taken for ETHUSDT" in warned(caplog)
    with pytest.raises(CandleFileError, match="nothing says whose candles it holds; add a column symbol"):
        files.read(path, default_symbol=None, now_ms=NOW)


def test_every_row_that_is_set_aside_is_said(written, caplog):
    off = [str(int(SIX[-1][0]) + 90 * MINUTE_MS), *SIX[-1][1:]]
    future = [str(NOW), *SIX[-1][1:]]
    path = written("a.csv", text([*SIX[:5], SIX[4], *SIX[5:], off, future], header=HEADER))
    table = files.read(path, now_ms=NOW)
    assert (len(table), table.duplicates, table.off_hour, table.unfinished) == (48, 1, 1, 1)
    for what in ("they repeat another row exactly", "they do not open on the hour", "that is not over"):
        assert f"{path}: 1 row(s) left out: " in warned(caplog)
        assert what in warned(caplog)
