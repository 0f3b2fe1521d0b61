"""docs/glossary.md holds in the code: no name has a word that was retired."""

from __future__ import annotations

import ast
import re
import subprocess

from repository import ROOT

RETIRED = re.compile(r"`(\w+)`")


def retired() -> set[str]:
    rows = (ROOT / "docs" / "glossary.md").read_text().partition("| not | but |")[2].splitlines()
    return {word for row in rows if row.startswith("| `") for word in RETIRED.findall(row.split("|")[1])}


def words(name: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def names(source: str) -> set[str]:
    """What a module defines or imports under a name: functions, classes, arguments, variables, attributes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.rpartition(".")[2])
    return found


def test_no_name_in_the_code_has_a_retired_word() -> None:
    gone = retired()
    assert {"said", "told", "beside", "lane", "speaker"} <= gone
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    wrong = []
    for path in listed.stdout.split():
        # The name of a test is a sentence.
        found = {name for name in names((ROOT / path).read_text()) if not name.startswith("test_")}
        wrong += [f"{path}: {name}" for name in sorted(found | {path}) if words(name) & gone]
    assert wrong == []
