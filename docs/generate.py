"""Writes the tables of docs/ that the code knows best: settings, metrics, fields of messages.

`python docs/generate.py` rewrites what stands between `<!-- generated: NAME -->` and `<!-- end -->`; a test fails where
that would change anything.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from monitor.metrics import Metrics
from stream import settings
from stream.core.messages import schemas
from stream.testing.sample_model import sample_model

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(list(head))]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def code(text: str) -> str:
    return text if "`" in text or " " in text else f"`{text}`"


def settings_table() -> str:
    config = ("`--config`", "`volcast.toml`, if present", "TOML file of settings")
    rows = [(f"`{s.flag}`", code(s.default), s.text) for s in settings.about()]
    return table(("flag", "default", "meaning"), [config, *rows])


def metrics_table() -> str:
    metrics = Metrics(version="", symbols=["BTCUSDT"], model=sample_model())
    rows = []
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = ", ".join(f"`{label}`" for label in metrics.labels[family.name]) or "–"
        rows.append((f"`{name}`", family.type, shown, family.documentation))
    return table(("metric", "type", "labels", "meaning"), rows)


def _type(hint: Any) -> str:
    """A field's type as JSON has it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type(a) for a in arguments)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[1])}"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return {int: "integer", float: "number", str: "string", bool: "boolean"}[hint]


def _structs(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """It, and what its fields are made of."""
    found, waiting = [kind], list(get_type_hints(kind).values())
    while waiting:
        hint = waiting.pop(0)
        waiting += get_args(hint)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in found:
            found += _structs(hint)
    return found


def messages_tables() -> str:
    parts, seen = [], set()
    for message in sorted(schemas.published(), key=lambda kind: kind.__name__):
        for kind in _structs(message):
            if kind in seen:
                continue
            seen.add(kind)
            hints = get_type_hints(kind)
            fields = msgspec.structs.fields(kind)
            schema = next((f" `{f.default}`" for f in fields if f.name == "schema"), "")
            rows = [(f"`{f.encode_name}`", _type(hints[f.name])) for f in fields if f.name != "schema"]
            parts.append(f"### {kind.__name__}{schema}\n\n{table(('field', 'type'), rows)}")
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "messages": messages_tables,
}


def generated(text: str) -> str:
    """A page with its generated blocks as they should be."""
    return _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}\n{block[3]}", text)


def main() -> None:
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        if (new := generated(text)) != text:
            page.write_text(new)
            sys.stdout.write(f"{page.name}: written\n")


if __name__ == "__main__":
    main()
