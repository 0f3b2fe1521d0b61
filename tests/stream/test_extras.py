"""The advice for a missing extra: a command for this interpreter that leaves the installed Volcast as it is."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from repository import ROOT

Command = Callable[[str, dict[str, object] | None], list[str]]
EXTRAS = ("demo", "drift", "train", "research", "pipeline")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Returns the arguments of the command for an extra, where Volcast was installed from `origin`."""
    text = metadata.distribution("volcast").read_text("METADATA")
    assert text is not None

    def command(extra: str, origin: dict[str, object] | None) -> list[str]:
        installed = tmp_path / "volcast-0.1.0.dist-info"
        installed.mkdir(exist_ok=True)
        (installed / "METADATA").write_text(text)
        if origin is not None:
            (installed / "direct_url.json").write_text(json.dumps(origin))
        code = f"from stream.extras import installing; print(installing({extra!r}))"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        (line,) = done.stdout.splitlines()
        return shlex.split(line)

    return command


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_clone_that_is_installed_to_be_edited_stays_it(extra: str, command: Command, tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "constraints.txt").touch()
    origin = {"url": clone.as_uri(), "dir_info": {"editable": True}}
    assert command(extra, origin) == [
        sys.executable, "-m", "pip", "install", "-c", f"{clone}/constraints.txt", "-e", f"{clone}[{extra}]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {"url": "file:///gone/volcast-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "file:///gone", "dir_info": {"editable": True}},
    ],
)
@pytest.mark.parametrize(("extra", "first"), [("demo", "iotcore"), ("drift", "evidently"), ("pipeline", "dvc")])
def test_beside_a_wheel_only_what_the_extra_consists_of_is_installed(
    extra: str, first: str, origin: dict[str, object] | None, command: Command
) -> None:
    words = command(extra, origin)
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert words[4].startswith(first)
    assert not any(word.startswith("volcast") for word in words[4:])
    assert "extra" not in " ".join(words)


def test_requirements_of_some_platforms_keep_their_markers(command: Command) -> None:
    from packaging.requirements import Requirement

    wanted = [Requirement(word) for word in command("train", None)[4:]]
    markers = {requirement.name: str(requirement.marker or "") for requirement in wanted}
    assert set(markers) == {"keras", "lightgbm", "onnx", "tf2onnx", "tensorflow", "tensorflow-cpu"}
    assert "x86_64" in markers["tensorflow-cpu"]
    assert "aarch64" in markers["tensorflow"]
    assert markers["keras"] == ""
