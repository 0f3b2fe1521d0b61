"""Log lines for machines: one JSON object per line, with fields to filter by."""

from __future__ import annotations

import ast
import io
import json
import logging
from pathlib import Path

from repository import ROOT

from stream import logs


def test_what_was_given_with_a_line_are_fields_of_its_object() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.Json())
    log = logging.Logger("stream.somewhere")
    log.addHandler(handler)
    log.warning("%s: gap of %d hour(s)", "BTCUSDT", 2, extra={"symbol": "BTCUSDT", "hours": 2})
    log.info("stopping")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["message"], first["symbol"], first["hours"]) == ("BTCUSDT: gap of 2 hour(s)", "BTCUSDT", 2)
    assert first.keys() - {"symbol", "hours"} == second.keys() == {"time", "level", "logger", "message"}


def _lines_without_a_symbol(path: Path) -> list[str]:
    """Returns the log calls whose text begins with a symbol and that do not give it as a field."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        text = node.args[0] if node.args else None
        if not (
            isinstance(node.func.value, ast.Name) and node.func.value.id == "log" and isinstance(text, ast.Constant)
        ):
            continue
        keys = {
            key.value
            for keyword in node.keywords
            if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict)
            for key in keyword.value.keys
            if isinstance(key, ast.Constant)
        }
        if str(text.value).startswith("%s: ") and "symbol" not in keys:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_every_line_about_a_symbol_can_be_found_by_it() -> None:
    modules = [*(ROOT / "stream" / "pipeline").rglob("*.py"), *(ROOT / "stream" / "adapters").rglob("*.py")]
    modules += (ROOT / "monitor").rglob("*.py")
    # Lines about candle files begin with the file's name, not with a symbol.
    of_files = ROOT / "stream" / "adapters" / "candles"
    assert [line for p in modules if not p.is_relative_to(of_files) for line in _lines_without_a_symbol(p)] == []
