"""Policies from TOML files: the caller's own file, or by name one that ships with Volcast (stream/policies)."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from stream.core.deciding.policy import Policy
from stream.core.deciding.policy_file import PolicyError, read

DEFAULT = "target-40"


def packaged() -> tuple[str, ...]:
    """Returns the names of the policies that ship with Volcast, sorted."""
    files = (Path(entry.name) for entry in resources.files("stream").joinpath("policies").iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".toml"))


def load(choice: Path | str | None = None) -> Policy:
    """Returns the policy in the file `choice`, else the packaged one of that name; for None, the default.

    Raises `PolicyError` with one line that names the file and the key at fault.
    """
    name = str(choice or DEFAULT)
    path = Path(name)
    try:
        if choice is not None and path.exists():
            return read(path.read_text(encoding="utf-8"), name)
        if name in packaged():
            shipped = resources.files("stream").joinpath("policies", f"{name}.toml")
            return read(shipped.read_text(encoding="utf-8"), f"{name}.toml")
    except OSError as error:
        raise PolicyError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyError(f"{name} is no text file") from None
    raise PolicyError(f"{name}: there is no such policy file; packaged are {', '.join(packaged())}")
