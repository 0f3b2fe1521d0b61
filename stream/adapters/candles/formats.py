"""Reads the table in a candle file: parquet, feather, CSV or JSON, compressed or not, as its first bytes show.

The suffix does not matter, except that a .parquet file must be one. A file is read once, so that a pipe works too. What
the table contains is not checked here.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from stream.errors import InputError

#: A CSV of a million rows has 100 MB: what unpacks to more than this is no candle file.
_MOST_BYTES = 1 << 30
_SEPARATORS = (",", ";", "\t", "|")
#: The columns of the exchange's archive, most of whose files have no header.
_ARCHIVE = (
    *("open_time", "open", "high", "low", "close", "volume", "close_time"),
    *("quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume", "ignore"),
)
_WIDTHS_WITHOUT_HEADER = (6, 11, 12)
_BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, EOFError, zlib.error)
_BROKEN_ZIP = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, *_BROKEN)


class CandleFileError(InputError):
    """A file is not a valid candle file: its author's fault. The message is one line with path, row, cause and cure."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A file's table as it is: `frame` has a column per field, named by its number, and `header` has their names.

    Text stays text, so that a value that does not parse can be shown. `names` are the file's own name and, for a zip,
    its member's. `written_ms` is when the file was last written; None where it is not a regular file.
    """

    frame: pl.DataFrame
    header: tuple[str, ...]
    names: tuple[str, ...]
    written_ms: int | None
    #: Whether numbers may have a decimal comma, because commas do not separate the fields.
    comma_is_free: bool = False


def load(path: Path) -> Raw:
    """Reads a file. Raises `CandleFileError` where it is missing, unreadable or of a format that holds no candles."""
    try:
        with path.open("rb") as file:
            content = file.read()
            status = os.fstat(file.fileno())
    except OSError as error:
        raise CandleFileError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix.lower() == ".parquet" and not content.startswith(b"PAR1"):
        raise CandleFileError(f"{path}: it is no parquet file; fetch or write it again")
    written_ms = status.st_mtime_ns // 1_000_000 if stat.S_ISREG(status.st_mode) else None
    names = [path.name]
    content = _unpacked(content, path, names)
    table, header, comma_is_free = _table(content, path)
    frame = table.rename(dict(zip(table.columns, map(str, range(table.width)), strict=True)))
    return Raw(frame, tuple(header), tuple(names), written_ms, comma_is_free)


def _unpacked(content: bytes, path: Path, names: list[str]) -> bytes:
    if content.startswith(b"PK\x03\x04"):
        return _member(content, path, names)
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as file:
                unpacked = file.read(_MOST_BYTES + 1)
        except _BROKEN as error:
            raise _broken(path, "cannot be unpacked", error) from None
        return _bounded(unpacked, path)
    return content


def _member(content: bytes, path: Path, names: list[str]) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            members = [m for m in packed.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
            if len(members) != 1:
                tables = ", ".join(m.filename for m in members if m.filename.endswith(".csv")) or "no .csv"
                raise CandleFileError(
                    f"{path}: a zip of {len(members)} files ({tables[:200]}); unpack it and name one candle file, "
                    "CSV or parquet"
                )
            names.append(Path(members[0].filename).name)
            with packed.open(members[0]) as file:
                # The size in the zip's directory need not be true.
                unpacked = file.read(_MOST_BYTES + 1)
    except CandleFileError:
        raise
    except _BROKEN_ZIP as error:
        raise _broken(path, "cannot be unpacked", error) from None
    return _bounded(unpacked, path)


def _bounded(unpacked: bytes, path: Path) -> bytes:
    if len(unpacked) > _MOST_BYTES:
        raise CandleFileError(f"{path}: it unpacks to over {_MOST_BYTES >> 20} MiB; a candle file is smaller")
    return unpacked


def _table(content: bytes, path: Path) -> tuple[pl.DataFrame, Sequence[str], bool]:
    """Returns the table, the names of its columns, and whether its numbers may have a decimal comma."""
    kind = "CSV"
    try:
        if content.startswith(b"PAR1"):
            kind = "parquet"
            frame = pl.read_parquet(io.BytesIO(content))
            return frame, frame.columns, False
        if content.startswith(b"ARROW1"):
            kind = "feather"
            frame = pl.read_ipc(io.BytesIO(content))
            return frame, frame.columns, False
        text = _text(content)
        if text[:1] in (b"[", b"{"):
            kind = "JSON"
            return *_of_json(text), False
        return _of_csv(text)
    except _BROKEN as error:
        raise _broken(path, f"cannot be read as {kind}", error) from None


def _text(content: bytes) -> bytes:
    """Returns the text in UTF-8, without a byte order mark and lines before the header.

    Raises `ValueError` where it is binary or empty.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16").encode()
    if b"\0" in content[:4_096]:
        raise ValueError("it is none of parquet, feather, CSV or JSON, nor one of these in a zip or gz")
    content = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    # Download pages put their address or a comment first, spreadsheets their separator.
    while re.match(rb"(?i)#|https?:|sep=", content):
        _, _, content = content.partition(b"\n")
        content = content.lstrip()
    if not content:
        raise ValueError("it is empty")
    return content


def _of_csv(text: bytes) -> tuple[pl.DataFrame, Sequence[str], bool]:
    first = text.partition(b"\n")[0].decode("utf-8", "replace").strip("\r")
    separator = max(_SEPARATORS, key=first.count)
    header = next(csv.reader([first], delimiter=separator), [])
    frame = pl.read_csv(
        io.BytesIO(text),
        has_header=False,
        infer_schema=False,
        separator=separator,
        encoding="utf8-lossy",
    )
    if header and header[0].strip()[:1].isdigit():
        return frame, _archive_names(len(header)), separator != ","
    return frame.slice(1), header[: frame.width], separator != ","


def _archive_names(width: int) -> Sequence[str]:
    if width not in _WIDTHS_WITHOUT_HEADER:
        raise ValueError(f"it has no header, and {width} columns are not the exchange's 6, 11 or 12")
    return _ARCHIVE[:width]


def _of_json(text: bytes) -> tuple[pl.DataFrame, Sequence[str]]:
    """Reads an answer of the exchange's REST API (rows as lists), or rows as objects. Returns the table and header."""
    rows = msgspec.json.decode(text)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], list | dict):
        raise ValueError("it is no list of candles")
    if isinstance(rows[0], list):
        header: Sequence[str] = _archive_names(len(rows[0]))
        fields = [dict(zip(header, row, strict=False)) for row in rows if isinstance(row, list)]
    else:
        header = tuple(rows[0])
        fields = [row for row in rows if isinstance(row, dict)]
    if len(fields) != len(rows):
        raise ValueError("its rows are of several kinds")
    return pl.DataFrame({name: _texts(row.get(name) for row in fields) for name in header}), header


def _texts(values: Iterator[Any]) -> pl.Series:
    return pl.Series([None if value is None else str(value) for value in values], dtype=pl.String)


def _broken(path: Path, what: str, error: BaseException) -> CandleFileError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CandleFileError(f"{path}: {what}: {cause}; fetch or write it again")
