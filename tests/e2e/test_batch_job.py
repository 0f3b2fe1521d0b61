"""The scheduled batch job of docs/batch.md, run as it stands there, against an exchange on this machine."""

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

DOCS = Path(__file__).parents[2] / "docs" / "batch.md"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (text,) = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", DOCS.read_text(), re.DOTALL)
    path = tmp_path / "volcast-batch"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_documented_job_runs_and_runs_again(script: Path, volcast: Callable[..., Any], tmp_path: Path) -> None:
    exchange = volcast("exchange", "--hours", 6_000, "--speed", 3_600, "--ws-port", 0, "--rest-port", 0)
    rest_url = exchange.find(r"--rest-url (\S+)")
    folder = tmp_path / "job"
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VOLCAST_BATCH_DIR": str(folder),
        "VOLCAST_BATCH_FROM": "2024-06-01",
        "VOLCAST_REST_URL": rest_url,
    }
    runs = []
    for _ in range(2):
        done = subprocess.run([script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        runs.append(pl.read_parquet(folder / "forecasts.parquet"))
    first, second = runs
    assert first.height > 2_000
    # The exchange's clock has moved on; what was said stays said.
    assert second.head(first.height).equals(first)

    exchange.stop()
    failed = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert pl.read_parquet(folder / "forecasts.parquet").equals(second)


def test_the_units_and_the_cron_line_run_that_script() -> None:
    text = DOCS.read_text()
    (unit,) = re.findall(r"ExecStart=(\S+)", text)
    assert unit in text.split("```sh")[1].split("```")[0]
    (cron,) = re.findall(r"^\S+ \* \* \* \*  volcast  (\S+)$", text, re.MULTILINE)
    assert cron == unit
