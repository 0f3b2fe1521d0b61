"""What a fetch has in hand: verified answers as files in a folder beside the output, each with its checksum.

Rules of this module:
- A part counts once its `.CHECKSUM` (`sha256sum`'s format) is there and right. It is written after the part, and both
  appear at once or not at all: whatever moment a fetch is killed at, what counts is whole.
- Nothing here knows what a part means.
"""

from __future__ import annotations

from pathlib import Path

from stream.errors import VolcastError
from stream.files import replacing
from training.data.archive import sha256


class FetchError(VolcastError, RuntimeError):
    """Nothing could be written; one line for people."""


class Parts:
    """Named bytes in `folder`, which exists from the first `put` on. `FetchError` where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes | None:
        """The part; None where it was never finished, or is not what it was."""
        try:
            content = (self.folder / name).read_bytes()
            line = (self.folder / f"{name}.CHECKSUM").read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        except OSError as error:
            raise self._refused(name, "read", error) from None
        return content if line == _line(name, content) else None

    def put(self, name: str, content: bytes) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            self._write(name, content)
            self._write(f"{name}.CHECKSUM", _line(name, content).encode())
        except OSError as error:
            raise self._refused(name, "written", error) from None

    def names(self, prefix: str) -> list[str]:
        """The parts, finished or not, whose name begins so."""
        try:
            found = sorted(p.name for p in self.folder.iterdir() if p.name.startswith(prefix))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._refused("", "read", error) from None
        return [name for name in found if not name.endswith(".CHECKSUM")]

    def drop(self, name: str) -> None:
        try:
            (self.folder / f"{name}.CHECKSUM").unlink(missing_ok=True)
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._refused(name, "removed", error) from None

    def _write(self, name: str, content: bytes) -> None:
        # One name per part: what a killed fetch leaves is overwritten by the next.
        with replacing(self.folder / name, temporary=self.folder / f".{name}") as temporary:
            temporary.write_bytes(content)

    def _refused(self, name: str, done: str, error: OSError) -> FetchError:
        return FetchError(f"{self.folder / name}: cannot be {done}: {error.strerror or error}")


def _line(name: str, content: bytes) -> str:
    return f"{sha256(content)}  {name}\n"
