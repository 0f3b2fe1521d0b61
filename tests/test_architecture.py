"""The import rules of the rooms, and what the live path may load."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure

ROOT = Path(__file__).parents[1]


def test_every_import_keeps_to_its_room() -> None:
    configure()
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None), "run lint-imports for details"


def test_the_door_opens_without_the_heavy_libraries() -> None:
    """`volcast --help` and the daemon's imports load neither the training stack nor Evidently, pandas or polars."""
    code = (
        "import sys, stream.commands.daemon, stream.commands.check;"
        "bad = {'tensorflow', 'keras', 'evidently', 'pandas', 'polars', 'onnx', 'tf2onnx'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_other_distribution_claims_our_top_level_names() -> None:
    """Two wheels that ship the same package overwrite each other without a word."""
    owners = importlib.metadata.packages_distributions()
    for room in ("stream", "training", "export", "monitor"):
        assert set(owners.get(room, ["volcast"])) == {"volcast"}


def test_what_is_declared_in_constraints_is_pinned_without_an_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pins
    assert all(re.match(r"^[A-Za-z0-9._-]+==[^ ]+( ; .+)?$", pin) for pin in pins)
    assert "://" not in text
