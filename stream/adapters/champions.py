"""The champion of a data directory: how it is replaced, what is kept of those before it, and how one goes back.

Rules of this module:
- The champion is one file, `champion.onnx`, which is replaced by one rename and never written in place. Whatever fails
  before that rename leaves it as it was.
- Each model that ever was champion stays in `models/`, under its version, with its lineage as JSON alongside.
- What is promoted has been loaded as the daemon loads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from stream import files
from stream.adapters import predictor
from stream.adapters.bundles import CHALLENGER, CHAMPION, model_path
from stream.core.forecasting.contract import ContractError, Model
from stream.core.messages.judged import Because, SymbolJudged, Verdict
from stream.errors import RefusedError

MODELS = "models"
LOCK_NAME = "retraining.lock"
#: A model that has learnt from nothing newer than this deserves a warning.
OLD_DAYS = 180
_VERSION_DIGITS = 12


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model comes from. Times are ms; versions are those of bundles."""

    schema: str = "volcast.model.lineage/1"
    version: str
    sha256: str
    #: The champions before it, the latest first; `parents[0]` is what a rollback puts back.
    parents: tuple[str, ...] = ()
    symbols: tuple[str, ...]
    trained_from: int
    trained_until: int
    #: sha256 of the candles that it learnt from.
    data_sha256: str
    seed: int | None = None
    #: What the makers scored it with.
    scores: dict[str, float] = {}
    #: When it was promoted, since when it ran in the champion's shadow, and why it was made; none for a model that was
    #: there before any retraining.
    promoted_at: int | None = None
    shadow_since: int | None = None
    because: Because | None = None
    #: The attempt that made it, the version that the gate scored in its place, and the gate's figures.
    attempt: str | None = None
    gated: str | None = None
    gate: tuple[SymbolJudged, ...] = ()


@contextmanager
def retraining(data_dir: Path) -> Iterator[None]:
    """Reserves the retraining of a data directory. Raises `RefusedError` where another process has it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(data_dir, error) from None
    try:
        _take(lock, data_dir)
        yield
    finally:
        os.close(lock)


def _take(lock: int, data_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusedError(
            f"another retraining is at work in {data_dir}: wait for its end, or choose another --data-dir"
        ) from None
    except OSError as error:
        raise _unwritable(data_dir, error) from None


def champion(data_dir: Path) -> predictor.Predictor:
    """Loads the champion, or the packaged bundle where there is none. Raises `ContractError`, one line, where the file
    is damaged or foreign."""
    path = model_path(None, data_dir)
    try:
        return predictor.load(path)
    except ContractError as error:
        raise ContractError(_with_cure(data_dir, str(error))) from None


def lineage(data_dir: Path, version: str) -> Lineage | None:
    """Returns what is known of a model; None where it has no lineage here, or one that cannot be read."""
    try:
        return msgspec.json.decode((data_dir / MODELS / f"{version}.json").read_bytes(), type=Lineage)
    except (OSError, msgspec.DecodeError):
        return None


def described(model: Model) -> Lineage:
    """Returns the lineage of a model of which only its contract is known."""
    training = model.contract.training
    return Lineage(
        version=model.version,
        sha256=model.sha256,
        symbols=training.symbols,
        trained_from=training.trained_from,
        trained_until=training.trained_until,
        data_sha256=training.data_sha256,
        seed=training.seed,
        scores=model.contract.scores,
    )


def verdicts_path(data_dir: Path) -> Path:
    return data_dir / "retraining" / "judged.jsonl"


def verdicts(data_dir: Path) -> list[Verdict]:
    """Returns the verdicts of all attempts, oldest first. Raises `RefusedError` where their file is damaged."""
    path = verdicts_path(data_dir)
    try:
        return [msgspec.json.decode(line, type=Verdict) for line in path.read_bytes().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise RefusedError(f"{path} is damaged: {error}; move it away") from None


def promote(data_dir: Path, bundle: Path, new: Lineage) -> Lineage:
    """Makes `bundle` the champion; returns its lineage, with its parents. Raises `ContractError` where it cannot be
    loaded and `RefusedError` where the directory cannot be written; the champion is then what it was."""
    return _place(data_dir, CHAMPION, bundle, new)


def place_challenger(data_dir: Path, bundle: Path, new: Lineage) -> Lineage:
    """Puts `bundle` beside the champion, as the challenger that runs in its shadow; all else is as in `promote`."""
    return _place(data_dir, CHALLENGER, bundle, new)


def promote_challenger(data_dir: Path, now_ms: int) -> Lineage:
    """Makes the challenger that ran in the champion's shadow the champion; all else is as in `promote`.

    Raises `RefusedError` where there is none, or one of unknown origin.
    """
    bundle = data_dir / CHALLENGER
    if not bundle.exists():
        raise RefusedError(f"{data_dir} has no {CHALLENGER}: nothing runs in the champion's shadow")
    known = lineage(data_dir, predictor.load(bundle).model.version)
    if known is None:
        raise RefusedError(f"{bundle} is of unknown origin: only what `volcast retrain` has placed there is promoted")
    placed = promote(data_dir, bundle, msgspec.structs.replace(known, promoted_at=now_ms))
    # Where this is cut short, a challenger stays that is the champion already.
    with suppress(OSError):
        bundle.unlink()
    return placed


def rollback(data_dir: Path) -> tuple[str, str]:
    """Puts the champion's parent back; returns the version that goes and the one that comes.

    Raises `RefusedError` where there is none, and `ContractError` where its file is damaged.
    """
    path = data_dir / CHAMPION
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RefusedError(
            f"{data_dir} has no {CHAMPION}, so nothing was promoted: there is no model to go back to"
        ) from None
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}; mend its permissions") from None
    version = hashlib.sha256(data).hexdigest()[:_VERSION_DIGITS]
    known = lineage(data_dir, version)
    if known is None or not known.parents:
        kept = ", ".join(sorted(p.stem for p in (data_dir / MODELS).glob("*.onnx") if p.stem != version))
        cure = (
            f"copy one of those kept in {data_dir / MODELS} over it ({kept})"
            if kept
            else "remove it to serve the packaged one"
        )
        raise RefusedError(f"{path}: version {version} has no parent here: {cure}")
    parent = data_dir / MODELS / f"{known.parents[0]}.onnx"
    data = predictor.read(parent)
    predictor.parse(data, str(parent))
    _write(data_dir, path, data)
    return version, known.parents[0]


def _place(data_dir: Path, name: str, bundle: Path, new: Lineage) -> Lineage:
    data = predictor.read(bundle)
    model = predictor.parse(data, str(bundle)).model
    if model.sha256 != new.sha256:
        raise RefusedError(f"{bundle} is not the file that was judged: it was changed meanwhile; retrain again")
    path = model_path(None, data_dir)
    former_data = predictor.read(path)
    former = predictor.parse(former_data, str(path)).model
    before = lineage(data_dir, former.version) or described(former)
    parents = tuple(v for v in (former.version, *before.parents) if v != model.version)
    placed = msgspec.structs.replace(new, parents=parents)
    models = data_dir / MODELS
    try:
        models.mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(models, error) from None
    for kept, of, content in ((before, former, former_data), (placed, model, data)):
        if not (models / f"{of.version}.onnx").exists():
            _write(data_dir, models / f"{of.version}.onnx", content)
        if of is model or lineage(data_dir, of.version) is None:
            text = msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n"
            _write(data_dir, models / f"{of.version}.json", text)
    _write(data_dir, data_dir / name, data)
    return placed


def _write(data_dir: Path, path: Path, data: bytes) -> None:
    try:
        files.write(path, data)
    except OSError as error:
        raise _unwritable(data_dir, error) from None
    # The file is in its place; a name that cannot be synced now is synced by the system later.
    with suppress(OSError):
        files.sync(path.parent)


def _with_cure(data_dir: Path, text: str) -> str:
    kept = any((data_dir / MODELS).glob("*.onnx"))
    cure = (
        f"copy one of those kept in {data_dir / MODELS} over it" if kept else "take it away to serve the packaged one"
    )
    return f"{text}; {cure}" if (data_dir / CHAMPION).exists() else text


def _unwritable(folder: Path, error: OSError) -> RefusedError:
    return RefusedError(f"{folder} cannot be written ({error.strerror or error}): make room or mend its permissions")
