"""Candle files: what is written is read again, what is ambiguous is refused with one line that names the row."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.adapters.candles import files
from stream.adapters.candles.files import CandleFileError
from stream.core.deciding.replay import to_grid
from stream.core.market.candle import HOUR_MS, Candle
from stream.testing.market import simulate

HOUR = 1_609_459_200_000  # 2021-01-01 00:00 UTC
HEADER = "open_time,open,high,low,close,volume"


def row(time, opened=1, high=2, low=0.5, close=1, volume=3) -> str:
    return f"{time},{opened},{high},{low},{close},{volume}"


def file_of(tmp_path, *rows: str, header: str = HEADER):
    path = tmp_path / "candles.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


prices = st.floats(1e-8, 1e8)


@st.composite
def candle_lists(draw):
    drawn = draw(st.sets(st.integers(HOUR // HOUR_MS, HOUR // HOUR_MS + 500), min_size=1, max_size=20))
    # At least two consecutive hours: a file without any has another interval.
    hours = sorted({*drawn, min(drawn) + 1})
    out = []
    for symbol in draw(st.sets(st.sampled_from(["BTCUSDT", "ETHUSDT", "1000SATSUSDT"]), min_size=1)):
        for hour in hours:
            low, a, b, high = sorted(draw(st.tuples(prices, prices, prices, prices)))
            volume = draw(st.floats(0, 1e12))
            extra = draw(
                st.sampled_from([(None, None, None), (1.5, 7, 0.25), (0.1 + 0.2, 2**40, None)]),
            )
            out.append(Candle(symbol, hour * HOUR_MS, a, high, low, b, volume, *extra))
    return out


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@given(written=candle_lists())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_what_is_written_is_read_again_to_the_last_bit(tmp_path, suffix, written):
    path = tmp_path / f"candles.{suffix}"
    assert files.write(written, path) == len(written)
    table = files.read(path)
    assert len(table) == len(written)
    for symbol in table.symbols:
        own = [c for c in written if c.symbol == symbol]
        assert table[symbol] == own
        times, ohlcv = table.grid(symbol)
        expected_times, expected = to_grid(own)
        np.testing.assert_array_equal(times, expected_times)
        np.testing.assert_array_equal(ohlcv, expected)


def test_the_types_on_disk_are_the_contracts(tmp_path):
    tape = simulate(["BTCUSDT"], HOUR, 5, seed=1)["BTCUSDT"]
    files.write(tape, tmp_path / "a.parquet")
    files.write(tape, tmp_path / "a.csv")
    assert pl.read_parquet(tmp_path / "a.parquet").schema["open_time"] == pl.Datetime("ms", "UTC")
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith(f"BTCUSDT,{HOUR},")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.parquet"]


@pytest.mark.parametrize(
    "times",
    [
        [HOUR, HOUR + HOUR_MS],
        [HOUR * 1_000, (HOUR + HOUR_MS) * 1_000],
        [HOUR // 1_000, (HOUR + HOUR_MS) // 1_000],
        [HOUR * 1_000_000, (HOUR + HOUR_MS) * 1_000_000],
        [f"{HOUR}.0", f"{HOUR + HOUR_MS}.0"],
        ["2021-01-01", "2021-01-01 01:00"],
        ["2021-01-01T00:00:00", "2021-01-01T01:00:00.000"],
        ["2021-01-01T00:00:00Z", "2021-01-01 01:00:00 UTC"],
        ["2021-01-01T02:00:00+02:00", "2020-12-31T20:00:00-0500"],
    ],
)
def test_times_are_read_by_magnitude_and_naive_ones_are_utc(tmp_path, times):
    table = files.read(file_of(tmp_path, *(row(t) for t in times)))
    assert table.grid("BTCUSDT")[0].tolist() == [HOUR, HOUR + HOUR_MS]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_parquet_times_of_any_unit_and_zone(tmp_path, unit, zone):
    frame = pl.DataFrame({"open_time": [datetime(2021, 1, 1), datetime(2021, 1, 1, 1)]}).with_columns(
        pl.col("open_time").cast(pl.Datetime(unit)), *(pl.lit(1.0).alias(c) for c in files.OHLCV)
    )
    if zone:
        frame = frame.with_columns(pl.col("open_time").dt.replace_time_zone("UTC").dt.convert_time_zone(zone))
    frame.write_parquet(tmp_path / "a.parquet")
    assert files.read(tmp_path / "a.parquet").grid("BTCUSDT")[0].tolist() == [HOUR, HOUR + HOUR_MS]


def test_symbols_may_alternate_duplicates_are_dropped_and_symbols_are_upper_cased(tmp_path):
    header = "symbol," + HEADER
    path = file_of(
        tmp_path,
        f"EthUsdt,{row(HOUR)}",
        f"ethusdt,{row(HOUR + HOUR_MS)}",
        f"BTCUSDT,{row(HOUR)}",
        f"ETHUSDT,{row(HOUR)}",
        header=header,
    )
    table = files.read(path)
    assert table.symbols == ("BTCUSDT", "ETHUSDT")
    assert table.duplicates == 1
    assert [c.open_time for c in table["ETHUSDT"]] == [HOUR, HOUR + HOUR_MS]
    with pytest.raises(CandleFileError, match="no candles of XRPUSDT; it holds BTCUSDT, ETHUSDT"):
        table.grid("XRPUSDT")


@given(order=st.permutations(range(6)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_in_neither_order_of_time_are_refused_by_the_first_of_them(tmp_path, order):
    path = file_of(tmp_path, *(row(HOUR + hour * HOUR_MS) for hour in order))
    first = next((n for n in range(1, 6) if order[n] < max(order[:n])), None)
    if first is None or list(order) == sorted(order, reverse=True):
        assert len(files.read(path)) == 6
        return
    where = rf"row {first + 1} \(BTCUSDT 2021-01-01 0{order[first]}:00 UTC\) is earlier than a row before it; sort"
    with pytest.raises(CandleFileError, match=where):
        files.read(path)


# A full disk, as a child process sees it: the kernel refuses to let a file grow beyond the limit.
FULL_DISK = """
import resource, sys
from pathlib import Path
from stream.adapters.candles import files
from stream.testing.market import simulate
tape = simulate(["BTCUSDT"], 1_609_459_200_000, 2_000, seed=1)["BTCUSDT"]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    files.write(tape, Path(sys.argv[1]))
except files.CandleFileError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    files.write(simulate(["BTCUSDT"], HOUR, 5, seed=1)["BTCUSDT"], path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: cannot be written: ")
    assert "File too large" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_without_a_symbol_column_the_caller_names_the_symbol(tmp_path):
    assert files.read(file_of(tmp_path, row(HOUR)), default_symbol="ethusdt").symbols == ("ETHUSDT",)


def test_a_few_candles_off_the_hour_are_set_aside_and_counted(tmp_path):
    path = file_of(tmp_path, row(HOUR), row(HOUR + HOUR_MS), row(HOUR + 2 * HOUR_MS + 1_234))
    table = files.read(path)
    assert (len(table), table.off_hour) == (2, 1)


def test_missing_hours_are_nan_on_the_grid(tmp_path):
    times, ohlcv = files.read(file_of(tmp_path, row(HOUR), row(HOUR + 3 * HOUR_MS))).grid("BTCUSDT")
    assert len(times) == 4
    assert np.isnan(ohlcv[1:3]).all()
    assert np.isfinite(ohlcv[[0, 3]]).all()


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([row(HOUR), row(HOUR + HOUR_MS, close="NaN")], r"row 2 \(BTCUSDT 2021-01-01 01:00 UTC\): a price or the vol"),
        ([row(HOUR, close="")], r"row 1 .*missing or not finite"),
        ([row(HOUR, volume="inf")], r"row 1 .*missing or not finite"),
        ([row(HOUR, low=0)], r"row 1 .*zero or negative"),
        ([row(HOUR, low=-1)], r"row 1 .*zero or negative"),
        ([row(HOUR, volume=-1)], r"row 1 .*volume is negative"),
        ([row(HOUR, high=0.75)], r"row 1 .*outside \[low, high\]"),
        ([row(HOUR, close="abc")], r"row 1: close 'abc' is not a number"),
        ([row(HOUR), row("soon")], r"row 2: open_time 'soon' is no time"),
        ([row("")], r"row 1: open_time .* is no time"),
        ([row(17)], r"row 1: open_time is not between 2010 and 2100; write ISO 8601, or integer ms"),
        ([row(-(10**18))], r"row 1: .*"),
        ([row(HOUR), row(HOUR + HOUR_MS), row(HOUR, volume=4)], r"row 1 .* and row 3 are of the same hour and differ"),
        ([row(HOUR + k * 60_000) for k in range(30)], r"candles of BTCUSDT are 1 min apart; Volcast reads 1h"),
        ([row(HOUR + k * 4 * HOUR_MS) for k in range(30)], r"candles of BTCUSDT are 4 h apart"),
        ([], "no candles"),
        ([row(HOUR), row(HOUR) + ",9,9,9"], "cannot be read as CSV"),
    ],
)
def test_a_bad_file_is_refused_with_one_line(tmp_path, rows, cause):
    path = file_of(tmp_path, *rows)
    with pytest.raises(CandleFileError) as refusal:
        files.read(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert re.search(cause, message)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.csv", b"", "cannot be read as CSV"),
        ("a.csv", b"a,b\n1,2\n", "no column open_time, open, high, low, close, volume; a candle file has a header"),
        ("a.csv", b"\x00\xff\xfe" * 99, "no column|cannot be read"),
        ("a.parquet", b"open_time\n", "no parquet file"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        (
            "a.csv",
            f"symbol,{HEADER}\n,{HOUR},1,1,1,1,1\n".encode(),
            "row 1: it has no symbol",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, cause):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CandleFileError, match=cause) as refusal:
        files.read(path)
    assert "\n" not in str(refusal.value)


def test_an_absent_file_a_folder_and_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(CandleFileError, match="No such file"):
        files.read(tmp_path / "nothing.csv")
    with pytest.raises(CandleFileError, match="Is a directory"):
        files.read(tmp_path)
    with pytest.raises(CandleFileError, match="No such file or directory; make the folder"):
        files.write([], tmp_path / "nowhere" / "a.csv")
    with pytest.raises(CandleFileError, match="rename it"):
        files.write([], tmp_path / "a.xlsx")


def test_columns_of_another_type_are_refused_by_name(tmp_path):
    frame = pl.DataFrame({"open_time": [HOUR], **{name: [1.0] for name in files.OHLCV}})
    frame.with_columns(pl.lit(timedelta(1)).alias("close")).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(CandleFileError, match="column close is Duration"):
        files.read(tmp_path / "a.parquet")
    frame.with_columns(pl.lit(True).alias("open_time")).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(CandleFileError, match="open_time is Boolean"):
        files.read(tmp_path / "b.parquet")


@pytest.mark.real_data
def test_the_real_files_are_read_whole(real_data):
    table = files.read(real_data / "btcusdt_1h.parquet")
    times, ohlcv = table.grid("BTCUSDT")
    assert times[0] == int(datetime(2017, 8, 17, 4, tzinfo=UTC).timestamp() * 1e3)
    assert len(table) == np.isfinite(ohlcv[:, 3]).sum() == 64_524
    assert table.duplicates == 0
    others = files.read(real_data / "other_1h.parquet")
    assert len(others.symbols) == 10
    assert others["ETHUSDT"][0].trades is None
    assert datetime.fromtimestamp(others["ETHUSDT"][-1].open_time / 1e3, UTC) == datetime(2024, 12, 31, 23, tzinfo=UTC)
