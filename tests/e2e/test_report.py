"""`volcast report` as a user runs it: from candles and from a journal, killed and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from repository import ROOT

from monitor.reports.drift import Period
from stream.__main__ import cli
from stream.adapters import predictor as predictors
from stream.adapters.bundles import packaged_model
from stream.cli import report_source
from stream.core.market.candle import HOUR_MS

#: The first candle that the tests' market plays.
START = 1_704_067_200_000

DOCS = (ROOT / "docs" / "reports.md").read_text()


def report(*args: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream", "report", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("volcast: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def made(candle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a year for which candles exist from August on."""
    folder = tmp_path_factory.mktemp("made")
    done = report("--candles", candle_file, "--quarterly", 2023, "--out", "a/b", "--json", "all.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout)
    (folder / "err.txt").write_text(done.stderr)
    return folder


def test_one_command_leaves_pages_and_their_figures(made: Path) -> None:
    names = {f"BTCUSDT-2023{n}.{s}" for n in ("-Q4-drift", "-regression", "-index") for s in ("html", "json")}
    assert {p.name for p in (made / "a" / "b").iterdir()} == names
    everything = json.loads((made / "all.json").read_text())
    assert set(everything["files"]) == names
    assert list(everything["drift"]) == ["2023-Q4"]
    figures = json.loads((made / "a" / "b" / "BTCUSDT-2023-regression.json").read_text())
    assert everything["regression"].items() <= figures.items()
    out, err = (made / "out.txt").read_text(), (made / "err.txt").read_text()
    assert f"served: QLIKE {figures['by_forecaster']['served']['qlike']:.3f}" in out
    assert out.splitlines()[-1] == "6 files: a/b/BTCUSDT-2023-index.html"
    assert "2023-Q3 has no drift page" in err
    assert "hours without a candle: 5400 of 8760" in err
    assert "trained on part of this period" in err
    assert "candles begin with 2023-08-14 00:00" in err


@pytest.fixture(scope="module")
def node(candle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a daemon that ran for 100 hours of the tests' market."""
    data_dir = tmp_path_factory.mktemp("node") / "var"
    play = ["--candles", candle_file, "--from", "2024-01-01", "--hours", 100, "--speed", "max", "--http-port", 0]
    command = [sys.executable, "-m", "stream", "demo", *map(str, play), "--data-dir", str(data_dir)]
    subprocess.run(command, check=True, capture_output=True)
    return data_dir


def test_a_journal_is_reported_as_it_was_served(node: Path, tmp_path: Path) -> None:
    done = report("--data-dir", node, "--from", "2024-01-01", "--json", tmp_path / "all.json")
    assert done.returncode == 0, done.stderr
    assert (node / "reports" / "BTCUSDT-2024-01-01-on-index.html").exists()
    figures = json.loads((tmp_path / "all.json").read_text())
    (drift,) = figures["drift"].values()
    assert (drift["hours"], drift["missing_hours"]) == (100, 3)
    # 97 candles; the days of 24 are not over, and those of another 24 hold one of the three missing hours.
    assert figures["regression"]["forecasts"] == 97 - 24 - 24


def test_a_journal_and_its_candles_say_the_same(node: Path, candle_file: Path) -> None:
    predictor = predictors.load(packaged_model())

    def cut(newest: int) -> Period:
        return Period("p", START, START + 100 * HOUR_MS, START + 100 * HOUR_MS)

    stored, _ = report_source.of_journal(node, "BTCUSDT", predictor, cut)
    anew, _ = report_source.of_file(candle_file, "BTCUSDT", predictor, cut)
    served, again = (of.matured.within(START, START + 100 * HOUR_MS) for of in (stored, anew))
    assert len(served) >= 24
    assert served.open_time.tolist() == again.open_time.tolist()
    for name in ("realized", "low", "high"):
        np.testing.assert_allclose(getattr(served, name), getattr(again, name), rtol=1e-9)
    for name, sigma in served.forecasts.items():
        np.testing.assert_allclose(sigma, again.forecasts[name], rtol=1e-9)
    known = slice(-len(stored.open_time), None)
    assert stored.open_time.tolist() == anew.open_time[known].tolist()
    assert np.array_equal(stored.ohlcv, anew.ohlcv[known], equal_nan=True)


def test_what_another_model_said_is_not_taken_for_its_own(node: Path, tmp_path: Path) -> None:
    other = onnx.load(packaged_model())
    other.producer_version = "another"
    onnx.save(other, tmp_path / "other.onnx")
    mine = json.loads(next((node / "reports").glob("*-index.json")).read_text())["model_version"]
    done = report(
        "--data-dir", node, "--from", "2024-01-01", "--model", tmp_path / "other.onnx", "--out", tmp_path / "out"
    )
    refused(done, "0 matured forecast(s)", f"{mine} made others", "--model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle_it_leaves_no_half_report(
    how: signal.Signals, volcast: Callable[..., Any], until: Callable[..., Any], candle_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = volcast("report", "--candles", candle_file, "--quarterly", 2023, "--out", out)
    until(lambda: list(out.glob(".*.part")) if out.exists() else None, "the folder in which it works")
    process.stop(how)
    if how == signal.SIGKILL:
        assert [p.suffix for p in out.iterdir()] == [".part"]
        # The next run removes it, even one that is refused.
        refused(report("--candles", candle_file, "--quarterly", 2025, "--out", out), "2024-01-17 15:00")
        assert list(out.iterdir()) == []
    else:
        assert process.popen.returncode == 128 + how
        assert not out.exists()
        assert "Traceback" not in process.err


def test_what_cannot_be_reported_is_refused_in_one_line(candle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = ("--out", tmp_path / "out")
    refused(report("--data-dir", tmp_path, "--from", "2024-01-01", *out), "no journal", "volcast run")
    refused(report("--candles", candle_file, "--quarterly", 2020, *out), "no candle of BTCUSDT in that period")
    refused(report("--candles", candle_file, "--from", "2024-01-17", *out), "matured forecast(s)", "longer period")
    refused(
        report("--candles", candle_file, "--from", "2024-01-01", "--symbol", "nosuch", *out), "no candles of NOSUCH"
    )
    refused(
        report("--candles", candle_file, "--quarterly", 2024, "--out", tmp_path / "file" / "x"), "cannot be written"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--from", "2024-01-05", "--to", "2024-01-05"], 2, "is empty"),
        (["--from", "2024-01-05T00:30"], 2, "full hour"),
        (["--from", "yesterday"], 2, "no ISO time"),
        (["--from", "2024-01-01", "--symbol", "../../x"], 2, "no symbol"),
        (["--quarterly", "2024", "--json", "nowhere/x.json"], 1, "make it first"),
        ([], 2, "name a period"),
        (["--to", "2024-01-05"], 2, "name a period"),
        (["--quarterly", "2024", "--from", "2024-01-01"], 2, "name a period"),
        (["--quarterly", "24"], 2, "2010"),
    ],
)
def test_what_was_asked_wrongly_is_said_before_anything_is_done(options: list[str], code: int, word: str) -> None:
    done = CliRunner().invoke(cli, ["report", "--candles", "not-read.parquet", *options])
    assert (done.exit_code, word in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["evidently"], "evidently is not installed"),
        (["matplotlib"], "matplotlib is not installed"),
        (["evidently", "matplotlib"], "evidently and matplotlib are not installed"),
    ],
)
def test_without_the_extra_it_says_what_to_install(
    gone: list[str], words: str, candle_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules |= dict.fromkeys({gone})")
    done = report("--candles", candle_file, "--quarterly", 2023, "--out", tmp_path / "out", PYTHONPATH=str(tmp_path))
    refused(done, words, f"{sys.executable} -m pip install", "[drift]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
@pytest.mark.timeout(900)
def test_the_year_2024_is_reported_as_the_docs_say(real_data: Path, tmp_path: Path) -> None:
    command, output = re.findall(r"```sh\n(volcast report .*?)\n```\n\n```\n(.*?)```", DOCS, re.DOTALL)[0]
    options = command.split()[2:]
    options[options.index("--candles") + 1] = str(real_data / "btcusdt_1h.parquet")
    done = report(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
    pages = list((tmp_path / "reports").iterdir())
    names = [*(f"Q{k}-drift" for k in (1, 2, 3, 4)), "regression", "index"]
    assert {p.name for p in pages} == {f"BTCUSDT-2024-{n}.{s}" for n in names for s in ("html", "json")}
    assert all(p.stat().st_size < 5_000_000 for p in pages)
    for quarter in (1, 2, 3, 4):
        drift = json.loads((tmp_path / "reports" / f"BTCUSDT-2024-Q{quarter}-drift.json").read_text())
        assert (drift["reference"], drift["missing_hours"], len(drift["weeks"])) == ("bundle", 0, 13)
