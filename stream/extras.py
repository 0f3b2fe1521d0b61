"""How to install a missing extra into this interpreter's environment, alongside the Volcast that is there.

No package index has Volcast, and one that lists the name has another project. So the command names Volcast itself only
where it is an editable installation of a clone; for any other it names the requirements of the extra.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from stream.errors import RefusedError

_NAME = "volcast"


def missing(modules: Iterable[str]) -> list[str]:
    """Returns those of these modules that are not installed. Imports none of them."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def refuse_missing(what: str, extra: str, modules: Sequence[str], otherwise: str = "") -> None:
    """Raises `RefusedError` where modules of `extra` that `what` needs are missing; it names them and the cure."""
    if lacking := missing(modules):
        other = f" ({otherwise})" if otherwise else ""
        raise RefusedError(f"{what} {', '.join(lacking)}, of the extra {extra!r}: {installing(extra)}{other}")


def installing(extra: str) -> str:
    """Returns the shell command that installs `extra`."""
    clone = _clone()
    if clone is None:
        what = _requirements(extra)
    else:
        constraints = clone / "constraints.txt"
        what = ["-c", str(constraints)] if constraints.is_file() else []
        what += ["-e", f"{clone}[{extra}]"]
    return " ".join(map(shlex.quote, [*_installer(), *what]))


def _installer() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        # uv creates environments without pip.
        return ["uv", "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install"]


def _clone() -> Path | None:
    """Returns the folder that this Volcast runs from if it is an editable installation, else None."""
    try:
        origin = json.loads(metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    if not origin.get("dir_info", {}).get("editable"):
        return None
    folder = Path(url2pathname(urlsplit(origin["url"]).path))
    return folder if folder.is_dir() else None


def _requirements(extra: str) -> list[str]:
    try:
        stated = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        stated = []
    found = []
    for line in stated:
        requirement, _, marker = line.partition(";")
        rest, belongs = re.subn(rf"""\s*(and\s+)?extra\s*==\s*["']{re.escape(extra)}["']""", "", marker)
        if belongs:
            # Single quotes, quoted for a shell, are unreadable.
            rest = rest.strip().replace("'", '"')
            found.append(f"{requirement.strip()}; {rest}" if rest else requirement.strip())
    return found
