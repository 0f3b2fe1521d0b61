"""DVC's stages and the code that their figures rest on: an edit of any of it makes the stage out of date."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest
import yaml
from repository import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
#: What each stage's command calls.
ENTRIES = {
    "train": ["training.bundling.train"],
    "evaluate": ["training.evaluation.evaluate", "training.pages.evaluation_page", "training.pages.figures"],
    "export": ["export.bundle"],
}
#: How something is refused or written changes no figure.
WITHOUT_FIGURES = {"stream.clock", "stream.errors", "stream.extras", "stream.files"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("stream", "training", "export", "monitor", cache_dir=None)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_that_it_runs(stage: str, graph: grimp.ImportGraph) -> None:
    dependencies = [ROOT / d for d in STAGES[stage]["deps"] if "$" not in d]
    for dependency in dependencies:
        assert dependency.exists() or "runs/" in str(dependency), dependency
    needed = set(ENTRIES[stage]).union(*(graph.find_upstream_modules(entry) for entry in ENTRIES[stage]))
    missing = [
        module
        for module in sorted(needed - WITHOUT_FIGURES)
        if not any(file_of(module).is_relative_to(dependency) for dependency in dependencies)
    ]
    assert missing == []


def test_every_stage_is_looked_at() -> None:
    assert ENTRIES.keys() == STAGES.keys()
