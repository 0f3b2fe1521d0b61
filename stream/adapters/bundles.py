"""Which bundle to load: the one given, the data directory's champion, or the one that ships with Volcast."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def packaged_model() -> Path:
    """Returns the path of the bundle that ships with Volcast."""
    return Path(str(resources.files("export") / "models" / "btcusdt-1h.onnx"))


def model_path(model: Path | None, data_dir: Path) -> Path:
    """Returns `model` if given, else the data directory's champion, else the packaged bundle (docs/contract.md §1)."""
    if model is not None:
        return model
    champion = data_dir / "champion.onnx"
    return champion if champion.exists() else packaged_model()
