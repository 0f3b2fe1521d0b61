"""The wheel holds the four rooms and what they need to run, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile

import pytest
from repository import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_top_level_is_exactly_the_four_rooms(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"stream", "training", "export", "monitor"}


@pytest.mark.parametrize(
    "name",
    [
        "export/models/btcusdt-1h.onnx",
        "monitor/http/page.html",
        "stream/testing/exchange.py",
        "stream/commands/demo.py",
        "stream/policies/target-40.toml",
    ],
)
def test_it_ships_what_a_demo_needs(wheel: zipfile.ZipFile, name: str) -> None:
    assert name in wheel.namelist()


def test_it_ships_every_template(wheel: zipfile.ZipFile) -> None:
    templates = {
        str(path.relative_to(ROOT))
        for top in ("stream", "training", "export", "monitor")
        for path in (ROOT / top).rglob("*.j2")
    }
    assert {name.split("/")[0] for name in templates} == {"stream", "training", "monitor"}
    assert templates <= set(wheel.namelist())


def test_it_ships_no_tests_caches_or_candles(wheel: zipfile.ZipFile) -> None:
    kinds = (".pyc", ".parquet", ".keras", ".sqlite")
    strays = [n for n in wheel.namelist() if n.endswith(kinds) or n.rpartition("/")[2].startswith("test_")]
    assert strays == []


def test_its_metadata_names_the_command_and_forbids_uploads(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    (entry_points,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    text = wheel.read(metadata).decode()
    assert "Private :: Do Not Upload" in text
    assert "Requires-Dist: aiomqtt" in text
    assert "Requires-Dist: jinja2" in text
    # Figures are drawn by `report` as well as by `evaluate` and `backtest`.
    assert {"drift", "research"} == set(re.findall(r"^Requires-Dist: matplotlib.*extra == '(\w+)'", text, re.MULTILINE))
    assert "volcast = stream.__main__:main" in wheel.read(entry_points).decode()
