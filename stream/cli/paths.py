"""Paths on the command line: what a command reads, what it writes, and that the two are never the same file.

Every path of every command is one of the types here, and `Command` checks all of them before anything is computed. It
refuses an output that is an input, or another output, by what it is on the disk and not by how it is spelled, and an
output that cannot be written. A new command gets these checks by declaring its paths.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import click

from stream.errors import RefusedError

#: What `volcast train` leaves for `volcast export`.
RUN_FILES = ("network.keras", "trees.npz", "contract.json", "windows.npz")
#: What `volcast report` writes.
PAGE_FILES = ("*-drift.html", "*-drift.json", "*-regression.html", "*-regression.json", "*-index.html")
#: What an attempt of `volcast retrain` leaves in a folder of its own.
ATTEMPT_FILES = ("plan.json", "gated.onnx", "refit.onnx", "verdict.json", "verdict.html", "metrics.json", "days.csv")
#: Formats in which candle files and forecasts are written.
TABLE_SUFFIXES = (".parquet", ".csv")
#: What a node keeps in its data directory, and the models that it may find there.
DATA_FILES = ("journal.sqlite*", "journal.lock", "champion.onnx", "challenger.onnx", "retraining.lock")


@dataclass(frozen=True, slots=True)
class Place:
    """A path and what gave it, such as an option. `holds`: names, perhaps with *, of the files that matter in it where
    it is a directory."""

    label: str
    path: Path
    holds: tuple[str, ...] = ()


class Given(click.Path):
    """A path of any kind. Where it cannot be used, `Command` or the code that opens it reports that in one line."""

    #: What the help text calls its value.
    name = "file"

    def __init__(self, holds: tuple[str, ...] = ()) -> None:
        super().__init__(path_type=Path, readable=False)
        self.name = type(self).name
        self.holds = holds

    def places(self, label: str, path: Path, params: Mapping[str, Any]) -> list[Place]:
        return [Place(label, path, self.holds)]


class Input(Given):
    """A file that is read, or a directory that `holds` such files. `shipped`: package, folder and name pattern of the
    packaged files that may be chosen instead."""

    def __init__(self, holds: tuple[str, ...] = (), shipped: tuple[str, str, str] | None = None) -> None:
        super().__init__(holds)
        self.shipped = shipped


class DataDir(Given):
    """A node's data directory: no other output may be one of its files, whether the command reads or writes it."""

    name = "directory"

    def __init__(self) -> None:
        super().__init__(DATA_FILES)


Also = Callable[[Path, Mapping[str, Any]], Iterable[Path]]


class Output(Given):
    """A file that is written. `also`: what is written alongside it. Only a `stream` may be a pipe or a device: other
    files are renamed into place, which would replace /dev/null itself. `suffixes`: those allowed; empty allows any."""

    def __init__(self, *, stream: bool = False, suffixes: tuple[str, ...] = (), also: Also | None = None) -> None:
        super().__init__()
        self.stream = stream
        self._suffixes = suffixes
        self._also = also

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if self._suffixes and path.suffix.lower() not in self._suffixes:
            self.fail(f"{str(value)!r} must end in {' or '.join(self._suffixes)}", param, ctx)
        return path

    def places(self, label: str, path: Path, params: Mapping[str, Any]) -> list[Place]:
        extra = self._also(path, params) if self._also is not None else ()
        return [Place(label, path), *(Place(f"{label} ({other.name})", other) for other in extra)]


class Folder(Given):
    """A directory that is created where it is missing, and filled with files named as in `holds`."""

    name = "directory"


class Command(click.Command):
    """A command that starts only where its paths can be used."""

    def invoke(self, ctx: click.Context) -> Any:
        written: list[Place] = []
        read: list[Place] = []
        for parameter in self.params:
            kind, value = parameter.type, ctx.params.get(parameter.name or "")
            if not isinstance(kind, Given):
                continue
            if isinstance(kind, Input) and kind.shipped is not None:
                package, folder, names = kind.shipped
                # The value may also be the name of a packaged file.
                read.append(Place("a file that ships with Volcast in", _shipped(package, folder), (names,)))
            for path in value if isinstance(value, tuple) else () if value is None else (value,):
                label = parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.make_metavar(ctx)
                (written if isinstance(kind, Output | Folder) else read).extend(kind.places(label, path, ctx.params))
                if isinstance(kind, Output):
                    _refuse_unwritable(label, path, stream=kind.stream)
                elif isinstance(kind, Folder):
                    _refuse_unfillable(label, path)
        refuse_clashes(written, read)
        return super().invoke(ctx)


def _shipped(package: str, folder: str) -> Path:
    return Path(str(resources.files(package).joinpath(folder)))


def places_of(*given: tuple[str, Path | None]) -> list[Place]:
    """Returns the places of those paths that were given."""
    return [Place(label, path) for label, path in given if path is not None]


def inputs_of(data_dir: Path, model: Path | None = None) -> list[Place]:
    """Returns what a command reads by default, where settings and not the command line name it."""
    return [Place("--data-dir", data_dir, DATA_FILES), *places_of(("--model", model))]


def refuse_clashes(written: Iterable[Place], read: Iterable[Place]) -> None:
    """Raises `RefusedError` where something written is something read, or is written twice."""
    written = list(written)
    for index, output in enumerate(written):
        for other in (*written[:index], *read):
            if _same(output, other):
                raise RefusedError(
                    f"{output.label} {output.path}: would write over {other.label} {other.path}, which is the same "
                    "file; choose another"
                )


def _same(one: Place, other: Place) -> bool:
    if not one.holds and not other.holds:
        identity = _identity(one.path)
        return identity is not None and identity == _identity(other.path)
    if one.holds and other.holds:
        # Two folders may be the same; their files are different ones.
        return False
    folder, file = (one, other) if one.holds else (other, one)
    if not folder.path.is_dir():
        # A file was given where a folder was possible, or the folder does not exist yet.
        return _identity(folder.path) == _identity(file.path) or _lies_in(file.path, folder)
    return _lies_in(file.path, folder) or any(_same(Place("", p), Place("", file.path)) for p in _held(folder))


def _held(folder: Place) -> list[Path]:
    try:
        return [p for p in folder.path.iterdir() if any(fnmatch.fnmatchcase(p.name, name) for name in folder.holds)]
    except OSError:
        # The code that opens it reports why it cannot be read.
        return []


def _lies_in(file: Path, folder: Place) -> bool:
    resolved = _resolved(file)
    matches = any(fnmatch.fnmatchcase(resolved.name, name) for name in folder.holds)
    return matches and _identity(resolved.parent) == _identity(folder.path)


def _identity(path: Path) -> tuple[int | str, ...] | None:
    """Returns what identifies a path, however it is spelled; None where writing to it twice does no harm."""
    try:
        status = path.stat()
    except OSError:
        # It does not exist yet: identified by its nearest existing folder and the names below.
        resolved = _resolved(path)
        return None if resolved.parent == resolved else (*(_identity(resolved.parent) or ()), resolved.name)
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _refuse_unwritable(label: str, file: Path, *, stream: bool) -> None:
    """Raises `RefusedError` where `file` cannot be written, before the hours that computing its content may take."""
    refused = f"{label} {file}: cannot be written: "
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except OSError as error:
        raise RefusedError(f"{refused}{error.strerror}; choose another place") from None
    if status is not None:
        if stat.S_ISDIR(status.st_mode):
            raise RefusedError(f"{refused}it is a directory; name a file")
        if not stat.S_ISREG(status.st_mode):
            if stream:
                return
            raise RefusedError(f"{refused}it is no regular file; name one")
        if not os.access(file, os.W_OK):
            raise RefusedError(f"{refused}it is there and write-protected; choose another, or allow it")
    folder = file.absolute().parent
    if not folder.is_dir():
        raise RefusedError(f"{refused}{folder} is no directory; make it first")
    _refuse_closed(refused, folder, f".{file.name}.")


def _refuse_unfillable(label: str, folder: Path) -> None:
    refused = f"{label} {folder}: cannot be written: "
    above = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not above.is_dir():
        raise RefusedError(f"{refused}{above} is no directory; choose another")
    _refuse_closed(refused, above, ".volcast-")


def _refuse_closed(refused: str, folder: Path, prefix: str) -> None:
    """Raises `RefusedError` where no file can be made in `folder`, found out by making one.

    Access rights say little about disks that are full or read-only, or on another machine.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)
    except OSError as error:
        raise RefusedError(f"{refused}{error.strerror}: {folder}; choose another place") from None
    os.close(handle)
    Path(name).unlink(missing_ok=True)
