"""ARCHITECTURE.md and the import rules hold what they say, and the live path loads no more than it needs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from dataclasses import dataclass

import grimp
import pytest
from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure
from repository import ROOT

OURS = ("stream", "training", "export", "monitor")
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


@dataclass(frozen=True)
class Package:
    name: str
    #: Whether every other package may import it.
    for_all: bool
    #: Modules of ours and libraries; None where everything is allowed.
    allowed: tuple[str, ...] | None


def packages() -> list[Package]:
    """The rows of ARCHITECTURE.md's table of packages."""
    found = []
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `") or len(cells) != 4:
            continue
        names, job, modules, libraries = cells
        everything = modules == libraries == "everything"
        allowed = None if everything else tuple(re.findall(r"`([^`]+)`", modules + libraries))
        found += [Package(name, job.startswith("for all"), allowed) for name in re.findall(r"`([^`]+)`", names)]
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def package_of(module: str) -> Package | None:
    return max((r for r in packages() if within(module, r.name)), key=lambda r: len(r.name), default=None)


def forbidden(importer: str, imported: str) -> bool:
    """Whether the table forbids it. A library is its top level name; the standard library is free."""
    package = package_of(importer)
    if package is None:
        return True
    if imported.split(".")[0] in sys.stdlib_module_names or package.allowed is None or within(imported, package.name):
        return False
    allowed = (*package.allowed, *(other.name for other in packages() if other.for_all))
    return not any(within(imported, name) for name in allowed)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*OURS, include_external_packages=True, cache_dir=None)


def test_every_module_has_a_package_that_allows_what_it_imports(graph: grimp.ImportGraph) -> None:
    ours = [m for m in graph.modules if m.split(".")[0] in OURS]
    modules = [m for m in ours if not graph.find_children(m)]
    wrong = [
        f"{importer} imports {imported}"
        for importer in sorted(modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if forbidden(importer, imported)
    ]
    assert wrong == []
    assert len(modules) > 150


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("stream.core.market.candle", "numpy"),
        ("stream.core.market.candle", "stream.files"),
        ("stream.core.forecasting.features", "stream.core.deciding.policy"),
        ("stream.adapters.feed.client", "stream.adapters.journal.store"),
        ("stream.pipeline.intake", "stream.adapters.feed.client"),
        ("stream.testing.exchange", "stream.ports"),
        ("training.data.dataset", "training.models.fit"),
        ("training.data.collect", "httpx"),
        ("export.bundle", "training.models.run"),
        ("monitor.http.server", "stream.adapters.journal.store"),
        ("monitor.metrics", "evidently"),
        ("monitor.http.server", "stream.html"),
        ("stream.html", "matplotlib"),
        ("stream.somewhere_new", "stream.core.market.candle"),
    ],
)
def test_the_table_forbids_what_it_does_not_allow(importer: str, imported: str) -> None:
    assert forbidden(importer, imported)


def test_the_way_of_a_candle_leads_from_file_to_file(graph: grimp.ImportGraph) -> None:
    """Each file of the list is imported by one before it, or imports one: nothing on the way is reached otherwise."""
    listed = TEXT.partition("## The way of a candle")[2].partition("\n## ")[0]
    way = [path.removesuffix(".py").replace("/", ".") for path in re.findall(r"`(stream/[a-z_/]+\.py)`", listed)]
    assert len(way) == len(set(way)) > 15
    for at, module in enumerate(way[1:], 1):
        before = set(way[:at])
        joined = graph.find_modules_directly_imported_by(module) | graph.find_modules_that_directly_import(module)
        # The pipeline reaches adapters through the ports that they implement.
        if module.startswith("stream.adapters."):
            assert joined & {"stream.ports", *before}, module
        else:
            assert joined & before, module


def test_every_path_in_the_pages_for_engineers_is_there() -> None:
    for page in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        for path in re.findall(r"`((?:stream|training|export|monitor|tests|docs|grafana)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_every_import_keeps_to_its_floor() -> None:
    configure()
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None), "run lint-imports for details"


def test_the_door_opens_without_the_heavy_libraries() -> None:
    """`volcast --help` and the daemon's imports load neither the training stack nor Evidently, pandas or polars, nor
    what pages and figures are made with."""
    code = (
        "import sys, stream.commands.run, stream.commands.check;"
        "bad = {'tensorflow', 'keras', 'evidently', 'pandas', 'polars', 'onnx', 'tf2onnx',"
        "'jinja2', 'matplotlib'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_other_distribution_claims_our_top_level_names() -> None:
    """Two wheels that ship the same package overwrite each other without a word."""
    owners = importlib.metadata.packages_distributions()
    for package in ("stream", "training", "export", "monitor"):
        assert set(owners.get(package, ["volcast"])) == {"volcast"}


def test_what_is_declared_in_constraints_is_pinned_without_an_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert pins
    assert all(re.match(r"^[A-Za-z0-9._-]+==[^ ]+( ; .+)?$", pin) for pin in pins)
    assert "://" not in text
