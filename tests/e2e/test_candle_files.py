"""A candle file means the same to every command: which rows are left out, what is assumed, how symbols are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from repository import ROOT

from stream.adapters.candles import files
from stream.core.market.candle import HOUR_MS, Candle, grid_floor
from stream.testing.market import simulate

#: The commands that end by themselves, with the options that they need besides a candle file.
COMMANDS = {
    "predict": ["--out", "out.csv"],
    "drift": [],
    "report": ["--from", "2020-01-01", "--out", "pages"],
    "backtest": [],
    "evaluate": ["--no-tests"],
    "train": ["--out", "run"],
}
SYMBOL_FLAG = {"drift": "--symbols", "demo": "--symbols", "exchange": "--symbols"}
SERVERS = {"demo": ["--http-port", "0"], "exchange": ["--ws-port", "0", "--rest-port", "0"]}
#: As `curl` gets them from REST: the newest row is the hour that is still running.
HOURS = 60


def volcast_now(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    root = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "stream", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
    )


@pytest.fixture
def dump(tmp_path: Path) -> tuple[Path, int]:
    """A file as it comes from REST, with one row twice, one off the hour and one of next year; and the hour in which it
    was written."""
    running = grid_floor(time.time_ns() // 1_000_000)
    tape = simulate(["BTCUSDT"], running - (HOURS - 1) * HOUR_MS, HOURS, seed=3)["BTCUSDT"]
    rows = [row(c) for c in tape]
    rows = [*rows[:9], rows[8], *rows[9:]]
    rows.insert(5, [str(tape[4].open_time + 90_000), *row(tape[4])[1:]])
    rows.append([str(running + 365 * 24 * HOUR_MS), *row(tape[-1])[1:]])
    path = tmp_path / "dump.csv"
    path.write_text("\n".join(["open_time,open,high,low,close,volume", *(",".join(r) for r in rows)]) + "\n")
    return path, running


def row(candle: Candle) -> list[str]:
    return [str(candle.open_time), *(repr(x) for x in candle.ohlcv)]


LEFT_OUT = (
    "1 row(s) left out: they repeat another row exactly",
    "1 row(s) left out: they do not open on the hour",
    "2 row(s) left out: they have an hour that is not over",
    "it has no column symbol: its candles are taken for BTCUSDT",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_leaves_out_the_same_rows_and_says_so(name: str, dump: tuple[Path, int], tmp_path: Path) -> None:
    path, running = dump
    done = volcast_now(tmp_path, name, "--candles", path, *COMMANDS[name])
    assert "Traceback" not in done.stderr
    for line in LEFT_OUT:
        assert f"{path}: {line}" in done.stderr
    if name == "predict":
        assert done.returncode == 0, done.stderr
        # A forecast for the running hour would have the id of one by the daemon: there is none.
        assert pl.read_csv(tmp_path / "out.csv")["open_time"].max() == running - HOUR_MS


@pytest.mark.parametrize("name", SERVERS)
def test_the_exchange_plays_no_hour_that_is_not_over(
    name: str, dump: tuple[Path, int], volcast: Callable[..., Any], tmp_path: Path
) -> None:
    path, _ = dump
    process = volcast(name, "--candles", path, "--hours", 2, *SERVERS[name])
    process.find(r"taken for (BTCUSDT)")
    for line in LEFT_OUT:
        process.find(f"({re.escape(line)})")


@pytest.mark.parametrize("name", [*COMMANDS, *SERVERS])
@pytest.mark.parametrize("spelling", ["eth/usdt", "BTC/USDT:USDT"])
def test_another_symbol_than_the_files_is_refused_in_one_line_by_every_command(
    name: str, spelling: str, tmp_path: Path
) -> None:
    files.write(simulate(["BTCUSDT"], 1_704_067_200_000, 48, seed=3)["BTCUSDT"], tmp_path / "btc.csv")
    done = volcast_now(
        tmp_path,
        *(name, "--candles", "btc.csv", SYMBOL_FLAG.get(name, "--symbol"), spelling),
        *COMMANDS.get(name, SERVERS.get(name, [])),
    )
    # A spelling that is no symbol is wrong usage; which symbols the file has is known only once it is read.
    assert done.returncode == (2 if ":" in spelling else 1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("volcast: ")
    symbol = spelling.replace("/", "").upper()
    expected = f"no candles of {symbol}; it holds BTCUSDT" if ":" not in spelling else f"{spelling!r} is no symbol"
    assert expected in line


@pytest.mark.parametrize("name", [*COMMANDS, *SERVERS])
def test_a_header_with_one_name_twice_is_refused_in_one_line_by_every_command(name: str, tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text(
        "open_time,open, open,high,low,close,volume\n"
        + "".join(f"{1_704_067_200_000 + k * HOUR_MS},1,1,2,0.5,1,3\n" for k in range(48))
    )
    done = volcast_now(tmp_path, name, "--candles", "twice.csv", *COMMANDS.get(name, SERVERS.get(name, [])))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "volcast: twice.csv: columns 'open' and ' open' have one name but for spaces and case; leave one"
    ]


def test_symbols_as_ccxt_writes_them_have_the_daemons_ids(tmp_path: Path) -> None:
    tape = simulate(["BTCUSDT"], 1_704_067_200_000, 60, seed=3)["BTCUSDT"]
    files.write(tape, tmp_path / "plain.csv")
    text = (tmp_path / "plain.csv").read_text()
    (tmp_path / "slash.csv").write_text(text.replace("BTCUSDT", "BTC/USDT"))
    for name in ("plain", "slash"):
        done = volcast_now(tmp_path, "predict", "--candles", f"{name}.csv", "--out", f"{name}-out.csv")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "plain-out.csv").read_bytes() == (tmp_path / "slash-out.csv").read_bytes()
