"""The scheduled batch job of docs/batch.md, run as it is printed there, against an exchange on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from repository import ROOT

DOCS = ROOT / "docs" / "batch.md"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (text,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "volcast-batch"
    path.write_text(text)
    path.chmod(0o755)
    return path


def as_cron_does(script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the job as cron does: a shell in / without a terminal, and only the given variables in its environment."""
    return subprocess.run(
        ["/bin/sh", "-c", str(script)],
        cwd="/",
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
    )


CRON = {"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", "LOGNAME": "volcast"}


def test_the_documented_job_runs_under_cron_and_runs_again(
    script: Path, volcast: Callable[..., Any], tmp_path: Path
) -> None:
    exchange = volcast("exchange", "--hours", 6_000, "--speed", 3_600, "--ws-port", 0, "--rest-port", 0)
    rest_url = exchange.find(r"--rest-url (\S+)")
    folder = tmp_path / "job"
    folder.mkdir()
    job = {
        "VOLCAST_BIN": str(Path(sys.executable).parent),
        "VOLCAST_BATCH_DIR": str(folder),
        "VOLCAST_BATCH_FROM": "2024-06-01",
        "VOLCAST_REST_URL": rest_url,
    }
    # The tree under test, where it is not the one that is installed.
    job |= {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
    runs = []
    # The second run has no PATH either, as under some other schedulers.
    for surroundings in (CRON, {}):
        done = as_cron_does(script, **surroundings, **job)
        assert done.returncode == 0, done.stderr
        runs.append(pl.read_parquet(folder / "forecasts.parquet"))
    first, second = runs
    assert first.height > 2_000
    # The exchange's clock has moved on; earlier forecasts stay as they were.
    assert second.head(first.height).equals(first)

    exchange.stop()
    failed = as_cron_does(script, **CRON, **job)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert pl.read_parquet(folder / "forecasts.parquet").equals(second)


@pytest.mark.parametrize(("missing", "word"), [("VOLCAST_BIN", "set VOLCAST_BIN"), ("VOLCAST_BATCH_DIR", "nowhere")])
def test_the_job_says_in_one_line_what_it_lacks(script: Path, tmp_path: Path, missing: str, word: str) -> None:
    job = {"VOLCAST_BIN": str(Path(sys.executable).parent), "VOLCAST_BATCH_DIR": str(tmp_path)}
    job[missing] = str(tmp_path / "nowhere")
    # Volcast may be installed in these places on this machine.
    script.write_text(script.read_text().replace(":/usr/local/bin:/opt/volcast/bin", ""))
    done = as_cron_does(script, **CRON, **job)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr


def test_the_units_and_the_cron_line_run_that_script() -> None:
    text = DOCS.read_text()
    (unit,) = re.findall(r"ExecStart=(\S+)", text)
    assert unit in text.split("```sh")[1].split("```")[0]
    (cron,) = re.findall(r"^\S+ \* \* \* \*  volcast  (\S+)$", text, re.MULTILINE)
    assert cron == unit
