"""The pipeline of `make model`, small: from data to bundle by DVC, twice from nothing, equal to the last byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from stream.adapters.candles import files
from stream.testing.market import simulate_symbol

START = 1_598_918_400_000  # 2020-09-01 00:00 UTC
BUNDLE = Path("export/models/btcusdt-1h.onnx")


def project(folder: Path) -> Path:
    """Copies what the pipeline reads, with parameters for half a year of simulated candles; returns the folder."""
    ignored = shutil.ignore_patterns("__pycache__", "*.onnx", "*.md", "cache", "tmp")
    for name in ("stream", "training", "export", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"from": "2020-09-01", "until": "2021-03-01"}
    params["evaluate"] = {"years": "2021"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("data", "docs/images", "runs"):
        (folder / name).mkdir(parents=True)
    files.write(simulate_symbol("BTCUSDT", START, 4_600, seed=9), folder / params["data"]["candles"])
    files.write(simulate_symbol("ETHUSDT", START, 4_600, seed=9), folder / params["data"]["pool"])
    return folder


def repro(folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1_200)
def test_two_clean_runs_give_equal_bytes_and_a_third_has_nothing_to_do(tmp_path: Path) -> None:
    one, other = project(tmp_path / "one"), project(tmp_path / "other")
    for folder in (one, other):
        repro(folder)
    assert (one / BUNDLE).read_bytes() == (other / BUNDLE).read_bytes()
    assert (one / BUNDLE.with_suffix(".md")).read_text() == (other / BUNDLE.with_suffix(".md")).read_text()
    output = repro(one)
    assert output.count("didn't change, skipping") == 3

    config = (ROOT / ".dvc" / "config").read_text()
    assert "analytics = false" in config
    assert "check_update = false" in config
