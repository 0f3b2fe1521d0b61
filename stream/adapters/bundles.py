"""Which bundle to load: the one given, the data directory's champion, or the one that ships with Volcast; and whether
a file has become another one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

CHAMPION, CHALLENGER = "champion.onnx", "challenger.onnx"

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


def shadow_path(shadow: Path | None, data_dir: Path) -> Path:
    """Returns where the bundle is that runs as a shadow: the one given, else the data directory's challenger."""
    return shadow if shadow is not None else data_dir / CHALLENGER


class ModelFile:
    """A file under a name that may come to hold another one, or none, while a node runs."""

    def __init__(self, path: Callable[[], Path], *, known: bool) -> None:
        """`path()` is where it is now; `known` whether the file that is there now is no news."""
        self._path = path
        self._seen = self._now()
        self._known = self._seen if known else (self._seen[0], None)

    def changed(self) -> Path | None:
        """Returns the path if what is there is another file than at the call before, or none any more; None otherwise.
        A file that has changed since the call before may still be being written: it is told at the next call."""
        now = self._now()
        settled, self._seen = now == self._seen, now
        if now == self._known or not settled:
            return None
        self._known = now
        return now[0]

    def _now(self) -> tuple[Path, _Identity | None]:
        path = self._path()
        try:
            found = path.stat()
        except OSError:
            return path, None
        return path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
