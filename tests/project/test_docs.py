"""Docs that lie fail here: commands, settings, metrics, topics and links of the README and the docs pages."""

from __future__ import annotations

import re
import runpy

import click
import msgspec
import pytest
from click.testing import CliRunner
from command_line import COMMANDS
from repository import ROOT

from stream.__main__ import cli
from stream.core.messages import schemas, topics
from stream.settings import Settings

README = (ROOT / "README.md").read_text()
PAGES = {p.relative_to(ROOT): p.read_text() for p in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
EVERYTHING = "\n".join(PAGES.values())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name: str) -> None:
    done = CliRunner().invoke(cli, [name, "--help"])
    assert done.exit_code == 0
    assert f"Example: volcast {name}" in done.output
    assert f"`{name}`" in README
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help or option.show_default, f"{name} {option.name} says nothing"


def test_every_setting_is_a_flag_of_run_and_in_the_docs() -> None:
    flags = {p.name for p in COMMANDS["run"].params}
    for field in msgspec.structs.fields(Settings):
        assert field.name in flags
        assert f"--{field.name.replace('_', '-')}" in EVERYTHING
    assert flags - {f.name for f in msgspec.structs.fields(Settings)} == {"config"}


def test_generated_tables_are_what_the_code_says() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    found = set()
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text()
        assert generate["generated"](text) == text, f"{page.name}: run `python docs/generate.py`"
        found |= set(re.findall(r"<!-- generated: (\w+) -->", text))
    assert found == generate["BLOCKS"].keys()


def test_every_retained_topic_and_every_event_is_in_the_docs() -> None:
    for leaf in topics.RETAINED_TOPICS:
        assert f"/{leaf}" in EVERYTHING
    for schema in schemas.SCHEMAS:
        assert schema in EVERYTHING, schema


def test_links_between_pages_lead_somewhere() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_commands_shown_in_the_docs_exist() -> None:
    for page, text in PAGES.items():
        for line in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?volcast (\S+)", text, re.M):
            assert line in COMMANDS or line.startswith("-"), f"{page} shows volcast {line}"


def test_the_changelog_speaks_of_this_version() -> None:
    from importlib.metadata import version

    assert f"## {version('volcast')}" in (ROOT / "CHANGELOG.md").read_text()
