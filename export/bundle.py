"""`volcast export`: turns a run directory into one ONNX file, with everything in it that the daemon must know.

Rules of this module:
- The run directory is the interface to training: `network.keras`, `trees.npz`, `contract.json`, `windows.npz`.
- No clock and no randomness: two exports of one run are the same bytes, and the model's version is their hash.
- A bundle that does not load as the daemon loads it, or does not compute what the run computed, is not written.
"""

from __future__ import annotations

import os
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from export import card, parity, trees
from stream import files
from stream.adapters import predictor
from stream.core.forecasting import contract
from stream.core.forecasting.contract import Contract, ContractError
from stream.files import replacing

_MAKERS = ("tf2onnx", "onnx", "onnxruntime")


def export(run: Path, out: Path, *, evaluation: Path | None = None, ledger: Path | None = None) -> dict[str, Any]:
    """Converts the run, checks it and writes the bundle to `out`, at once or not at all.

    `evaluation`: what `volcast evaluate --json` wrote about the run; its scores go into the bundle, and a model card
    is written next to it, with the number of scorings in `ledger`.
    Raises `ValueError` with a one-line message where the run is incomplete, contradicts this Volcast or fails the
    parity check. Returns a summary: bundle, version, sha256, bytes, parity (largest |Δ log σ|), windows (how many were
    compared), card.
    """
    run, out = Path(run), Path(out)
    agreed, leaves, given = _read_run(run)
    figures = card.read_evaluation(Path(evaluation), agreed) if evaluation else None
    scorings = card.count_scorings(Path(ledger)) if ledger else None
    if figures is not None:
        agreed = msgspec.structs.replace(agreed, scores=agreed.scores | card.scores(figures))
    # TensorFlow is loaded here and not before: refusing an incomplete run must not take five seconds.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from export import canonical, convert

    network = convert.to_onnx(convert.load_network(run / "network.keras"))
    graph = canonical.canonical(trees.with_trees(network, leaves))
    agreed = msgspec.structs.replace(agreed, versions=agreed.versions | {name: version(name) for name in _MAKERS})
    entry = graph.metadata_props.add()
    entry.key, entry.value = contract.METADATA_KEY, msgspec.json.encode(agreed, order="sorted").decode()
    data = canonical.to_bytes(graph)

    try:
        with replacing(out) as temporary:
            temporary.write_bytes(data)
            loaded = predictor.load(temporary)
            gap = parity.largest_gap(loaded, given)
            if not gap <= parity.LIMIT:
                raise convert.ExportError(
                    f"{run}: the run and its bundle differ by {gap:.1e} in log volatility, {parity.LIMIT:.0e} is "
                    "allowed; nothing was written"
                )
            card_path = None
            if figures is not None:
                card_path = out.with_suffix(".md")
                model = loaded.model
                text = card.render(
                    agreed, figures, version=model.version, sha256=model.sha256, size=len(data), scorings=scorings
                )
                files.write(card_path, text.encode())
    except ContractError as error:
        raise convert.ExportError(f"{run}: its bundle is refused: {error}") from None
    except OSError as error:
        raise convert.ExportError(f"{out}: cannot be written: {error.strerror}") from None
    return {
        "bundle": str(out),
        "version": loaded.model.version,
        "sha256": loaded.model.sha256,
        "bytes": len(data),
        "parity": gap,
        "windows": len(given.sequence),
        "card": None if card_path is None else str(card_path),
    }


def _read_run(run: Path) -> tuple[Contract, trees.Leaves, parity.Windows]:
    try:
        agreed = contract.read((run / "contract.json").read_text())
        leaves = trees.read(run / "trees.npz")
        with np.load(run / "windows.npz", allow_pickle=False) as archive:
            given = parity.Windows(archive["sequence"], archive["static"], archive["volatility"])
    except ContractError as error:
        raise ContractError(f"{run}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ContractError(f"{run}: is no finished run: {cause}; make one with `volcast train`") from None
    return agreed, leaves, given
