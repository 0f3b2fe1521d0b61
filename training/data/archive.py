"""The format of the exchange's bulk archive, without I/O: which zips cover a period, and how to read them.

Source: binance-public-data, README and python/utility.py. Rows are those of REST, in ms or (since 2025) µs; spot files
have no header, but one is skipped if there. A zip must match its checksum and hold one CSV of its own name, or it is
refused with an `ArchiveError`.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass

from stream import times
from stream.core.market import binance
from stream.core.market.binance import WireError
from stream.core.market.candle import HOUR_MS, INTERVAL, LATEST_MS, Candle

DAY_MS = 24 * HOUR_MS
#: A month of 1h candles has some 100 KB of text; a zip that claims or unpacks to more is a bomb.
MAX_CSV_BYTES = 4 * 1024 * 1024
_CHECKSUM = re.compile(r"([0-9a-fA-F]{64}) [ *](\S+)\s*")
#: All that `zipfile` has been seen to raise on bytes that are no zip, or that are packed in an unknown way.
_NO_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    IndexError,
)


class ArchiveError(ValueError):
    """A file of the archive is malformed or does not match its checksum: the archive's fault."""


@dataclass(frozen=True, slots=True)
class Part:
    """A month (`2024-03`) or a day (`2024-03-05`) of a symbol in the archive; times in [from_ms, to_ms)."""

    symbol: str
    label: str
    from_ms: int
    to_ms: int

    @property
    def monthly(self) -> bool:
        return len(self.label) == len("2024-03")

    @property
    def name(self) -> str:
        return f"{self.symbol}-{INTERVAL}-{self.label}.zip"

    @property
    def path(self) -> str:
        folder = "monthly" if self.monthly else "daily"
        return f"/data/spot/{folder}/klines/{self.symbol}/{INTERVAL}/{self.name}"

    @property
    def checksum_path(self) -> str:
        return f"{self.path}.CHECKSUM"


def plan(symbol: str, start_ms: int, end_ms: int, now_ms: int) -> list[Part]:
    """Returns the months that are over, then the past days of the current month, that touch [start_ms, end_ms).

    The current day, and whatever the archive turns out to lack, is left to REST.
    """
    today_ms = now_ms - now_ms % DAY_MS
    parts: list[Part] = []
    at_ms = _month_start(start_ms)
    while at_ms < min(end_ms, today_ms):
        next_ms = _month_start(at_ms + 31 * DAY_MS)
        if next_ms <= today_ms:
            parts.append(Part(symbol, f"{times.moment(at_ms):%Y-%m}", at_ms, next_ms))
        else:
            parts += _days(symbol, at_ms, today_ms, start_ms, end_ms)
        at_ms = next_ms
    return parts


def days(month: Part, start_ms: int, end_ms: int) -> list[Part]:
    """Returns the days of a month that touch [start_ms, end_ms)."""
    return _days(month.symbol, month.from_ms, month.to_ms, start_ms, end_ms)


def _days(symbol: str, from_ms: int, to_ms: int, start_ms: int, end_ms: int) -> list[Part]:
    return [
        Part(symbol, times.day(at_ms), at_ms, at_ms + DAY_MS)
        for at_ms in range(from_ms, to_ms, DAY_MS)
        if at_ms < end_ms and at_ms + DAY_MS > start_ms
    ]


def _month_start(ms: int) -> int:
    return int(times.moment(ms).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()) * 1_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parse_checksum(body: bytes, part: Part) -> str:
    """Returns the sha256 in a `.CHECKSUM` file (`sha256sum`'s format); raises `ArchiveError` where it is no checksum
    of the part."""
    found = _CHECKSUM.fullmatch(body[:300].decode("utf-8", "replace"))
    if found is None or found[2] != part.name:
        raise ArchiveError(f"{part.name}.CHECKSUM is no checksum of {part.name}")
    return found[1].lower()


@dataclass(frozen=True, slots=True)
class Rows:
    """The closed candles of a part in order, and the number of rows set aside, by reason (`off_grid`, ...)."""

    candles: tuple[Candle, ...]
    set_aside: Counter[str]


def decode(content: bytes, part: Part) -> Rows:
    """Decodes a zip whose checksum was right; raises `ArchiveError` where its content is not the part's."""
    text = _csv(content, part)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if lines and not lines[0][:1].isdigit():
        del lines[0]
    # The rows are those of a REST page and mean the same, so one decoder reads both.
    body = b"[" + b",".join(b"[" + line + b"]" for line in lines) + b"]"
    try:
        page = binance.decode_klines(body, part.symbol, LATEST_MS)
    except WireError as error:
        raise ArchiveError(f"{part.name}: {error}") from None
    for candle in page.candles:
        if not part.from_ms <= candle.open_time < part.to_ms:
            raise ArchiveError(f"{part.name}: a row of {times.minute(candle.open_time)} is not of its period")
    return Rows(page.candles, Counter(page.rejected))


def _csv(content: bytes, part: Part) -> bytes:
    wanted = part.name.removesuffix(".zip") + ".csv"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            members = zipped.infolist()
            if [m.filename for m in members] != [wanted]:
                raise ArchiveError(f"{part.name}: it does not hold {wanted} and nothing else")
            if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"{part.name}: it is packed in a way that the archive does not use")
            if members[0].file_size > MAX_CSV_BYTES:
                raise ArchiveError(f"{part.name}: it unpacks to {members[0].file_size} bytes, {MAX_CSV_BYTES} at most")
            with zipped.open(members[0]) as file:
                # The size in the zip's directory need not be true.
                text = file.read(MAX_CSV_BYTES + 1)
                if len(text) > MAX_CSV_BYTES:
                    raise ArchiveError(f"{part.name}: it unpacks to over {MAX_CSV_BYTES} bytes")
                return text
    except ArchiveError:
        raise
    except _NO_ZIP as error:
        raise ArchiveError(f"{part.name}: it is no zip that can be read: {error}") from None
