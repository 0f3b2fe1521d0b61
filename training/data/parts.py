"""The parts of a fetch: verified answers as files in a folder alongside the output, each with its checksum.

Rules of this module:
- A part counts once its `.CHECKSUM` (`sha256sum`'s format) exists and is right. It is written after the part, and each
  of the two files appears complete or not at all: whenever a fetch is killed, every part that counts is whole.
- Nothing here knows what a part means.
"""

from __future__ import annotations

from pathlib import Path

from stream.errors import VolcastError
from stream.files import replacing
from training.data.archive import sha256


class FetchError(VolcastError, RuntimeError):
    """The fetch failed and no candle file was written; the message is one line for people."""


class Parts:
    """Named bytes in `folder`, which the first `put` makes. Methods raise `FetchError` where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes | None:
        """Returns the part; None where it was never finished, or no longer matches its checksum."""
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
        """Returns the names of the parts, finished or not, that begin with `prefix`."""
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
        # One temporary name per part: what a killed fetch leaves behind is overwritten by the next.
        with replacing(self.folder / name, temporary=self.folder / f".{name}") as temporary:
            temporary.write_bytes(content)

    def _refused(self, name: str, done: str, error: OSError) -> FetchError:
        return FetchError(f"{self.folder / name}: cannot be {done}: {error.strerror or error}")


def _line(name: str, content: bytes) -> str:
    return f"{sha256(content)}  {name}\n"
