"""Which bundle to load: the one given, the data directory's champion, or the one that ships with Volcast; and whether
that has become another file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

CHAMPION = "champion.onnx"

#: What tells a file from another one under the same name.
_Identity = tuple[int, int, int, int]


def packaged_model() -> Path:
    """Returns the path of the bundle that ships with Volcast."""
    return Path(str(resources.files("export") / "models" / "btcusdt-1h.onnx"))


def model_path(model: Path | None, data_dir: Path) -> Path:
    """Returns `model` if given, else the data directory's champion, else the packaged bundle (docs/contract.md §1)."""
    if model is not None:
        return model
    champion = data_dir / CHAMPION
    return champion if champion.exists() else packaged_model()


class ModelFile:
    """The file that `model_path` chooses for a data directory, which may become another one while the node runs."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._known = self._seen = self._now()

    def changed(self) -> Path | None:
        """Returns the file's path if it is another one than at the call before, None otherwise. A file that has changed
        since the call before may still be being written: it is told at the next call."""
        now = self._now()
        settled, self._seen = now == self._seen, now
        if now == self._known or not settled:
            return None
        self._known = now
        return now[0]

    def _now(self) -> tuple[Path, _Identity | None]:
        path = model_path(None, self._data_dir)
        try:
            found = path.stat()
        except OSError:
            return path, None
        return path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
