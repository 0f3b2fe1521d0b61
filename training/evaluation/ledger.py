"""The ledger of all scorings on the test year, one JSON line each. The model card counts them: each one costs some of
the year's worth as a test.

Rules of this module:
- Each scoring whose period touches the test year adds a line, whatever its result and whichever command makes it, and
  none is ever removed.
- The same scoring again is the same line, and the file stays as it is: a pipeline may be repeated.
- The file is replaced whole, under a lock: a crash leaves the old one, two writers leave both lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from stream import files, times
from stream.errors import InputError

TEST_YEAR = ("2024-01-01", "2025-01-01")
_DIGITS = 6


class LedgerError(InputError):
    """The ledger cannot be read or written: the file's fault. The message is one line, with the path and the cure."""


class Scoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model, what it was scored on, and its figures for the next 24 h, none where a command shows others. `start`,
    `end`: ISO, the period scored."""

    #: Version of the bundle, or a name for a model that is fitted anew on the way.
    model: str
    symbol: str
    start: str
    end: str
    #: "fixed" or "walk_forward" of `evaluate`; the other commands by their names.
    protocol: str
    rmse: float | None = None
    qlike: float | None = None
    r2: float | None = None
    coverage: float | None = None
    #: sha256 of the candles that were scored.
    data_sha256: str | None = None
    note: str | None = None


def touches_test_year(start_ms: int, end_ms: int) -> bool:
    """Returns whether [start, end), ms, shares an hour with the test year."""
    return start_ms < times.parse(TEST_YEAR[1]) and end_ms > times.parse(TEST_YEAR[0])


def read(path: Path) -> list[Scoring]:
    """Returns all scorings, oldest first; none where there is no file. Raises `LedgerError`, which names the line that
    is no scoring."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(msgspec.json.decode(line, type=Scoring))
        except msgspec.DecodeError as error:
            raise LedgerError(
                f"{path}: line {number} is no scoring: {error}; restore the file, for instance with `git restore`"
            ) from None
    return found


def count(path: Path) -> int:
    """Returns the number of scorings on the test year."""
    return len(read(path))


def append(path: Path, scorings: Sequence[Scoring]) -> int:
    """Adds the scorings that are not in the ledger yet, figures to six digits; returns how many that were."""
    path = Path(path)
    try:
        with _locked(path.absolute().parent):
            before = read(path)
            new: list[Scoring] = []
            for scoring in map(_rounded, scorings):
                if scoring not in before and scoring not in new:
                    new.append(scoring)
            if new:
                files.write(path, b"".join(msgspec.json.encode(s) + b"\n" for s in [*before, *new]))
            return len(new)
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be written: {error.strerror}") from None


def _rounded(scoring: Scoring) -> Scoring:
    """Rounds the figures: sums differ in their last digits from machine to machine, which is no other scoring."""

    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.{_DIGITS}g}")

    figures = {name: short(getattr(scoring, name)) for name in ("rmse", "qlike", "r2", "coverage")}
    return msgspec.structs.replace(scoring, **figures)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
