"""docs/faults.md and the suite say the same: each row names exactly the files whose tests are marked with it."""

from __future__ import annotations

import ast
import re

from repository import ROOT

ROWS = range(1, 62)
_ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def marked() -> dict[int, set[str]]:
    """Row to the test files that carry its mark: `pytest.mark.fault(row)`, or `case(row, ...)` where that sets it."""
    found: dict[int, set[str]] = {row: set() for row in ROWS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Constant):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            row = call.args[0].value
            if name in ("fault", "case") and isinstance(row, int):
                found[row].add(str(path.relative_to(ROOT)))
    return found


def test_the_list_and_the_suite_are_in_step() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    listed = {int(row): (behaviour, tests) for row, _, behaviour, tests in _ROW.findall(text)}
    assert list(listed) == list(ROWS)
    suite = marked()
    for row, (behaviour, tests) in listed.items():
        assert behaviour
        if tests == "none":
            assert behaviour.startswith("Cannot reach"), row
        assert set(re.findall(r"`([^`]+)`", tests)) == suite[row], row
